"""The chart, by the real helm: rendered for tests, and linted and packed by `python -m tests.chart` (`make chart`).

Used by the controlplane tier, which applies the objects without pods, and by the tests of the chart itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries

CHECKOUT = Path(__file__).resolve().parents[1]
CHART = CHECKOUT / "charts" / "finetune-operator"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"
KUBERNETES = "1.35.4"
"""helm's own guess of the cluster's version depends on how it was built, so it is told."""


class HelmError(Exception):
    """What helm said."""


def helm(program: Path, *arguments: str) -> str:
    """Run helm on the chart; what it printed."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def render(
    program: Path, *settings: str, namespace: str = NAMESPACE, kubernetes: str = KUBERNETES
) -> list[dict[str, Any]]:
    """`helm template` with `--set` for each of the settings."""
    sets = [part for setting in settings for part in ("--set", setting)]
    arguments = ["template", RELEASE, str(CHART), "--namespace", namespace, "--kube-version", kubernetes, *sets]
    return [manifest for manifest in yaml.safe_load_all(helm(program, *arguments)) if manifest]


def only(manifests: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The one manifest of that kind (and name)."""
    [found] = [m for m in manifests if m["kind"] == kind and name in ("", m["metadata"]["name"])]
    return found


def main() -> int:
    """Lint it and pack it into dist/."""
    binaries.ensure(("helm",))
    program = binaries.path("helm")
    try:
        print(helm(program, "lint", "--strict", "--kube-version", KUBERNETES, str(CHART)))
        print(helm(program, "package", str(CHART), "--destination", str(CHECKOUT / "dist")))
    except HelmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
