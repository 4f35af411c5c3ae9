"""The container's memory as the kernel counts it, in cgroup v1 and v2."""

from pathlib import Path

import pytest
from finetune_trainer.runtime import exit_report, hostmemory
from finetune_trainer.runtime.hostmemory import HostMemory

GIB = 1 << 30


def files(root: Path, **content: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (root / name.replace("__", ".")).write_text(text + "\n")
    return root


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return files(
        tmp_path,
        memory__max=str(8 * GIB),
        memory__peak=str(8 * GIB),
        memory__current=str(7 * GIB),
        memory__events="low 0\nmax 9\noom 1\noom_kill 1",
        memory__stat=f"anon {4 * GIB}\ninactive_file {2 * GIB}",
    )


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    files(
        tmp_path / "memory",
        memory__limit_in_bytes=str(8 * GIB),
        memory__max_usage_in_bytes=str(8 * GIB),
        memory__usage_in_bytes=str(7 * GIB),
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 1",
        memory__stat=f"rss {4 * GIB}\ntotal_inactive_file {2 * GIB}",
    )
    return tmp_path


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_cgroup_v1_and_v2_give_the_same_values(version: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(version)
    assert hostmemory.read(root) == HostMemory(limit=8 * GIB, peak=8 * GIB, kills=1)
    assert hostmemory.in_use(root) == 5 * GIB


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert hostmemory.read(files(tmp_path / "2", memory__max="max")).limit is None
    files(tmp_path / "1" / "memory", memory__limit_in_bytes="9223372036854771712")
    assert hostmemory.read(tmp_path / "1").limit is None


def test_values_are_none_without_cgroups(tmp_path: Path) -> None:
    assert hostmemory.read(tmp_path) == HostMemory(None, None, None)
    assert hostmemory.in_use(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "before", "after", "oom_killed"),
    [
        (8 * GIB, 1, 2, True),
        (8 * GIB, 1, 1, False),
        (8 * GIB, None, 1, None),
        (8 * GIB, 1, None, None),
        (None, 1, 1, None),
    ],
    ids=[
        "more kills",
        "no more kills",
        "unknown before",
        "unknown after",
        "no limit, so another group may count",
    ],
)
def test_oom_kills_are_detected(
    limit: int | None, before: int | None, after: int | None, oom_killed: bool | None
) -> None:
    assert hostmemory.was_oom_killed(HostMemory(limit, None, before), HostMemory(limit, None, after)) is oom_killed


def test_the_report_of_a_killed_rank_has_limit_and_peak() -> None:
    memory = HostMemory(limit=8 * GIB, peak=8 * GIB, kills=1)
    report = exit_report.from_signal(9, 3, memory, oom_killed=True)
    assert (report.code, report.reason) == (137, "OutOfMemory")
    assert report.message.startswith("Rank 3 was killed, because the pod's memory was used up")
    assert "(the container's limit is 8.0 GiB and its peak was 8.0 GiB)" in report.message
    unknown = exit_report.from_signal(9, 3, HostMemory(None, None, None), oom_killed=None)
    assert unknown.message.startswith("Rank 3 was killed, most likely because the host's memory was used up. Raise")
    excluded = exit_report.from_signal(9, 3, memory, oom_killed=False)
    assert (excluded.code, excluded.reason) == (137, "Killed")
    assert "memory was not the cause" in excluded.message
