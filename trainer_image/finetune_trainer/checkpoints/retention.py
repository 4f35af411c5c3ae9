"""Which checkpoints are kept: the newest, and the best.

Called by rank 0 after each save, in the background.
"""

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from finetune_trainer.checkpoints import manifest, paths
from finetune_trainer.checkpoints.manifest import BrokenCheckpoint, Manifest, OtherFormat

log = logging.getLogger(__name__)

LOSS = "eval_loss"


def prune(
    checkpoints: Path, own: Path, keep: int, earlier: Collection[Path] = (), broken: Collection[Path] = ()
) -> None:
    """Delete all checkpoints but the ``keep`` newest complete checkpoints, and the best by evaluation loss.

    Nothing is deleted before the run whose directory is ``own`` has a complete checkpoint: until then, only earlier
    runs have checkpoints to resume from. The run's own checkpoints count as newer than theirs. ``broken`` checkpoints
    do not count.

    Two kinds of checkpoints stay untouched: those that are temporarily unreadable or have another format, as their
    worth is unknown, and those outside ``own`` and the ``earlier`` runs' directories, as a later run wrote them.
    """
    candidates = [path for path in paths.newest_first(checkpoints) if path.parent == own or path.parent in earlier]
    complete: dict[Path, Manifest] = {}
    unknown: set[Path] = set()
    for path in candidates:
        try:
            if path not in broken:
                complete[path] = manifest.read_complete(path)
        except BrokenCheckpoint as flaw:
            log.warning("checkpoint %s is broken: %s", path, flaw)
        except (OSError, OtherFormat) as error:
            log.warning("checkpoint %s is kept, because it is not readable: %r", path, error)
            unknown.add(path)
    if not any(path.parent == own for path in complete):
        return
    kept = set(sorted(complete, key=lambda path: path.parent != own)[:keep])  # stable: by step within a run
    measured = [path for path, checkpoint in complete.items() if LOSS in checkpoint.metrics]
    if measured:
        kept.add(min(measured, key=lambda path: (complete[path].metrics[LOSS], complete[path].step)))
    for path in candidates:
        if path not in kept and path not in unknown:
            _delete(path)


def _delete(path: Path) -> None:
    log.info("deleting checkpoint %s", path)
    deleting = path.with_name(f"{paths.DELETING}{path.name}")
    try:
        os.replace(path, deleting)  # so that a half-deleted directory never counts as a checkpoint
        shutil.rmtree(deleting)
    except OSError as error:
        log.warning("checkpoint %s is not deleted: %s", path, error)
