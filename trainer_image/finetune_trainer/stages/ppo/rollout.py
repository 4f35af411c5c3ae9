"""One rollout: the policy's answers to a batch of prompts, and what PPO learns from each of their tokens.

`collector` makes it, and `trainer` learns from it for several steps. Every rank holds all of it. Checkpoints hold it
too, so a run that resumes within a rollout continues with the same rollout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from finetune_api.micro_batch import MicroBatch

from finetune_trainer.data import collate, order
from finetune_trainer.data.collate import Batch
from finetune_trainer.data.micro_batches import deal
from finetune_trainer.data.row import Row
from finetune_trainer.data.shuffle import permutation
from finetune_trainer.stages.ppo.losses import Mask
from finetune_trainer.stages.ppo.rewards import FixedKl, RewardNormalizer

Ints = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]

PER_TOKEN = ("log_probs", "values", "advantages", "returns")
"""Fields of `Rollout`, and names of a batch, with a value per token of the answers."""
ARRAYS = {"token_ids": "ids", "prompt_lengths": "prompts", "answer_lengths": "answers", "scores": "scores"} | {
    name: name for name in PER_TOKEN
}
"""Field of `Rollout` -> name in a checkpoint."""


@dataclass(frozen=True)
class Schedule:
    """Which rollout a step learns from, and which of its rows: a function of the step, like `data.order`. So a run
    resumes at any step, on any number of ranks. A rollout lasts for ``epochs`` x ``minibatches`` steps."""

    prompt_count: int
    """Prompts of the training split."""
    rollout_batch: int
    """Prompts of a rollout; a multiple of ``global_batch``."""
    global_batch: int
    """Answers of a step."""
    epochs: int
    """Passes over a rollout."""
    seed: int

    @property
    def minibatches(self) -> int:
        """Steps of one pass over a rollout."""
        return self.rollout_batch // self.global_batch

    @property
    def steps_per_rollout(self) -> int:
        return self.epochs * self.minibatches

    @property
    def rollouts_per_pass(self) -> int:
        """Rollouts that answer all prompts once; the last is filled up."""
        return order.steps_per_epoch(self.prompt_count, self.rollout_batch)

    @property
    def samples_per_pass(self) -> int:
        """Answers that steps learn from until all prompts are answered once: an epoch of the trainer."""
        return self.rollouts_per_pass * self.rollout_batch * self.epochs

    def rollout(self, step: int) -> int:
        """Number of the rollout that a step learns from."""
        return step // self.steps_per_rollout

    def prompts(self, rollout: int) -> list[int]:
        """[rollout_batch]: the prompt of each row of a rollout."""
        prompts: list[int] = self._prompt_order.rows(rollout).tolist()
        return prompts

    @cached_property
    def _prompt_order(self) -> order.EpochOrder:
        """All prompts are shuffled once per pass over them, not for each rollout."""
        return order.EpochOrder(self.prompt_count, self.rollout_batch, self.seed)

    def minibatch(self, step: int) -> list[int]:
        """[global_batch]: the rows of its rollout that a step learns from. Each pass shuffles them."""
        rollout, step_of_rollout = divmod(step, self.steps_per_rollout)
        epoch, minibatch = divmod(step_of_rollout, self.minibatches)
        order = permutation(self.rollout_batch, f"rollout:{self.seed}:{rollout}:{epoch}")
        rows: list[int] = order[minibatch * self.global_batch :][: self.global_batch].tolist()
        return rows


def micro_batches(
    rows: Sequence[int], lengths: Sequence[int], micro_batch: MicroBatch, rank: int, world_size: int
) -> list[list[int]]:
    """A rank's share of the rows, in micro-batches. ``lengths``: tokens of each row of the rollout. The number of rows
    is a multiple of ``world_size``, and all ranks get the same number of micro-batches."""
    longest_first = sorted(rows, key=lambda row: (-lengths[row], row))
    dealt = deal([lengths[row] for row in longest_first], micro_batch, world_size)[rank]
    return [[longest_first[place] for place in batch] for batch in dealt]


@dataclass(frozen=True)
class Rollout:
    """See the module. Rows are answers. Arrays of tokens are padded on the right, and those of answers begin at an
    answer's first token: [rows, longest answer]."""

    number: int
    metrics: dict[str, float]
    """Logged for each step that learns from it."""
    token_ids: Ints
    """[rows, longest row]: prompt and answer."""
    prompt_lengths: Ints
    """[rows]."""
    answer_lengths: Ints
    """[rows]."""
    scores: Singles
    """[rows]: raw scores of the reward model."""
    log_probs: Singles
    """Log-probabilities of the answers' tokens when they were generated: the old policy."""
    values: Singles
    """Values of the value head at that time."""
    advantages: Singles
    """Whitened."""
    returns: Singles

    @property
    def lengths(self) -> list[int]:
        """[rows]: tokens of prompt and answer."""
        lengths: list[int] = (self.prompt_lengths + self.answer_lengths).tolist()
        return lengths

    def batch(self, rows: Sequence[int]) -> Batch:
        """A micro-batch. Tokens of answers have labels, and the values of `PER_TOKEN` are [tokens of all answers], row
        after row."""
        texts = [self.token_ids[row, : self.prompt_lengths[row] + self.answer_lengths[row]].tolist() for row in rows]
        batch = answer_batch(texts, [int(self.prompt_lengths[row]) for row in rows])
        for name in PER_TOKEN:
            values = getattr(self, name)
            batch[name] = torch.from_numpy(np.concatenate([values[row, : self.answer_lengths[row]] for row in rows]))
        return batch


def answer_batch(texts: Sequence[list[int]], prompt_lengths: Sequence[int]) -> Batch:
    """Prompts with their answers as a stream. Tokens of answers have labels."""
    spans = zip(texts, prompt_lengths, strict=True)
    return collate.stream([Row(text, [(prompt, len(text))]) for text, prompt in spans])


def mask_of(lengths: Ints) -> Mask:
    """[rows, longest]: true for the first ``lengths`` tokens of each row."""
    mask: Mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    return mask


def padded(rows: Sequence[Sequence[int] | Singles], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """[rows, longest]: rows of different lengths as one array, padded on the right with zeros."""
    array = np.zeros((len(rows), max(map(len, rows))), dtype=dtype)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array


@dataclass
class PpoState:
    """What checkpoints hold for the stage, besides weights and optimizer."""

    kl: FixedKl
    normalizer: RewardNormalizer
    rollout: Rollout | None = None
    """The current rollout; None before the first step."""

    def state_dict(self) -> dict[str, Any]:
        rollout = self.rollout
        state = {**self.kl.state_dict(), **self.normalizer.state_dict(), "rollout": None}
        if rollout is not None:
            state |= {name: torch.from_numpy(getattr(rollout, field)) for field, name in ARRAYS.items()}
            state |= {"rollout": rollout.number, "facts": rollout.metrics}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl.load_state_dict(state)
        self.normalizer.load_state_dict(state)
        self.rollout = None
        if state["rollout"] is not None:
            arrays = {field: state[name].numpy() for field, name in ARRAYS.items()}
            self.rollout = Rollout(number=state["rollout"], metrics=state["facts"], **arrays)
