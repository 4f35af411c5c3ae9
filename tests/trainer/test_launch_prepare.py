"""Preparing and publishing, through the real launcher: who does it when, and how that is told."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.status import Artifact, Reference
from finetune_trainer.workspace import digest_folder

from tests.trainer.fake_api import FakeApi
from tests.trainer.pod import HURRY, Pod, manifest

DONE: list[Any] = ["done", {"train_loss": "0.5"}]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path / "serviceaccount")
    yield server
    server.close()


def published(name: str = "tune") -> dict[str, Any]:
    job = manifest(name)
    job["spec"]["output"] = {"uri": "s3://models/tune"}
    return job


def test_prepare_says_what_it_made_and_takes_no_fence(tmp_path: Path, api: FakeApi) -> None:
    pod = Pod(tmp_path, [DONE, DONE], api, command="prepare", allow_cpu=False)
    assert pod.run() == 0
    assert (pod.said.kind, pod.said.reason) == ("prepare", "Completed")
    assert pod.said.prepared is not None
    assert pod.said.prepared.rows == 3
    assert api.status["result"] == pod.said.to_dict()
    assert (pod.home / "PREPARED.json").exists()
    assert not (pod.home / "fence.json").exists()
    assert not pod.checkpoints.exists()


@pytest.mark.parametrize(
    ("error", "code"), [("InvalidData", 65), ("AccessDenied", 77), ("NoSpace", 73), ("SourceUnreachable", 69)]
)
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_an_end_while_preparing_is_the_end_of_the_run(tmp_path: Path, command: str, error: str, code: int) -> None:
    pod = Pod(tmp_path, [["prepare_fails", error, "rows.jsonl:7"]] * 2, command=command, ready=False)
    assert pod.run() == code
    assert (pod.said.kind, pod.said.message) == (command, "rows.jsonl:7")


def test_training_prepares_first_where_nobody_has(tmp_path: Path) -> None:
    first = Pod(tmp_path, [["crash", "a bug"]] * 2, ready=False)
    assert first.run() == 70
    assert "Nothing is prepared for this job yet" in first.log.read_text()
    again = Pod(tmp_path, [DONE, DONE], run_id="run-2", attempt=2)
    assert again.run() == 0
    assert "Nothing is prepared" not in again.log.read_text()


def test_what_another_job_made_is_looked_at_again_before_each_training(tmp_path: Path) -> None:
    """It lies on a volume where anybody may write, and days may pass after it was prepared with."""
    made, uri = tmp_path / "workspace" / "jobs" / "base" / "artifact", "pvc://workspace/jobs/base/artifact"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    artifact = Artifact(uri=uri, kind="model", digest=digest_folder(made)[0], size_bytes=2)
    named: dict[str, Any] = {
        "references": [Reference(use="model", job="base", uid="1", stage="sft", artifact=artifact)]
    }
    first = Pod(tmp_path, [["crash", "a bug"]] * 2, ready=False, **named)
    assert first.run() == 70
    file = first.home / "PREPARED.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"digests": {uri: artifact.digest}}))
    second = Pod(tmp_path, [["crash", "a bug"]] * 2, run_id="run-2", attempt=2, **named)
    assert second.run() == 70
    (made / "config.json").write_text('{"other": 1}')
    third = Pod(tmp_path, [DONE, DONE], run_id="run-3", attempt=3, **named)
    assert third.run() == 65
    assert f"{uri}, the artifact of FineTuneJob base, is no longer what it was" in third.said.message


@pytest.mark.parametrize("deaf", [[], ["deaf"]], ids=["listens", "deaf"])
def test_told_to_stop_while_preparing(tmp_path: Path, deaf: list[str]) -> None:
    """Nothing is worth a save, so it ends at once, whatever a library is busy with and however long the grace."""
    pod = Pod(tmp_path, [["prepare_waits", *deaf]] * 2, command="prepare", grace=3600, waits=HURRY)
    process = pod.start()
    while not (pod.checkpoints / "pid-0").exists():
        assert process.poll() is None, pod.log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 75
    assert pod.said.reason == "Disrupted"


def test_a_job_that_is_done_is_not_prepared_again(tmp_path: Path) -> None:
    assert Pod(tmp_path, [DONE, DONE]).run() == 0
    again = Pod(tmp_path, [["prepare_fails", "InvalidData", "x"]] * 2, run_id="run-2", command="prepare")
    assert again.run() == 0
    assert again.said.artifact is not None


def test_an_artifact_is_published_after_training(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [DONE, DONE], job=published())
    assert pod.run() == 0
    assert pod.said.artifact is not None
    assert pod.said.artifact.published == "s3://models/tune/v1"
    assert pod.said.metrics == {"train_loss": "0.5"}


def test_where_publishing_failed_only_that_is_done_again(tmp_path: Path) -> None:
    refuse = tmp_path / "workspace" / "refuse"
    first = Pod(tmp_path, [DONE, DONE], job=published())
    refuse.touch()
    assert first.run() == 77
    assert (first.home / "RESULT.json").exists()
    refuse.unlink()
    again = Pod(tmp_path, [["crash", "trained again"]] * 2, job=published(), run_id="run-2", attempt=2)
    assert again.run() == 0
    assert again.said.artifact is not None
    assert again.said.artifact.published == "s3://models/tune/v1"
    last = Pod(tmp_path, [["crash", "trained again"]] * 2, job=published(), run_id="run-3", attempt=3)
    refuse.touch()
    assert last.run() == 0
    assert last.said.artifact == again.said.artifact
