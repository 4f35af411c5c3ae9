"""``python -m tests.chart_audit [TOOL ...]`` (`make audit-chart`): run the tools over the chart."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.chart_audit.exceptions import EXCEPTIONS, Finding
from tests.chart_audit.tools import TOOLS, render
from tests.cluster import binaries


def audit(tools: list[str], folder: Path) -> tuple[set[Finding], set[Finding]]:
    """(findings without an exception, exceptions without a finding)."""
    manifests = render(folder)
    found: set[Finding] = set()
    for tool in tools:
        found |= TOOLS[tool](manifests)
    return found - set(EXCEPTIONS), {known for known in EXCEPTIONS if known.tool in tools} - found


def main(tools: list[str]) -> int:
    """Print what is wrong; 1 if anything is."""
    binaries.ensure(("helm", "kubeconform", "kube-score"))
    with tempfile.TemporaryDirectory() as folder:
        unexplained, unused = audit(tools or list(TOOLS), Path(folder))
    for finding in sorted(unexplained):
        print(f"{finding.tool}: {finding.object}: {finding.check}", file=sys.stderr)
    for known in sorted(unused):
        print(
            f"{known.tool}: {known.object}: {known.check} is no finding any more: delete the exception", file=sys.stderr
        )
    if not unexplained and not unused:
        print("0 findings without a reason")
    return 1 if unexplained or unused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
