"""``make gpu-check``: what the trainer does on a real GPU, in at most ten minutes, as a table for docs/benchmarks.md.

The cases are those of `gpu.cases`, the most important first. Each runs in a process of its own, so that none inherits
memory of another, and has a limit; so does the whole (``--minutes``). After each case the results are written, to
``build/gpu-check/results.json`` and ``table.md``: a run that is cut short still tells. Says tokens per second without
padding, MFU, peak GPU memory and how far prepare's estimate is from it, beside plain TRL in the same run. Fails where a
case fails. It asserts no time.

It runs with any Python, torch and transformers, and says which it found. A case whose libraries are missing is skipped,
with the reason. ``--cpu`` walks through the same on a CPU with a tiny model: nothing is measured, all of it is run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.gpu import table
from tests.bench.gpu.cases import Case, cases, on_cpu

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = (CHECKOUT, CHECKOUT / "crds", CHECKOUT / "trainer_image")
"""What a machine without our packages imports. Where they are installed, the checkout's are the same."""
LEAST = 15.0
"""Seconds under which no case is started."""


class Check:
    """One run: its results so far, and the time that is left."""

    def __init__(self, folder: Path, minutes: float, *, cpu: bool) -> None:
        self.folder, self.cpu = folder, cpu
        self.end = time.monotonic() + 60 * minutes
        self.results: dict[str, Any] = {"environment": {}, "cases": [], "skipped": {}}
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, case: Case) -> None:
        """Measure one case, and write what is known then."""
        left = self.end - time.monotonic()
        if reason := self._reason_to_skip(case, left):
            self.results["skipped"][case.name] = reason
            print(f"skipped: {case.name}: {reason}", flush=True)
        elif case.program == "environment":
            got = self._in_a_process(case, min(left, case.seconds))
            self.results["environment"] = got["result"] or {"error": got["error"]}
            print(json.dumps(self.results["environment"], indent=1), table.HEADER, sep="\n", flush=True)
        else:
            entry = self._in_a_process(case, left if self.cpu else min(left, case.seconds))
            self.results["cases"].append(entry)
            print(table.row(entry, self.results["environment"]), flush=True)
        self.write()

    def _reason_to_skip(self, case: Case, left: float) -> str | None:
        environment = self.results["environment"]
        if left < LEAST:
            return "no time left"
        if case.program == "environment":
            return None
        missing = list(environment.get("missing", []))
        if (case.method == "qlora" or "8bit" in case.optimizer) and "bitsandbytes" not in environment["versions"]:
            missing.append("bitsandbytes")
        if missing:
            return f"not installed: {', '.join(missing)}"
        if not self.cpu and environment.get("gpu") is None:
            return "no GPU is visible"
        if self.cpu and "8bit" in case.optimizer:
            return "needs a GPU"
        return None

    def _in_a_process(self, case: Case, seconds: float) -> dict[str, Any]:
        """The case's entry in the results."""
        entry: dict[str, Any] = {"case": asdict(case), "result": None, "error": None}
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
            place = Path(name)
            (place / "case.json").write_text(json.dumps(asdict(case)))
            command = [sys.executable, "-m", "tests.bench.gpu_check", "--one", str(place)]
            with (place / "log").open("w") as log:
                # In a session of its own, so that the launcher of a case ends with it.
                process = subprocess.Popen(
                    command, stdout=log, stderr=log, env=environment(self.cpu), start_new_session=True
                )
                try:
                    code = f"exit code {process.wait(seconds)}"
                except subprocess.TimeoutExpired:
                    code = f"stopped after {seconds:.0f} s"
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            result = place / "result.json"
            if result.is_file():
                entry |= json.loads(result.read_text())
            else:
                entry["error"] = f"{code}: {(place / 'log').read_text()[-1500:].strip()}"
        return entry

    def write(self) -> None:
        """Both files."""
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1) + "\n")
        (self.folder / "table.md").write_text(table.markdown(self.results))

    @property
    def failed(self) -> list[str]:
        """Cases of ours that failed, and parity that is none. That TRL needs more memory is a result."""
        if not self.results["cases"]:
            return ["everything: nothing could be measured"]
        return [
            entry["case"]["name"]
            for entry in self.results["cases"]
            if (entry["error"] and entry["case"]["program"] != "trl") or (entry["result"] or {}).get("same") is False
        ]


def environment(cpu: bool) -> dict[str, str]:
    """The environment of a case's process."""
    path = os.pathsep.join(filter(None, [*map(str, SOURCES), os.environ.get("PYTHONPATH", "")]))
    changes = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if not any(name.endswith("ALLOC_CONF") for name in os.environ):
        changes["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # as the launcher sets it
    return {**os.environ, **changes, **({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})}


def one(place: Path) -> None:
    """In a process of its own: measure the case of ``place``, and write its result or its error there."""
    case = Case(**json.loads((place / "case.json").read_text()))
    out: dict[str, Any] = {"result": None, "error": None}
    try:
        if case.program == "environment":
            from tests.bench.gpu import environment as machine

            out["result"] = machine.describe()
        else:
            from tests.bench.gpu import ours

            out["result"] = ours.measure(case, place / "work")
    except Exception as error:
        import traceback

        traceback.print_exc()
        out["error"] = f"{type(error).__name__}: {error}"[:2000] + "\n" + traceback.format_exc()[-3000:]
    (place / "result.json").write_text(json.dumps(out))
    sys.stdout.flush()
    os._exit(0)  # threads of a run that ended early must not hold the GPU


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="walk through it without a GPU")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all cases together (default 9.5)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose names have this in them")
    parser.add_argument("--results", type=Path, default=CHECKOUT / "build" / "gpu-check", metavar="FOLDER")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        one(given.one)
    check = Check(given.results, given.minutes, cpu=given.cpu)
    for case in cases():
        if case.program == "environment" or given.only in case.name:
            check.run(on_cpu(case) if given.cpu else case)
    print(f"\n{check.folder}/results.json, table.md", flush=True)
    if not given.cpu and not check.results["environment"].get("gpu"):
        print("no GPU is visible: run this on a machine with one, or with --cpu", file=sys.stderr)
        return 1
    if check.failed:
        print(f"failed: {', '.join(check.failed)}", file=sys.stderr)
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
