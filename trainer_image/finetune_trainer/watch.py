"""Watches over the ranks of this node until each has ended: by itself, told to stop, or by force.

Called by `launch` with ranks that were just started. The order in which things are looked at is the order of their
weight: the run is somebody else's, the job was told to stop, a rank failed, a rank stands still.
"""

import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from finetune_api.exit_codes import REASONS, ExitCode
from finetune_api.status import Reason

from finetune_trainer import hostmemory, results
from finetune_trainer.errors import Hung, Superseded
from finetune_trainer.handover import Handover, end_file, write_deadline
from finetune_trainer.hostmemory import HostMemory
from finetune_trainer.ranks import Ranks
from finetune_trainer.reporting.api import NOBODY_WANTS_IT
from finetune_trainer.reporting.status import ask
from finetune_trainer.results import End
from finetune_trainer.stillness import Bounds, Stillness
from finetune_trainer.stopping import Stop

NOTICE = 5.0
"""Seconds in which ranks may find out by themselves why another one failed."""
GIVE_UP = 10.0
"""Seconds from SIGTERM to SIGKILL for the ranks that another one's failure left behind."""
TICK = 0.1
STACKS = 1.0
"""Seconds that a rank gets to write the stacks of its threads."""

log = logging.getLogger(__name__)


@dataclass
class Watch:
    """What is looked at. `lost_fence` is set when a later run has taken over."""

    handover: Handover
    folder: Path
    stop: Stop
    lost_fence: Event
    bounds: Bounds
    before: HostMemory
    """As of before the ranks started."""

    def see_to_the_end(self, ranks: Ranks) -> End:
        """How the ranks of this node ended, all told."""
        try:
            self._until_all_ended(ranks)
        finally:
            ranks.kill()
        memory = hostmemory.read()
        return results.combine([self._end_of(rank, ranks, memory) for rank in sorted(ranks.codes)])

    def _until_all_ended(self, ranks: Ranks) -> None:
        """Until every rank has ended, or is to be ended by force.

        Raises Superseded when nobody wants the result: a rank in the middle of a long step would not listen, and there
        is nothing worth a save. Raises Hung.
        """
        handover, stop = self.handover, self.stop
        stillness = Stillness(self.folder, handover.ranks, self.bounds, time.monotonic())
        heard = 0
        failed = False
        tell_at = deadline = float("inf")
        while ranks.alive:
            time.sleep(TICK)
            ranks.reap()
            now = time.monotonic()
            if self.lost_fence.is_set():
                raise Superseded(f"A later run has taken over {handover.folders.job}: this one ends without a save")
            if ExitCode.SUPERSEDED in ranks.codes.values() or stop.interrupts > 1:
                return
            if stop.count > heard:
                first, heard = heard == 0, stop.count
                # Only training has something to save.
                saving = handover.saving_seconds
                saving = saving if handover.task == "train" else min(NOTICE, saving)
                left = stop.at + saving - now
                answer = ask(handover.api, handover.facts, handover.folders.reports, max(0.0, left / 3))
                if answer in NOBODY_WANTS_IT:
                    raise Superseded(f"Told to stop, and nobody wants the result ({answer.value}): no save")
                if first:
                    deadline = min(deadline, stop.at + saving)
                    log.info("Told to stop: the ranks have %.0f s to end", deadline - time.monotonic())
                    write_deadline(self.folder, deadline)
                    ranks.tell()
            elif not stop.requested and not failed and any(ranks.codes.values()):
                failed = True
                if ExitCode.DISRUPTED in ranks.codes.values():
                    # Though nobody here was told: another node was, and all ranks save.
                    deadline = now + handover.saving_seconds
                else:
                    tell_at, deadline = now + NOTICE, now + NOTICE + GIVE_UP
            if now > tell_at:
                ranks.tell()
            if now > deadline:
                return
            if not stop.requested and not failed and (still := stillness.look(ranks.alive, now)):
                self._show_stacks(ranks)
                raise Hung(still)

    def _show_stacks(self, ranks: Ranks) -> None:
        """Of all ranks, one after the other: where each of them waits says which one they wait for."""
        for rank in ranks.alive:
            log.error("The stacks of rank %d:", rank)
            ranks.show_stacks(rank)
            end = time.monotonic() + STACKS
            while time.monotonic() < end:
                time.sleep(TICK)
                ranks.reap()

    def _end_of(self, rank: int, ranks: Ranks, memory: HostMemory) -> End:
        """How one rank ended: by its own word when that fits its exit code, else by the code."""
        code, stopped = ranks.codes[rank], self.stop.requested
        by_us = (rank in ranks.killed and code == -signal.SIGKILL) or (ranks.told and code == -signal.SIGTERM)
        superseded = ExitCode.SUPERSEDED in ranks.codes.values()
        if by_us and stopped and not superseded:
            what = "had not begun" if rank not in ranks.killed else "had not saved in time"
            return End(ExitCode.DISRUPTED, REASONS[ExitCode.DISRUPTED], f"Told to stop; rank {rank} {what}")
        if by_us or (ranks.told and not stopped and code == ExitCode.DISRUPTED):
            return End(results.KILLED, Reason.KILLED, f"Rank {rank} was ended because another one failed", forced=True)
        if code < 0 or code > 128:
            short = hostmemory.was_short(self.before, memory)
            return results.of_signal(-code if code < 0 else code - 128, rank, memory, short)
        said = results.read_end(end_file(self.folder, rank))
        if said is not None and said.code == code:
            return said
        internal = ExitCode.INTERNAL_ERROR
        message = f"Rank {rank} ended with exit code {code} and without a result: what happened is in the pod's log"
        return End(internal, REASONS[internal], message)
