"""`test_exact` for every stage: a run that is stopped or killed and then resumed has the weights of an uninterrupted
run. With other ranks and micro-batches, it has the same losses."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.trainer.checkpoints.test_exact import Sharded, sharded
from tests.trainer.support import stages
from tests.trainer.support.attempt import Series, killed, recorded, stopped
from tests.trainer.support.forge import Forge

CLOSE = 1e-5
ROUNDED = 1e-6
"""Tolerance for sums of equal parts in another order: a checkpoint has the sums of its steps so far."""
STEPS = 8
LINE = 3
"""Steps in each log line after the first. The runs are cut between two lines, so a run resumes with sums that the ranks
of another run recorded."""


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """The volumes, by the dropout of the model's attention."""
    return {
        dropout: stages.save_volumes(tmp_path_factory.mktemp("root"), attention_dropout=dropout)
        for dropout in (0.0, 0.1)
    }


# Each stage with an adapter and with all weights, on one rank and on two; those with a second model also in shares.
# Without --sweep: each stage once.
@pytest.mark.parametrize(
    ("stage", "method", "world", "parallelism", "end"),
    [
        ("pt", "full", 2, "ddp", killed),
        pytest.param("rm", "full", 1, "ddp", killed, marks=pytest.mark.sweep),
        ("rm", "lora", 2, "ddp", stopped),
        pytest.param("dpo", "lora", 1, "ddp", killed, marks=pytest.mark.sweep),
        ("dpo", "full", 2, "fsdp", stopped),
        pytest.param("kto", "full", 1, "ddp", stopped, marks=pytest.mark.sweep),
        ("kto", "lora", 2, "ddp", killed),
        pytest.param("ppo", "lora", 1, "ddp", killed, marks=pytest.mark.sweep),
        ("ppo", "full", 2, "ddp", stopped),
        pytest.param("ppo", "lora", 2, "fsdp", killed, marks=pytest.mark.sweep),
    ],
)
def test_on_the_same_ranks_everything_is_bit_equal(
    forge: Forge,
    roots: dict[float, Path],
    tmp_path: Path,
    stage: str,
    method: str,
    world: int,
    parallelism: str,
    end: Callable[..., None],
) -> None:
    """The end comes in the middle of an epoch, and of ppo's second rollout."""
    job = stages.job(
        stage,
        method,
        training={"parallelism": parallelism, "maxSteps": STEPS, "microBatchSize": 2, "logEverySteps": LINE},
        checkpoints={"everySteps": 2},
        evaluation={"datasets": [stages.dataset(stage)], "everySteps": 3},
    )
    install = sharded if parallelism == "fsdp" else recorded
    whole = Series(forge, roots[0.1], tmp_path / "whole", job, install)
    assert whole.run(world=world) == 0, whole.log
    cut = Series(forge, roots[0.1], tmp_path / "cut", job, install)
    how, code = (partial(stopped, step=5), 75) if end is stopped else (partial(killed, step=6, victim=world - 1), 137)
    assert cut.run(world=world, end=how) == code, cut.log
    assert cut.run(world=world) == 0, cut.log
    assert f"from step {cut.first_steps[-1] - 1} (" in cut.log

    assert cut.weights == whole.weights
    for name in ("current_steps", "loss", "lr", "epoch", "total_tokens", "eval_loss"):
        assert cut.logged(name) == whole.logged(name), name
    for name in stages.NUMBERS.get(stage, ()):
        assert whole.logged(name), name
        assert cut.logged(name) == pytest.approx(whole.logged(name), abs=ROUNDED), name
    assert set(cut.events(Sharded)) == ({Sharded(True)} if parallelism == "fsdp" else set())


# Without --sweep: a stage with pairs, one with a reference, and one with rollouts.
@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[pytest.mark.sweep] if stage in ("pt", "dpo") else [])
        for stage in stages.STAGES
        if stage != "sft"
    ],
)
def test_other_ranks_and_micro_batches_train_on_the_remaining_rows(
    forge: Forge, roots: dict[float, Path], tmp_path: Path, stage: str
) -> None:
    job = stages.job(stage, training={"maxSteps": STEPS, "microBatchSize": 8, "logEverySteps": LINE})
    whole = Series(forge, roots[0.0], tmp_path / "whole", job)
    assert whole.run(micro=8) == 0, whole.log
    cut = Series(forge, roots[0.0], tmp_path / "cut", job)
    assert cut.run(world=2, micro=4, end=partial(stopped, step=2)) == 75, cut.log
    assert cut.run(world=1, micro=8, end=partial(stopped, step=5)) == 75, cut.log
    assert cut.run(world=2, micro=1) == 0, cut.log

    assert cut.first_steps == [1, 3, 6]
    assert cut.logged("current_steps") == whole.logged("current_steps") == [1, 3, 6, STEPS]
    # Each is a mean of so many at most: no step's may differ by more than CLOSE.
    for name in ("loss", *stages.NUMBERS.get(stage, ())):
        assert whole.logged(name), name
        assert cut.logged(name) == pytest.approx(whole.logged(name), abs=CLOSE / LINE), name
    assert cut.logged("total_tokens") == whole.logged("total_tokens")
