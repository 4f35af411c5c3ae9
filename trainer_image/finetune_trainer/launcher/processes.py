"""The processes of one node's ranks: start, reap, terminate and kill them. Used by `supervise` alone."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetune_trainer.launcher.handover import Handover
from finetune_trainer.launcher.last_words import STDOUT, WAIT, LastWords
from finetune_trainer.runtime import cpus

KILL_WAIT = 10.0
"""Seconds to wait for a killed process. One that sits in the kernel (a hung GPU or file server) ends with the pod."""
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")
"""torch's variables for distributed training. Only the launcher sets them."""
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""The names under which torch reads the settings of its allocator of GPU memory, the present name first."""


WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""The variables of GNU OpenMP and of all OpenMPs for how threads wait. The first wins over the second."""
SPINS = "1000"
"""Some tens of microseconds."""


class RankProcesses:
    """Processes by rank, and their exit codes. They are started at once."""

    def __init__(self, command: Sequence[str], handover: Handover, folder: Path, environment: dict[str, str]) -> None:
        self.exit_codes: dict[int, int] = {}
        """Rank -> exit code, or minus the signal. Has the ranks that have ended."""
        self.killed: set[int] = set()
        """Ranks that `kill` ended."""
        self.unkillable = False
        """Whether a killed process did not end: it sits in the kernel."""
        self.terminated = False
        """Whether `terminate` was called."""
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._last_words: dict[int, LastWords] = {}
        self._outputs: list[LastWords] = []
        inherited = {name: value for name, value in os.environ.items() if name not in RENDEZVOUS}
        shared = {**_allocator(), **_threads(handover), **inherited, "PYTHONUNBUFFERED": "1"}
        shared |= {**_rendezvous(handover), **environment}
        for rank in handover.ranks:
            process = self._processes[rank] = subprocess.Popen(
                [*command, str(folder), str(rank)],
                # transformers copies a model's own code before it runs it: each rank needs its own directory.
                env={**shared, **_identity(handover, rank), "HF_MODULES_CACHE": str(folder / f"modules-{rank}")},
                # In a session of its own, so that Ctrl-C reaches the launcher alone and a whole group can be killed.
                start_new_session=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self._last_words[rank] = LastWords(process.stderr)
            self._outputs += [LastWords(process.stdout, STDOUT), self._last_words[rank]]

    @property
    def running(self) -> list[int]:
        """Ranks that have not ended."""
        return [rank for rank in self._processes if rank not in self.exit_codes]

    def reap(self) -> None:
        """Collect the exit codes of ranks that have ended. Orphans of ranks end up with PID 1 and are reaped, too."""
        rank_of = {process.pid: rank for rank, process in self._processes.items()}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in rank_of:
                code = os.waitstatus_to_exitcode(status)
                self.exit_codes[rank_of[pid]] = self._processes[rank_of[pid]].returncode = code

    def terminate(self) -> None:
        """Send SIGTERM, once. Only the ranks get it: they still need their data loaders for a save."""
        if not self.terminated:
            self.terminated = True
            for rank in self.running:
                self._processes[rank].send_signal(signal.SIGTERM)

    def last_words(self, rank: int) -> str:
        """What a rank that has ended wrote to stderr last."""
        return self._last_words[rank].text()

    def dump_stacks(self, rank: int) -> None:
        """Make a rank write the stacks of all its threads to the log, whatever it is blocked in."""
        self._processes[rank].send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Kill all ranks that still run, with all processes that they started. After a failure also what the others
        left behind: the data loaders of a rank that crashed outlive it."""
        failed = any(self.exit_codes.values())
        self.killed.update(self.running)
        for rank, process in self._processes.items():
            if failed or rank in self.killed:
                with suppress(ProcessLookupError):  # nothing of its session is left
                    os.killpg(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_WAIT
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
            self.reap()
        self.unkillable = bool(self.running)
        for rank in self.running:
            self.exit_codes[rank] = -signal.SIGKILL
        deadline = time.monotonic() + WAIT
        for output in self._outputs:
            output.join(deadline - time.monotonic())


def _allocator() -> dict[str, str]:
    """Segments that grow: micro-batches of many lengths leave no holes that nothing fits into. A user's settings, under
    any of their names, replace this: torch does not merge them."""
    return {} if any(name in os.environ for name in ALLOCATOR) else {ALLOCATOR[0]: "expandable_segments:True"}


def _threads(handover: Handover) -> dict[str, str]:
    """How a rank shares the CPUs, unless the user says otherwise. Threads that have done their part soon sleep until
    the others have, too: by default they spin for milliseconds, and where cores are few, they keep one from the thread
    that they wait for (decision 54)."""
    threads = {} if any(name in os.environ for name in WAITING) else {WAITING[0]: SPINS}
    # Without a number each rank would start as many threads as the node has cores.
    if handover.distributed or cpus.usable() < cpus.allowed():
        threads["OMP_NUM_THREADS"] = str(max(1, cpus.usable() // len(handover.ranks)))
    return threads


def _rendezvous(handover: Handover) -> dict[str, str]:
    """The variables by which torch's ranks meet. A single rank gets none."""
    if not handover.distributed:
        return {}
    return {
        "MASTER_ADDR": handover.host,
        "MASTER_PORT": str(handover.port),
        "WORLD_SIZE": str(handover.world_size),
        "LOCAL_WORLD_SIZE": str(handover.ranks_on_node),
    }


def _identity(handover: Handover, rank: int) -> dict[str, str]:
    if not handover.distributed:
        return {}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank % handover.ranks_on_node)}
