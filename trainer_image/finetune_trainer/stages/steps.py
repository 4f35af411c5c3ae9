"""What happens around every optimizer step: seeds before, and after it one agreement of all ranks.

A callback of the trainer. Ranks agree in a single exchange whether the loss is still a number, whether someone was told
to stop, whether a checkpoint is due by rank 0's clock and whether the one being saved has landed, so none of them ever
saves, stops or fails alone. After a step comes first its log line, then its evaluation, then its checkpoint.
"""

# ruff: noqa: ARG002  (a callback's arguments are given, used or not)

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from finetune_api.status import Checkpoint
from finetune_api.training import CheckpointsSpec
from transformers import TrainerCallback

from finetune_trainer import heartbeat
from finetune_trainer.checkpoints import best
from finetune_trainer.checkpoints.choose import Choice
from finetune_trainer.checkpoints.saver import Saved, Saver
from finetune_trainer.errors import Preempted, Superseded
from finetune_trainer.peers import is_broken
from finetune_trainer.reporting.progress import ProgressReport
from finetune_trainer.run import Run
from finetune_trainer.stages import early_stopping, guard
from finetune_trainer.stages.agree import share
from finetune_trainer.stages.engine import Engine, seed_step
from finetune_trainer.stages.evaluation import Evaluation

log = logging.getLogger(__name__)

SAVE_MARGIN = 1.5
"""A save is started after SIGTERM only if this many times its measured duration is left."""
AT_LEAST, AT_MOST = 5.0, 300.0
"""Seconds that a save in flight gets after an error, whatever the last one took."""
ASSUMED_BANDWIDTH = 50e6
"""Bytes per second of the workspace, before the first save was measured."""


def check_stop(run: Run) -> None:
    """Called between steps of preparation, where there is nothing to save yet."""
    if run.stop_requested():
        raise Preempted("told to stop before training began; nothing is lost, the next attempt starts over")


