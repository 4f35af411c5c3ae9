"""docs/fault-sweep.md: what `make sweep` has broken, and how it ended. Used by test_faults."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.controlplane.fault_proxy import Call, Fault
from tests.controlplane.sweep import LIVES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "fault-sweep.md"
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

`make sweep` breaks every changing call of the operator in every way, and writes this page. Each life of a job below is
first played without faults, on a real API server with a scripted kubelet. Then it is played once for each call and
fault. A case passes if the job reaches the same status (without times and uids), as many objects of each kind are
created and deleted, and never two Jobs of it live at the same time. Killed: SIGKILL to the operator's process, which is
then started again.
"""


@dataclass
class Outcomes:
    """Counts of one run."""

    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: Counter[tuple[str, str]] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    def add(self, life: str, fault: Fault, *, wrong: bool) -> None:
        key = (life, name_of(fault))
        self.tried[key] += 1
        self.wrong[key] += wrong

    def write(self, calls: Mapping[str, list[Call]]) -> None:
        """Write the page."""
        faults = sorted({fault for _, fault in self.tried}, key=lambda fault: (fault.startswith("refused"), fault))
        total, wrong = self.tried.total(), self.wrong.total()
        minutes = (time.monotonic() - self.began) / 60
        missing = [life for life in LIVES if life not in calls]
        lines = [
            INTRODUCTION,
            f"Run of {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, {minutes:.0f} minutes: **{total - wrong} "
            f"of {total} cases passed.** Each cell: cases that passed of those that were tried.",
            "",
            *([f"Lives that this run left out: {', '.join(missing)}.", ""] if missing else []),
            "| fault | " + " | ".join(calls) + " |",
            "| --- " * (len(calls) + 1) + "|",
        ]
        lines += [f"| {fault} | " + " | ".join(self._cell(life, fault) for life in calls) + " |" for fault in faults]
        lines += ["", "The calls of each life, in their order:", ""]
        for life, made in calls.items():
            kinds = ", ".join(f"{call.method} {call.resource}" for call in made)
            lines.append(f"- **{life}** ({len(made)}): `{kinds}`")
        PAGE.write_text("\n".join(lines) + "\n")

    def _cell(self, life: str, fault: str) -> str:
        tried, wrong = self.tried[life, fault], self.wrong[life, fault]
        return f"{tried - wrong} of {tried}" if tried else ""


def name_of(fault: Fault) -> str:
    return NAMES.get(fault.kind) or f"refused with {fault.value:g}"
