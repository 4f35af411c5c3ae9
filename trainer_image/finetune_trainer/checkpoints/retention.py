"""Which checkpoints are kept: the newest ones and the best one.

Called by rank 0 after each save, in the background.
"""

import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from finetune_trainer.checkpoints import folders, manifest

log = logging.getLogger(__name__)

LOSS = "eval_loss"


def prune(checkpoints: Path, own: Path, keep: int, broken: Collection[Path] = ()) -> None:
    """Delete all checkpoints but the ``keep`` newest whole ones and the one with the lowest evaluation loss.

    Nothing goes before the run whose folder is ``own`` has a whole one: until then, those of earlier runs are all there
    is. Its own come before theirs. What was found ``broken`` counts for nothing.
    """
    every = folders.newest_first(checkpoints)
    whole = {path: known for path in every if path not in broken and (known := manifest.complete(path))}
    if not any(path.parent == own for path in whole):
        return
    kept = set(sorted(whole, key=lambda path: path.parent != own)[:keep])  # stable: by step within a run
    measured = [path for path, known in whole.items() if LOSS in known.metrics]
    if measured:
        kept.add(min(measured, key=lambda path: whole[path].metrics[LOSS]))
    for path in every:
        if path not in kept:
            _delete(path)


def _delete(path: Path) -> None:
    log.info("deleting checkpoint %s", path)
    doomed = path.with_name(f"{folders.DELETING}{path.name}")
    try:
        os.replace(path, doomed)  # so that a half deleted folder is never taken for a checkpoint
        shutil.rmtree(doomed)
    except OSError as error:
        log.warning("checkpoint %s can't be deleted: %s", path, error)
