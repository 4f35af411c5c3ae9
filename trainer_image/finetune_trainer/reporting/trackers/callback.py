"""Sends the trainer's log to the trackers that the job names.

`training.recipe` creates it. A run that resumes from a checkpoint continues the curves of earlier runs: trackers
identify a job by its uid. Metrics have the names that transformers sends: train/loss, eval/loss.
"""

# ruff: noqa: ARG002  (transformers fixes the arguments of callbacks)

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune_api.contract import ResolvedJob
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.reporting.hyper_parameters import stage_settings
from finetune_trainer.reporting.trackers import mlflow, tensorboard, wandb
from finetune_trainer.reporting.trackers.sender import Sender, Tracker
from finetune_trainer.run import Run

FLUSH_SECONDS, STOP_SECONDS = 15.0, 2.0
"""Seconds that all trackers together get to send what waits: at the end of a run, and after an error or SIGTERM."""


class Trackers(TrainerCallback):
    """One object per rank. Only rank 0 has senders."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.senders: list[Sender] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.run.is_main:
            openers = tracker_openers(self.run, state.global_step)
            self.senders = [Sender(name, opener) for name, opener in openers.items()]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {metric_name(name): float(value) for name, value in (logs or {}).items() if math.isfinite(value)}
        for sender in self.senders:
            sender.log(state.global_step, values)

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """Around training and what follows it: after an error, or SIGTERM, send what waits in the time that is left."""
        try:
            yield
        except BaseException:
            self.close(done=False, seconds=min(STOP_SECONDS, max(0.0, self.run.seconds_left())))
            raise

    def close(self, done: bool = True, seconds: float | None = None) -> None:
        """End the curves of this run. ``done``: no later run continues them. Takes at most ``seconds``, by default
        FLUSH_SECONDS."""
        for sender in self.senders:
            sender.close(done, (FLUSH_SECONDS if seconds is None else seconds) / len(self.senders))
        self.senders = []


def tracker_openers(run: Run, step: int) -> dict[str, Callable[[], Tracker]]:
    """Name of each tracker that the job uses -> a function that opens it for curves that continue after ``step``."""
    spec, attempt, job = run.job.reporting, run.attempt, run.job
    name, settings = f"{attempt.namespace}/{attempt.name}", hyper_parameters(job)
    openers: dict[str, Callable[[], Tracker]] = {}
    if spec.tensorboard:
        openers["TensorBoard"] = lambda: tensorboard.EventFiles(run.folders.reports / "tensorboard", run.run_id, step)
    if (w := spec.wandb) is not None:
        openers["Weights & Biases"] = lambda: wandb.Client(w, name, f"{attempt.name}-{attempt.uid}", settings)
    if (m := spec.mlflow) is not None:
        openers["MLflow"] = lambda: mlflow.Client(m, name, attempt.uid, settings)
    return openers


def hyper_parameters(job: ResolvedJob) -> dict[str, str | int | float | bool]:
    """The settings that decide the curves, under the names of the spec: numbers and choices, but no free text."""
    sections = {"training": job.training, "tuning": job.tuning, "tuning.lora": job.tuning.lora}
    return {
        "stage": job.stage,
        "model.source": job.model.source,
        **{
            f"{section}.{name}": value
            for section, spec in sections.items()
            for name, value in (spec.to_dict() if spec else {}).items()
            if isinstance(value, str | int | float) and name != "microBatchSize"  # it may differ between attempts
        },
        **stage_settings(job),
    }


def metric_name(name: str) -> str:
    """eval_loss -> eval/loss, loss -> train/loss."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
