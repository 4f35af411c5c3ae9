"""What the kernel says of the container's memory, in both of its dialects."""

from pathlib import Path

import pytest
from finetune_trainer import hostmemory, results
from finetune_trainer.hostmemory import HostMemory

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
def test_both_versions_say_the_same(version: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(version)
    assert hostmemory.read(root) == HostMemory(limit=8 * GIB, peak=8 * GIB, kills=1)
    assert hostmemory.in_use(root) == 5 * GIB


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert hostmemory.read(files(tmp_path / "2", memory__max="max")).limit is None
    files(tmp_path / "1" / "memory", memory__limit_in_bytes="9223372036854771712")
    assert hostmemory.read(tmp_path / "1").limit is None


def test_where_the_kernel_says_nothing(tmp_path: Path) -> None:
    assert hostmemory.read(tmp_path) == HostMemory(None, None, None)
    assert hostmemory.in_use(tmp_path) is None


@pytest.mark.parametrize(
    ("limit", "before", "after", "short"),
    [
        (8 * GIB, 1, 2, True),
        (8 * GIB, 1, 1, False),
        (8 * GIB, None, 1, None),
        (8 * GIB, 1, None, None),
        (None, 1, 1, None),
    ],
    ids=["grown", "unchanged", "unknown at first", "unknown at last", "no limit, so maybe another group's count"],
)
def test_whether_the_kernel_ended_somebody(
    limit: int | None, before: int | None, after: int | None, short: bool | None
) -> None:
    assert hostmemory.was_short(HostMemory(limit, None, before), HostMemory(limit, None, after)) is short


def test_a_killed_rank_is_told_with_limit_and_peak() -> None:
    memory = HostMemory(limit=8 * GIB, peak=8 * GIB, kills=1)
    end = results.of_signal(9, 3, memory, short=True)
    assert (end.code, end.reason) == (137, "OutOfMemory")
    assert end.message.startswith("Rank 3 was killed, because the pod's memory was used up")
    assert "(the container's limit is 8.0 GiB and the most that it held was 8.0 GiB)" in end.message
    unknown = results.of_signal(9, 3, HostMemory(None, None, None), short=None)
    assert unknown.message.startswith("Rank 3 was killed, most likely because the host's memory was used up. Raise")
    excluded = results.of_signal(9, 3, memory, short=False)
    assert (excluded.code, excluded.reason) == (137, "Killed")
    assert "not for lack of memory" in excluded.message