class Steps(TrainerCallback):
    """See the module. `trainer` is set once it exists."""

    def __init__(self, run: Run, progress: ProgressReport, evaluation: Evaluation, saver: Saver) -> None:
        self.run, self.progress, self.evaluation, self.saver = run, progress, evaluation, saver
        self.spec: CheckpointsSpec = run.job.checkpoints
        self.trainer: Engine | None = None
        self.last_save = time.monotonic()
        """When the state was as the newest checkpoint has it: what comes after is lost in a crash."""
        self.save_seconds = 0.0
        """What a save takes as a whole: measured, or estimated before the first one."""
        self.newest: str | None = None
        """The newest checkpoint, for messages."""
        self.newest_step = 0
        self.stopping = False
        self.zeros = guard.Zeros(run.job.stage)
        self.measured_step: int | None = None
        """What the last complete evaluation of this run is of."""
        self.ended_early: str | None = None
        """Why training ended before its last step."""
        self.weights_step: int | None = None
        """What the weights are of, where that isn't the last step."""
        saver.told.append(self._saved)

    @property
    def message(self) -> str:
        """How training ended, for people."""
        of = f"; the artifact is of step {self.weights_step}, the best" if self.weights_step is not None else ""
        return f"Training completed{f' early {self.ended_early}' if self.ended_early else ''}{of}"

    def goes_on_from(self, chosen: Choice) -> None:
        """The run starts at an earlier run's checkpoint, or at the start."""
        self.saver.earlier, self.saver.broken = chosen.earlier, chosen.broken
        if chosen.path is not None and chosen.manifest is not None:
            self.newest, self.newest_step = self._named(chosen.step, chosen.path), chosen.step
            if self.run.is_main:  # maybe not what status says: newer ones were broken, or never told of
                self._report(chosen.manifest.attempt, chosen.step, chosen.path, chosen.manifest.time)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        trained = sum(w.numel() * w.element_size() for w in self.trainer.model.parameters() if w.requires_grad)
        self.save_seconds = 3 * trained / ASSUMED_BANDWIDTH  # weights and the two moments of Adam
        self.last_save = time.monotonic()
        if self.evaluation.due(state):  # it was cut short when the run that saved this was told to stop
            if not self.evaluation.measure(self.trainer):
                raise Preempted(f"told to stop: {self._newest_message()}")
            self.measured_step = state.global_step
            if self._is_best(state):  # what that run saved doesn't know its evaluation
                self.trainer._save_checkpoint(self.trainer.model_wrapped, None)
        self._end_early(state)
        if state.global_step >= state.max_steps:  # all that an earlier run left is what comes after training
            control.should_training_stop = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        heartbeat.beat("train", state.global_step)
        seed_step(self.run.job.training.seed, state.global_step, self.run.rank)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        heartbeat.beat("train", state.global_step)
        facts = self.trainer.step_facts
        loss = float(torch.stack(facts.losses).sum())
        sane = math.isfinite(loss) and math.isfinite(float(facts.grad_norm))
        mine = [loss, sane, self.run.stop_requested(), self._due(state.global_step), self.saver.finished]
        losses, sane_on, stop_on, due_on, landed_on = zip(*share(mine, self.trainer.args.device), strict=True)
        loss = sum(losses) / len(losses)

        if all(landed_on):
            self.saver.collect()
        if not all(sane_on):
            self._land(state)
            raise guard.diverged(self.run.job.training, state.global_step, loss, facts.counts[0])
        self.zeros.look(state.global_step, loss)
        self.trainer.noted.add_for_all("loss", loss)
        self.progress.step_done(state, facts.tokens)
        last = state.global_step >= state.max_steps
        if last:
            control.should_log = True
            if not self.evaluation.splits and not self.run.job.output.merge:
                return  # what follows writes the artifact: that is the save
        evaluated = not last and self.evaluation.due(state)
        if evaluated and early_stopping.wanted(self.run.job):
            control.should_log = True  # it may be the last
        if any(stop_on):
            self._stop(state, control)
            return
        control.should_evaluate = evaluated
        if due_on[0]:
            control.should_save, self.last_save = True, time.monotonic()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self.trainer is not None
        if not self.evaluation.measure(self.trainer):  # ranks agreed to leave it to the run that goes on from here
            self._stop(state, control)
            return
        self.measured_step = state.global_step
        if self._is_best(state):
            control.should_save, self.last_save = True, time.monotonic()
        if self._end_early(state):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The files are written, the checkpoint isn't there yet: see `_saved`."""
        if self.stopping:
            self._land(state)
            raise Preempted(f"told to stop: {self._newest_message()}")
        heartbeat.beat("train", state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._land(state)

    @contextmanager
    def landing(self) -> Iterator[None]:
        """Around training. What is being saved when an error ends it is of a step before, and as good as any: it gets
        the time that a save takes. Not where another rank is gone or a later run has taken over: it can't land then."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, Superseded) and not is_broken(error):
                heartbeat.alive()
                patience = min(max(AT_LEAST, SAVE_MARGIN * self.save_seconds), AT_MOST)
                self.saver.settle(min(patience, self.run.seconds_left()))
            raise

    def measure_at_end(self) -> None:
        """The evaluation of what was trained. One that is cut short is left to the next attempt: without it the
        artifact would be told of by an older one, or by none."""
        assert self.trainer is not None
        if self.measured_step == self.trainer.state.global_step:
            return
        if not self.evaluation.measure(self.trainer):
            self.leave()

    def take_best(self) -> None:
        """Where the job wants them: the weights with the lowest evaluation loss, measured again as the artifact's."""
        assert self.trainer is not None
        if self.run.job.output.weights != "best":
            return
        state = self.trainer.state
        step = best.restore(self.run, self.trainer.take_weights, state.global_step, self.evaluation.results)
        if step == state.global_step:
            return
        self.weights_step = step
        if not self.evaluation.measure(self.trainer, logged=False):
            self.leave()

    def answer_at_end(self, ask: Callable[[], dict[str, float] | None]) -> None:
        """What the trained model answers, measured; None is told to stop."""
        assert self.trainer is not None
        metrics = ask()
        if metrics is None:
            self.leave()
        elif metrics:
            self.evaluation.results |= metrics
            self.trainer.log(dict(metrics))

    def _is_best(self, state: Any) -> bool:
        """Whether the artifact may be made of this step, measured just now."""
        return self.run.job.output.weights == "best" and self.progress.counters.best_step == int(state.global_step)

    def _end_early(self, state: Any) -> bool:
        """Whether the step just done, or gone on from, is to be the last."""
        why = early_stopping.reason(self.run.job, self.progress.counters)
        if why is None:
            return False
        self.ended_early = f"at step {state.global_step} of {self.progress.total_steps}: {why}"
        if self.run.is_main:
            log.info("training ends early %s", self.ended_early)
        state.max_steps = state.global_step
        self.progress.ends_at(state)
        return True

    def leave(self) -> None:
        """Between two steps, on all ranks, once they know that one was told to stop: save, if that can end in time.
        Raises Preempted."""
        assert self.trainer is not None
        trainer = self.trainer
        if self.weights_step is not None:  # the model no longer is what the last step left
            raise Preempted(f"told to stop: {self._newest_message()}")
        self._stop(trainer.state, trainer.control)
        trainer._save_checkpoint(trainer.model_wrapped, None)
        self.on_save(trainer.args, trainer.state, trainer.control)

    def _stop(self, state: Any, control: Any) -> None:
        """On all ranks, once they know that one was told to stop: save, if that can end in time."""
        assert self.trainer is not None
        self._land(state)
        if self.newest_step == state.global_step:
            raise Preempted(f"told to stop: {self._newest_message()}")
        late = self.run.seconds_left() < SAVE_MARGIN * self.save_seconds
        if any(one for (one,) in share([late], self.trainer.args.device)):
            raise Preempted(f"told to stop, with too little time to save: {self._newest_message()}")
        self.stopping = control.should_save = True

    def _land(self, state: Any) -> None:
        """Wait for the save in flight."""
        if self.saver.busy:
            heartbeat.beat("save", state.global_step)
            self.saver.collect()

    def _saved(self, saved: Saved) -> None:
        """A checkpoint is in its place."""
        self.save_seconds = saved.seconds
        heartbeat.saved(saved.seconds)
        self.newest, self.newest_step = self._named(saved.step, saved.path), saved.step
        if self.run.is_main:
            log.info("saved %s in %.1f s", self.newest, saved.seconds)
            self._report(self.run.attempt.attempt, saved.step, saved.path, saved.time, math.ceil(saved.seconds))

    def _report(self, attempt: int, step: int, path: Path, time: str, seconds: int | None = None) -> None:
        below = path.relative_to(self.run.folders.workspace).as_posix()
        self.run.report_checkpoint(Checkpoint(attempt=attempt, step=step, path=below, time=time, seconds=seconds))

    def _due(self, step: int) -> bool:
        """By steps, or so that a checkpoint is complete before everyMinutes have passed since what the last one has."""
        by_steps = self.spec.every_steps is not None and step % self.spec.every_steps == 0
        bound = 60 * self.spec.every_minutes
        return by_steps or time.monotonic() - self.last_save >= bound - min(self.save_seconds, bound / 2)

    def _named(self, step: int, path: Path) -> str:
        return f"step {step} ({path.relative_to(self.run.folders.workspace)})"

    def _newest_message(self) -> str:
        if self.newest is None:
            return "there is no checkpoint yet; the next attempt starts over"
        return f"the next attempt goes on from {self.newest}"
