"""``output.weights: best``: the weights of the checkpoint with the lowest evaluation loss.

Called by `playbook` on every rank, once training and its last evaluation are over. `steps` saves a checkpoint whenever
an evaluation is the best so far, and `retention` never deletes the best one.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from finetune_trainer.checkpoints import folders, manifest
from finetune_trainer.checkpoints.manifest import Manifest
from finetune_trainer.checkpoints.retention import LOSS
from finetune_trainer.run import Run
from finetune_trainer.stages import agree

log = logging.getLogger(__name__)


def restore(run: Run, load: Callable[[Path], None], last_step: int, last: Mapping[str, float]) -> int:
    """Load the best weights, unless the last ones, of which ``last`` was measured, are as good. The step that the model
    is of then.

    Each file is verified right before. A checkpoint that is broken by now is no reason to lose a whole training: the
    next best is taken, and the log says so.
    """
    found: list[tuple[Path, Manifest]] = agree.from_main(_by_loss(run) if run.is_main else None)
    for path, known in found:
        if known.metrics[LOSS] >= last[LOSS]:
            break
        shares = agree.gather(manifest.verify(path, known, run.rank, run.world_size))
        flaws = [flaw for share in shares for flaw in share]
        if not flaws:
            load(path)
            if run.is_main:
                log.info("the artifact is made of step %d: evaluation loss %.4f", known.step, known.metrics[LOSS])
            return known.step
        if run.is_main:
            log.warning("the best checkpoint %s is broken, the next best is taken: %s", path, "; ".join(flaws[:5]))
    return last_step


def _by_loss(run: Run) -> list[tuple[Path, Manifest]]:
    """The job's checkpoints that were measured, best first; of equally good ones the earliest."""
    found = []
    for path in folders.newest_first(run.folders.checkpoints):
        try:
            known = manifest.complete(path)
        except (manifest.Flawed, manifest.OtherVersion, OSError) as error:
            log.warning("checkpoint %s can't be looked at: %s", path, error)
            continue
        if LOSS in known.metrics and known.job == run.job.digest:
            found.append((path, known))
    return sorted(found, key=lambda one: (one[1].metrics[LOSS], one[1].step))
