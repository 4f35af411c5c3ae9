"""The training loop: `Training` owns a step, its evaluation and its checkpoint.

transformers' Trainer computes the steps, and calls `Training` through `StepCallback`. A step ends with its log line,
then its evaluation, then its checkpoint, so a checkpoint has its evaluation loss. `recipe` lists all calls of one step.

Ranks agree in a single exchange per step (`Training.end_step`): whether the loss is finite, whether a rank received
SIGTERM, whether a checkpoint is due by the clock of rank 0, whether the save in flight has landed, and how long each
rank computed. So no rank ever saves, stops or fails alone.
"""

# ruff: noqa: ARG002  (a callback gets its arguments, used or not)

import logging
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from finetune_api.status import Reason
from transformers import TrainerCallback

from finetune_trainer.checkpoints import best, resume
from finetune_trainer.checkpoints.resume import ResumePoint
from finetune_trainer.checkpoints.retention import LOSS
from finetune_trainer.collectives import all_gather
from finetune_trainer.data.datasets import Dataset
from finetune_trainer.errors import Preempted
from finetune_trainer.model import recomputation
from finetune_trainer.prepare.footprint import Recomputation
from finetune_trainer.reporting.trackers.callback import Trackers
from finetune_trainer.run import Run
from finetune_trainer.runtime import heartbeat
from finetune_trainer.training import divergence, early_stopping
from finetune_trainer.training.checkpointing import Checkpointing
from finetune_trainer.training.evaluation import Evaluation
from finetune_trainer.training.trainer import BaseTrainer, EvaluationValues, StopRequested, seed_step

log = logging.getLogger(__name__)


def check_stop(run: Run) -> None:
    """Called between the steps of a workflow before training. Raises Preempted."""
    if run.stop_requested():
        raise Preempted("The run was stopped before training began. Nothing is lost: the next attempt starts over.")


