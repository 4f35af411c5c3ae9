"""What a sweep has broken, and how it ended: a file of results for each life, and docs/fault-sweep.md from all of them.

A whole sweep takes hours, so it is done life by life, and what is there stays (`fault_sweep`). A file has JSON lines:
the run first, then the cases of each fault. Used by test_faults.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.controlplane.fault_proxy import Call, Fault
from tests.controlplane.sweep import LIVES

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "fault-sweep.md"
RESULTS = CHECKOUT / "tests" / "controlplane" / "fault-sweep"
BROKEN = ("operator", "crds", *(f"tests/controlplane/{name}.py" for name in ("sweep", "fault_proxy", "test_faults")))
"""What results depend on. As long as it stays the same, they need not be made again."""
TESTS = 2
"""Tests that break a life. Results of one alone are not kept."""
NAMES = {
    "crash before": "killed before",
    "crash after": "killed after",
    "drop before": "connection cut before",
    "drop after": "applied, answer lost",
    "silence before": "no answer, nothing applied",
    "silence after": "no answer, but applied",
    "delay": "late",
}
INTRODUCTION = """# Fault sweep

`make sweep` breaks every changing call of the operator in every way, life by life, and writes this page. Each life of a
job is first played without faults, on a real API server with a scripted kubelet. Then it is played once for each call
and fault. A case passes if the job reaches the same status (without times and uids), as many objects of each kind are
created and deleted, and never two Jobs of it live at the same time. Killed: SIGKILL to the operator's process, which is
then started again.

`make test` breaks a part of these calls, in each run. `make sweep-faults` runs the lives that have no result of today's
operator; it can be stopped at any time.
"""
Line = dict[str, Any]


@dataclass
class Outcomes:
    """Of one run, by life and fault."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: defaultdict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    tests: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, cases: Sequence[tuple[str, Fault]], wrong: Collection[int]) -> None:
        """The lives and faults of a test, and the places of those that went wrong."""
        self.tests += 1
        for place, (life, fault) in enumerate(cases):
            key = (life, name_of(fault))
            self.tried[key] += 1
            if place in wrong:
                self.wrong[key].append(str(fault))

    def write(self, calls: Mapping[str, list[Call]], results: Path = RESULTS) -> None:
        """Write the results of each life; nothing unless all tests have run."""
        if self.tests < TESTS:
            return
        results.mkdir(exist_ok=True)
        commit, code = version()
        for life, made in calls.items():
            run: Line = {
                "life": life,
                "commit": commit,
                "code": code,
                "date": f"{datetime.now(UTC):%Y-%m-%d}",
                "cores": os.cpu_count(),
                "minutes": round((time.monotonic() - self.began) / 60),
                "calls": [f"{call.method} {call.resource}" for call in made],
            }
            cases = [
                {"fault": fault, "tried": tried, "wrong": self.wrong[of, fault]}
                for (of, fault), tried in self.tried.items()
                if of == life
            ]
            file_of(life, results).write_text("".join(f"{json.dumps(line)}\n" for line in (run, *cases)))


def name_of(fault: Fault) -> str:
    return NAMES.get(fault.kind) or f"refused with {fault.value:g}"


def file_of(life: str, results: Path = RESULTS) -> Path:
    return results / f"{life.replace(' ', '-')}.jsonl"


def read(life: str, results: Path = RESULTS) -> tuple[Line, list[Line]] | None:
    """The run of a life, and the cases of each fault. None: there is no result."""
    file = file_of(life, results)
    if not file.is_file():
        return None
    run, *cases = map(json.loads, file.read_text().splitlines())
    return run, cases


def is_done(life: str, results: Path = RESULTS) -> bool:
    """Whether a life has a result of today's operator, in which nothing went wrong."""
    found, (_, code) = read(life, results), version()
    return found is not None and code != "" and found[0]["code"] == code and not any(case["wrong"] for case in found[1])


def version() -> tuple[str, str]:
    """The commit, and a digest of what results depend on; no digest if some of that is not committed."""
    commit = _git("rev-parse", "--short=12", "HEAD").strip()
    if _git("status", "--porcelain", "--", *BROKEN):
        return f"{commit} with changes", ""
    trees = _git("rev-parse", *(f"HEAD:{path}" for path in BROKEN))
    return commit, hashlib.sha256(trees.encode()).hexdigest()[:12]


def page(results: Path = RESULTS) -> str:
    """The page: what is there, of which run, and what is missing."""
    found = {life: made for life in LIVES if (made := read(life, results)) is not None}
    tried = sum(case["tried"] for _, cases in found.values() for case in cases)
    wrong = sum(len(case["wrong"]) for _, cases in found.values() for case in cases)
    lines = [
        INTRODUCTION,
        f"**{tried - wrong} of {tried} cases passed, in {len(found)} of {len(LIVES)} lives.**",
        "",
        "| life | calls | passed | run |",
        "| --- | --- | --- | --- |",
    ]
    for life in LIVES:
        if life not in found:
            lines.append(f"| {life} | | | not run yet |")
            continue
        run, cases = found[life]
        told = f"{run['date']}, commit {run['commit']}, {run['cores']} cores, {run['minutes']} minutes"
        lines.append(f"| {life} | {len(run['calls'])} | {_passed(cases)} | {told} |")
    if found:
        lines += ["", *_by_fault(found), "", "The calls of each life, in their order:", ""]
        lines += [f"- **{life}**: `{', '.join(run['calls'])}`" for life, (run, _) in found.items()]
    if wrong:
        lines += ["", "Cases that went wrong:", ""]
        lines += [
            f"- **{life}**: {', '.join(case['wrong'])}"
            for life, (_, cases) in found.items()
            for case in cases
            if case["wrong"]
        ]
    return "\n".join(lines) + "\n"


def _by_fault(found: Mapping[str, tuple[Line, list[Line]]]) -> list[str]:
    """A table: cases that passed of those that were tried."""
    named = {case["fault"] for _, cases in found.values() for case in cases}
    lines = ["| fault | " + " | ".join(found) + " |", "| --- " * (len(found) + 1) + "|"]
    for fault in sorted(named, key=lambda name: (name.startswith("refused"), name)):
        cells = [_passed([case for case in cases if case["fault"] == fault]) for _, cases in found.values()]
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    return lines


def _passed(cases: Sequence[Line]) -> str:
    tried = sum(case["tried"] for case in cases)
    return f"{tried - sum(len(case['wrong']) for case in cases)} of {tried}" if tried else ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
