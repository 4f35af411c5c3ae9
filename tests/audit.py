"""Known vulnerabilities of what the images contain: `python -m tests.audit` (`make audit`).

pip-audit asks advisory databases about the Python packages of both lock files, in exactly the versions that are locked.
The exit code says what the answer is worth: 0 no advisory is known, 1 there are advisories, 2 nobody could be asked.
The packages of Debian are in the images' SBOMs, for the scanner of your registry.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
LOCKS = ("operator", "trainer")
PIP_AUDIT = "pip-audit==2.10.1"
DATABASES = ("pypi", "osv")
"""In the order in which they are asked. The first knows every package that was installed from the index."""
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2

Ask = Callable[[Path, str], str]
"""What pip-audit prints about a lock file, by a database. Empty if it cannot ask."""


@dataclass
class Answer:
    """About one lock file."""

    asked: int = 0
    """Packages that a database knows."""
    unknown: list[str] = field(default_factory=list)
    advisories: list[str] = field(default_factory=list)


def ask(lock: Path, database: str) -> str:
    """Run pip-audit. It is no part of the project's environment, and needs none."""
    uv = CHECKOUT / ".tools" / "bin" / "uv"
    command = [str(uv), "tool", "run", "--quiet", "--from", PIP_AUDIT, "pip-audit", "--disable-pip", "--require-hashes"]
    command += ["--requirement", str(lock), "--vulnerability-service", database, "--format", "json"]
    done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, cwd=CHECKOUT)
    return done.stdout


def read(output: str) -> Answer:
    """What pip-audit found. A package that it calls unknown may only be out of reach."""
    answer = Answer()
    try:
        found: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return answer
    for package in found:
        if "skip_reason" in package:
            answer.unknown.append(str(package["name"]))
            continue
        answer.asked += 1
        for known in package.get("vulns", []):
            fixed = f"fixed in {', '.join(known['fix_versions'])}" if known.get("fix_versions") else "no fix yet"
            names = ", ".join([known["id"], *known.get("aliases", [])])
            answer.advisories.append(f"{package['name']} {package['version']}: {names} ({fixed})")
    return answer


def audit(locks: Sequence[Path], asking: Ask = ask) -> int:
    """Print what is known about each lock file; the exit code."""
    codes = []
    for lock in locks:
        answers = (read(asking(lock, database)) for database in DATABASES)
        answer = next((answer for answer in answers if answer.asked), None)
        if answer is None:
            print(f"{lock.name}: no advisory database can be reached from here, so nothing is known. Run it elsewhere.")
            codes.append(UNKNOWN)
            continue
        print(f"{lock.name}: {answer.asked} packages asked about, {len(answer.advisories)} advisories")
        print("".join(f"  {line}\n" for line in sorted(answer.advisories)), end="")
        if answer.unknown:
            print(f"  the database does not know {', '.join(sorted(answer.unknown))}")
        codes.append(VULNERABLE if answer.advisories else CLEAN)
    return VULNERABLE if VULNERABLE in codes else max(codes)


if __name__ == "__main__":
    sys.exit(audit([CHECKOUT / "requirements" / f"{name}.txt" for name in LOCKS]))
