"""`Saver`: writes checkpoints. Files are written between two steps; hashing and publishing happen in the background.

A save, in order:

1. Training pauses while the library writes its files into a staging directory (`save`).
2. In the background, one thread of each rank reads its own files back, hashes them and flushes them to disk.
3. Rank 0 writes the manifest with the hashes of all ranks, and renames the directory to its final path.
4. `wait` calls the listeners of ``on_saved``, on every rank.

A kill at any moment leaves either a complete checkpoint or none. At most one save is in flight: the next one waits for
it. An error of any rank, in writing or in the background, is raised on every rank by `wait`. The background thread uses
a process group of its own, so it never mixes with training's collectives.
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

from finetune_trainer import collectives
from finetune_trainer.checkpoints import manifest, paths, retention
from finetune_trainer.checkpoints.manifest import FileEntry, Manifest
from finetune_trainer.errors import TrainerError
from finetune_trainer.run import Run
from finetune_trainer.runtime import versions
from finetune_trainer.workspace.files import sync_folder
from finetune_trainer.workspace.storage import save_errors

log = logging.getLogger(__name__)

T = TypeVar("T")
SHARD = re.compile(r"__(\d+)_\d+\.distcp$")
"""A shard of torch's distributed checkpoints. The number is the rank that wrote it. Rank 0 writes all other files."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint at its final path."""

    path: Path
    step: int
    time: str
    seconds: float
    """From the moment that training paused to the rename."""


@dataclass(frozen=True)
class StepState:
    """The state of training at the moment of the save, for the manifest."""

    step: int
    samples: int
    dtypes: list[str]
    metrics: dict[str, float]


