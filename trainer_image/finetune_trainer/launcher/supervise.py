"""Runs the ranks of this node for one task, and ends them: by their own end, by SIGTERM, or by force.

Called by `launch`. The checks of `Supervisor` are in the order of their priority: a later run has taken over, the run
received SIGTERM, a rank failed, a rank hangs.
"""

import logging
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import Reason

from finetune_trainer.errors import Preempted, Superseded
from finetune_trainer.launcher.handover import Handover, exit_file, write_deadline
from finetune_trainer.launcher.hang_detection import HangDetector, HangLimits
from finetune_trainer.launcher.processes import RankProcesses
from finetune_trainer.reporting.api import RESULT_UNWANTED
from finetune_trainer.reporting.status import probe
from finetune_trainer.runtime import exit_report, gpumemory, hardware, heartbeat, hostmemory
from finetune_trainer.runtime.exit_report import ExitReport
from finetune_trainer.runtime.hostmemory import HostMemory
from finetune_trainer.runtime.signals import Stop

NOTICE = 5.0
"""Seconds in which ranks may detect by themselves that another rank failed."""
TERMINATION = 10.0
"""Seconds from SIGTERM to SIGKILL for the ranks that remain after another rank failed."""
TICK = 0.1
"""Seconds between two checks."""
STACK_DUMP = 1.0
"""Seconds that a rank gets to write the stacks of its threads."""

log = logging.getLogger(__name__)


def check_stop(stop: Stop, task: str) -> None:
    """Raises Preempted after SIGTERM."""
    if stop.requested:
        raise Preempted(f"Stopped by SIGTERM before the task {task} began. There was nothing to save")


def run_ranks(
    command: Sequence[str],
    handover: Handover,
    stop: Stop,
    lost_fence: Event,
    limits: HangLimits,
    environment: dict[str, str],
    ended: Callable[[Path], None] = lambda _folder: None,
) -> ExitReport:
    """Start the ranks of this node and wait until all have ended; the combined report. ``ended`` is called then with
    the directory of the handover.

    ``lost_fence`` is set when a later run has taken over. Raises Preempted (SIGTERM before the start), Superseded.
    """
    check_stop(stop, handover.task)
    log.info(
        "Job %s, attempt %s, run %s: %s with %s of %s rank(s)",
        handover.job.name,
        handover.attempt.attempt,
        handover.run_id,
        handover.task,
        len(handover.ranks),
        handover.world_size,
    )
    folder = Path(tempfile.mkdtemp(prefix="finetune-run-"))
    try:
        handover.write(folder)
        memory = hostmemory.read()
        ranks = RankProcesses(command, handover, folder, environment)
        return Supervisor(handover, folder, ranks, stop, lost_fence, limits, memory).wait()
    finally:
        ended(folder)
        shutil.rmtree(folder, ignore_errors=True)


