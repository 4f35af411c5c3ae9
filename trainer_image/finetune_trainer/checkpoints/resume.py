"""The checkpoint from which a run resumes: the job's newest checkpoint in which every byte is as it was written.

Called on all ranks before training. Rank 0 chooses the candidate. Each file is read by one rank, and the ranks share
the flaws that they find. The verified checkpoint is loaded right after.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from finetune_trainer import collectives
from finetune_trainer.checkpoints import manifest, paths
from finetune_trainer.checkpoints.manifest import Manifest
from finetune_trainer.errors import WorkspaceOccupied
from finetune_trainer.run import Run
from finetune_trainer.runtime import gpumemory

log = logging.getLogger(__name__)

SHOWN = 5
VISIBLE_WITHIN = 60.0
"""Seconds until a client of a file server sees what another client wrote."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes. The same on every rank."""

    path: Path | None = None
    """The checkpoint. None when the run starts from the beginning."""
    manifest: Manifest | None = None
    broken: frozenset[Path] = frozenset()
    """Checkpoints that were skipped because they are broken."""
    earlier: frozenset[Path] = frozenset()
    """Directories of earlier runs that contain checkpoints."""

    @property
    def step(self) -> int:
        return self.manifest.step if self.manifest else 0


def find_resume_point(run: Run) -> ResumePoint:
    """The newest intact checkpoint, if there is one.

    Raises WorkspaceOccupied for a checkpoint of another training or another version of the trainer. Raises OSError for
    a checkpoint that is temporarily unreadable: it must not be skipped for that.
    """
    broken: set[Path] = set()
    candidates: list[Path] = collectives.broadcast(paths.newest_first(run.folders.checkpoints) if run.is_main else None)
    earlier = frozenset(path.parent for path in candidates)
    for path in candidates:
        checkpoint, flaws = collectives.broadcast(_read(path) if run.is_main else None)
        if checkpoint is not None:
            _check_same_training(run, path, checkpoint)
            _wait_until_visible(path)
            by_rank = collectives.all_gather_objects(manifest.verify(path, checkpoint, run.rank, run.world_size))
            flaws = [flaw for of_rank in by_rank for flaw in of_rank]
        if not flaws:
            return ResumePoint(path, checkpoint, frozenset(broken), earlier)
        if run.is_main:
            more = f" and {len(flaws) - SHOWN} more" if len(flaws) > SHOWN else ""
            log.warning("checkpoint %s is skipped: %s%s", path, "; ".join(flaws[:SHOWN]), more)
        broken.add(path)
    if broken and run.is_main:
        log.warning("all %d checkpoints of this job are broken: training starts from the beginning", len(broken))
    return ResumePoint(broken=frozenset(broken), earlier=earlier)


def tell_unloadable(path: Path, error: Exception) -> None:
    """Called with an error of loading a checkpoint whose files are all as they were written: then something else than
    this trainer wrote them. Raises WorkspaceOccupied, unless the error tells nothing about the files."""
    flaws = (ValueError, LookupError, TypeError, AttributeError, EOFError, UnpicklingError, SafetensorError)
    by_torch = isinstance(error, RuntimeError) and "CUDA" not in str(error) and "DefaultCPUAllocator" not in str(error)
    if not isinstance(error, flaws) and not by_torch:
        return
    if collectives.is_broken(error) or gpumemory.is_out_of_memory(error):
        return
    raise WorkspaceOccupied(
        f"The checkpoint {path} has every byte that its manifest names, but it can't be loaded ({type(error).__name__}:"
        f" {error}). Something else than this trainer wrote it. Move it out of the workspace to resume from an earlier"
        " checkpoint or to start from the beginning"
    ) from error


def _read(path: Path) -> tuple[Manifest | None, list[str]]:
    try:
        return manifest.read(path), []
    except manifest.BrokenCheckpoint as flaw:
        return None, [str(flaw)]
    except manifest.OtherFormat as error:
        raise WorkspaceOccupied(
            f"The checkpoint {path} was written by another version of the trainer. Continue with the image that wrote"
            " it (resources.image), or move it out of the workspace to resume from an earlier checkpoint or to start"
            " from the beginning"
        ) from error


def _check_same_training(run: Run, path: Path, checkpoint: Manifest) -> None:
    """The number of ranks and the micro-batch may differ, as the result is the same. Nothing else may."""
    training = run.job.training
    for what, theirs, ours in (
        ("job digest", checkpoint.job, run.job.digest),
        ("training.globalBatchSize", checkpoint.global_batch, training.global_batch_size),
        ("training.parallelism", checkpoint.parallelism, training.parallelism),
    ):
        if theirs != ours:
            raise WorkspaceOccupied(
                f"The checkpoint {path} belongs to another training: its {what} is {theirs}, this job's is {ours}. Move"
                " it out of the workspace, or use another metadata.name"
            )


def _wait_until_visible(path: Path) -> None:
    end = time.monotonic() + VISIBLE_WITHIN
    while not (path / manifest.FILE).exists() and time.monotonic() < end:
        time.sleep(0.5)
