"""The trainer's log, handed to the trackers that the job names.

Made by `playbook`. A run that goes on from a checkpoint continues the curves of those before it: trackers know a job by
its uid. Names are as transformers sends them: train/loss, eval/loss.
"""

# ruff: noqa: ARG002  (a callback's arguments are given, used or not)

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune_api.contract import ResolvedJob
from transformers import TrainerCallback

from finetune_trainer.reporting.model_card import stage_settings
from finetune_trainer.reporting.trackers import mlflow, tensorboard, wandb
from finetune_trainer.reporting.trackers.line import Line, Tracker
from finetune_trainer.run import Run

AT_END, AT_STOP = 15.0, 2.0
"""Seconds that trackers get together to take the last of it: at the end, and when the run is told to stop."""


class Trackers(TrainerCallback):
    """One per run and rank; only rank 0 has lines."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.lines: list[Line] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.run.is_main:
            self.lines = [Line(name, opened) for name, opened in named(self.run, state.global_step).items()]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        values = {rewritten(name): float(value) for name, value in (logs or {}).items() if math.isfinite(value)}
        for line in self.lines:
            line.log(state.global_step, values)

    @contextmanager
    def unless_stopped(self) -> Iterator[None]:
        """Around training and what follows it: what an error, or being told to stop, leaves of the time is used to send
        what waits."""
        try:
            yield
        except BaseException:
            self.close(done=False, seconds=min(AT_STOP, max(0.0, self.run.seconds_left())))
            raise

    def close(self, done: bool = True, seconds: float | None = None) -> None:
        """No more comes of this run. Takes so long at most; where nothing is said, AT_END."""
        for line in self.lines:
            line.close(done, (AT_END if seconds is None else seconds) / len(self.lines))
        self.lines = []


def named(run: Run, step: int) -> dict[str, Callable[[], Tracker]]:
    """The trackers that the job names, and how each is opened for curves that go on after ``step``."""
    spec, facts, job = run.job.reporting, run.attempt, run.job
    name, settings = f"{facts.namespace}/{facts.name}", hyper_parameters(job)
    found: dict[str, Callable[[], Tracker]] = {}
    if spec.tensorboard:
        found["TensorBoard"] = lambda: tensorboard.EventFiles(run.folders.reports / "tensorboard", run.run_id, step)
    if (w := spec.wandb) is not None:
        found["Weights & Biases"] = lambda: wandb.Client(w, name, f"{facts.name}-{facts.uid}", settings)
    if (m := spec.mlflow) is not None:
        found["MLflow"] = lambda: mlflow.Client(m, name, facts.uid, settings)
    return found


def hyper_parameters(job: ResolvedJob) -> dict[str, str | int | float | bool]:
    """What the curves hang on, under the names of the spec: numbers and choices, nothing that somebody wrote."""
    sections = {"training": job.training, "tuning": job.tuning, "tuning.lora": job.tuning.lora}
    return {
        "stage": job.stage,
        "model.source": job.model.source,
        **{
            f"{section}.{name}": value
            for section, spec in sections.items()
            for name, value in (spec.to_dict() if spec else {}).items()
            if isinstance(value, str | int | float) and name != "microBatchSize"  # attempts may differ in it
        },
        **stage_settings(job),
    }


def rewritten(name: str) -> str:
    """eval_loss -> eval/loss, loss -> train/loss."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
