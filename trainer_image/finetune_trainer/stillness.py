"""When a rank that runs but gets nowhere counts as hung.

`watch` looks every second at what the ranks say by `heartbeat`. How long one may stand still depends on what it does:
a step is measured by the steps before it, an evaluation by the last one, a save by what the last one took as a whole,
since the next waits for what of it is still under way in the background. It is the launcher that
judges: a rank that sits in a collective, or in a dead file server's system call, can't.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from finetune_trainer import heartbeat
from finetune_trainer.heartbeat import Beat, Phase

SHARED: tuple[Phase, ...] = ("load", "save")
"""Phases in which ranks share the files and wait for whoever has the largest: one that gets on stands for all."""
STEPS = 64
"""Steps that the median is taken of."""


@dataclass(frozen=True)
class Bounds:
    """Seconds without a sign of life. Only tests have others."""

    load: float = 1800.0
    finish: float = 3600.0
    """A whole model may be merged and written in one go."""
    first: float = 1800.0
    """Of a phase that has no past yet."""
    least: float = 600.0
    steps: float = 20.0
    """Times the median step."""
    phase: float = 5.0
    """Times the last evaluation, save or generation."""
    look: float = 1.0


class Rank:
    """What is known of one rank's pace."""

    def __init__(self, now: float) -> None:
        self.beat = Beat("load", 0, now)
        self.entered = now
        """The phase."""
        self._moved = now
        """To this step, or phase: the signs of life in between are not when a step began."""
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._phases: dict[Phase, float] = {}

    def hear(self, beat: Beat) -> None:
        """Take note of the newest sign of life."""
        before, self.beat = self.beat, beat
        steps = beat.step - before.step
        if beat.phase == before.phase == "train" and steps > 0:
            self._steps.append((beat.time - self._moved) / steps)
        if beat.phase != before.phase:
            self._phases[before.phase] = beat.time - self.entered
            self.entered = beat.time
        if (beat.phase, beat.step) != (before.phase, before.step):
            self._moved = beat.time

    def bound(self, bounds: Bounds) -> float:
        """How long it may say nothing now."""
        phase = self.beat.phase
        if phase == "load":
            return bounds.load
        if phase == "finish":
            return bounds.finish
        past = (
            bounds.steps * median(self._steps or [0.0])
            if phase == "train"
            else bounds.phase * (self.beat.save_seconds if phase == "save" else self._phases.get(phase, 0.0))
        )
        return max(bounds.least, past) if past else bounds.first


class Stillness:
    """Of the ranks of one node, which are started now."""

    def __init__(self, folder: Path, ranks: Iterable[int], bounds: Bounds, now: float) -> None:
        self._folder, self._bounds = folder, bounds
        self._ranks = {rank: Rank(now) for rank in ranks}
        self._next = now + bounds.look

    def look(self, alive: Iterable[int], now: float) -> str | None:
        """Who stands still, and all that is known of it for people; None if nobody does."""
        if now < self._next:
            return None
        self._next = now + self._bounds.look
        running = {rank: self._ranks[rank] for rank in alive}
        for number, rank in running.items():
            beat = heartbeat.read(self._folder, number)
            if beat is not None and beat != rank.beat:
                rank.hear(beat)
        still = {
            number
            for number, rank in running.items()
            if now - _moved(rank, running.values()) > rank.bound(self._bounds)
        }
        if not still:
            return None
        told = [
            f"rank {number} in phase {rank.beat.phase} after step {rank.beat.step}, for {now - rank.beat.time:.0f} s"
            + (f" (bound {rank.bound(self._bounds):.0f} s)" if number in still else "")
            for number, rank in running.items()
        ]
        return f"Nothing moves: {'; '.join(told)}. The stacks of all threads are in the pod's log"


def _moved(rank: Rank, running: Iterable[Rank]) -> float:
    """When it, or a rank of this node that it waits for, last got somewhere."""
    phase = rank.beat.phase
    together = [other.beat.time for other in running if other.beat.phase == phase and phase in SHARED]
    return max([rank.beat.time, *together])
