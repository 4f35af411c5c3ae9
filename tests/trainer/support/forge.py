"""A fork server: one process that has imported the trainer, and forks a child for each call of a test.

A start then takes hundredths of a second instead of ten seconds, so that a test can kill a training sixty times. Tests
use the fixture ``forge``. A child is a whole process with its own session, log, environment and signals, and may be
killed at any moment. Messages that it and its own children `send` arrive complete and in order, also when the sender is
killed right after. When the connection is closed, all of them have ended.

Children draw no plots: see the fixture ``undrawn``.

Mounts of children are visible to them alone and end with the server. This needs a user namespace, and no other right.

``python -m tests.trainer.support.forge SOCKET`` is the server. It ends with the process that started it, and its
children end with it."""

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
    "finetune_trainer.launcher.launch",
    "finetune_trainer.launcher.worker",
    "finetune_trainer.prepare.pipeline",
    *(f"finetune_trainer.stages.{stage}.workflow" for stage in director.available()),
    # Libraries import these late.
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora.bnb",
)
"""Everything that a launcher and its ranks import, for the models of `tiny`."""
PATIENCE = 120.0
"""Seconds without a message after which a child counts as hung."""
LONGEST = 1 << 20
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
MS_REC, MS_PRIVATE = 0x4000, 0x4_0000

_line: socket.socket | None = None


def send(message: Any) -> None:
    """Send a message from a child, or a process that it forked, to the test."""
    assert _line is not None, "only children of the fork server can send"
    _line.send(pickle.dumps(message))


class Child:
    """A process that the server has forked, as the test sees it."""

    def __init__(self, line: socket.socket, log: Path) -> None:
        self._line, self.log = line, log
        self.received: list[Any] = []
        """All messages so far."""
        self.code: int | None = None
        """Like subprocess.Popen.returncode; None while it runs."""
        self.pid: int = self._receive()

    def listen(self) -> Iterator[Any]:
        """Its messages as they arrive, until it and all processes that it has forked have ended."""
        while (message := self._receive()) is not None:
            if isinstance(message, _Ended):
                self.code = message.code
            else:
                self.received.append(message)
                yield message

    def listen_for(self, seconds: float) -> Iterator[Any]:
        """Its messages as they arrive, for so long at most."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([self._line], [], [], left)[0]:
            message = next(self.listen(), None)
            if message is None:
                return
            yield message

    def wait(self) -> int:
        """Wait until it and all processes that it has forked have ended; its exit code."""
        for _ in self.listen():
            pass
        assert self.code is not None, f"the fork server has ended\n{self.log.read_text()}"
        return self.code

    def _receive(self) -> Any:
        self._line.settimeout(PATIENCE)
        try:
            message = self._line.recv(LONGEST)
        except TimeoutError:
            raise AssertionError(f"no message for {PATIENCE:.0f} s\n{self.log.read_text()}") from None
        return pickle.loads(message) if message else None


class Forge:
    """The fork server, as tests see it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forge-")
        self._address = f"{self._folder.name}/socket"
        self._log = Path(self._folder.name) / "log"
        with self._log.open("w") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, self._address], stdout=log, stderr=log
            )

    def start(self, function: Callable[..., int], *arguments: Any, log: Path, **environment: str) -> Child:
        """Call a module's function in a child. Its return value is the exit code, and ``log`` the file of its
        output."""
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
        """The path by which this process reaches an absolute path of the children, with their mounts."""
        return Path(f"/proc/{self._server.pid}/root{path}")

    def close(self) -> None:
        """End the server, and with it all processes that it has forked."""
        self._server.kill()
        self._server.wait()
        self._folder.cleanup()


class _Ended:
    """The last message about a child: its exit code."""

    def __init__(self, code: int) -> None:
        self.code = code


def fork(run: Callable[[], int]) -> int:
    """Fork a process with its own session, whose exit code is the return value of ``run``; its pid. It ends at once
    when this process ends.

    Takes milliseconds where Popen takes seconds. The child has default signal handlers.
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
    """Unshare the mounts of this process and its children. Where that is not allowed, mounting fails, too."""
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
    # Ranks whose launcher was killed become children of this process, which reaps them.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for name in IMPORTED:
        importlib.import_module(name)
    mock.patch("finetune_trainer.reporting.plots.write").start()
    # Otherwise the garbage collector of each child would visit, and so copy, all imported objects.
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
            # A child closes the connections of other children, so that each is closed when its own processes have
            # ended.
            inherited = [listener, woken, wakes, *lines.values()]
            pid = fork(partial(_become, line, inherited, request))
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


def _become(line: socket.socket, inherited: list[socket.socket], request: bytes) -> int:
    global _line
    _line = line
    for connection in inherited:
        connection.close()
    function, arguments, log, environment = pickle.loads(request)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    code: int = function(*arguments)
    return code


if __name__ == "__main__":
    # Import the module by its own name, so that both sides unpickle the same classes.
    from tests.trainer.support import forge

    forge._serve(sys.argv[1])
