"""The chart, with the real helm: tests render it, and `python -m tests.chart` (`make chart`) lints and packs it.

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


class HelmError(Exception):
    """helm failed. The message is its output."""


def helm(program: Path, *arguments: str) -> str:
    """Run helm. Returns its output."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def render(
    program: Path, *settings: str, namespace: str = NAMESPACE, flag: str = "--set", tests: bool = False
) -> list[dict[str, Any]]:
    """Run `helm template` with the flag for each setting. Returns the manifests; those of `helm test` only if asked."""
    sets = [part for setting in settings for part in (flag, setting)]
    arguments = ["template", RELEASE, str(CHART), "--namespace", namespace, *sets]
    arguments += [] if tests else ["--skip-tests"]
    return [manifest for manifest in yaml.safe_load_all(helm(program, *arguments)) if manifest]


def only(manifests: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The only manifest of that kind (and name)."""
    [manifest] = [m for m in manifests if m["kind"] == kind and name in ("", m["metadata"]["name"])]
    return manifest


def main() -> int:
    """Lint the chart and pack it into dist/."""
    binaries.ensure(("helm",))
    program = binaries.path("helm")
    try:
        print(helm(program, "lint", "--strict", str(CHART)))
        print(helm(program, "package", str(CHART), "--destination", str(CHECKOUT / "dist")))
    except HelmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
