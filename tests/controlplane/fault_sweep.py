"""``python -m tests.controlplane.fault_sweep [LIFE,LIFE]`` (`make sweep-faults`): break the lives that have no result.

Each life has a run of pytest of its own. The results of a run that is stopped are lost, those of the lives before stay.
``--page`` only writes docs/fault-sweep.md again.
"""

from __future__ import annotations

import subprocess
import sys

from tests.controlplane.fault_report import CHECKOUT, PAGE, is_done, page
from tests.controlplane.sweep import LIVES

TESTS = [f"tests/controlplane/test_faults.py::{name}" for name in ("test_crashed", "test_refused_cut_or_slow")]
SECONDS = 14_400
"""Of one test."""


def main(lives: list[str]) -> int:
    """Break them and write the page; 1 if a case of these lives went wrong."""
    failed = 0
    for life in lives:
        if is_done(life):
            print(f"{life}: its result is of today's operator")
            continue
        command = [sys.executable, "-m", "pytest", *TESTS, "--sweep", "--lives", life, "--timeout", str(SECONDS)]
        failed |= subprocess.run(command, cwd=CHECKOUT).returncode != 0
        PAGE.write_text(page())
    PAGE.write_text(page())
    return int(failed)


if __name__ == "__main__":
    chosen = ",".join(sys.argv[1:])
    names = [] if chosen == "--page" else chosen.split(",") if chosen else list(LIVES)
    if unknown := set(names) - set(LIVES):
        sys.exit(f"no lives: {', '.join(sorted(unknown))}. There are: {', '.join(LIVES)}")
    sys.exit(main(names))
