"""`dpo.precomputeReference`: the reference scores all pairs before the first step, and is then freed.

The trainer calls `Precomputed.compute` before it trains, when the model is in its place. The result is two
log-probabilities per pair. They are saved below the job's directory with the digest of the job, every few minutes and
after SIGTERM. The next attempt computes only the missing pairs, in the same batches, and loads no reference if none are
missing.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import torch
from finetune_api.status import Progress
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from finetune_trainer.collectives import all_gather, all_gather_objects, broadcast
from finetune_trainer.data.collate import Batch
from finetune_trainer.data.datasets import Pairs
from finetune_trainer.data.splits import Split
from finetune_trainer.errors import Preempted
from finetune_trainer.run import Run
from finetune_trainer.runtime import heartbeat
from finetune_trainer.training.recipe import Data
from finetune_trainer.training.trainer import BaseTrainer
from finetune_trainer.workspace.files import sync_folder
from finetune_trainer.workspace.storage import save_errors

log = logging.getLogger(__name__)

FILE = "reference.safetensors"
SAVE_SECONDS = 120.0
"""Time between two saves: at most so much of the reference's work is lost in a crash."""
REFERENCE = "reference"
"""Key of a batch: log-probabilities of its answers by the reference, [2B]."""
LogProbs = npt.NDArray[np.float32]
"""[pairs, 2]: of the chosen and the rejected answer; NaN where it is not computed yet."""


class Scored(NamedTuple):
    """A micro-batch of one rank."""

    pairs: list[int]
    log_probs: LogProbs


class ScoredPairs(Pairs):
    """Pairs with the log-probabilities of the reference."""

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.log_probs: LogProbs = np.full((len(self), 2), np.nan, dtype=np.float32)

    def batch(self, samples: Sequence[int]) -> Batch:
        """As `Pairs.batch`, and with the key `REFERENCE`."""
        log_probs = self.log_probs[np.asarray(samples)].T.reshape(-1)
        return super().batch(samples) | {REFERENCE: torch.from_numpy(log_probs)}

    def missing(self) -> npt.NDArray[np.bool_]:
        """[pairs]: where the log-probabilities are not computed yet."""
        return np.asarray(np.isnan(self.log_probs).any(axis=1))


class Precomputed:
    """The log-probabilities of all splits, and the file that they are saved in."""

    def __init__(self, run: Run, data: Data[ScoredPairs]) -> None:
        self.run = run
        self.splits: Mapping[str, ScoredPairs] = {"train": data.train, **data.evaluation}
        self.file = run.folders.job / FILE
        self._saved_at = time.monotonic()
        saved = _read(self.file, run.job.digest, self.splits) if run.is_main else None
        earlier: dict[str, LogProbs] | None = broadcast(saved)
        for name, log_probs in (earlier or {}).items():
            self.splits[name].log_probs[:] = log_probs

    @property
    def done(self) -> int:
        """Number of pairs that are computed, in this attempt or before."""
        return sum(int((~pairs.missing()).sum()) for pairs in self.splits.values())

    @property
    def total(self) -> int:
        """Number of all pairs."""
        return sum(len(pairs) for pairs in self.splits.values())

    @property
    def is_complete(self) -> bool:
        """Whether all pairs are computed, so that nothing needs the reference any more."""
        return self.done == self.total

    def compute(self, trainer: BaseTrainer, log_probs: Callable[[nn.Module, Batch], torch.Tensor]) -> None:
        """Compute the missing pairs with ``log_probs(model, batch)``, which returns [2B]. Called by all ranks. Raises
        Preempted if a rank receives SIGTERM meanwhile; what is computed by then is saved."""
        if self.run.is_main:
            log.info("the reference scores %d pairs, %d of them in an earlier attempt", self.total, self.done)
        for pairs in self.splits.values():
            self._compute_split(trainer, log_probs, pairs)
        self._save()

    def _compute_split(
        self, trainer: BaseTrainer, log_probs: Callable[[nn.Module, Batch], torch.Tensor], pairs: ScoredPairs
    ) -> None:
        """Each pair on one rank. Longest first: a batch without room on the GPU fails at once."""
        ranks = self.run.world_size
        rows = self.run.micro_batch.rows(int(pairs.tokens.max(initial=0)))
        order = np.argsort(-pairs.lengths.astype(np.int64), kind="stable")
        local: list[Scored] = []
        before, done = self.done, 0
        for first in range(0, len(order), rows * ranks):
            block = order[first : first + rows * ranks]
            if not pairs.missing()[block].any():
                continue
            heartbeat.refresh()
            mine = block[self.run.rank * rows :][:rows].tolist()
            # A rank without pairs left still takes part: sharded weights are gathered by all ranks or by none.
            batch = trainer._prepare_inputs(pairs.batch(mine or order[-1:].tolist()))
            local.append(Scored(mine, log_probs(trainer.model, batch).reshape(2, -1).T.cpu().numpy()))
            done += len(block)
            self._report(trainer, min(before + done, self.total))
            save_due = time.monotonic() - self._saved_at > SAVE_SECONDS
            verdicts = all_gather([self.run.stop_requested(), save_due], trainer.args.device)
            stop_by_rank, save_due_by_rank = zip(*verdicts, strict=True)
            if any(stop_by_rank) or save_due_by_rank[0]:
                _exchange(pairs, local)
                self._save()
            if any(stop_by_rank):
                raise Preempted(
                    "The run was stopped before training began. What the reference computed so far is saved."
                )
        _exchange(pairs, local)

    def _save(self) -> None:
        if self.run.is_main:
            log_probs = {name: pairs.log_probs for name, pairs in self.splits.items()}
            _write(self.file, self.run.job.digest, log_probs)
        self._saved_at = time.monotonic()

    def _report(self, trainer: BaseTrainer, done: int) -> None:
        """Write status.progress: a run that reports nothing for long counts as hung."""
        if not self.run.is_main:
            return
        step, steps = trainer.state.global_step, trainer.state.max_steps
        percent = 100 * step // steps
        self.run.report_progress(
            Progress(
                attempt=self.run.attempt.attempt,
                step=step,
                total_steps=steps,
                percent=percent,
                summary=f"{step}/{steps} ({percent}%), reference {done}/{self.total} pairs",
                last_update_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            )
        )


def _exchange(pairs: ScoredPairs, local: list[Scored]) -> None:
    """Give all ranks what each computed; ``local`` is empty afterwards."""
    for scored in (scored for rank in all_gather_objects(local) for scored in rank):
        pairs.log_probs[scored.pairs] = scored.log_probs[: len(scored.pairs)]
    local.clear()


def _read(file: Path, digest: str, splits: Mapping[str, ScoredPairs]) -> dict[str, LogProbs] | None:
    """What this job saved. None if there is no file, or if it is of another job."""
    try:
        with safe_open(file, framework="numpy") as saved:
            if (saved.metadata() or {}).get("digest") != digest:
                return None
            log_probs = {name: saved.get_tensor(name) for name in splits}
    except Exception:  # the file is absent or damaged: the reference computes again
        return None
    fits = all(log_probs[name].shape == pairs.log_probs.shape for name, pairs in splits.items())
    return log_probs if fits else None


def _write(file: Path, digest: str, log_probs: dict[str, LogProbs]) -> None:
    """Write the file as a whole or not at all. It is on disk when this returns."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    with save_errors(file):
        try:
            save_file(log_probs, temporary, metadata={"digest": digest})
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.rename(file)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(file.parent)
