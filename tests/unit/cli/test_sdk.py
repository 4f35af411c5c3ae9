"""The SDK on this machine: a process of its own, whose state outlives the program that started it."""

from __future__ import annotations

import json
import os
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
progress = {"step": 5, "totalSteps": 5, "percent": 100, "summary": "5/5 (100%)", "activity": "Training"}
progress["curves"] = {"loss": "1;1*5;2,1.5,1.2,1,.25"}
(reports / "status.json").write_text(json.dumps({"status": {"progress": progress}}))
result = {"artifact": {"uri": "pvc://workspace/jobs/job/artifact"}, "metrics": {"finalLoss": "0.25", "epochs": "1"}}
if not code:
    (workspace / "jobs" / name / "RESULT.json").write_text(json.dumps({"result": result}))
print("first line")
print("2026-01-31 12:00:00,1 launch " + words if (words := sys.argv[2]) else "the last words")
sys.exit(code)
"""
"""Writes what the trainer writes, and ends with a code. The trainer itself is tested in tests/trainer."""


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The code with which the trainer ends, and its last words."""
    end = {"code": 0, "words": ""}

    def command(*words: str) -> list[str]:
        return [sys.executable, "-c", TRAINER, str(end["code"]), str(end["words"]), *words]

    monkeypatch.setattr(local, "command", command)
    return end


def test_a_job_runs_and_is_found_by_another_client(tmp_path: Path, trainer: dict[str, Any]) -> None:
    client = TrainerClient("local", workspace=tmp_path)
    seen: list[str] = []
    name = client.train(starter.filled("sft", "job"), settings={"training.learningRate": 2e-5})
    job = client.wait_for_job_status(name, polling_interval=0.05, callbacks=[lambda each: seen.append(each.status)])
    assert seen[-1] == job.status == "Succeeded"
    assert job.metrics == {"finalLoss": 0.25, "epochs": 1.0}
    assert job.artifact == str(tmp_path / "jobs" / "job" / "artifact")
    assert job.curves["loss"][-1] == (5, 0.25)
    assert job.spec.training.learning_rate == 2e-5
    assert "5/5 (100%)" in job._repr_html_()
    other = TrainerClient("local", workspace=tmp_path)
    assert [found.name for found in other.list_jobs()] == ["job"]
    assert list(other.get_job_logs("job", follow=True)) == ["first line", "the last words"]
    assert [event.reason for event in other.get_job_events("job")] == ["Created", "Succeeded"]
    other.delete_job("job")
    assert other.list_jobs() == []
    assert (tmp_path / "jobs" / "job").exists()


def test_a_job_that_fails_says_why(tmp_path: Path, trainer: dict[str, Any]) -> None:
    trainer["code"] = 65
    client = TrainerClient("local", workspace=tmp_path)
    client.train(starter.filled("sft", "job"))
    with pytest.raises(Problem, match="Failed: the last words") as caught:
        client.wait_for_job_status("job", polling_interval=0.05)
    assert caught.value.code is Exit.FAILED
    with pytest.raises(Problem, match="choose another name"):
        client.train(starter.filled("sft", "job"))
    assert client.get_job("job").artifact is None


def test_a_failure_has_reason_and_message_as_in_a_cluster(tmp_path: Path, trainer: dict[str, Any]) -> None:
    trainer |= {"code": 65, "words": "Ended with 65 (InvalidData): 1 of 2 rows\na.jsonl:2: no answer"}
    client = TrainerClient("local", workspace=tmp_path)
    client.train(starter.filled("sft", "job"))
    with pytest.raises(Problem, match=r"Failed: InvalidData: 1 of 2 rows\na.jsonl:2: no answer$"):
        client.wait_for_job_status("job", polling_interval=0.05)


def test_a_later_job_of_the_name_does_not_show_progress_of_the_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = tmp_path / "jobs" / "job" / "reports"
    reports.mkdir(parents=True)
    (reports / "status.json").write_text(json.dumps({"status": {"progress": {"activity": "Training", "step": 5}}}))
    os.utime(reports / "status.json", (0, 0))
    monkeypatch.setattr(local, "command", lambda *_: ["sleep", "60"])
    client = TrainerClient("local", workspace=tmp_path)
    client.train(starter.filled("sft", "job"))
    assert client.get_job("job").status == "Preparing"
    with pytest.raises(Problem, match=r"the job job continues\. It is Preparing$") as caught:
        client.wait_for_job_status("job", timeout=0)
    assert caught.value.code is Exit.TIMEOUT
    client.delete_job("job")
    assert client.list_jobs() == []


def test_a_notebook_draws_progress_and_curve() -> None:
    found: dict[str, Any] = starter.filled("sft", "a<b")
    progress = {"percent": 50, "summary": "2/4 (50%)", "curves": {"loss": "1;1*3;2,,1"}}
    found["status"] = {"phase": "Running", "progress": progress}
    drawn = Job(found)._repr_html_()
    assert "a&lt;b" in drawn
    assert "2/4 (50%)" in drawn
    assert "loss 2 at step 1, 1 at step 3" in drawn
    assert 'points="4.0,4.0 356.0,76.0"' in drawn, "from top left to bottom right, without what is no number"
    del progress["curves"]
    assert "<svg" not in Job(found)._repr_html_()


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
