"""``make gpu-check`` on a CPU: everything that it would measure runs, with a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import gpu_check
from tests.bench.gpu import ours
from tests.bench.gpu.cases import Case, cases, on_cpu

MEASURED = [case for case in cases() if case.program in ("ours", "trl", "parity") and "8bit" not in case.optimizer]


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: case.name)
def test_every_case_runs(tmp_path: Path, case: Case) -> None:
    got = ours.measure(on_cpu(case), tmp_path)
    if case.program == "parity":
        assert got["same"]
        return
    assert len(got["losses"]) == on_cpu(case).steps
    assert got["tokens_per_second"] > 0
    assert got["peak_gib"] is None


def test_the_program_runs_its_cases_in_processes_and_writes_both_files(tmp_path: Path) -> None:
    """The launcher's case is among them: our command line, as a pod runs it."""
    command = [sys.executable, "-m", "tests.bench.gpu_check", "--cpu", "--only", "launcher", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=gpu_check.CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["environment"]["versions"]["torch"]
    [entry] = results["cases"]
    assert entry["result"]["losses"]
    assert "| launcher, sft lora |" in (tmp_path / "table.md").read_text()
