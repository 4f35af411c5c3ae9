"""`finetune logs -f` as a whole: from a job that was just created to its end, and with a log of any size."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_cli import jobs, paths
from finetune_cli.cluster import client, refusals
from finetune_cli.cluster.client import Client
from finetune_cli.logs import reader, show
from finetune_cli.problem import Exit, Problem

from tests.unit.cli.job_server import JOBS, NAMESPACE, PODS, Cut, Store, kubeconfig, served

BEGUN = "2026-01-31T12:00:00Z"
RATE = 1000
"""Lines for each second of a log."""
PART = 64
"""Lines that are sent at once."""
MIB = 1 << 20
GROWTH = 30 * MIB
PROGRAM = """
import pathlib, re, sys
from finetune_cli.__main__ import main
try:
    main()
finally:
    sys.stdout.flush()
    print(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""
"""The program, which says at its end how much memory it had at most."""


def line(number: int, width: int) -> bytes:
    second, part = divmod(number, RATE)
    clock = f"{12 + second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{part * 1_000_000:09}"
    return f"2026-01-31T{clock}Z line {number:09} ".encode().ljust(width - 1, b".") + b"\n"


class LongLog:
    """Lines that are made while they are sent. Some connections break in the middle of a line."""

    def __init__(self, lines: int, width: int, cuts: list[int]) -> None:
        self._lines, self._width, self._cuts = lines, width, cuts

    def __call__(self, since: str | None) -> Iterator[bytes]:
        cut = self._cuts.pop(0) if self._cuts else self._lines
        for begin in range(first(since), self._lines, PART):
            part = b"".join(line(number, self._width) for number in range(begin, min(begin + PART, self._lines)))
            if begin >= cut:
                yield part[: len(part) // 2 + 7]
                raise Cut
            yield part


def first(since: str | None) -> int:
    """The first line that is not before this time."""
    if since is None:
        return 0
    hours, minutes, seconds = since[11:19].split(":")
    return ((int(hours) - 12) * 3600 + int(minutes) * 60 + int(seconds)) * RATE


def put_job(store: Store, name: str, phase: str) -> dict[str, Any]:
    made = {
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": "12345-uid", "generation": 1},
        "spec": {"stage": "sft", "model": {"source": "hf://a/b"}},
        "status": {"phase": phase, "observedGeneration": 1},
    }
    store.put(JOBS, made)
    return copy.deepcopy(made)


def put_pod(store: Store, job: str, attempt: int, **state: Any) -> str:
    name = f"{job}-12345-{attempt}-0"
    labels = {paths.LABEL_JOB: job, paths.LABEL_KIND: "train", paths.LABEL_ATTEMPT: str(attempt)}
    head = {"name": name, "namespace": NAMESPACE, "uid": name, "labels": labels, "creationTimestamp": BEGUN}
    status = {"phase": "Running", "containerStatuses": [{"name": paths.CONTAINER, "state": state}] if state else []}
    store.put(PODS, {"metadata": head, "status": status})
    return name


@pytest.mark.parametrize("size", [50 * MIB, pytest.param(1 << 30, marks=pytest.mark.sweep)])
@pytest.mark.timeout(1800)
def test_a_log_of_any_size_needs_the_same_memory(size: int, tmp_path: Path) -> None:
    width = 1000
    small, large = (followed(tmp_path, number // width, width) for number in (MIB, size))
    assert large - small < GROWTH


def followed(folder: Path, lines: int, width: int) -> int:
    """Follow a log of so many lines, which come whole, once and in order; the memory that it took, in bytes."""
    store = Store()
    put_job(store, "long", "Succeeded")
    store.logs[put_pod(store, "long", 1, terminated={"exitCode": 0})] = LongLog(lines, width, [lines // 3, lines // 2])
    with served(store) as url:
        (folder / "kubeconfig").write_text(kubeconfig(url))
        command = [sys.executable, "-c", PROGRAM, "logs", "-f", "long"]
        with subprocess.Popen(
            command, env={"KUBECONFIG": str(folder / "kubeconfig"), "PYTHONPATH": ":".join(sys.path)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as program:  # fmt: skip
            assert program.stdout is not None
            assert program.stderr is not None
            came = 0
            for text in program.stdout:
                assert text == b"train-1/0 | " + line(came, width).partition(b" ")[2]
                came += 1
            words = program.stderr.read().decode()
            assert program.wait() == 0, words
    assert came == lines
    return int(words.split()[-1]) * 1024


class Trainer:
    """Writes the log of a pod while it is followed."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self.over = False

    def write(self, begin: int, end: int) -> None:
        for number in range(begin, end):
            self._lines.append(line(number, 60))
            time.sleep(0.0005)

    def __call__(self, since: str | None) -> Iterator[bytes]:
        at = 0
        while True:
            over, end = self.over, len(self._lines)
            yield b"".join(each for each in self._lines[at:end] if since is None or each.decode() >= since[:-1])
            at = end
            if over:
                return
            time.sleep(0.005)


def test_everything_comes_once_from_the_creation_to_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through an API server that is away and then refuses for a while what it allowed, and a second attempt."""
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(reader, "PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("finetune_cli.jobs.WAIT_SECONDS", 0.05)
    monkeypatch.setattr(client, "TRIES", 1)
    store, came, failed = Store(), list[str](), list[BaseException]()
    job = put_job(store, "a", "Pending")
    config = tmp_path / "kubeconfig"

    def follow(made: Client) -> None:
        try:
            show.until_the_end(made, job, lambda _: True, {}, lambda head, one: came.append(f"{head} {one.text}"))
        except BaseException as error:
            failed.append(error)

    def when(reached: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not reached():
            assert not failed, failed
            assert time.monotonic() < end, came[-3:]
            time.sleep(0.005)

    trainers = Trainer(), Trainer()
    with served(store) as url:
        config.write_text(kubeconfig(url))
        follower = threading.Thread(target=follow, args=(client.client(None, None, str(config)),), daemon=True)
        follower.start()
        store.logs[put_pod(store, "a", 1)] = trainers[0]  # its container does not run yet
        put_pod(store, "a", 1, running={"startedAt": BEGUN})
        trainers[0].write(0, 100)
        when(lambda: len(came) > 50)
    trainers[0].write(100, 1300)  # while the API server is away
    store.refusals = 20
    port = int(url.rpartition(":")[2])
    with served(store, port):
        when(lambda: len(came) >= 1300)
        trainers[0].over = True
        put_pod(store, "a", 1, terminated={"exitCode": 139})
        store.logs[put_pod(store, "a", 2, running={"startedAt": BEGUN})] = trainers[1]
        trainers[1].write(2000, 2100)
    store.refusals = 20
    with served(store, port):
        trainers[1].write(2100, 2200)
        trainers[1].over = True
        put_pod(store, "a", 2, terminated={"exitCode": 0})
        put_job(store, "a", "Succeeded")
        follower.join(60)
        when(lambda: not follower.is_alive())
    numbers = {1: range(1300), 2: range(2000, 2200)}
    for attempt, expected in numbers.items():
        texts = [text.split()[2] for text in came if text.startswith(f"train-{attempt}/0 ")]
        assert texts == [f"{number:09}" for number in expected]
    assert len(came) == 1500
    assert store.refusals == 0


def test_what_was_never_allowed_is_refused_at_once(tmp_path: Path) -> None:
    store = Store()
    put_job(store, "a", "Running")
    with served(store) as url:
        (tmp_path / "kubeconfig").write_text(kubeconfig(url))
        store.refusals = 1
        with pytest.raises(Problem, match="You may not get finetunejobs") as caught:
            next(jobs.follow(client.client(None, None, str(tmp_path / "kubeconfig")), "a"))
    assert caught.value.code is Exit.DENIED
    assert len(store.asked) == 1


def test_a_right_that_was_taken_away_is_told_in_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(refusals, "PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(refusals, "DOUBT_SECONDS", 0.2)
    store = Store()
    put_job(store, "a", "Running")
    with served(store) as url:
        (tmp_path / "kubeconfig").write_text(kubeconfig(url))
        made = client.client(None, None, str(tmp_path / "kubeconfig"))
        jobs.get(made, "a")
        store.refusals = 1 << 30
        with pytest.raises(Problem, match="You may not get finetunejobs"):
            jobs.get(made, "a")
        store.refusals = 0
        jobs.get(made, "a")
    assert len(store.asked) > 3
