"""Which checkpoint a run goes on from: the newest one of the job whose every byte is as it was written.

Called on all ranks before training. Rank 0 chooses and tells; each file is read by one rank, and they agree on what
they found. What is verified here is loaded right after.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.checkpoints import folders, manifest
from finetune_trainer.checkpoints.manifest import Manifest
from finetune_trainer.errors import WorkspaceOccupied
from finetune_trainer.run import Run
from finetune_trainer.stages import agree

log = logging.getLogger(__name__)

SHOWN = 5
VISIBLE_WITHIN = 60.0
"""Seconds for which a file server's client may not know yet what another one wrote."""


@dataclass(frozen=True)
class Choice:
    """What was found, on every rank the same."""

    path: Path | None = None
    manifest: Manifest | None = None
    broken: frozenset[Path] = frozenset()
    """Checkpoints that were skipped."""
    earlier: frozenset[Path] = frozenset()
    """Folders of earlier runs in which there are checkpoints."""

    @property
    def step(self) -> int:
        return self.manifest.step if self.manifest else 0


def choose(run: Run) -> Choice:
    """The newest checkpoint that verifies, if there is one.

    Raises WorkspaceOccupied for one of another training or another version of the trainer, and OSError where one can't
    be read at the moment: it isn't given up for that.
    """
    broken: set[Path] = set()
    found: list[Path] = agree.from_main(folders.newest_first(run.folders.checkpoints) if run.is_main else None)
    earlier = frozenset(path.parent for path in found)
    for path in found:
        known, flaws = agree.from_main(_read(path) if run.is_main else None)
        if known is not None:
            _same_training(run, path, known)
            _wait_until_visible(path)
            shares = agree.gather(manifest.verify(path, known, run.rank, run.world_size))
            flaws = [flaw for share in shares for flaw in share]
        if not flaws:
            return Choice(path, known, frozenset(broken), earlier)
        if run.is_main:
            more = f" and {len(flaws) - SHOWN} more" if len(flaws) > SHOWN else ""
            log.warning("checkpoint %s is skipped: %s%s", path, "; ".join(flaws[:SHOWN]), more)
        broken.add(path)
    if broken and run.is_main:
        log.warning("none of the %d checkpoints of this job is whole: it starts over", len(broken))
    return Choice(broken=frozenset(broken), earlier=earlier)


def _read(path: Path) -> tuple[Manifest | None, list[str]]:
    try:
        return manifest.read(path), []
    except manifest.Flawed as flaw:
        return None, [str(flaw)]
    except manifest.OtherVersion as error:
        raise WorkspaceOccupied(
            f"The checkpoint {path} was written by another version of the trainer: go on with the image that wrote it"
            " (resources.image), or move it out of the workspace to go on from the one before it or start over"
        ) from error


def _same_training(run: Run, path: Path, known: Manifest) -> None:
    """Other ranks and another micro-batch give the same result; anything else would be another training."""
    training = run.job.training
    for what, theirs, ours in (
        ("job digest", known.job, run.job.digest),
        ("training.globalBatchSize", known.global_batch, training.global_batch_size),
        ("training.parallelism", known.parallelism, training.parallelism),
    ):
        if theirs != ours:
            raise WorkspaceOccupied(
                f"The checkpoint {path} is of another training: its {what} is {theirs}, this job's is {ours}. Move it"
                " out of the workspace, or use another metadata.name"
            )


def _wait_until_visible(path: Path) -> None:
    end = time.monotonic() + VISIBLE_WITHIN
    while not (path / manifest.FILE).exists() and time.monotonic() < end:
        time.sleep(0.5)