class Supervisor:
    """Watches the ranks from their start to their end. ``memory`` is the host memory before they started."""

    def __init__(
        self,
        handover: Handover,
        folder: Path,
        ranks: RankProcesses,
        stop: Stop,
        lost_fence: Event,
        limits: HangLimits,
        memory: HostMemory,
    ) -> None:
        self._handover, self._folder, self._ranks = handover, folder, ranks
        self._stop, self._lost_fence, self._memory = stop, lost_fence, memory
        self._hangs = HangDetector(folder, handover.ranks, limits, time.monotonic(), handover.node)
        self._stops_handled = 0
        self._rank_failed = False
        self._terminate_at = float("inf")
        """Monotonic time of SIGTERM for the ranks that remain after another rank failed."""
        self._deadline = float("inf")
        """Monotonic time at which ranks that still run are killed."""

    def wait(self) -> ExitReport:
        """The combined report of all ranks, or that they hang. Raises Superseded."""
        try:
            report = self._wait_for_ranks()
        finally:
            self._ranks.kill()
        if report is None:
            memory = hostmemory.read()
            report = exit_report.combine([self._report_of(rank, memory) for rank in sorted(self._ranks.exit_codes)])
        return replace(report, needs_new_pods=True) if self._ranks.unkillable else report

    def _wait_for_ranks(self) -> ExitReport | None:
        """Return when all ranks have ended, or when those that still run are to be killed; a report if they hang.
        Superseded kills them, too: a rank in a long step reacts to no signal, and nothing of it is worth a save."""
        ranks, stop = self._ranks, self._stop
        while ranks.running:
            time.sleep(TICK)
            ranks.reap()
            now = time.monotonic()
            if self._lost_fence.is_set():
                folder = self._handover.folders.job
                raise Superseded(f"A later run has taken over {folder}. This run ends without a save")
            if ExitCode.SUPERSEDED in ranks.exit_codes.values() or stop.interrupts > 1:
                return None
            if stop.count > self._stops_handled:
                self._handle_stop(now)
            elif not stop.requested and not self._rank_failed and any(ranks.exit_codes.values()):
                self._handle_failure(now)
            if now > self._terminate_at:
                ranks.terminate()
            if now > self._deadline:
                return None
            if not stop.requested and not self._rank_failed and (hung := self._check_hang(now)):
                return hung
        return None

    def _handle_stop(self, now: float) -> None:
        """On each SIGTERM: end at once when nobody wants the result, else let the ranks save."""
        handover, stop = self._handover, self._stop
        first, self._stops_handled = self._stops_handled == 0, stop.count
        # Only training has something to save.
        seconds = handover.stop_seconds if handover.task == "train" else min(NOTICE, handover.stop_seconds)
        left = stop.at + seconds - now
        answer = probe(handover.api, handover.attempt, handover.folders.reports, max(0.0, left / 3))
        if answer in RESULT_UNWANTED:
            raise Superseded(f"Stopped by SIGTERM, and nobody wants the result ({answer.value}). Nothing is saved")
        if first:
            self._deadline = min(self._deadline, stop.at + seconds)
            log.info("Stopped by SIGTERM: the ranks have %.0f s to end", self._deadline - time.monotonic())
            write_deadline(self._folder, self._deadline)
            self._ranks.terminate()

    def _handle_failure(self, now: float) -> None:
        """The first rank failed: give the others time to end."""
        self._rank_failed = True
        if ExitCode.DISRUPTED in self._ranks.exit_codes.values():
            # Another node got SIGTERM, and all ranks save.
            self._deadline = now + self._handover.stop_seconds
        else:
            self._terminate_at, self._deadline = now + NOTICE, now + NOTICE + TERMINATION

    def _check_hang(self, now: float) -> ExitReport | None:
        silences = self._hangs.check(self._ranks.running, now)
        if not silences:
            return None
        self._dump_stacks()
        return exit_report.hung(silences)

    def _dump_stacks(self) -> None:
        """Log the stacks of all ranks, one after the other: they show which rank the others wait for."""
        for rank in self._ranks.running:
            log.error("The stacks of rank %d:", rank)
            self._ranks.dump_stacks(rank)
            end = time.monotonic() + STACK_DUMP
            while time.monotonic() < end:
                time.sleep(TICK)
                self._ranks.reap()

    def _report_of(self, rank: int, memory: HostMemory) -> ExitReport:
        """How one rank ended: by its own report when that fits its exit code, else by the code."""
        ranks = self._ranks
        code, stopped = ranks.exit_codes[rank], self._stop.requested
        by_us = (rank in ranks.killed and code == -signal.SIGKILL) or (ranks.terminated and code == -signal.SIGTERM)
        superseded = ExitCode.SUPERSEDED in ranks.exit_codes.values()
        if by_us and stopped and not superseded:
            state = "had not begun" if rank not in ranks.killed else "had not saved in time"
            message = f"Stopped by SIGTERM; rank {rank} {state}"
            return ExitReport(ExitCode.DISRUPTED, REASONS[ExitCode.DISRUPTED], message)
        if by_us or (ranks.terminated and not stopped and code == ExitCode.DISRUPTED):
            message = f"Rank {rank} was ended because another rank failed"
            return ExitReport(exit_report.KILLED, Reason.KILLED, message, forced=True)
        report = exit_report.read(exit_file(self._folder, rank))
        if report is not None and report.code == code:
            return report
        if code != -signal.SIGKILL and gpumemory.tells_of_it(words := ranks.last_words(rank)):
            beat = heartbeat.read(self._folder, rank)
            phase = beat.phase if beat is not None else "load"
            return exit_report.gpu_out_of_memory(words, rank, phase, self._handover.micro_batch)
        if code != -signal.SIGKILL and hardware.tells_of_it(words := ranks.last_words(rank)):
            return exit_report.at_node(exit_report.hardware_error(words, rank), self._handover.node)
        if code < 0 or code > 128:
            oom_killed = hostmemory.was_oom_killed(self._memory, memory)
            return exit_report.from_signal(-code if code < 0 else code - 128, rank, memory, oom_killed)
        return exit_report.internal_error(
            f"Rank {rank} ended with exit code {code} and without a report. See the pod's log for the cause"
        )
