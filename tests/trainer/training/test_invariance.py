"""How a global batch is cut into micro-batches, and over how many ranks, changes no loss of any stage."""

from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support import stages
from tests.trainer.support.attempt import Series
from tests.trainer.support.forge import Forge

CLOSE = 1e-5
STEPS = 8
"""More than two epochs of three, the last step of each filled up; of ppo two rollouts of four."""
TOKENS = 60
"""A micro-batch of so many has a few rows, so steps have different numbers of micro-batches."""
WAYS: list[tuple[int, dict[str, Any]]] = [
    (1, {"micro": 4}),
    (1, {"micro": 1}),
    (2, {"micro": 4}),
    (1, {"tokens": TOKENS}),
    (2, {"tokens": TOKENS}),
]
"""(ranks, micro-batch of each)."""
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {"training": {"packing": "bfd", "cutoffLength": 48}},
    "dpo": {"dpo": {"loss": "orpo"}},
    "kto": {"kto": {"sftWeight": 0.5}},
}
"""Where a loss has a second term, with a count of its own: tokens beside pairs or rows. And packs, whose rows differ in
what is trained of them."""
TERMS = {"dpo": ("sft_loss", "odds_ratio_loss"), "kto": ("sft_loss",)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stages.save_volumes(tmp_path_factory.mktemp("root"))


# Without --sweep: one model, one model and its reference, and all four of ppo.
@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[] if stage in ("sft", "dpo", "ppo") else [pytest.mark.sweep])
        for stage in stages.STAGES
    ],
)
def test_losses_do_not_depend_on_micro_batches_and_ranks(forge: Forge, root: Path, tmp_path: Path, stage: str) -> None:
    sections = SECTIONS.get(stage, {})
    training = {"maxSteps": STEPS, "microBatchSize": 8, "learningRate": 0.01, **sections.get("training", {})}
    job = stages.job(stage, "lora", **{**sections, "training": training})
    whole = Series(forge, root, tmp_path / "8x1", job)
    assert whole.run(micro=8) == 0, whole.log
    names = ("loss", "total_tokens", *stages.NUMBERS.get(stage, ()), *TERMS.get(stage, ()))
    assert {name: len(whole.logged(name)) for name in names} == dict.fromkeys(names, STEPS)
    for world, held in WAYS:
        other = Series(forge, root, tmp_path / f"{world}-{held}", job)
        assert other.run(world=world, **held) == 0, other.log
        for name in names:
            assert other.logged(name) == pytest.approx(whole.logged(name), abs=CLOSE), (name, world, held)