class Training:
    """A run of the trainer with its evaluation, checkpoints, progress report and trackers."""

    def __init__(
        self,
        run: Run,
        trainer: BaseTrainer,
        evaluation: Evaluation,
        trackers: Trackers,
        recompute: Recomputation,
    ) -> None:
        self.run, self.trainer, self.evaluation, self.recompute = run, trainer, evaluation, recompute
        self.progress, self.trackers = trainer.progress, trackers
        self.checkpointing = Checkpointing(run, trainer.saver)
        self.zero_losses = divergence.ZeroLosses(run.job.stage)
        self.skipped_steps = divergence.SkippedSteps()
        self.total_steps = self.progress.total_steps
        """Steps of the job, whether or not training ends early."""
        self.evaluated_step: int | None = None
        """Step of the last complete evaluation of this run."""
        self.ended_early: str | None = None
        """Why training ended before its last step."""
        self.weights_step: int | None = None
        """Step of the weights, if they are not those of the last step."""
        self.stopped_by_user = False
        """Whether training ended early because of spec.stop."""
        self._saving_to_stop = False
        self._begun = False
        """Whether the checkpoint is loaded and steps begin."""
        trainer.add_callback(StepCallback(self))

    def train(self, checkpoint: ResumePoint) -> None:
        """All steps after ``checkpoint``, or from the start."""
        with self.checkpointing.landing_after_errors():
            try:
                self.trainer.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint.path else None)
            except StopRequested:
                self.stop()
            except Exception as error:
                if checkpoint.path is not None and not self._begun:
                    resume.tell_unloadable(checkpoint.path, error)
                raise

    # One step, in order

    def begin(self) -> None:
        """Before the first step of this run."""
        trainer, self._begun = self.trainer, True
        if self.recompute.recomputed:
            recomputation.keep_others(trainer.model, self.recompute.includes)
        self.checkpointing.begin(trainer.model)
        if self.run.keeps:
            self._end_for_user()
            return
        if self.evaluation.is_due(trainer.state):  # SIGTERM interrupted it in the run that saved this checkpoint
            if not self.evaluation.evaluate(trainer):
                raise self._preempted()
            self._evaluated()
            if self._is_best():  # the checkpoint of that run has no evaluation loss
                trainer.save_checkpoint()
        self._stop_early()
        if trainer.state.global_step >= trainer.state.max_steps:  # the earlier run ended after its last step
            trainer.control.should_training_stop = True
        trainer.before_training()

    def begin_step(self) -> None:
        """Before the first micro-batch of a step."""
        step = self.trainer.state.global_step
        heartbeat.beat("train", step)
        seed_step(self.run.job.training.seed, step, self.run.rank)

    def end_step(self) -> None:
        """Agree with all ranks on what follows the step, and count it."""
        trainer, state, control = self.trainer, self.trainer.state, self.trainer.control
        step, stats = state.global_step, trainer.step_stats
        heartbeat.beat("train", step)

        # One exchange of all ranks
        loss = float(torch.stack(stats.losses).sum())
        # accelerate does not know: fused optimizers take part in skipping a step.
        skipped = trainer.accelerator.scaler is not None and not math.isfinite(float(stats.grad_norm))
        finite = math.isfinite(loss) and (skipped or math.isfinite(float(stats.grad_norm)))
        own_time = trainer.own_time.take()  # the loss has waited for the GPU
        stop, save_due = self.run.stop_requested(), self.checkpointing.is_due(step)
        keep, landed = self.run.keep_requested(), self.checkpointing.has_landed
        verdicts = all_gather([loss, finite, stop, save_due, landed, keep, own_time], trainer.args.device)
        loss_by_rank, finite_by_rank, stop_by_rank, save_due_by_rank, landed_by_rank, keep_by_rank, times = zip(
            *verdicts, strict=True
        )
        loss = sum(loss_by_rank) / len(loss_by_rank)

        if all(landed_by_rank):
            self.checkpointing.collect()
        if not all(finite_by_rank):
            self.checkpointing.wait(step)
            raise divergence.diverged(self.run.job.training, trainer.precision, step, loss, stats.denominators[0])
        self.skipped_steps.check(step, skipped=skipped)
        self.zero_losses.check(step, loss)
        trainer.metric_sums.add_global("loss", loss)
        if self.run.is_main:
            self.progress.stragglers.step(step, times, stats.tokens_by_rank)
        self.progress.step_done(state, stats.tokens)

        # What is due: the end for the user, a log line, an evaluation, a checkpoint
        if any(keep_by_rank) and step < state.max_steps:
            self._end_for_user()
        is_last = step >= state.max_steps
        if is_last:
            control.should_log = True
            if not self.stopped_by_user and not self.evaluation.splits and not self.run.job.output.merge:
                return  # the artifact is written next: it is the save
        evaluation_due = not is_last and self.evaluation.is_due(state)
        if evaluation_due and early_stopping.is_enabled(self.run.job):
            control.should_log = True  # it may be the last step
        if any(stop_by_rank):
            self._save_to_stop()
            return
        control.should_evaluate = evaluation_due
        if save_due_by_rank[0] or self.stopped_by_user:  # by the clock of rank 0
            self._save()

    def evaluate(self) -> None:
        """The evaluation after a step. A run that has to stop leaves it to the run that resumes."""
        if not self.evaluation.evaluate(self.trainer):
            self._save_to_stop()
            return
        self._evaluated()
        if self._is_best():
            self._save()
        if self._stop_early():
            self.trainer.control.should_training_stop = True

    def end_save(self) -> None:
        """The files are written, but the checkpoint is not complete yet: see `Checkpointing`."""
        if self._saving_to_stop:
            self.checkpointing.wait(self.trainer.state.global_step)
            raise self._preempted()
        heartbeat.beat("train", self.trainer.state.global_step)

    def end(self) -> None:
        """After the last step of this run."""
        self.checkpointing.wait(self.trainer.state.global_step)

    # After the last step

    def evaluate_last(self) -> None:
        """Evaluate the weights of the last step. If SIGTERM interrupts it, the next attempt does it: an artifact must
        not have the metrics of an earlier step, or none."""
        state = self.trainer.state
        if self.evaluated_step == state.global_step:
            return
        if self.run.keeps:  # on CPUs it might take days: the metrics are those that the checkpoint has
            entries = (entry for entry in state.log_history if entry["step"] == state.global_step)
            self.evaluation.metrics = {
                name: value for entry in entries for name, value in entry.items() if name.startswith("eval_")
            }
            return
        if not self.evaluation.evaluate(self.trainer):
            self.stop()
        self.trainer.after_evaluation()

    def load_best(self) -> None:
        """With ``output.weights: best``: load the weights of the lowest evaluation loss, and evaluate them again as the
        artifact's."""
        if self.run.job.output.weights != "best":
            return
        last_step = self.trainer.state.global_step
        last = {LOSS: math.inf, **self.evaluation.metrics}  # a kept checkpoint may have no evaluation
        step = best.load_best_weights(self.run, self.trainer.load_weights, last_step, last)
        if step == last_step:
            return
        self.weights_step = step
        if self.run.keeps:
            self.evaluation.metrics = {}  # they are of other weights
            return
        if not self.evaluation.evaluate(self.trainer, write_log=False):
            self.stop()

    def values_of(self, splits: Mapping[str, Dataset]) -> dict[str, EvaluationValues]:
        """Evaluation values of splits that are not held out. Raises Preempted."""
        values = self.evaluation.split_values(self.trainer, splits)
        return self.stop() if values is None else values

    def add_evaluation_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log metrics that a stage computes after the last evaluation, beside those of the evaluation."""
        self.evaluation.metrics |= metrics
        self.trainer.log(dict(metrics))

    @property
    def message(self) -> str:
        """How training ended, for people."""
        early = f" early {self.ended_early}" if self.ended_early else ""
        best_step = "" if self.weights_step is None else f"; the artifact is of step {self.weights_step}, the best"
        if self.stopped_by_user:
            step = self.trainer.state.global_step
            return f"Training was stopped by the user (spec.stop) at step {step} of {self.total_steps}{best_step}"
        return f"Training completed{early}{best_step}"

    @property
    def reason(self) -> Reason:
        """How training ended, for tools."""
        return Reason.STOPPED_BY_USER if self.stopped_by_user else Reason.COMPLETED

    # Stopping

    def stop(self) -> NoReturn:
        """Between two steps, on all ranks, once they agree that a rank received SIGTERM: save if the grace period
        allows. Raises Preempted."""
        if self.weights_step is None:  # else the model is not the state after the last step
            self._save_to_stop()
            self.trainer.save_checkpoint()
            self.checkpointing.wait(self.trainer.state.global_step)
        raise self._preempted()

    def _save_to_stop(self) -> None:
        """Let the trainer save, after which `end_save` ends the run. Called by all ranks, once they agree that a rank
        received SIGTERM. Raises Preempted if a save is not needed, or too late."""
        step = self.trainer.state.global_step
        self.checkpointing.wait(step)
        if self.checkpointing.newest_step == step:
            raise self._preempted()
        too_late = not self.checkpointing.fits_before_kill()
        if any(late for (late,) in all_gather([too_late], self.trainer.args.device)):
            raise self._preempted(", with too little time to save")
        self._saving_to_stop = self.trainer.control.should_save = True

    def _preempted(self, circumstance: str = "") -> Preempted:
        return Preempted(f"The run was stopped{circumstance}: {self.checkpointing.next_attempt()}")

    def _save(self) -> None:
        self.trainer.control.should_save = True
        self.checkpointing.begun()

    def _evaluated(self) -> None:
        self.evaluated_step = self.trainer.state.global_step
        self.trainer.after_evaluation()

    def _is_best(self) -> bool:
        """Whether the artifact may be made of this step, which was just evaluated."""
        best_step = self.progress.counters.best_step
        return self.run.job.output.weights == "best" and best_step == self.trainer.state.global_step

    def _stop_early(self) -> bool:
        """Make this step the last, if early stopping says so."""
        reason = early_stopping.reason(self.run.job, self.progress.counters)
        if reason is None:
            return False
        self._end_early(reason)
        return True

    def _end_for_user(self) -> None:
        """Make this step the last: the user wants the artifact now."""
        self.stopped_by_user = self.trainer.control.should_training_stop = True
        self._end_early("spec.stop is keep")

    def _end_early(self, reason: str) -> None:
        state = self.trainer.state
        self.ended_early = f"at step {state.global_step} of {self.total_steps}: {reason}"
        if self.run.is_main:
            log.info("training ends early %s", self.ended_early)
        state.max_steps = state.global_step
        self.progress.end_at(state)


class StepCallback(TrainerCallback):
    """Calls `Training` from transformers' Trainer."""

    def __init__(self, training: Training) -> None:
        self._training = training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.begin()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.begin_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.end_step()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.evaluate()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.end_save()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.end()
