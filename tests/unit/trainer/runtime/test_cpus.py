"""The CPUs of a container, as limits of cgroup v1 and v2 leave them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_trainer.runtime import cpus


def v2(root: Path, quota: str) -> None:
    (root / "cpu.max").write_text(f"{quota} 100000\n")


def v1(root: Path, quota: str) -> None:
    (root / "cpu").mkdir()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (root / "cpu" / "cpu.cfs_period_us").write_text("100000\n")


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)


@pytest.mark.parametrize("version", [v1, v2])
@pytest.mark.parametrize(("quota", "usable"), [(400000, 4), (150000, 2), (20000, 1), (9900000, 64)])
def test_a_limit_leaves_fewer_cpus_than_the_node_has(
    tmp_path: Path, version: Callable[[Path, str], None], quota: int, usable: int
) -> None:
    version(tmp_path, str(quota))
    assert cpus.usable(tmp_path) == usable
    assert cpus.allowed() == 64


def test_without_a_limit_they_are_those_of_the_node(tmp_path: Path) -> None:
    assert cpus.usable(tmp_path) == 64
    v2(tmp_path, "max")
    assert cpus.usable(tmp_path) == 64
    (tmp_path / "cpu.max").write_text("what is this")
    assert cpus.usable(tmp_path) == 64
    (tmp_path / "cpu.max").unlink()
    v1(tmp_path, "-1")
    assert cpus.usable(tmp_path) == 64
