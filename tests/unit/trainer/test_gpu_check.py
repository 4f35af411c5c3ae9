"""``make gpu-check`` without a GPU and without torch: its order, its limits, its table, and its container."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.bench import gpu_check
from tests.bench.gpu import container, pins, table
from tests.bench.gpu.cases import STAGES, Case, cases

ENVIRONMENT = {"versions": {"bitsandbytes": "0.50"}, "missing": [], "gpu": "NVIDIA H200", "peak_tflops": 989}


def test_the_most_important_cases_come_first_and_every_stage_is_among_them() -> None:
    every = list(cases())
    assert [case.program for case in every[:4]] == ["environment", "parity", "ours", "trl"]
    assert every[2].name == "8B lora, packed 4k"
    assert {(case.stage, case.method) for case in every} >= {(stage, m) for stage in STAGES for m in ("lora", "full")}
    assert {case.method for case in every} == {"lora", "qlora", "full"}
    assert len({case.name for case in every}) == len(every)


def entry(case: Case, **result: Any) -> dict[str, Any]:
    return {"case": case.__dict__, "error": None, "result": result}


def test_mfu_counts_the_useful_work_of_the_tuning_method() -> None:
    got = {"tokens_per_second": 10_000.0, "multiplied_weights": 8_000_000_000}
    assert table.mfu(entry(Case("ours", "a", 1), **got), 1000) == pytest.approx(0.32)
    assert table.mfu(entry(Case("ours", "a", 1, method="full"), **got), 1000) == pytest.approx(0.48)
    assert table.mfu(entry(Case("ours", "a", 1, stage="ppo"), **got), 1000) is None


def test_the_error_of_an_estimate_is_relative_to_the_measurement() -> None:
    case = Case("ours", "a", 1)
    assert table.off(entry(case, peak_gib=2.0, estimate_gib=3.0)) == 0.5
    assert table.off(entry(case, peak_gib=None, estimate_gib=3.0)) is None


class Scripted(gpu_check.Check):
    """A run whose cases end as the test says."""

    def __init__(self, folder: Path, ends: dict[str, dict[str, Any]], minutes: float = 9.0) -> None:
        super().__init__(folder, minutes, cpu=False)
        self.ends = ends

    def _in_a_process(self, case: Case, seconds: float) -> dict[str, Any]:
        assert 0 < seconds <= case.seconds
        return {"case": case.__dict__, "result": None, "error": None, **self.ends[case.name]}


def test_results_are_written_after_each_case(tmp_path: Path) -> None:
    fast = {"tokens_per_second": 12_345.6, "step_seconds": 1.5, "losses": [2.5]}
    check = Scripted(tmp_path, {"environment": {"result": ENVIRONMENT}, "a": {"result": fast}, "b": {"error": "E: x"}})
    for case in (Case("environment", "environment", 9), Case("ours", "a", 9), Case("ours", "b", 9)):
        check.run(case)
        written = json.loads((tmp_path / "results.json").read_text())
        assert len(written["cases"]) == len(check.results["cases"])
    assert check.failed == ["b"]
    lines = (tmp_path / "table.md").read_text()
    assert "NVIDIA H200" in lines
    assert "| a | 12,346 | 1.500 s |" in lines
    assert "E: x" in lines


def test_what_cannot_run_here_is_skipped_with_its_reason(tmp_path: Path) -> None:
    bare = {**ENVIRONMENT, "versions": {}, "missing": ["trl"]}
    check = Scripted(tmp_path, {"environment": {"result": bare}})
    check.run(Case("environment", "environment", 9))
    check.run(Case("ours", "a", 9, method="qlora"))
    assert check.results["skipped"] == {"a": "not installed: trl, bitsandbytes"}
    assert check.failed == ["everything: nothing could be measured"]
    assert "Not run, not installed: trl, bitsandbytes: a." in (tmp_path / "table.md").read_text()


def test_no_case_starts_when_the_time_is_over(tmp_path: Path) -> None:
    check = Scripted(tmp_path, {"environment": {"result": ENVIRONMENT}}, minutes=0.1)
    check.run(Case("environment", "environment", 9))
    assert check.results["skipped"] == {"environment": "no time left"}


def test_documents_that_see_each_other_fail_the_check(tmp_path: Path) -> None:
    got = {"same": False, "largest_difference": 0.2, "attention": "documents"}
    check = Scripted(tmp_path, {"environment": {"result": ENVIRONMENT}, "parity": {"result": got}})
    check.run(Case("environment", "environment", 9))
    check.run(Case("parity", "parity", 9))
    assert check.failed == ["parity"]
    assert "DIFFERENT LOSSES" in (tmp_path / "table.md").read_text()


def test_an_engine_without_its_daemon_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> Any:
        if command[0] == "podman":
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 1 if command[0] == "docker" else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert container.engine() == "nerdctl"
    assert container.main(["--available"]) == 0


def test_the_container_is_as_strict_as_a_pod() -> None:
    command = container.run_command("docker", ["--minutes", "5"])
    assert command[:5] == ["docker", "run", "--rm", "--gpus", "all"]
    assert "--read-only" in command
    assert command[command.index("--user") + 1] == "10001:10001"
    assert command[-4:] == ["--results", "/results", "--minutes", "5"]
    assert "--gpus" not in container.run_command("docker", ["--cpu"])


def test_what_a_bare_machine_is_given_is_what_is_locked() -> None:
    assert len(list(pins.pins())) == len(pins.SMALL)
    assert {"transformers", "trl", "datasets", "pydantic"} <= set(pins.SMALL)
