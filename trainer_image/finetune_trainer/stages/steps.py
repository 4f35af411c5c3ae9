"""What happens around every optimizer step: evaluation and seeds before, and after it one agreement of all ranks.

A callback of the trainer. Ranks agree in a single exchange whether the loss is still a number, whether someone was told
to stop and whether a checkpoint is due by rank 0's clock, so none of them ever saves, stops or fails alone.
"""

# ruff: noqa: ARG002  (a callback's arguments are given, used or not)

import logging
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from finetune_api.status import Checkpoint
from finetune_api.training import CheckpointsSpec
from transformers import TrainerCallback

from finetune_trainer.checkpoints import find
from finetune_trainer.errors import Diverged, Preempted
from finetune_trainer.reporting.progress import ProgressReport
from finetune_trainer.run import Run
from finetune_trainer.stages.agree import share, wait_for_all
from finetune_trainer.stages.engine import Engine, seed_step
from finetune_trainer.stages.evaluation import Evaluation

log = logging.getLogger(__name__)

SAVE_MARGIN = 1.5
"""A save is started after SIGTERM only if this many times its measured duration is left."""
ASSUMED_BANDWIDTH = 50e6
"""Bytes per second of the workspace, before the first save was measured."""


def check_stop(run: Run) -> None:
    """Called between steps of preparation, where there is nothing to save yet."""
    if run.stop_requested():
        raise Preempted("told to stop before training began; nothing is lost, the next attempt starts over")


class Steps(TrainerCallback):
    """See the module. `trainer` is set once it exists."""

    def __init__(self, run: Run, progress: ProgressReport, evaluation: Evaluation) -> None:
        self.run, self.progress, self.evaluation = run, progress, evaluation
        self.spec: CheckpointsSpec = run.job.checkpoints
        self.trainer: Engine | None = None
        self.last_save = time.monotonic()
        self.save_started = self.save_seconds = 0.0
        self.newest: str | None = None
        """The newest checkpoint, for messages."""
        self.stopping = False

    def goes_on_from(self, checkpoint: find.Found) -> None:
        """The run starts at an earlier run's checkpoint."""
        self.newest = self._named(checkpoint.step, checkpoint.path)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        trained = sum(w.numel() * w.element_size() for w in self.trainer.model.parameters() if w.requires_grad)
        self.save_seconds = 3 * trained / ASSUMED_BANDWIDTH  # weights and the two moments of Adam
        self.last_save = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Here and not after a step, so that one that is due is not lost when the run is told to stop: what goes on from
        # the checkpoint does it.
        if self.evaluation.due(state):
            self.evaluation.measure(self.trainer)
        seed_step(self.run.job.training.seed, state.global_step, self.run.rank)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        facts = self.trainer.step_facts
        loss = float(torch.stack(facts.losses).sum())
        stop = self.run.stop_requested()
        too_late = stop and self.run.seconds_left() < SAVE_MARGIN * self.save_seconds
        sane = math.isfinite(loss) and math.isfinite(float(facts.grad_norm))
        verdicts = share([loss, sane, stop, too_late, self._due(state.global_step)], self.trainer.args.device)
        losses, sane_on, stop_on, late_on, due_on = zip(*verdicts, strict=True)
        loss = sum(losses) / len(losses)

        if not all(sane_on):
            raise Diverged(self._diverged_message(state.global_step, loss))
        self.progress.step_done(state, facts.tokens)
        if state.global_step >= state.max_steps:
            control.should_log = True
            return  # what follows writes the artifact: that is the save
        if any(stop_on) and any(late_on):
            raise Preempted(f"told to stop, with too little time to save: {self._newest_message()}")
        self.stopping = any(stop_on)
        if self.stopping or due_on[0]:
            control.should_save = True
            self.save_started = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_all()  # a rank that ended now would take the one that still writes with it
        self.save_seconds = time.monotonic() - self.save_started
        self.last_save = time.monotonic()
        path = self.run.folders.run_checkpoints / f"{find.PREFIX}{state.global_step}"
        self.newest = self._named(state.global_step, path)
        if self.run.is_main:
            log.info("saved %s in %.1f s", self.newest, self.save_seconds)
            self.run.report_checkpoint(
                Checkpoint(
                    attempt=self.run.attempt.attempt,
                    step=state.global_step,
                    path=path.relative_to(self.run.folders.workspace).as_posix(),
                    time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                )
            )
            find.prune(self.run.folders.checkpoints, self.run.folders.run_checkpoints, self.spec.keep)
        if self.stopping:
            raise Preempted(f"told to stop: {self._newest_message()}")

    def _due(self, step: int) -> bool:
        by_steps = self.spec.every_steps is not None and step % self.spec.every_steps == 0
        return by_steps or time.monotonic() - self.last_save >= 60 * self.spec.every_minutes

    def _named(self, step: int, path: Path) -> str:
        return f"step {step} ({path.relative_to(self.run.folders.workspace)})"

    def _newest_message(self) -> str:
        if self.newest is None:
            return "there is no checkpoint yet; the next attempt starts over"
        return f"the next attempt goes on from {self.newest}"

    def _diverged_message(self, step: int, loss: float) -> str:
        training = self.run.job.training
        what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient is no longer a number"
        return (
            f"step {step}: {what}. Lower training.learningRate ({training.learning_rate:g}), raise warmupRatio"
            f" ({training.warmup_ratio:g}) or lower maxGradNorm ({training.max_grad_norm:g}); look at the data trained"
            " last for rows unlike the others"
        )
