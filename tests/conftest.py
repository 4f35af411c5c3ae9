"""Options of every tier, each tier's time, and honesty about tiers that could not run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.cluster import requirements
from tests.cluster.state import ClusterError

settings.register_profile("ours", deadline=None)  # no test asserts a time
settings.load_profile("ours")
HERE = Path(__file__).resolve().parent
seconds: dict[str, float] = defaultdict(float)
left_out: dict[str, str] = {}


def tier(path: Path) -> str:
    """unit, trainer, controlplane or e2e."""
    return path.resolve().relative_to(HERE).parts[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew instead of comparing")
    parser.addoption("--sweep", action="store_true", help="break every call in every way, not one of each kind")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip a tier that can't run here; `pytest_sessionfinish` makes sure that nobody takes that for a success."""
    for name, control_plane_only in (("controlplane", True), ("e2e", False)):
        concerned = [item for item in items if tier(item.path) == name]
        if not concerned:
            continue
        try:
            requirements.check(control_plane_only)
        except ClusterError as error:
            left_out[name] = str(error)
            for item in concerned:
                item.add_marker(pytest.mark.skip(reason=f"{name} can't run here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    began = time.monotonic()
    try:
        return (yield)
    finally:
        seconds[tier(item.path)] += time.monotonic() - began


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if left_out and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, took in seconds.items():
        terminalreporter.write_line(f"tier {name}: {took:.0f} s")
    for name, why in left_out.items():
        terminalreporter.write_line(f"tier {name} COULD NOT RUN: {why}", red=True)
