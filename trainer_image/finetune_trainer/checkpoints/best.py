"""``output.weights: best``: the weights of the checkpoint with the lowest evaluation loss.

Called by the training recipe on every rank, after training and its last evaluation. The callbacks save a checkpoint
whenever an evaluation is the best so far, and `retention` never deletes that checkpoint.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from finetune_trainer import collectives
from finetune_trainer.checkpoints import manifest, paths
from finetune_trainer.checkpoints.manifest import Manifest
from finetune_trainer.checkpoints.retention import LOSS
from finetune_trainer.run import Run

log = logging.getLogger(__name__)


def load_best_weights(run: Run, load: Callable[[Path], None], last_step: int, last: Mapping[str, float]) -> int:
    """Load the best weights, unless the last weights are as good. ``last`` are the metrics of the weights that the
    model has now, after ``last_step``. Returns the step of the weights that the model has afterwards.

    Each file is verified right before it is loaded. A broken checkpoint must not fail a whole training: the next best
    is loaded instead, and the log says so.
    """
    candidates: list[tuple[Path, Manifest]] = collectives.broadcast(_by_loss(run) if run.is_main else None)
    for path, checkpoint in candidates:
        if checkpoint.metrics[LOSS] >= last[LOSS]:
            break
        by_rank = collectives.all_gather_objects(manifest.verify(path, checkpoint, run.rank, run.world_size))
        flaws = [flaw for of_rank in by_rank for flaw in of_rank]
        if not flaws:
            load(path)
            if run.is_main:
                log.info(
                    "the artifact has the weights of step %d: evaluation loss %.4f",
                    checkpoint.step,
                    checkpoint.metrics[LOSS],
                )
            return checkpoint.step
        if run.is_main:
            log.warning("the best checkpoint %s is broken, the next best is loaded: %s", path, "; ".join(flaws[:5]))
    return last_step


def _by_loss(run: Run) -> list[tuple[Path, Manifest]]:
    """The job's checkpoints with an evaluation loss, best first. Of equally good checkpoints, the earliest
    is first."""
    measured = []
    for path in paths.newest_first(run.folders.checkpoints):
        try:
            checkpoint = manifest.read_complete(path)
        except (manifest.BrokenCheckpoint, manifest.OtherFormat, OSError) as error:
            log.warning("checkpoint %s is not considered: %s", path, error)
            continue
        if LOSS in checkpoint.metrics and checkpoint.job == run.job.digest:
            measured.append((path, checkpoint))
    return sorted(measured, key=lambda entry: (entry[1].metrics[LOSS], entry[1].step))
