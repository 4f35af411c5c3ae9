"""Daemons: started once, started anew when they changed, told from strangers, and heard when they die."""

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
    found = process.read(state, name)
    assert found is not None
    return found


def test_a_process_is_started_once(state: State) -> None:
    assert process.ensure(state, "one", SLEEP)
    pid = record(state)["pid"]
    assert not process.ensure(state, "one", SLEEP)
    assert record(state)["pid"] == pid
    assert process.running(state, "one")


def test_a_changed_command_line_or_file_starts_it_anew(state: State, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a")
    process.ensure(state, "one", SLEEP, files=[tmp_path / "config"])
    first = record(state)
    (tmp_path / "config").write_text("b")
    assert process.ensure(state, "one", SLEEP, files=[tmp_path / "config"])
    assert not process.alive(first)
    assert process.ensure(state, "one", ["/bin/sleep", "601"], files=[tmp_path / "config"])


def test_a_stopped_process_can_be_started_as_it_was(state: State) -> None:
    process.ensure(state, "one", SLEEP)
    process.stop(state, "one")
    assert not process.running(state, "one")
    process.restart(state, "one")
    assert process.running(state, "one")
    assert Path(f"/proc/{record(state)['pid']}/cmdline").read_text().split("\0")[:2] == SLEEP


def test_a_stranger_with_the_same_id_is_not_ours(state: State) -> None:
    process.ensure(state, "one", SLEEP)
    ours = record(state)
    another_boot = {**ours, "started": "another-boot/1"}
    assert process.alive(ours)
    assert not process.alive(another_boot)


def test_the_last_words_of_one_that_died_are_told(state: State) -> None:
    process.ensure(state, "one", ["/bin/sh", "-c", "echo the port is taken; exit 1"])
    with pytest.raises(ClusterError, match=r"one ended while readiness was awaited:\n.*\nthe port is taken"):
        process.wait_until(state, "readiness", lambda: False, needs=["one"])


def test_an_unknown_process_is_answered_with_the_known_ones(state: State) -> None:
    process.ensure(state, "one", SLEEP)
    with pytest.raises(ClusterError, match="no process 'two' in cluster unit; there are: one"):
        process.restart(state, "two")


def test_a_program_that_is_not_there_is_told_at_once(state: State) -> None:
    with pytest.raises(ClusterError, match="could not start one: cannot run /no/such: No such file"):
        process.ensure(state, "one", ["/no/such"])
