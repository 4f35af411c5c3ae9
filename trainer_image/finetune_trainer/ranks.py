"""The processes of one node's ranks: start them, reap them, tell them to stop, end them. Used by ``launch`` alone."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from finetune_trainer.handover import Handover

KILL_WAIT = 10.0
"""Seconds after which a killed process that sits in the kernel (a hung GPU or file server) is left to the pod's end."""
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")
"""torch's words for who trains with whom: ours alone to say."""


class Ranks:
    """Processes by rank, and how each ended."""

    def __init__(self, command: Sequence[str], handover: Handover, folder: Path, environment: dict[str, str]) -> None:
        self.codes: dict[int, int] = {}
        """Rank -> what waitpid said: an exit code, or minus the signal."""
        self.killed: set[int] = set()
        self.told = False
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        inherited = {name: value for name, value in os.environ.items() if name not in RENDEZVOUS}
        shared = {**inherited, "PYTHONUNBUFFERED": "1", **_rendezvous(handover), **environment}
        for rank in handover.ranks:
            self._processes[rank] = subprocess.Popen(
                [*command, str(folder), str(rank)],
                # A model's own code is copied before it is run: into a folder that no other rank writes.
                env={**shared, **_identity(handover, rank), "HF_MODULES_CACHE": str(folder / f"modules-{rank}")},
                # A Ctrl-C in the terminal reaches the launcher alone, and a group can be killed whole.
                start_new_session=True,
            )

    @property
    def alive(self) -> list[int]:
        return [rank for rank in self._processes if rank not in self.codes]

    def reap(self) -> None:
        """Take note of who has ended. As PID 1 this is also where orphans of ranks end up."""
        of_pid = {process.pid: rank for rank, process in self._processes.items()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in of_pid:
                code = os.waitstatus_to_exitcode(status)
                self.codes[of_pid[pid]] = self._processes[of_pid[pid]].returncode = code

    def tell(self) -> None:
        """Pass SIGTERM on, once: to the ranks themselves, not to the data loaders that they still need for a save."""
        if not self.told:
            self.told = True
            for rank in self.alive:
                self._processes[rank].send_signal(signal.SIGTERM)

    def show_stacks(self, rank: int) -> None:
        """Have a rank write the stacks of all its threads to the log, whatever it sits in."""
        self._processes[rank].send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End all that still run, with all that they started."""
        for rank in self.alive:
            self.killed.add(rank)
            os.killpg(self._processes[rank].pid, signal.SIGKILL)
        end = time.monotonic() + KILL_WAIT
        while self.alive and time.monotonic() < end:
            time.sleep(0.02)
            self.reap()
        for rank in self.alive:
            self.codes[rank] = -signal.SIGKILL


def _rendezvous(handover: Handover) -> dict[str, str]:
    """Where ranks meet, in torch's words. A rank that trains alone needs nobody."""
    if not handover.together:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "MASTER_ADDR": handover.host,
        "MASTER_PORT": str(handover.port),
        "WORLD_SIZE": str(handover.world_size),
        "LOCAL_WORLD_SIZE": str(handover.ranks_on_node),
        # Else each rank would start as many threads as there are cores.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // handover.ranks_on_node))),
    }


def _identity(handover: Handover, rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank % handover.ranks_on_node)} if handover.together else {}
