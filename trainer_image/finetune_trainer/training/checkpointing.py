"""When a run saves a checkpoint, and from which checkpoint the next attempt resumes.

`loop.Training` asks after each step. The trainer writes the files, and `checkpoints.saver` completes the checkpoint in
the background, so a save "lands" some steps after it began.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api.status import Checkpoint
from torch import nn

from finetune_trainer.checkpoints.resume import ResumePoint
from finetune_trainer.checkpoints.saver import Saved, Saver
from finetune_trainer.collectives import is_broken
from finetune_trainer.errors import Superseded
from finetune_trainer.run import Run
from finetune_trainer.runtime import heartbeat

log = logging.getLogger(__name__)

SAVE_MARGIN = 1.5
"""After SIGTERM a save begins only if this many times its measured duration is left."""
AT_LEAST, AT_MOST = 5.0, 300.0
"""Bounds in seconds of the time that a save in flight gets after an error."""
ASSUMED_BANDWIDTH = 50e6
"""Bytes per second that the workspace is assumed to write, until the first save is measured."""


class Checkpointing:
    """The checkpoints of one run."""

    def __init__(self, run: Run, saver: Saver) -> None:
        self.run, self.saver = run, saver
        self.last_save = time.monotonic()
        """When the state was that of the newest checkpoint. A crash loses the steps after it."""
        self.save_seconds = 0.0
        """Duration of a whole save: measured, or estimated before the first."""
        self.newest: str | None = None
        """The newest checkpoint, for messages."""
        self.newest_step = 0
        saver.on_saved.append(self._landed)

    def resume_from(self, choice: ResumePoint) -> None:
        """Note and report the checkpoint that the run resumes from."""
        self.saver.earlier_runs, self.saver.broken_checkpoints = choice.earlier, choice.broken
        if choice.path is not None and choice.manifest is not None:
            self.newest, self.newest_step = self._description(choice.step, choice.path), choice.step
            if self.run.is_main:  # the status may name another: newer checkpoints were broken, or never reported
                self._report(choice.manifest.attempt, choice.step, choice.path, choice.manifest.time)

    def begin(self, model: nn.Module) -> None:
        """Training begins: the time of the first save is estimated from the weights and the two moments of Adam."""
        trained = sum(w.numel() * w.element_size() for w in model.parameters() if w.requires_grad)
        self.save_seconds = 3 * trained / ASSUMED_BANDWIDTH
        self.last_save = time.monotonic()

    def is_due(self, step: int) -> bool:
        """By the number of steps, or so that a save lands before everyMinutes have passed since the last."""
        spec = self.run.job.checkpoints
        by_steps = spec.every_steps is not None and step % spec.every_steps == 0
        bound = 60 * spec.every_minutes
        return by_steps or time.monotonic() - self.last_save >= bound - min(self.save_seconds, bound / 2)

    def begun(self) -> None:
        """A save of the current state is about to begin."""
        self.last_save = time.monotonic()

    @property
    def has_landed(self) -> bool:
        """Whether the save in flight ended on this rank."""
        return self.saver.done

    def collect(self) -> None:
        """Report the save that ended on all ranks."""
        self.saver.wait()

    def wait(self, step: int) -> None:
        """Wait until the save in flight lands."""
        if self.saver.in_flight:
            heartbeat.beat("save", step)
            self.saver.wait()

    def fits_before_kill(self) -> bool:
        """Whether a save may begin, in the rest of the grace period."""
        return self.run.seconds_left() >= SAVE_MARGIN * self.save_seconds

    @contextmanager
    def landing_after_errors(self) -> Iterator[None]:
        """Around training. If an error ends it, the save in flight is of an earlier step and valid: it gets the time
        that a save takes. It gets none if another rank is gone or a later run took over, because then it cannot
        land."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, Superseded) and not is_broken(error):
                heartbeat.refresh()
                patience = min(max(AT_LEAST, SAVE_MARGIN * self.save_seconds), AT_MOST)
                self.saver.finish_within(min(patience, self.run.seconds_left()))
            raise

    def next_attempt(self) -> str:
        """Where the next attempt would start, for messages."""
        if self.newest is None:
            return "there is no checkpoint yet, so the next attempt starts over"
        return f"the next attempt resumes from {self.newest}"

    def _landed(self, saved: Saved) -> None:
        """A checkpoint is complete."""
        self.save_seconds = saved.seconds
        heartbeat.record_save(saved.seconds)
        self.newest, self.newest_step = self._description(saved.step, saved.path), saved.step
        if self.run.is_main:
            log.info("saved %s in %.1f s", self.newest, saved.seconds)
            self._report(self.run.attempt.attempt, saved.step, saved.path, saved.time, math.ceil(saved.seconds))

    def _report(self, attempt: int, step: int, path: Path, written: str, seconds: int | None = None) -> None:
        relative = path.relative_to(self.run.folders.workspace).as_posix()
        self.run.report_checkpoint(Checkpoint(attempt=attempt, step=step, path=relative, time=written, seconds=seconds))

    def _description(self, step: int, path: Path) -> str:
        return f"step {step} ({path.relative_to(self.run.folders.workspace)})"
