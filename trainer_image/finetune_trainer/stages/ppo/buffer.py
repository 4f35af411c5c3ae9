"""One rollout: the answers to its prompts, and all that is learned from them. Kept in checkpoints, so a run that was
ended in the middle of a rollout goes on with the very same one.

Made by `experience`, read by the trainer. Every rank has all of it. Rows are answers; arrays of tokens are padded at
the right and count from an answer's first token.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from finetune_trainer.data.row import IGNORED
from finetune_trainer.stages.engine import Batch
from finetune_trainer.stages.ppo.advantages import Mask
from finetune_trainer.stages.ppo.kl import Fixed
from finetune_trainer.stages.ppo.rewards import Normalizer

Ints = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]
PER_TOKEN = ("log_probs", "values", "advantages", "returns")
ARRAYS = ("ids", "prompts", "answers", "scores", *PER_TOKEN)


@dataclass(frozen=True)
class Rollout:
    """See the module."""

    number: int
    facts: dict[str, float]
    """What is logged of it."""
    ids: Ints
    """Prompt and answer of each row."""
    prompts: Ints
    """Tokens of each prompt."""
    answers: Ints
    """Tokens of each answer."""
    scores: Singles
    """As the reward model said them."""
    log_probs: Singles
    """Of the answers' tokens, before anything was learned from them."""
    values: Singles
    """As they were then."""
    advantages: Singles
    returns: Singles

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and answer."""
        lengths: list[int] = (self.prompts + self.answers).tolist()
        return lengths

    def batch(self, rows: Sequence[int], pad_id: int) -> Batch:
        """A micro-batch. What belongs to tokens of answers is flat: row after row, without padding."""
        texts = [self.ids[row, : self.prompts[row] + self.answers[row]].tolist() for row in rows]
        made = collate(texts, [int(self.prompts[row]) for row in rows], pad_id)
        for name in PER_TOKEN:
            values = getattr(self, name)
            made[name] = torch.from_numpy(np.concatenate([values[row, : self.answers[row]] for row in rows]))
        return made


def collate(texts: Sequence[Sequence[int]], prompts: Sequence[int], pad_id: int) -> Batch:
    """Texts as rows, padded at the right; tokens from ``prompts`` on have labels."""
    ids = torch.full((len(texts), max(map(len, texts))), pad_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        ids[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
        labels[row, prompt : len(text)] = ids[row, prompt : len(text)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "tokens": mask.sum()}


def mask_of(lengths: Ints) -> Mask:
    """[rows, tokens]: which are there."""
    there: Mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    return there


def padded(rows: Sequence[Any], dtype: Any) -> npt.NDArray[Any]:
    """Rows of different lengths as one array, zero where there is nothing."""
    made = np.zeros((len(rows), max(map(len, rows))), dtype=dtype)
    for place, row in enumerate(rows):
        made[place, : len(row)] = row
    return made


@dataclass
class Memory:
    """What the stage keeps in checkpoints besides weights."""

    control: Fixed
    normalize: Normalizer
    rollout: Rollout | None = None

    def state_dict(self) -> dict[str, Any]:
        state = {**self.control.state_dict(), **self.normalize.state_dict(), "rollout": None}
        if self.rollout is not None:
            fields = asdict(self.rollout)
            state |= {name: torch.from_numpy(fields[name]) for name in ARRAYS}
            state |= {"rollout": self.rollout.number, "facts": self.rollout.facts}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.control.load_state_dict(state)
        self.normalize.load_state_dict(state)
        self.rollout = None
        if state["rollout"] is not None:
            arrays = {name: state[name].numpy() for name in ARRAYS}
            self.rollout = Rollout(number=state["rollout"], facts=state["facts"], **arrays)
