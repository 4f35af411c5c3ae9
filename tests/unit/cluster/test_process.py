"""Daemons: started once, started again after a change, not confused with others, and reported when they die."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import process
from tests.cluster.state import ClusterError, State

SLEEP = ["/bin/sleep", "600"]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    state = State("unit", "abc123", str(tmp_path), control_plane_only=True)
    yield state
    for name in process.names(state):
        process.stop(state, name, grace=0)


def record(state: State, name: str = "one") -> dict[str, Any]:
    saved = process.read(state, name)
    assert saved is not None
    return saved


def test_a_process_is_started_once(state: State) -> None:
    assert process.ensure(state, "one", SLEEP)
    pid = record(state)["pid"]
    assert not process.ensure(state, "one", SLEEP)
    assert record(state)["pid"] == pid
    assert process.running(state, "one")


def test_a_changed_command_line_or_file_starts_it_again(state: State, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a")
    process.ensure(state, "one", SLEEP, files=[tmp_path / "config"])
    first = record(state)
    (tmp_path / "config").write_text("b")
    assert process.ensure(state, "one", SLEEP, files=[tmp_path / "config"])
    assert not process.alive(first)
    assert process.ensure(state, "one", ["/bin/sleep", "601"], files=[tmp_path / "config"])


def test_a_stopped_process_can_be_restarted(state: State) -> None:
    process.ensure(state, "one", SLEEP)
    process.stop(state, "one")
    assert not process.running(state, "one")
    process.restart(state, "one")
    assert process.running(state, "one")
    assert Path(f"/proc/{record(state)['pid']}/cmdline").read_text().split("\0")[:2] == SLEEP


def test_another_process_with_the_same_id_is_not_ours(state: State) -> None:
    process.ensure(state, "one", SLEEP)
    ours = record(state)
    another_boot = {**ours, "started": "another-boot/1"}
    assert process.alive(ours)
    assert not process.alive(another_boot)


def test_the_error_shows_the_log_of_a_process_that_died(state: State) -> None:
    process.ensure(state, "one", ["/bin/sh", "-c", "echo the port is taken; exit 1"])
    with pytest.raises(ClusterError, match=r"one ended while waiting for this: readiness\n.*\nthe port is taken"):
        process.wait_until(state, "readiness", lambda: False, needs=["one"])


def test_the_error_for_an_unknown_process_lists_the_known_processes(state: State) -> None:
    process.ensure(state, "one", SLEEP)
    with pytest.raises(ClusterError, match=r"no process 'two' in cluster unit\. The processes are: one"):
        process.restart(state, "two")


def test_a_missing_program_is_reported_at_once(state: State) -> None:
    with pytest.raises(ClusterError, match="could not start one: cannot run /no/such: No such file"):
        process.ensure(state, "one", ["/no/such"])
