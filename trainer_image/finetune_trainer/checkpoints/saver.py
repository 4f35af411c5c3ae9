"""Saves a run: the files in the step that is due, everything that makes them hold in the background.

Steps stand still while the library writes its files into a staging folder. Then one thread of each rank reads back what
this rank wrote, digests it and brings it to disk; rank 0 writes the manifest with the digests of all ranks and renames
the folder to its place. A kill at any moment leaves a checkpoint whole or no checkpoint.

One save is in flight at most: the next one waits for it. Errors of any rank, in writing or in the background, are
raised on every rank by `collect`. The background talks through a process group of its own, so it never gets in the way
of training's collectives.
"""

import errno
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from finetune_trainer.checkpoints import fence, folders, manifest, retention
from finetune_trainer.checkpoints.manifest import FileFacts, Manifest
from finetune_trainer.checkpoints.storage import guard
from finetune_trainer.errors import TrainerError
from finetune_trainer.reporting import provenance
from finetune_trainer.run import Run
from finetune_trainer.stages import agree
from finetune_trainer.workspace import sync_folder

log = logging.getLogger(__name__)

T = TypeVar("T")
SHARD = re.compile(r"__(\d+)_\d+\.distcp$")
"""A shard of torch's distributed checkpoints, by the rank that wrote it. All other files are rank 0's."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint in its place."""

    path: Path
    step: int
    time: str
    seconds: float
    """From the moment that steps stood still to the rename."""


@dataclass(frozen=True)
class Facts:
    """What the manifest says of the run at the moment of the save."""

    step: int
    samples: int
    dtypes: list[str]
    metrics: dict[str, float]


