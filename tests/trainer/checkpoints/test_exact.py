"""A run that is stopped or killed and then resumed equals an uninterrupted run: on the same ranks its weights are equal
bit for bit, on other ranks its rows, losses and counters are equal."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.support import fsdp_cpu, tiny
from tests.trainer.support.attempt import Rows, Series, killed, recorded, stopped
from tests.trainer.support.forge import Forge, send

ROWS = 21
"""Three steps of eight an epoch, the last of which is filled up with three rows of its first."""
STEPS = 8
CLOSE = 1e-6

UNPACKED: dict[str, Any] = {}
PACKED = {"packing": "bfd", "cutoffLength": 48}
GROUPED = {"groupByLength": True}
IN_TOKENS = {"microBatchTokens": 75, "microBatchSize": None}
"""A few rows, so that steps have different numbers of micro-batches."""
EVALUATION = {"datasets": [{"source": "pvc://data/rows.jsonl", "format": "openai"}], "everySteps": 3}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """As the fixture ``root``, by the dropout of the model's attention. It can be quantised."""
    roots = {}
    for dropout in (0.0, 0.1):
        roots[dropout] = tmp_path_factory.mktemp("root")
        folder = roots[dropout] / "models" / "model"
        tiny.save_model(folder, hidden_size=64, intermediate_size=128, attention_dropout=dropout)
        tiny.save_rows(roots[dropout] / "data" / "rows.jsonl", rows=ROWS)
    return roots


@dataclass(frozen=True)
class Sharded:
    """Whether a rank holds shards of all weights."""

    everything: bool


def sharded(rank: int) -> None:
    """FSDP on CPUs, and what each rank holds before its first step."""
    from unittest import mock

    from finetune_trainer.training.trainer import BaseTrainer
    from torch.distributed.tensor import DTensor

    fsdp_cpu.install()
    recorded(rank)
    batches_of, reported = BaseTrainer.get_batch_samples, False

    def get_batch_samples(self: Any, *args: Any) -> Any:
        nonlocal reported
        if not reported:
            send(Sharded(all(isinstance(weight, DTensor) for weight in self.model.parameters())))
        reported = True
        return batches_of(self, *args)

    mock.patch.object(BaseTrainer, "get_batch_samples", get_batch_samples).start()


# Not all combinations, but every method with every number of ranks, both kinds of parallelism, all kinds of data with
# both ends, and each pair that could break by itself: quantised weights with packs, shards with a kill, one rank with
# shards. Without --sweep: each method, each kind of data, both kinds of parallelism and both ends.
@pytest.mark.parametrize(
    ("method", "data", "world", "parallelism", "end"),
    [
        ("lora", UNPACKED, 1, "ddp", stopped),
        ("qlora", PACKED, 1, "ddp", killed),
        pytest.param("full", GROUPED, 1, "ddp", killed, marks=pytest.mark.sweep),
        pytest.param("freeze", PACKED, 1, "ddp", stopped, marks=pytest.mark.sweep),
        pytest.param("lora", PACKED, 2, "ddp", killed, marks=pytest.mark.sweep),
        pytest.param("qlora", UNPACKED, 2, "ddp", stopped, marks=pytest.mark.sweep),
        ("full", UNPACKED, 2, "ddp", stopped),
        ("freeze", GROUPED, 2, "ddp", killed),
        pytest.param("lora", UNPACKED, 4, "ddp", stopped, marks=pytest.mark.sweep),
        ("full", PACKED, 2, "fsdp", killed),
        pytest.param("lora", GROUPED, 2, "fsdp", stopped, marks=pytest.mark.sweep),
        pytest.param("full", UNPACKED, 1, "fsdp", stopped, marks=pytest.mark.sweep),
        ("lora", IN_TOKENS, 2, "ddp", killed),
        pytest.param("full", IN_TOKENS, 2, "fsdp", stopped, marks=pytest.mark.sweep),
    ],
)
def test_on_the_same_ranks_everything_is_bit_equal(
    forge: Forge,
    roots: dict[float, Path],
    tmp_path: Path,
    method: str,
    data: dict[str, Any],
    world: int,
    parallelism: str,
    end: Callable[..., None],
) -> None:
    # Where lines are of several steps, the cut falls between two of them.
    log = {"logEverySteps": 3 if data is PACKED else 1}
    job = tiny.job(
        training={"microBatchSize": 2, **data, **log, "parallelism": parallelism, "maxSteps": STEPS},
        tuning={"method": method, **({"lora": {"rank": 4, "dropout": 0.1}} if "lora" in method else {})},
        checkpoints={"everySteps": 2},
        evaluation=EVALUATION,
    )
    install = sharded if parallelism == "fsdp" else recorded
    whole = Series(forge, roots[0.1], tmp_path / "whole", job, install)
    assert whole.run(world=world) == 0, whole.log
    cut = Series(forge, roots[0.1], tmp_path / "cut", job, install)
    # In the sixth step two checkpoints have been begun, so the first of them is there.
    how, code = (partial(stopped, step=5), 75) if end is stopped else (partial(killed, step=6, victim=world - 1), 137)
    assert cut.run(world=world, end=how) == code, cut.log
    assert cut.run(world=world) == 0, cut.log
    assert f"from step {cut.first_steps[-1] - 1} (" in cut.log

    assert cut.weights == whole.weights
    for name in ("current_steps", "loss", "lr", "epoch", "total_tokens", "eval_loss"):
        assert cut.logged(name) == whole.logged(name)
    for name in ("loss", "learningRate", "evalLoss"):
        assert cut.curves[name] == whole.curves[name]
    ours, theirs = results(cut), results(whole)
    assert {name: ours[name] for name in TIMELESS} == {name: theirs[name] for name in TIMELESS}
    assert set(cut.events(Sharded)) == ({Sharded(True)} if parallelism == "fsdp" else set())


