"""Where training is: status.progress for the cluster, trainer_log.jsonl and a line in the log for people.

Driven by `stages.steps` after each step and by the trainer's log calls. The worker sees to it that status is written no
more often than it should be. What is counted over all attempts is in `counters`.
"""

# ruff: noqa: ARG002  (a callback's arguments are given, used or not)

import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.status import Progress
from transformers import TrainerCallback

from finetune_trainer.reporting.counters import Counters
from finetune_trainer.run import Run
from finetune_trainer.workspace import usable

log = logging.getLogger(__name__)

LOG_FILE = "trainer_log.jsonl"


class ProgressReport(TrainerCallback):
    """One per run and rank; only rank 0 writes."""

    def __init__(self, run: Run, total_steps: int) -> None:
        self.run, self.total_steps = run, total_steps
        self.counters = Counters()
        early = run.job.evaluation.early_stopping if run.job.evaluation else None
        self.min_delta = early.min_delta if early else 0.0
        self.first_step_done = time.monotonic()
        self.first_step = 0
        self.tokens_before = 0
        self.logged: dict[str, float] = {}
        self.last: Any = None

    @property
    def rate(self) -> tuple[float, float] | None:
        """(steps, tokens) per second of this run. The first step is left out: it costs two or three later ones."""
        steps = self.step - self.first_step
        elapsed = self.last_step_done - self.first_step_done
        if steps < 1 or elapsed <= 0:
            return None
        return steps / elapsed, (self.counters.tokens - self.tokens_before) / elapsed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.counters.start()
        self.first_step_done = self.last_step_done = time.monotonic()
        self.step, self.first_step, self.tokens_before = state.global_step, state.global_step, self.counters.tokens
        self.fresh = True
        if self.run.is_main:
            cut_back(self.run.folders.reports / LOG_FILE, state.global_step)
            self._report(state)

    def step_done(self, state: Any, tokens: int) -> None:
        """After each optimizer step, on all ranks."""
        self.counters.tokens += tokens
        self.counters.samples += self.run.job.training.global_batch_size
        self.step, self.last_step_done = state.global_step, time.monotonic()
        if self.fresh:
            self.fresh = False
            self.first_step, self.first_step_done = self.step, self.last_step_done
            self.tokens_before = self.counters.tokens
        if self.run.is_main:
            self._report(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs:
            return
        if "eval_loss" in logs:  # on every rank: they decide by it when to stop
            self.counters.evaluated(state.global_step, logs["eval_loss"], self.min_delta)
        if not self.run.is_main:
            return
        if evaluated := {name: value for name, value in logs.items() if name.startswith("eval_")}:
            self._write({**self._place(state), **with_aliases(evaluated, "eval_")})
        if "eval_loss" in logs:
            log.info("step %d/%d  evaluation loss %.4f", state.global_step, self.total_steps, logs["eval_loss"])
        if "loss" not in logs:
            return
        self.logged = logs
        line = self._line(state, logs)
        self._write(line)
        log.info(
            "step %d/%d  loss %.4f  lr %.3g  %s tok/s  %s left",
            state.global_step,
            self.total_steps,
            logs["loss"],
            logs["learning_rate"],
            f"{self.rate[1]:.0f}" if self.rate else "-",
            line["remaining_time"],
        )
        self._report(state)

    def _write(self, line: dict[str, Any]) -> None:
        with (
            usable(self.run.folders.workspace),
            (self.run.folders.reports / LOG_FILE).open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(line) + "\n")

    def _eta(self, step: int) -> float | None:
        return None if self.rate is None else (self.total_steps - step) / self.rate[0]

    def _line(self, state: Any, logs: dict[str, float]) -> dict[str, Any]:
        """Keys as in LLaMA-Factory's log, which tools already read."""
        return {
            **self._place(state),
            **with_aliases({name: value for name, value in logs.items() if name not in ("learning_rate", "epoch")}),
            "lr": logs["learning_rate"],
            "throughput": round(self.rate[1], 2) if self.rate else None,
            "total_tokens": self.counters.tokens,
        }

    def _place(self, state: Any) -> dict[str, Any]:
        eta = self._eta(state.global_step)
        return {
            "current_steps": state.global_step,
            "total_steps": self.total_steps,
            "epoch": round(state.epoch or 0.0, 4),
            "percentage": round(100 * state.global_step / self.total_steps, 2),
            "elapsed_time": duration(self.counters.seconds),
            "remaining_time": duration(eta) if eta is not None else "unknown",
        }

    def ends_at(self, state: Any) -> None:
        """There are no more steps than those done, though more were asked for."""
        self.total_steps = state.global_step
        if self.run.is_main:
            self._report(state)

    def alive(self) -> None:
        """Between two steps, in an evaluation: a run that says nothing for long counts as hung."""
        if self.run.is_main and self.last is not None:
            self.run.report_progress(self.progress(self.last))

    def _report(self, state: Any) -> None:
        self.last = state
        self.run.report_progress(self.progress(state))

    def progress(self, state: Any) -> Progress:
        """status.progress as of now."""
        step = state.global_step
        percent = 100 * step // self.total_steps
        eta = self._eta(step)
        return Progress(
            attempt=self.run.attempt.attempt,
            step=step,
            total_steps=self.total_steps,
            percent=percent,
            summary=f"{step}/{self.total_steps} ({percent}%)",
            epoch=f"{state.epoch or 0.0:.2f}",
            loss=f"{self.logged['loss']:.4f}" if self.logged else None,
            learning_rate=f"{self.logged['learning_rate']:.3g}" if self.logged else None,
            tokens_per_second=f"{self.rate[1]:.0f}" if self.rate else None,
            eta_seconds=round(eta) if eta is not None else None,
            eta=duration(eta) if eta is not None else None,
            last_update_time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )


def with_aliases(values: dict[str, float], prefix: str = "") -> dict[str, float]:
    """With accuracy in stages dpo and kto, too."""
    pairs = f"{prefix}rewards/accuracies"
    return values | ({f"{prefix}accuracy": values[pairs]} if pairs in values else {})


def duration(seconds: float) -> str:
    """45s, 5m12s, 3h07m, 2d04h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def cut_back(file: Path, step: int) -> None:
    """Drop the lines after ``step``, which a resumed run writes again, and what a killed run left of a line."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["current_steps"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    whole = file.with_name(f".{file.name}.tmp")
    whole.write_text("".join(kept), encoding="utf-8")
    whole.replace(file)  # killed in between, the run would have lost the log of all before it