class Saver:
    """One per run and rank. Every rank calls every method at the same step."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.told: list[Callable[[Saved], None]] = []
        """Called by `collect` with each checkpoint, on every rank."""
        self.earlier: frozenset[Path] = frozenset()
        """Folders of earlier runs, whose checkpoints may be deleted once this run has its own."""
        self.broken: frozenset[Path] = frozenset()
        """Checkpoints of earlier runs that don't verify."""
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._in_flight: Future[Saved] | None = None
        self._group: Any = None
        self._home: int | None = None
        """The run's folder as it was at the first save, held open."""

    @property
    def finished(self) -> bool:
        """Whether what was in flight on this rank has landed, well or not. `collect` then doesn't wait."""
        return self._in_flight is not None and self._in_flight.done()

    @property
    def busy(self) -> bool:
        """Whether a save has yet to be collected."""
        return self._in_flight is not None

    def save(self, facts: Facts, write: Callable[[Path], None]) -> None:
        """``write`` puts this rank's files into the folder ``checkpoint-<step>`` of the one it is given."""
        self.collect()
        if self._group is None:
            self._group = agree.own_group()
        began = time.monotonic()
        folder = folders.staged(self.run.folders.run_checkpoints, facts.step)
        _, error = self._attempt(folder, lambda: self._make(folder))
        # Writing shards is a matter of all ranks: one that didn't come would be waited for.
        error = next((failure for failure in agree.gather(error, self._group) if failure is not None), None)
        if error is None:
            try:
                with guard(folder.parent, self.run.folders.workspace):
                    write(folder.parent)
            except (OSError, TrainerError) as failure:
                error = failure
        self._in_flight = self._background.submit(self._land, facts, folder, began, error)

    def collect(self) -> None:
        """Wait for the save in flight, if there is one, and tell of it. Raises what made it fail, on every rank."""
        if self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        self._tell(in_flight.result())

    def settle(self, patience: float) -> None:
        """Before this rank leaves with an error: the save in flight gets so many seconds to land. How it fails is told
        in the log alone, as there is an error already."""
        if self._in_flight is None:
            return
        in_flight, self._in_flight = self._in_flight, None
        try:
            self._tell(in_flight.result(max(0.0, patience)))
        except Exception as error:
            log.warning("the checkpoint being saved is lost: %r", error)

    def _tell(self, saved: Saved) -> None:
        for tell in self.told:
            tell(saved)

    def _land(self, facts: Facts, folder: Path, began: float, error: Exception | None) -> Saved:
        files: dict[str, FileFacts] = {}
        if error is None:
            written, error = self._attempt(folder, lambda: manifest.vouch(folder, self._mine(folder)))
            files = written or {}
        answers = agree.gather((files, error), self._group)
        error = next((failure for _, failure in answers if failure is not None), None)
        saved = None
        if self.run.is_main:
            if error is None:
                everything = {name: known for theirs, _ in answers for name, known in theirs.items()}
                saved, error = self._attempt(folder, lambda: self._place(facts, folder, everything, began))
            if error is not None:
                shutil.rmtree(folder.parent, ignore_errors=True)  # what is half written would keep a disk full
        outcome: tuple[Saved | None, Exception | None] = agree.from_main((saved, error), self._group)
        saved, error = outcome
        if error is not None:
            raise error
        assert saved is not None
        if self.run.is_main:
            self._prune()
        return saved

    def _prune(self) -> None:
        """The save is a good one and the others know it by now: nothing here makes rank 0 fail alone. Where a later run
        has taken over, ``launch`` ends this one."""
        home, keep = self.run.folders, self.run.job.checkpoints.keep
        try:
            fence.check(self.run)
            retention.prune(home.checkpoints, home.run_checkpoints, keep, self.earlier, self.broken)
        except (OSError, TrainerError) as error:
            log.warning("old checkpoints are left: %s", error)

    def _make(self, folder: Path) -> None:
        """Not its parents: where the run's folder is gone, so is the workspace."""
        if self._home is None:
            self._home = os.open(folder.parent.parent, os.O_RDONLY | os.O_DIRECTORY)
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)

    def _mine(self, folder: Path) -> list[str]:
        """The files that this rank wrote."""
        return [name for name in manifest.below(folder) if _writer(name) == self.run.rank]

    def _attempt(self, folder: Path, work: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """What came out, or why nothing did: other ranks wait for this one's word either way."""
        try:
            with guard(folder.parent, self.run.folders.workspace):
                return work(), None
        except Exception as error:
            if isinstance(error, (OSError, TrainerError)):
                return None, error
            return None, RuntimeError(f"{type(error).__name__}: {error}")  # others can't always be sent to ranks

    def _place(self, facts: Facts, folder: Path, files: dict[str, FileFacts], began: float) -> Saved:
        """Rank 0, once all files of all ranks are on disk."""
        run, training = self.run, self.run.job.training
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for below in (path for path in folder.rglob("*") if path.is_dir()):
            sync_folder(below)
        manifest.write(
            folder,
            Manifest(
                step=facts.step,
                samples=facts.samples,
                world=run.world_size,
                micro_batch=run.micro_batch_size,
                global_batch=training.global_batch_size,
                parallelism=training.parallelism,
                dtypes=facts.dtypes,
                versions=provenance.versions(),
                job=run.job.digest,
                attempt=run.attempt.attempt,
                run=run.run_id,
                time=now,
                metrics={name: value for name, value in facts.metrics.items() if math.isfinite(value)},
                files=dict(sorted(files.items())),
            ),
        )
        place = run.folders.run_checkpoints / folder.name
        assert self._home is not None
        if not os.path.samestat(os.fstat(self._home), place.parent.stat()):
            # Libraries make the folders that they write to: where a volume was, what they write is on no volume.
            why = f"{os.strerror(errno.ENOENT)} any more: another one is in its place"
            raise FileNotFoundError(errno.ENOENT, why, str(place.parent))
        os.rename(folder, place)
        for parent in (place.parent, place.parent.parent):  # the run's folder may be as new as what is in it
            sync_folder(parent)
        shutil.rmtree(folder.parent, ignore_errors=True)
        return Saved(place, facts.step, now, time.monotonic() - began)


def _writer(name: str) -> int:
    shard = SHARD.search(name)
    return int(shard[1]) if shard else 0
