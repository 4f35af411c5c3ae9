"""A fork server: one process that has imported the trainer, and forks a child for each thing that a test asks of it.

A start then costs hundredths of a second instead of ten, so that a test can kill a training sixty times. Tests use the
fixture ``forge``. A child is a whole process: it has its own session, log, environment and signals, and may be killed
at any moment. What it and its own children `tell` arrives in order and whole, also when they are killed right after;
when the line is closed, all of them are gone.

They draw no pictures: see the fixture ``undrawn``.

What children mount nobody else sees, and it goes with the server: no right of the machine's is needed but to have a
user namespace of one's own.

``python -m tests.trainer.forge SOCKET`` is the server. It ends with the process that started it, and its children with
it.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from finetune_trainer import director

IMPORTED = (
    "finetune_trainer.launch",
    "finetune_trainer.worker",
    "finetune_trainer.prepare",
    *(f"finetune_trainer.stages.{stage}.workflow" for stage in director.available()),
    # Imported late, by libraries.
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora.bnb",
)
"""All that a launcher and its ranks import, for the models of `tiny`."""
PATIENCE = 120.0
"""Seconds without a word after which a child counts as hung."""
LONGEST = 1 << 20
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
MS_REC, MS_PRIVATE = 0x4000, 0x4_0000

_line: socket.socket | None = None


def tell(what: Any) -> None:
    """From a child, or a process that it forked, to the test."""
    assert _line is not None, "only what the forge has forked has somebody to tell"
    _line.send(pickle.dumps(what))


class Child:
    """One process that the forge has forked, as the test sees it."""

    def __init__(self, line: socket.socket, log: Path) -> None:
        self._line, self.log = line, log
        self.told: list[Any] = []
        """All that has been heard so far."""
        self.code: int | None = None
        """As subprocess.Popen.returncode; None while it runs."""
        self.pid: int = self._receive()

    def listen(self) -> Iterator[Any]:
        """What it tells, as it comes, until it and all that it has forked are gone."""
        while (what := self._receive()) is not None:
            if isinstance(what, _Ended):
                self.code = what.code
            else:
                self.told.append(what)
                yield what

    def wait(self) -> int:
        """Its exit code, once it and all that it has forked are gone."""
        for _ in self.listen():
            pass
        assert self.code is not None, f"the forge is gone\n{self.log.read_text()}"
        return self.code

    def _receive(self) -> Any:
        self._line.settimeout(PATIENCE)
        try:
            message = self._line.recv(LONGEST)
        except TimeoutError:
            raise AssertionError(f"not a word for {PATIENCE:.0f} s\n{self.log.read_text()}") from None
        return pickle.loads(message) if message else None


class Forge:
    """The server, as tests see it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forge-")
        self._address = f"{self._folder.name}/socket"
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, self._address], stdout=log, stderr=log
            )

    def start(self, function: Callable[..., int], *arguments: Any, log: Path, **environment: str) -> Child:
        """Call a function of a module in a child, whose exit code is what it returns. It writes to the file ``log``."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        end = time.monotonic() + PATIENCE
        while True:
            try:
                line.connect(self._address)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert self._server.poll() is None, self._log.read_text()
                assert time.monotonic() < end, self._log.read_text()
                time.sleep(0.05)
        line.send(pickle.dumps((function, arguments, log, environment)))
        return Child(line, log)

    def seen(self, path: Path) -> Path:
        """Where this process sees what children see at an absolute path: with what they have mounted."""
        return Path(f"/proc/{self._server.pid}/root{path}")

    def close(self) -> None:
        """End the server, and with it whatever it has forked."""
        self._server.kill()
        self._server.wait()
        self._folder.cleanup()


class _Ended:
    """The server's last word on a child."""

    def __init__(self, code: int) -> None:
        self.code = code


def fork(run: Callable[[], int]) -> int:
    """A process of its own session that ends with what ``run`` returns, and at once when this one ends. Its pid.

    In place of Popen for a process that has to be there, with its signals as a fresh one has them, within milliseconds.
    """
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*signals, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _own_mounts() -> None:
    """From now on mounts are this process's and its children's alone. Where that isn't allowed, mounting fails, too."""
    system, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if system.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)) != 0:
        return
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    system.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def _serve(address: str) -> None:
    _own_mounts()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ranks whose launcher was killed end up here: nobody else would reap them.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    mock.patch("finetune_trainer.reporting.plots.write").start()
    # Else each child's collector would look through, and so copy, all that was imported.
    gc.collect()
    gc.freeze()
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    lines: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([listener, woken], [], [])
        if listener in readable:
            line, _ = listener.accept()
            request = line.recv(LONGEST)
            # Held open by others, too, no line would ever say that its own processes are gone.
            others = [listener, woken, wakes, *lines.values()]
            pid = fork(partial(_become, line, others, request))
            lines[pid] = line
            line.send(pickle.dumps(pid))
        if woken in readable:
            woken.recv(4096)
            _reap(lines)


def _reap(lines: dict[int, socket.socket]) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in lines:
            with lines.pop(pid) as line, contextlib.suppress(OSError):
                line.send(pickle.dumps(_Ended(os.waitstatus_to_exitcode(status))))


def _become(line: socket.socket, others: list[socket.socket], request: bytes) -> int:
    global _line
    _line = line
    for one in others:
        one.close()
    function, arguments, log, environment = pickle.loads(request)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    code: int = function(*arguments)
    return code


if __name__ == "__main__":
    # As a module of its own name, so that what children tell is known to both sides.
    from tests.trainer import forge

    forge._serve(sys.argv[1])
