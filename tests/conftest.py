"""Options of every tier, tiers beside each other, each tier's time, and honesty about tiers that could not run.

`make test` runs several workers (pytest-xdist). The tests of e2e share one cluster, and those of controlplane share one
control plane, so each of these tiers belongs to one worker. So does each file of another tier, because its tests share
what they prepare. Tests of other tiers only compute: they get the CPU that these two leave. Without ``-n`` the same
tests run one after another.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.cluster import requirements
from tests.cluster.state import ClusterError

settings.register_profile("ours", deadline=None)  # no test asserts a time
settings.load_profile("ours")
HERE = Path(__file__).resolve().parent
AUTOGROUP = Path("/proc/self/autogroup")
"""The niceness of a whole session of processes. Linux gives each session the same CPU, and each program of a cluster is
a session."""
MORE, LESS = "-3", "5"
TIERS_OF_ONE_WORKER = ("controlplane", "e2e")
"""Their tests wait for things with a limit: probes, Leases, deadlines."""
CANNOT_RUN = "can't run here: "
seconds: dict[str, float] = defaultdict(float)
left_out: dict[str, str] = {}


def tier(path: Path) -> str:
    """unit, trainer, controlplane or e2e."""
    return path.resolve().relative_to(HERE).parts[0]


def pytest_configure(config: pytest.Config) -> None:
    """The workers that wait, with what they start, are one session. As root, it counts twice."""
    if not hasattr(config, "workerinput"):
        _set_share(MORE)


@functools.cache
def _give_way() -> None:
    """From now on, this worker and what it starts get the CPU that the others leave."""
    os.setsid()
    _set_share(LESS)


def _set_share(niceness: str) -> None:
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(niceness)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A worker that has begun to compute never waits again: what waits comes first."""
    if "PYTEST_XDIST_WORKER" in os.environ and tier(item.path) not in TIERS_OF_ONE_WORKER:
        _give_way()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing with them")
    parser.addoption("--sweep", action="store_true", help="all combinations and all calls, not one of each kind")
    parser.addoption("--lives", default="", help="with --sweep: only these lives, as 'retry,bad data'")


class TiersAndFiles(LoadScopeScheduling):  # type: ignore[misc]  # no type information
    """Which tests belong to one worker: those of a whole tier, or of a file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        name = Path(file).parts[1]
        return name if name in TIERS_OF_ONE_WORKER else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TiersAndFiles:
    return TiersAndFiles(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only a sweep runs. Skip a tier that can't run here; `pytest_sessionfinish` makes sure that nobody
    takes that for a success."""
    if not config.getoption("--sweep"):
        items[:] = [item for item in items if item.get_closest_marker("sweep") is None]
    for name, control_plane_only in (("controlplane", True), ("e2e", False)):
        concerned = [item for item in items if tier(item.path) == name]
        if not concerned:
            continue
        try:
            requirements.check(control_plane_only)
        except ClusterError as error:
            for item in concerned:
                item.add_marker(pytest.mark.skip(reason=f"{CANNOT_RUN}{error}"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Also called where the workers' reports come together, which runs no test itself."""
    name = Path(report.nodeid.split("::")[0]).parts[1]
    seconds[name] += report.duration
    if report.skipped and isinstance(report.longrepr, tuple) and CANNOT_RUN in report.longrepr[2]:
        left_out[name] = report.longrepr[2].split(CANNOT_RUN)[1]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A tier that could not run is no success."""
    if left_out and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name, took in seconds.items():
        terminalreporter.write_line(f"tier {name}: {took:.0f} s")
    for name, why in left_out.items():
        terminalreporter.write_line(f"tier {name} COULD NOT RUN: {why}", red=True)
