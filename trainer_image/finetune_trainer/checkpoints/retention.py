"""Which checkpoints are kept: the newest ones and the best one.

Called by rank 0 after each save, in the background.
"""

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from finetune_trainer.checkpoints import folders, manifest
from finetune_trainer.checkpoints.manifest import Flawed, Manifest, OtherVersion

log = logging.getLogger(__name__)

LOSS = "eval_loss"


def prune(
    checkpoints: Path, own: Path, keep: int, earlier: Collection[Path] = (), broken: Collection[Path] = ()
) -> None:
    """Delete all checkpoints but the ``keep`` newest whole ones and the one with the lowest evaluation loss.

    Nothing goes before the run whose folder is ``own`` has a whole one: until then, those of earlier runs are all there
    is. Its own come before theirs. What was found ``broken`` counts for nothing.

    Left alone is what can't be read now or is of another version, as nobody knows what it is worth; and all that is
    neither in ``own`` nor in the ``earlier`` runs' folders, as a later run wrote it.
    """
    every = [path for path in folders.newest_first(checkpoints) if path.parent == own or path.parent in earlier]
    whole: dict[Path, Manifest] = {}
    unknown: set[Path] = set()
    for path in every:
        try:
            if path not in broken:
                whole[path] = manifest.complete(path)
        except Flawed as flaw:
            log.warning("checkpoint %s is broken: %s", path, flaw)
        except (OSError, OtherVersion) as error:
            log.warning("checkpoint %s is kept, as it can't be read: %r", path, error)
            unknown.add(path)
    if not any(path.parent == own for path in whole):
        return
    kept = set(sorted(whole, key=lambda path: path.parent != own)[:keep])  # stable: by step within a run
    measured = [path for path, known in whole.items() if LOSS in known.metrics]
    if measured:
        kept.add(min(measured, key=lambda path: (whole[path].metrics[LOSS], whole[path].step)))
    for path in every:
        if path not in kept and path not in unknown:
            _delete(path)


def _delete(path: Path) -> None:
    log.info("deleting checkpoint %s", path)
    doomed = path.with_name(f"{folders.DELETING}{path.name}")
    try:
        os.replace(path, doomed)  # so that a half deleted folder is never taken for a checkpoint
        shutil.rmtree(doomed)
    except OSError as error:
        log.warning("checkpoint %s can't be deleted: %s", path, error)
