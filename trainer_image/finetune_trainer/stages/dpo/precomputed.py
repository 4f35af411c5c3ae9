"""`dpo.precomputeReference`: the reference sees all pairs before the first step, and then its memory is given back.

Made by the workflow, and called by the trainer before it trains, when the model lies where it will be trained. What it
says is two numbers a pair, kept under the job's folder with the digest of the job, every few minutes and at a stop: an
attempt that goes on from there asks of the other pairs only, in the same batches, and where there are none loads no
second model at all.
"""

# ruff: noqa: ARG002  (a callback's arguments are given, used or not)

import logging
import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from finetune_api.status import Progress
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
KEEP_SECONDS = 120.0
"""So much of the reference's work a killed run may lose."""
REFERENCE = "reference"
"""In a batch: what the reference makes of its answers, [2B]."""
Scores = dict[str, np.ndarray[Any, np.dtype[np.float32]]]
"""Split -> [pairs, (chosen, rejected)]; NaN where it isn't known yet."""


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
        kept: Scores | None = from_main(_read(self.file, run.job.digest, splits) if run.is_main else None)
        for name, values in (kept or {}).items():
            splits[name].scores[:] = values
        self.kept_at = time.monotonic()

    @property
    def seen(self) -> int:
        """Pairs that it has seen, in this attempt or before."""
        return sum(int((~_unknown(pairs.scores)).sum()) for pairs in self.splits.values())

    @property
    def known(self) -> bool:
        """Whether it has seen all, so that nobody needs the reference any more."""
        return self.seen == self._pairs

    @property
    def _pairs(self) -> int:
        return sum(len(pairs) for pairs in self.splits.values())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.reference is None:
            return
        if self.run.is_main:
            log.info("the reference sees %d pairs, and has seen %d before", self._pairs, self.seen)
        for pairs in self.splits.values():
            self._see(pairs)
        self._keep()
        self.trainer.reference.give_back()
        self.trainer.reference = None

    def _see(self, pairs: ScoredPairs) -> None:
        """All pairs of a split, each by one rank. Longest first: what doesn't fit into memory shows at once."""
        rows, ranks = self.run.micro_batch_size, self.run.world_size
        order = np.argsort(-pairs.lengths.astype(np.int64), kind="stable")
        collate = pairs.collator(self.pad_id, "")
        said: list[tuple[list[int], Any]] = []
        before, done = self.seen, 0
        for first in range(0, len(order), rows * ranks):
            together = order[first : first + rows * ranks]
            if not _unknown(pairs.scores[together]).any():
                continue
            heartbeat.alive()
            mine = together[self.run.rank * rows :][:rows].tolist()
            # A rank that has none left still takes part: sharded weights are gathered by all or by none.
            batch = self.trainer._prepare_inputs(collate(mine or order[-1:].tolist()))
            answers = self.trainer.of_reference(self.trainer.model, batch)
            said.append((mine, answers.reshape(2, -1).T.cpu().numpy()))
            done += len(together)
            self._report(min(before + done, self._pairs))
            told = [self.run.stop_requested(), time.monotonic() - self.kept_at > KEEP_SECONDS]
            stop_on, due_on = zip(*share(told, self.trainer.args.device), strict=True)
            if any(stop_on) or due_on[0]:
                _take(pairs, said)
                self._keep()
            if any(stop_on):
                raise Preempted("told to stop before training began; what the reference has said so far is kept")
        _take(pairs, said)

    def _keep(self) -> None:
        if self.run.is_main:
            _write(self.file, self.run.job.digest, {name: pairs.scores for name, pairs in self.splits.items()})
        self.kept_at = time.monotonic()

    def _report(self, seen: int) -> None:
        """status.progress: a run that says nothing for long counts as hung."""
        if not self.run.is_main:
            return
        step, steps = self.trainer.state.global_step, self.trainer.state.max_steps
        percent = 100 * step // steps
        self.run.report_progress(
            Progress(
                attempt=self.run.attempt.attempt,
                step=step,
                total_steps=steps,
                percent=percent,
                summary=f"{step}/{steps} ({percent}%), reference {seen}/{self._pairs} pairs",
                last_update_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
        )


def _unknown(scores: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.asarray(np.isnan(scores).any(axis=1))


def _take(pairs: ScoredPairs, said: list[tuple[list[int], Any]]) -> None:
    """What all ranks have heard, on all of them; ``said`` is empty afterwards."""
    for mine, values in (one for rank in gather(said) for one in rank):
        pairs.scores[mine] = values[: len(mine)]
    said.clear()


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
