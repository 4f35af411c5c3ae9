"""The orders of rows are the same in every release: a newer trainer resumes a job in the order in which it began."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from finetune_trainer.data import order
from finetune_trainer.data.shuffle import Rows
from finetune_trainer.stages.ppo.rollout import Schedule

GOLDEN = Path(__file__).parents[3] / "golden" / "orders.json"
EPOCHS = [
    (rows, batch, seed, epoch)
    for rows in (1, 2, 3, 7, 10, 63, 64, 65, 1000, 4096, 100_003)
    for batch in (1, 8, 48)
    for seed, epoch in ((42, 0), (42, 3), (0, 1), (2_147_483_647, 12))
]
ROLLOUTS = [(10, 8, 4, 2, 42), (100, 32, 8, 4, 0), (1000, 64, 64, 3, 7)]
"""(prompts, rollout batch, global batch, epochs, seed)."""


def digest(rows: Sequence[int] | Rows) -> str:
    return hashlib.sha256(np.asarray(rows, dtype="<i8").tobytes()).hexdigest()[:16]


def lengths_of(rows: int) -> npt.NDArray[np.int32]:
    """Many rows have the same length, so ties matter."""
    return np.array([1 + (row * 7919) % 97 for row in range(rows)], dtype=np.int32)


def plain(rows: int, batch: int, seed: int, epoch: int) -> Rows:
    return order.epoch_order(rows, batch, seed, epoch)


def sorted_by_length(rows: int, batch: int, seed: int, epoch: int) -> Rows:
    """Indices into the order, as `order.longest_first` sorts each step."""
    steps = plain(rows, batch, seed, epoch).reshape(-1, batch)
    lengths = lengths_of(rows)
    return np.concatenate([batch * at + order.longest_first(step, lengths) for at, step in enumerate(steps)])


def grouped(rows: int, batch: int, seed: int, epoch: int) -> Rows:
    return order.grouped_by_length(plain(rows, batch, seed, epoch), lengths_of(rows), batch, seed, epoch)


KINDS: dict[str, Callable[[int, int, int, int], Rows]] = {
    "plain": plain,
    "sorted": sorted_by_length,
    "grouped": grouped,
}


def orders() -> dict[str, str]:
    """Name -> digest of every order that the golden file has."""
    made = {
        f"{kind} {rows} {batch} {seed} {epoch}": digest(compute(rows, batch, seed, epoch))
        for kind, compute in KINDS.items()
        for rows, batch, seed, epoch in EPOCHS
    }
    for numbers in ROLLOUTS:
        schedule = Schedule(*numbers)
        steps, rollouts = 3 * schedule.steps_per_rollout, 2 * schedule.rollouts_per_pass + 1
        made |= {
            f"prompts {numbers}": digest([row for number in range(rollouts) for row in schedule.prompts(number)]),
            f"minibatches {numbers}": digest([row for step in range(steps) for row in schedule.minibatch(step)]),
        }
    return made


def test_the_orders_are_those_of_earlier_releases() -> None:
    """The orders of a job do not depend on the release that trains it."""
    assert orders() == json.loads(GOLDEN.read_text())
