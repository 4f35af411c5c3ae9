"""Detects ranks that hang: when a running rank sends no heartbeat for too long.

`supervise` calls this, which reads the heartbeats of the ranks once a second. The limit depends on the phase: for a
step it follows from the steps before, for an evaluation from the last evaluation, for a save from the whole duration of
the last save, because the next save waits for the part that still runs in the background. The launcher decides, not the
rank: a rank that is blocked in a collective or in a system call to a dead file server cannot.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from finetune_trainer.runtime import heartbeat
from finetune_trainer.runtime.heartbeat import Beat, Phase
from finetune_trainer.runtime.silence import Silence

SHARED: tuple[Phase, ...] = ("load", "save")
"""Phases in which ranks share the files and wait for the rank with the largest file: the progress of one counts for
all."""
STEPS = 64
"""Steps that the median is taken of."""


@dataclass(frozen=True)
class HangLimits:
    """Seconds without a heartbeat, and factors. Only tests change them."""

    load: float = 1800.0
    finish: float = 3600.0
    """A whole model may be merged and written without a heartbeat."""
    first: float = 1800.0
    """For the first run through a phase."""
    least: float = 600.0
    """The lower bound of limits that follow from durations."""
    steps: float = 20.0
    """Times the median step."""
    phase: float = 5.0
    """Times the last evaluation, save or generation."""
    interval: float = 1.0
    """Seconds between two checks."""


class RankPace:
    """The last heartbeat of one rank, and the durations of its steps and phases."""

    def __init__(self, now: float) -> None:
        self.beat = Beat("load", 0, now)
        self._phase_start = now
        self._step_start = now
        """When this step, or phase, began. Heartbeats within a step do not change it."""
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._phases: dict[Phase, float] = {}

    def record(self, beat: Beat) -> None:
        """Add the newest heartbeat."""
        before, self.beat = self.beat, beat
        steps = beat.step - before.step
        if beat.phase == before.phase == "train" and steps > 0:
            self._steps.append((beat.time - self._step_start) / steps)
        if beat.phase != before.phase:
            self._phases[before.phase] = beat.time - self._phase_start
            self._phase_start = beat.time
        if (beat.phase, beat.step) != (before.phase, before.step):
            self._step_start = beat.time

    def limit(self, limits: HangLimits) -> float:
        """Seconds for which this rank may send no heartbeat now."""
        phase = self.beat.phase
        if phase == "load":
            return limits.load
        if phase == "finish":
            return limits.finish
        if phase == "train":
            expected = limits.steps * median(self._steps or [0.0])
        else:
            last = self.beat.save_seconds if phase == "save" else self._phases.get(phase, 0.0)
            expected = limits.phase * last
        return max(limits.least, expected) if expected else limits.first


class HangDetector:
    """Checks the ranks of one node, which are started at the monotonic time ``now``."""

    def __init__(self, folder: Path, ranks: Iterable[int], limits: HangLimits, now: float, node: int = 0) -> None:
        self._folder, self._limits, self._node = folder, limits, node
        self._paces = {rank: RankPace(now) for rank in ranks}
        self._next_check = now + limits.interval

    def check(self, running: Iterable[int], now: float) -> list[Silence]:
        """What all ranks did last, when one of them hangs."""
        if now < self._next_check:
            return []
        self._next_check = now + self._limits.interval
        paces = {rank: self._paces[rank] for rank in running}
        for rank, pace in paces.items():
            beat = heartbeat.read(self._folder, rank)
            if beat is not None and beat != pace.beat:
                pace.record(beat)
        hung = {
            rank
            for rank, pace in paces.items()
            if now - _last_progress(pace, paces.values()) > pace.limit(self._limits)
        }
        if not hung:
            return []
        return [
            Silence(
                rank=rank,
                node=self._node,
                phase=pace.beat.phase,
                step=pace.beat.step,
                seconds=now - pace.beat.time,
                limit=pace.limit(self._limits) if rank in hung else None,
            )
            for rank, pace in paces.items()
        ]


def _last_progress(pace: RankPace, paces: Iterable[RankPace]) -> float:
    """When this rank, or a rank of this node that it waits for, last made progress."""
    phase = pace.beat.phase
    together = [other.beat.time for other in paces if other.beat.phase == phase and phase in SHARED]
    return max([pace.beat.time, *together])
