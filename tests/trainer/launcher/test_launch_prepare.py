"""Preparing and publishing, with the real launcher: when they run, and how they are reported."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune_api.status import Artifact, Reference
from finetune_trainer.workspace.files import digest_folder

from tests.trainer.support.fake_api import FakeApi
from tests.trainer.support.pod import HURRY, Pod, manifest

DONE: list[Any] = ["done", {"train_loss": "0.5"}]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeApi]:
    server = FakeApi(tmp_path / "serviceaccount")
    yield server
    server.close()


def published(uri: str = "s3://models/tune") -> dict[str, Any]:
    job = manifest()
    job["spec"]["output"] = {"uri": uri}
    return job


def test_prepare_reports_its_data_and_takes_no_fence(tmp_path: Path, api: FakeApi) -> None:
    pod = Pod(tmp_path, [DONE, DONE], api, command="prepare", allow_cpu=False)
    assert pod.run() == 0
    assert (pod.result.kind, pod.result.reason) == ("prepare", "Completed")
    assert pod.result.prepared is not None
    assert pod.result.prepared.rows == 3
    assert api.status["result"] == pod.result.to_dict()
    assert (pod.home / "PREPARED.json").exists()
    assert not (pod.home / "fence.json").exists()
    assert not pod.checkpoints.exists()


@pytest.mark.parametrize(
    ("command", "error", "code"),
    [
        ("prepare", "InvalidData", 65),
        ("train", "NoSpace", 73),
        *(
            pytest.param(command, error, code, marks=pytest.mark.sweep)
            for command in ("prepare", "train")
            for error, code in (("InvalidData", 65), ("AccessDenied", 77), ("NoSpace", 73), ("SourceUnreachable", 69))
        ),
    ],
)
def test_a_failure_of_preparation_ends_the_run(tmp_path: Path, command: str, error: str, code: int) -> None:
    pod = Pod(tmp_path, [["prepare_fails", error, "rows.jsonl:7"]] * 2, command=command, ready=False)
    assert pod.run() == code
    assert (pod.result.kind, pod.result.message) == (command, "rows.jsonl:7")


def test_training_prepares_first_when_nothing_is_prepared(tmp_path: Path) -> None:
    first = Pod(tmp_path, [["crash", "a bug"]] * 2, ready=False)
    assert first.run() == 70
    assert "Nothing is prepared for this job yet" in first.log.read_text()
    again = Pod(tmp_path, [DONE, DONE], run_id="run-2", attempt=2)
    assert again.run() == 0
    assert "Nothing is prepared" not in again.log.read_text()


def test_artifacts_of_other_jobs_are_verified_before_each_training(tmp_path: Path) -> None:
    """The artifact is on a writable volume, and days may pass between preparation and training."""
    artifact_folder, uri = tmp_path / "workspace" / "jobs" / "base" / "artifact", "pvc://workspace/jobs/base/artifact"
    artifact_folder.mkdir(parents=True)
    (artifact_folder / "config.json").write_text("{}")
    artifact = Artifact(uri=uri, kind="model", digest=digest_folder(artifact_folder)[0], size_bytes=2)
    resolved: dict[str, Any] = {
        "references": [Reference(use="model", job="base", uid="1", stage="sft", artifact=artifact)]
    }
    first = Pod(tmp_path, [["crash", "a bug"]] * 2, ready=False, **resolved)
    assert first.run() == 70
    file = first.home / "PREPARED.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"digests": {uri: artifact.digest}}))
    second = Pod(tmp_path, [["crash", "a bug"]] * 2, run_id="run-2", attempt=2, **resolved)
    assert second.run() == 70
    (artifact_folder / "config.json").write_text('{"other": 1}')
    third = Pod(tmp_path, [DONE, DONE], run_id="run-3", attempt=3, **resolved)
    assert third.run() == 65
    assert f"{uri}, the artifact of FineTuneJob base, has changed since this job was accepted" in third.result.message


@pytest.mark.parametrize("ignore", [[], ["ignore"]], ids=["checks", "ignores"])
def test_sigterm_during_preparation(tmp_path: Path, ignore: list[str]) -> None:
    """There is nothing to save, so it ends at once, whatever a library does and however long the grace period is."""
    pod = Pod(tmp_path, [["prepare_waits", *ignore]] * 2, command="prepare", grace=3600, waits=HURRY)
    process = pod.start()
    while not (pod.checkpoints / "pid-0").exists():
        assert process.poll() is None, pod.log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 75
    assert pod.result.reason == "Disrupted"


def test_a_job_that_is_done_is_not_prepared_again(tmp_path: Path, api: FakeApi) -> None:
    """The report of prepare has all that the operator needs to end the job."""
    first = Pod(tmp_path, [DONE, DONE])
    assert first.run() == 0
    again = Pod(tmp_path, [["prepare_fails", "InvalidData", "x"]] * 2, api, run_id="run-2", command="prepare")
    assert again.run() == 0
    assert (again.result.kind, again.result.artifact) == ("prepare", first.result.artifact)
    assert again.result.metrics == {"train_loss": "0.5"}
    assert api.status["result"] == again.result.to_dict()


def test_a_job_whose_artifact_was_removed_is_prepared_and_trained_again(tmp_path: Path) -> None:
    first = Pod(tmp_path, [DONE, DONE])
    assert first.run() == 0
    shutil.rmtree(first.home / "artifact")
    again = Pod(tmp_path, [DONE, DONE], run_id="run-2", command="prepare")
    assert again.run() == 0
    assert again.result.artifact is None
    last = Pod(tmp_path, [DONE, DONE], run_id="run-3", attempt=2)
    assert last.run() == 0
    assert (last.home / "artifact").is_dir()


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("command", [pytest.param("prepare", marks=pytest.mark.sweep), "train"])
@pytest.mark.parametrize("left", ["checkpoint", "artifact", "result", "changed artifact"])
def test_a_directory_with_results_of_another_run_is_refused_before_any_write(
    tmp_path: Path, api: FakeApi, left: str, command: str
) -> None:
    other = Pod(tmp_path, [DONE, DONE], job=manifest(learningRate=0.5 if left != "changed artifact" else 2e-4))
    assert other.run() == 0
    (other.checkpoints / "checkpoint-5").mkdir()
    (other.home / "reports" / "prepare.md").write_text("of the other run")
    if left == "changed artifact":
        (other.home / "artifact" / "adapter.safetensors").write_text("weightz")
    elif left != "result":
        (other.home / "RESULT.json").unlink()
    if left == "checkpoint":
        shutil.rmtree(other.home / "artifact")
    before = content(other.home)
    job = manifest(learningRate=2e-4)
    pod = Pod(tmp_path, [DONE, DONE], api, job=job, uid="2", run_id="run-2", command=command, ready=False)
    assert pod.run() == 74
    assert (pod.result.kind, pod.result.reason) == (command, "WorkspaceOccupied")
    assert api.status["result"]["message"] == pod.result.message
    assert "another metadata.name" in pod.result.message
    assert content(other.home) == before


@pytest.mark.parametrize("command", [pytest.param("prepare", marks=pytest.mark.sweep), "train"])
def test_a_job_that_was_corrected_before_anything_was_trained_is_prepared(tmp_path: Path, command: str) -> None:
    """The other run took the fence, prepared, and failed."""
    assert Pod(tmp_path, [["crash", "a bug"]] * 2, job=manifest(learningRate=0.5)).run() == 70
    pod = Pod(tmp_path, [DONE, DONE], uid="2", run_id="run-2", command=command, ready=False)
    assert (pod.home / "fence.json").exists()
    assert pod.run() == 0
    digest = json.loads((pod.etc / "job.json").read_text())["digest"]
    assert json.loads((pod.home / "PREPARED.json").read_text())["digest"] == digest


def test_an_artifact_is_published_after_training(tmp_path: Path) -> None:
    pod = Pod(tmp_path, [DONE, DONE], job=published())
    assert pod.run() == 0
    assert pod.result.artifact is not None
    assert pod.result.artifact.published == "s3://models/tune"
    assert pod.result.metrics == {"train_loss": "0.5"}


def test_after_failed_publishing_only_publishing_is_repeated(tmp_path: Path) -> None:
    refuse = tmp_path / "workspace" / "refuse"
    first = Pod(tmp_path, [DONE, DONE], job=published())
    refuse.touch()
    assert first.run() == 77
    assert (first.home / "RESULT.json").exists()
    refuse.unlink()
    again = Pod(tmp_path, [["crash", "trained again"]] * 2, job=published(), run_id="run-2", attempt=2)
    assert again.run() == 0
    assert again.result.artifact is not None
    assert again.result.artifact.published == "s3://models/tune"
    last = Pod(tmp_path, [["crash", "trained again"]] * 2, job=published(), run_id="run-3", attempt=3)
    refuse.touch()
    assert last.run() == 0
    assert last.result.artifact == again.result.artifact
    refuse.unlink()
    elsewhere = published("s3://models/elsewhere")
    moved = Pod(tmp_path, [["crash", "trained again"]] * 2, job=elsewhere, run_id="run-4", attempt=4)
    assert moved.run() == 0
    assert moved.result.artifact is not None
    assert moved.result.artifact.published == "s3://models/elsewhere"
