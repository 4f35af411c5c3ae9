"""The cluster's daemons: start them, stop them, check them, wait until they are ready, and read the end of their logs.

Called by the modules that know the command lines. The record of a process (`processes/<name>.json`) has everything that
a restart needs.
Invariants: a process is identified by its id, its start time and its boot, so another process with the same id is never
touched. `ensure` does nothing if the process is alive and neither its command line nor its files have changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.cluster.state import ClusterError, State, replace

DETACH = Path(__file__).with_name("detach.py")
DAEMON_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def ensure(
    state: State,
    name: str,
    argv: list[str],
    *,
    holder: int | None = None,
    files: Iterable[Path] = (),
    env: dict[str, str] | None = None,
) -> bool:
    """Make the process run as described. Returns whether it had to be started."""
    described = json.dumps([argv, env or {}]).encode() + b"".join(path.read_bytes() for path in files)
    digest = hashlib.sha256(described).hexdigest()
    record = read(state, name)
    if record and alive(record) and record["digest"] == digest and record["holder"] == holder:
        return False
    stop(state, name)
    _start(state, name, {"argv": argv, "env": env or {}, "holder": holder, "digest": digest})
    return True


def restart(state: State, name: str) -> None:
    """Start a stopped process with its previous command line."""
    record = read(state, name)
    if record is None:
        raise ClusterError(f"no process {name!r} in cluster {state.name}. The processes are: {', '.join(names(state))}")
    if not alive(record):
        _start(state, name, record)


def _start(state: State, name: str, record: dict[str, Any]) -> None:
    log = log_path(state, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    holder = str(record["holder"]) if record["holder"] else "-"
    command = [sys.executable, "-I", str(DETACH), str(log), holder, *record["argv"]]
    # Without the caller's environment: its proxy would receive the cluster's own calls.
    started = subprocess.run(command, capture_output=True, text=True, env={"PATH": DAEMON_PATH, **record["env"]})
    if started.returncode != 0:
        raise ClusterError(f"could not start {name}: {started.stderr.strip()}")
    pid = int(started.stdout)
    save = {**record, "pid": pid, "started": identity(pid), "at": time.time()}
    replace(state.directory / "processes" / f"{name}.json", json.dumps(save, indent=2))


def stop(state: State, name: str, grace: float = 3.0) -> None:
    """Send SIGTERM, and SIGKILL after the grace time. The record stays, for `restart`.

    The grace time is short, because an API server waits for its watchers to disconnect, and they do not.
    """
    record = read(state, name)
    if not record or not alive(record):
        return
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(record["pid"], number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not alive(record):
                return
            time.sleep(0.02)
    raise ClusterError(f"{name} (process {record['pid']}) does not end. Kill it and try again")


def read(state: State, name: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((state.directory / "processes" / f"{name}.json").read_text())
        return record
    except FileNotFoundError:
        return None


def names(state: State) -> list[str]:
    return sorted(path.stem for path in (state.directory / "processes").glob("[!.]*.json"))


def log_path(state: State, name: str) -> Path:
    return state.directory / "logs" / f"{name}.log"


def running(state: State, name: str) -> bool:
    record = read(state, name)
    return record is not None and alive(record)


def alive(record: dict[str, Any]) -> bool:
    started: str = record["started"]
    return started != "" and identity(record["pid"]) == started


def identity(pid: int) -> str:
    """The boot and start time of a process. Empty if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if fields[0] in "ZX":
        return ""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{fields[19]}"


def wait_until(
    state: State, what: str, check: Callable[[], bool], *, needs: Iterable[str] = (), timeout: float = 60.0
) -> None:
    """Poll until `check` is true. If a process in `needs` dies meanwhile, raises an error with the end of its log."""
    deadline = time.monotonic() + timeout
    while not check():
        for name in needs:
            if not running(state, name):
                raise ClusterError(f"{name} ended while waiting for this: {what}\n{log_tail(state, name)}")
        if time.monotonic() > deadline:
            logs = "\n".join(log_tail(state, name) for name in needs)
            raise ClusterError(f"timed out after {timeout:.0f} s while waiting for this: {what}\n{logs}")
        time.sleep(0.05)


def log_tail(state: State, name: str, lines: int = 15) -> str:
    path = log_path(state, name)
    with contextlib.suppress(FileNotFoundError), path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 32768))
        tail = handle.read().decode(errors="replace").splitlines()[-lines:]
        return "\n".join([f"--- {path}", *tail])
    return f"--- {path}: the log does not exist"
