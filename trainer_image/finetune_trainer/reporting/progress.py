"""The progress of training: status.progress for the cluster, trainer_log.jsonl for tools, and log lines for people.

`training` calls it after each step, and the trainer for each of its log lines. `status.Reporter` limits how often
status is written. `counters` has the values that count over all attempts.
"""

# ruff: noqa: ARG002  (transformers fixes the arguments of callbacks)

import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.status import Progress
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.reporting.counters import Counters
from finetune_trainer.reporting.curves import Curves
from finetune_trainer.reporting.stragglers import Stragglers
from finetune_trainer.run import Run
from finetune_trainer.runtime import heartbeat
from finetune_trainer.workspace.storage import storage_errors

log = logging.getLogger(__name__)

LOG_FILE = "trainer_log.jsonl"


class ProgressReport(TrainerCallback):
    """One object per rank. Only rank 0 writes."""

    def __init__(self, run: Run, total_steps: int, recompute: str) -> None:
        self.run, self.total_steps, self.recompute = run, total_steps, recompute
        self.counters, self.curves = Counters(), Curves()
        early = run.job.evaluation.early_stopping if run.job.evaluation else None
        self.min_delta = early.min_delta if early else 0.0
        self.step = self.first_step = self.tokens_before = 0
        self.start_step: int | None = None
        """The step of the checkpoint that this run resumed from, or 0. None before training."""
        self.first_step_done = self.last_step_done = time.monotonic()
        self.before_first_step = True
        self.logged: dict[str, float] = {}
        self.last_state: TrainerState | None = None
        self.stragglers = Stragglers(run.world_size, run.ranks_on_node)

    @property
    def rate(self) -> tuple[float, float] | None:
        """(steps, tokens) per second of this run; None before the second step. The first step does not count: it takes
        as long as two or three later steps."""
        steps = self.step - self.first_step
        elapsed = self.last_step_done - self.first_step_done
        if steps < 1 or elapsed <= 0:
            return None
        return steps / elapsed, (self.counters.tokens - self.tokens_before) / elapsed

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.counters.start()
        self.first_step_done = self.last_step_done = time.monotonic()
        self.step, self.first_step, self.tokens_before = state.global_step, state.global_step, self.counters.tokens
        self.start_step = state.global_step
        heartbeat.begin_training(state.global_step)
        self.before_first_step = True
        if self.run.is_main:
            self.run.check_fence()
            self.curves = Curves()
            for line in truncate_after_step(self.run.folders.reports / LOG_FILE, state.global_step):
                self.curves.add(line)
            self._report(state)

    def step_done(self, state: TrainerState, tokens: int) -> None:
        """Called after each optimizer step, on all ranks."""
        self.counters.tokens += tokens
        self.counters.samples += self.run.job.training.global_batch_size
        self.step, self.last_step_done = state.global_step, time.monotonic()
        if self.before_first_step:
            self.before_first_step = False
            self.first_step, self.first_step_done = self.step, self.last_step_done
            self.tokens_before = self.counters.tokens
        if self.run.is_main:
            self._report(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs:
            return
        if "eval_loss" in logs:  # on every rank, because all decide by it when to stop
            self.counters.record_evaluation(state.global_step, logs["eval_loss"], self.min_delta)
        if not self.run.is_main:
            return
        if evaluated := {name: value for name, value in logs.items() if name.startswith("eval_")}:
            self._write({**self._position(state), **with_aliases(evaluated, "eval_")})
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
        self.run.check_fence()  # a later run has begun to write the same steps into the same file
        with (
            storage_errors(self.run.folders.workspace),
            (self.run.folders.reports / LOG_FILE).open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(line) + "\n")
        self.curves.add(line)

    def _eta(self, step: int) -> float | None:
        return None if self.rate is None else (self.total_steps - step) / self.rate[0]

    def _line(self, state: TrainerState, logs: dict[str, float]) -> dict[str, Any]:
        """A line of trainer_log.jsonl. The keys are those of LLaMA-Factory's log, which tools read."""
        return {
            **self._position(state),
            **with_aliases({name: value for name, value in logs.items() if name not in ("learning_rate", "epoch")}),
            "lr": logs["learning_rate"],
            "throughput": round(self.rate[1], 2) if self.rate else None,
            "total_tokens": self.counters.tokens,
        }

    def _position(self, state: TrainerState) -> dict[str, Any]:
        eta = self._eta(state.global_step)
        return {
            "current_steps": state.global_step,
            "total_steps": self.total_steps,
            "epoch": round(state.epoch or 0.0, 4),
            "percentage": round(100 * state.global_step / self.total_steps, 2),
            "elapsed_time": duration(self.counters.seconds),
            "remaining_time": duration(eta) if eta is not None else "unknown",
        }

    def end_at(self, state: TrainerState) -> None:
        """Training ends with this step, though more were planned."""
        self.total_steps = state.global_step
        if self.run.is_main:
            self._report(state)

    def refresh(self) -> None:
        """Report the last progress again, between two steps or in an evaluation, so that the run shows that it is
        alive."""
        if self.run.is_main and self.last_state is not None:
            self.run.report_progress(self.progress(self.last_state))

    def close(self) -> None:
        """Report the last values, and the curves up to them, at any end of training."""
        if self.run.is_main and self.last_state is not None:
            progress = self.progress(self.last_state)
            self.run.report_progress(progress.model_copy(update={"curves": self.curves.due(at_once=True)}))

    def _report(self, state: TrainerState) -> None:
        self.last_state = state
        progress = self.progress(state)
        self.run.report_progress(progress.model_copy(update={"curves": self.curves.due()}))

    def progress(self, state: TrainerState) -> Progress:
        """status.progress of this moment."""
        step = state.global_step
        percent = 100 * step // self.total_steps
        eta = self._eta(step)
        return Progress(
            attempt=self.run.attempt.attempt,
            step=step,
            total_steps=self.total_steps,
            percent=percent,
            start_step=self.start_step,
            recompute=self.recompute,
            slowest_rank=self.stragglers.slowest,
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
    """``values`` with accuracy under its common name, also in stages dpo and kto."""
    name = f"{prefix}rewards/accuracies"
    return values | ({f"{prefix}accuracy": values[name]} if name in values else {})


def duration(seconds: float) -> str:
    """For people: 45s, 5m12s, 3h07m, 2d04h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"


def truncate_after_step(file: Path, step: int) -> list[dict[str, Any]]:
    """Remove the lines after ``step``, which a resumed run writes again, and a line that a killed run left
    incomplete. Returns the others."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        return []
    lines, entries = [], []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            if entry["current_steps"] <= step:
                lines.append(line + "\n")
                entries.append(entry)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(file)  # atomic: a run that is killed here must not lose the log
    return entries