TIMELESS = (
    "epoch",
    "train_loss",
    "final_loss",
    "train_steps",
    "num_tokens",
    "eval_loss",
    "eval_best_loss",
    "eval_best_step",
)
"""Metrics that do not depend on the clock."""


def results(series: Series) -> dict[str, float]:
    content: dict[str, float] = json.loads((series.home / "reports" / "all_results.json").read_text())
    return content


# Ranks and micro-batches: 2 -> 1 -> 2 ranks, 8 x 1 -> 4 x 2, and both at once.
@pytest.mark.parametrize(
    ("data", "parallelism", "shapes"),
    [
        (UNPACKED, "ddp", [(2, 4), (1, 4), (2, 4)]),
        pytest.param(UNPACKED, "ddp", [(1, 8), (1, 4)], marks=pytest.mark.sweep),
        (PACKED, "ddp", [(1, 8), (2, 2), (1, 1)]),
        pytest.param(GROUPED, "ddp", [(2, 4), (1, 8), (2, 1)], marks=pytest.mark.sweep),
        (UNPACKED, "fsdp", [(2, 4), (1, 4), (2, 2)]),
    ],
)
def test_other_ranks_and_micro_batches_train_on_the_remaining_rows(
    forge: Forge,
    roots: dict[float, Path],
    tmp_path: Path,
    data: dict[str, Any],
    parallelism: str,
    shapes: list[tuple[int, int]],
) -> None:
    training = {**data, "parallelism": parallelism, "maxSteps": STEPS, "microBatchSize": 8}
    job = tiny.job(training=training, tuning={"method": "full"})
    install = sharded if parallelism == "fsdp" else recorded
    whole = Series(forge, roots[0.0], tmp_path / "whole", job, install)
    assert whole.run(micro=8) == 0, whole.log
    cut = Series(forge, roots[0.0], tmp_path / "cut", job, install)
    for number, (world, micro) in enumerate(shapes[:-1]):
        end = partial(stopped, step=2 + 3 * number)
        assert cut.run(world=world, micro=micro, end=end) == 75, cut.log
    world, micro = shapes[-1]
    assert cut.run(world=world, micro=micro) == 0, cut.log

    trained, expected = rows_by_step(cut), rows_by_step(whole)
    assert list(trained) == list(range(1, STEPS + 1))
    assert trained == expected
    if data == UNPACKED:
        once = Counter(row for step in (1, 2, 3) for row in expected[step])
        assert len(once) == ROWS
        assert sorted(once.values()) == [1] * (ROWS - 3) + [2] * 3
    assert cut.first_steps == [1, *(3 + 3 * number for number in range(len(shapes) - 1))]
    assert cut.logged("current_steps") == list(range(1, STEPS + 1))
    assert cut.logged("loss") == pytest.approx(whole.logged("loss"), abs=CLOSE)
    assert cut.logged("total_tokens") == whole.logged("total_tokens")
    assert set(cut.events(Sharded)) == ({Sharded(True)} if parallelism == "fsdp" else set())


def rows_by_step(series: Series) -> dict[int, list[tuple[int, ...]]]:
    """The rows of each step, of all ranks. Their order does not matter: a loss is a sum over them."""
    steps: dict[int, dict[int, Rows]] = {}
    for rows in series.events(Rows):
        assert rows.rank not in steps.setdefault(rows.step, {}), "a step was done twice"
        steps[rows.step][rows.rank] = rows
    return {
        step: sorted(tuple(row) for rows in of_rank.values() for batch in rows.batches for row in batch)
        for step, of_rank in steps.items()
    }


def test_time_adds_up_and_unsaved_steps_of_a_killed_run_leave_no_trace(
    forge: Forge, roots: dict[float, Path], tmp_path: Path
) -> None:
    job = tiny.job(training={"maxSteps": STEPS}, checkpoints={"everySteps": 3})
    series = Series(forge, roots[0.0], tmp_path / "cut", job)
    assert series.run(end=partial(killed, step=7, victim=0)) == 137, series.log
    assert max(series.logged("current_steps")) > 3
    newest = max(series.home.glob("checkpoints/*/checkpoint-*"))
    saved = json.loads((newest / "stage.json").read_text())
    assert series.run() == 0, series.log
    assert newest.name == f"checkpoint-{series.first_steps[1] - 1}"
    assert series.logged("current_steps") == list(range(1, STEPS + 1))
    assert results(series)["train_runtime"] > saved["counters"]["seconds"]
    assert results(series)["num_tokens"] == series.logged("total_tokens")[-1]
    for name, key in (("loss", "loss"), ("learningRate", "lr"), ("gradientNorm", "grad_norm")):
        steps, values = zip(*series.curves[name], strict=True)
        assert steps == tuple(range(1, STEPS + 1)), "steps that are repeated replace the earlier steps"
        assert values == pytest.approx(series.logged(key), rel=1e-4)