class Saver:
    """One object for each run and rank. Every rank calls every method at the same step."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.on_saved: list[Callable[[Saved], None]] = []
        """Listeners. `wait` calls them with each checkpoint, on every rank."""
        self.earlier_runs: frozenset[Path] = frozenset()
        """Directories of earlier runs, whose checkpoints may be deleted once this run has its own."""
        self.broken_checkpoints: frozenset[Path] = frozenset()
        """Checkpoints of earlier runs that are broken."""
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Saved] | None = None
        self._group: Any = None
        self._run_directory: int | None = None
        """Open handle of the run's checkpoint directory, as it was at the first save."""

    @property
    def done(self) -> bool:
        """Whether the pending save has ended on this rank, with success or not. Then `wait` returns at once."""
        return self._pending is not None and self._pending.done()

    @property
    def in_flight(self) -> bool:
        """Whether a save was started for which `wait` has not been called yet."""
        return self._pending is not None

    def save(self, state: StepState, write: Callable[[Path], None]) -> None:
        """Start a save. ``write`` gets a directory, and writes this rank's files into its ``checkpoint-<step>``."""
        self.wait()
        if self._group is None:
            self._group = collectives.new_group()
        began = time.monotonic()
        folder = paths.staging_path(self.run.folders.run_checkpoints, state.step)
        _, error = self._try(folder, lambda: self._create_staging(folder))
        # Shards are written collectively: if one rank failed here, the others would wait for it in ``write``.
        error = next(
            (failure for failure in collectives.all_gather_objects(error, self._group) if failure is not None), None
        )
        if error is None:
            try:
                with save_errors(folder.parent, self.run.folders.workspace):
                    write(folder.parent)
            except (OSError, TrainerError) as failure:
                error = failure
        self._pending = self._background.submit(self._complete, state, folder, began, error)

    def wait(self) -> None:
        """Wait for the save in flight, if there is one, and call the listeners. Raises its error, on every rank."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        self._notify(pending.result())

    def finish_within(self, seconds: float) -> None:
        """Called before this rank ends with an error: wait that long for the save in flight. A failure of it is only
        logged, because there is an error already."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            self._notify(pending.result(max(0.0, seconds)))
        except Exception as error:
            log.warning("the checkpoint in flight is lost: %r", error)

    def _notify(self, saved: Saved) -> None:
        for listener in self.on_saved:
            listener(saved)

    def _complete(self, state: StepState, folder: Path, began: float, error: Exception | None) -> Saved:
        """The background part of a save. ``error`` is that of writing. Raises the first error of any rank."""
        files: dict[str, FileEntry] = {}
        if error is None:
            written, error = self._try(folder, lambda: manifest.hash_files(folder, self._own_files(folder)))
            files = written or {}
        by_rank = collectives.all_gather_objects((files, error), self._group)
        error = next((failure for _, failure in by_rank if failure is not None), None)
        saved = None
        if self.run.is_main:
            if error is None:
                all_files = {name: entry for entries, _ in by_rank for name, entry in entries.items()}
                saved, error = self._try(folder, lambda: self._place(state, folder, all_files, began))
            if error is not None:
                shutil.rmtree(folder.parent, ignore_errors=True)  # it would keep a full disk full
        outcome: tuple[Saved | None, Exception | None] = collectives.broadcast((saved, error), self._group)
        saved, error = outcome
        if error is not None:
            raise error
        assert saved is not None
        if self.run.is_main:
            self._prune()
        return saved

    def _prune(self) -> None:
        """Delete old checkpoints. The save has succeeded and the other ranks know it, so an error here must not fail
        rank 0 alone. If a later run has taken over, the next save ends this run."""
        folders, keep = self.run.folders, self.run.job.checkpoints.keep
        try:
            self.run.check_fence()
            retention.prune(
                folders.checkpoints, folders.run_checkpoints, keep, self.earlier_runs, self.broken_checkpoints
            )
        except (OSError, TrainerError) as error:
            log.warning("old checkpoints are not deleted: %s", error)

    def _create_staging(self, folder: Path) -> None:
        """Create the staging directory, but no directories above it: a missing run directory means that the workspace
        is gone."""
        if self._run_directory is None:
            self._run_directory = os.open(folder.parent.parent, os.O_RDONLY | os.O_DIRECTORY)
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)

    def _own_files(self, folder: Path) -> list[str]:
        """The files that this rank wrote."""
        return [name for name in manifest.list_files(folder) if _writer(name) == self.run.rank]

    def _try(self, folder: Path, work: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """(result, error) of the work. The error is returned because the other ranks wait for this rank's answer."""
        try:
            with save_errors(folder.parent, self.run.folders.workspace):
                return work(), None
        except Exception as error:
            if isinstance(error, (OSError, TrainerError)):
                return None, error
            return None, RuntimeError(f"{type(error).__name__}: {error}")  # other classes may not be picklable

    def _place(self, state: StepState, folder: Path, files: dict[str, FileEntry], began: float) -> Saved:
        """Write the manifest and rename the directory to its final path. On rank 0, after all files of all ranks are on
        disk."""
        run, training = self.run, self.run.job.training
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for subfolder in (path for path in folder.rglob("*") if path.is_dir()):
            sync_folder(subfolder)
        manifest.write(
            folder,
            Manifest(
                step=state.step,
                samples=state.samples,
                world=run.world_size,
                micro_batch=str(run.micro_batch),
                global_batch=training.global_batch_size,
                parallelism=training.parallelism,
                dtypes=state.dtypes,
                versions=versions.versions(),
                job=run.job.digest,
                attempt=run.attempt.attempt,
                run=run.run_id,
                time=now,
                metrics={name: value for name, value in state.metrics.items() if math.isfinite(value)},
                files=dict(sorted(files.items())),
            ),
        )
        target = run.folders.run_checkpoints / folder.name
        assert self._run_directory is not None
        if not os.path.samestat(os.fstat(self._run_directory), target.parent.stat()):
            # Libraries create missing directories: after the volume was unmounted, they wrote to no volume.
            why = f"{os.strerror(errno.ENOENT)} any more: another directory is in its place"
            raise FileNotFoundError(errno.ENOENT, why, str(target.parent))
        # A later run has chosen its checkpoint: what follows here would be a second history of the same job.
        run.check_fence()
        os.rename(folder, target)
        for parent in (target.parent, target.parent.parent):  # the run's directory may be new, too
            sync_folder(parent)
        shutil.rmtree(folder.parent, ignore_errors=True)
        return Saved(target, state.step, now, time.monotonic() - began)


def _writer(name: str) -> int:
    """The rank that wrote a file."""
    shard = SHARD.search(name)
    return int(shard[1]) if shard else 0
