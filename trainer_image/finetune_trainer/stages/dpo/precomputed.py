"""`dpo.precomputeReference`: the reference sees all pairs before the first step, and then its memory is given back.

Made by the workflow, and called by the trainer before it trains, when the model lies where it will be trained. What it
says is two numbers a pair, kept under the job's folder with the digest of the job: an attempt that goes on from there
reads them, and loads no second model at all.
"""

# ruff: noqa: ARG002  (a callback's arguments are given, used or not)

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import TrainerCallback

from finetune_trainer import heartbeat
from finetune_trainer.checkpoints.storage import guard
from finetune_trainer.data.collate import Batch
from finetune_trainer.data.pairs import Pairs
from finetune_trainer.data.store import Split
from finetune_trainer.errors import Preempted
from finetune_trainer.run import Run
from finetune_trainer.stages.agree import from_main, gather, share
from finetune_trainer.workspace import sync_folder

log = logging.getLogger(__name__)

FILE = "reference.safetensors"
REFERENCE = "reference"
"""In a batch: what the reference makes of its answers, [2B]."""
Scores = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
"""Split -> [pairs, (chosen, rejected)]."""


class ScoredPairs(Pairs):
    """Pairs, and what the reference makes of them once it has seen them."""

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.scores = np.full((len(self), 2), np.nan, dtype=np.float32)

    def collator(self, pad_id: int, attention: str) -> Callable[[Sequence[int]], Batch]:
        collate = super().collator(pad_id, attention)

        def batch(items: Sequence[int]) -> Batch:
            scores = self.scores[np.asarray(items)].T.reshape(-1)
            return collate(items) | {REFERENCE: torch.from_numpy(scores)}

        return batch


class Precomputed(TrainerCallback):
    """The reference's part, and where it is kept. `trainer` is set once it exists."""

    def __init__(self, run: Run, splits: dict[str, ScoredPairs], pad_id: int) -> None:
        self.run, self.splits, self.pad_id = run, splits, pad_id
        self.file = run.folders.job / FILE
        self.trainer: Any = None
        kept = from_main(_read(self.file, run.job.digest, splits) if run.is_main else None)
        self.known = kept is not None
        """Whether an earlier attempt has kept it, so that nobody needs the reference any more."""
        self._fill(kept or {})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.known:
            return
        log.info("the reference sees %d pairs", sum(len(pairs) for pairs in self.splits.values()))
        scores = {name: self._see(pairs) for name, pairs in self.splits.items()}
        if self.run.is_main:
            _write(self.file, self.run.job.digest, scores)
        self._fill(scores)
        self.known = True
        self.trainer.reference.give_back()
        self.trainer.reference = None

    def _fill(self, scores: Scores) -> None:
        for name, values in scores.items():
            self.splits[name].scores[:] = values

    def _see(self, pairs: ScoredPairs) -> np.ndarray[Any, np.dtype[np.float32]]:
        """All pairs of a split, each by one rank. Longest first: what doesn't fit into memory shows at once."""
        rows, ranks = self.run.micro_batch_size, self.run.world_size
        order = np.argsort(-pairs.lengths.astype(np.int64), kind="stable")
        collate = pairs.collator(self.pad_id, "")
        seen: list[tuple[list[int], Any]] = []
        for first in range(0, len(order), rows * ranks):
            heartbeat.alive()
            mine = order[first + self.run.rank * rows :][:rows].tolist()
            # A rank that has none left still takes part: sharded weights are gathered by all or by none.
            batch = self.trainer._prepare_inputs(collate(mine or order[-1:].tolist()))
            answers = self.trainer.of_reference(self.trainer.model, batch)
            seen.append((mine, answers.reshape(2, -1).T.cpu().numpy()))
            if any(stop for (stop,) in share([self.run.stop_requested()], self.trainer.args.device)):
                raise Preempted("told to stop before training began; nothing is lost, the next attempt starts over")
        scores = np.empty((len(pairs), 2), dtype=np.float32)
        for mine, values in (one for rank in gather(seen) for one in rank):
            scores[mine] = values[: len(mine)]
        return scores


def _read(file: Path, digest: str, splits: dict[str, ScoredPairs]) -> Scores | None:
    """What this very job has kept; None where there is nothing, or of another job."""
    try:
        with safe_open(file, framework="numpy") as kept:
            if (kept.metadata() or {}).get("digest") != digest:
                return None
            scores = {name: kept.get_tensor(name) for name in splits}
    except Exception:  # not there, or not whole: then the reference is asked again
        return None
    fits = all(scores[name].shape == pairs.scores.shape for name, pairs in splits.items())
    return scores if fits else None


def _write(file: Path, digest: str, scores: Scores) -> None:
    """Whole or not at all, and on disk when this returns."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    with guard(file):
        try:
            save_file(scores, temporary, metadata={"digest": digest})
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.rename(file)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(file.parent)
