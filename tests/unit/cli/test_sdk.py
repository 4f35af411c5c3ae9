"""The SDK on this machine: a process of its own, whose state outlives the program that started it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune import Job, TrainerClient
from finetune_cli import local, starter
from finetune_cli.problem import Exit, Problem

TRAINER = """
import json, pathlib, sys
name, workspace, code = "job", pathlib.Path(sys.argv[sys.argv.index("--workspace") + 1]), int(sys.argv[1])
reports = workspace / "jobs" / name / "reports"
reports.mkdir(parents=True)
(reports / "trainer_log.jsonl").write_text(json.dumps({"current_steps": 5, "total_steps": 5, "loss": 0.25}) + chr(10))
(reports / "all_results.json").write_text(json.dumps({"train_loss": 0.25, "epoch": 1}))
print("first line")
print("the last words")
sys.exit(code)
"""
"""Writes what the trainer writes, and ends with a code. The trainer itself is tested in tests/trainer."""


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The code with which the trainer ends."""
    end = {"code": 0}
    monkeypatch.setattr(local, "command", lambda *words: [sys.executable, "-c", TRAINER, str(end["code"]), *words])
    return end


def test_a_job_runs_and_is_found_by_another_client(tmp_path: Path, trainer: dict[str, int]) -> None:
    client = TrainerClient("local", workspace=tmp_path)
    seen: list[str] = []
    name = client.train(starter.filled("sft", "job"), settings={"training.learningRate": 2e-5})
    job = client.wait_for_job_status(name, polling_interval=0.05, callbacks=[lambda each: seen.append(each.status)])
    assert seen[-1] == job.status == "Succeeded"
    assert job.metrics == {"train_loss": 0.25, "epoch": 1.0}
    assert job.spec.training.learning_rate == 2e-5
    assert "5/5 (100%)" in job._repr_html_()
    other = TrainerClient("local", workspace=tmp_path)
    assert [found.name for found in other.list_jobs()] == ["job"]
    assert list(other.get_job_logs("job", follow=True)) == ["first line", "the last words"]
    assert [event.reason for event in other.get_job_events("job")] == ["Created", "Succeeded"]
    other.delete_job("job")
    assert other.list_jobs() == []
    assert (tmp_path / "jobs" / "job").exists()


def test_a_job_that_fails_says_why(tmp_path: Path, trainer: dict[str, int]) -> None:
    trainer["code"] = 65
    client = TrainerClient("local", workspace=tmp_path)
    client.train(starter.filled("sft", "job"))
    with pytest.raises(Problem, match="Failed: the last words") as caught:
        client.wait_for_job_status("job", polling_interval=0.05)
    assert caught.value.code is Exit.FAILED
    with pytest.raises(Problem, match="choose another name"):
        client.train(starter.filled("sft", "job"))


def test_flags_and_mistakes_are_those_of_the_command_line(tmp_path: Path) -> None:
    client = TrainerClient("local", workspace=tmp_path)
    with pytest.raises(Problem, match="--dataset SOURCE=FORMAT"):
        client.train(model="hf://a/b")
    with pytest.raises(Problem, match="epochs"):
        client.train(model="hf://a/b", dataset="pvc://a/b=alpaca", settings={"training.epochs": 0})
    with pytest.raises(Problem, match="no job"):
        client.get_job("job")


def test_a_job_is_typed_and_complete_means_succeeded() -> None:
    found: dict[str, Any] = json.loads(json.dumps(starter.filled("sft", "job")))
    found["status"] = {"phase": "Succeeded", "observedGeneration": 1, "artifact": {"uri": "pvc://a/b"}}
    found["metadata"]["generation"] = 1
    job = Job(found)
    assert job.is_in({"Complete"})
    assert job.artifact == "pvc://a/b"
    assert job.spec.stage == "sft"
