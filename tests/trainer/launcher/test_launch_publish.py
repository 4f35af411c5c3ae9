"""Publishing to real servers by the launcher and its rank, as after a run that ended between training and publishing:
the artifact exists, its copy does not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from finetune_api.contract import AttemptFacts
from finetune_api.status import Artifact, Result
from finetune_trainer.launcher import jobfile
from finetune_trainer.workspace import fencing, files
from finetune_trainer.workspace.folders import layout

from tests.hub import Hub
from tests.s3.server import ACCESS, S3, SECRET
from tests.trainer.support.pod import manifest

WEIGHTS = bytes(range(256)) * 100


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    server = S3(tmp_path_factory.mktemp("s3"))
    server.client.create_bucket(Bucket="models")
    yield server
    server.close()


def trained(root: Path, uri: str) -> Path:
    """Create a workspace in which everything but the copy is done; returns the job's file."""
    job = manifest()
    job["spec"]["output"] = {"uri": uri}
    file = root / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    resolved = jobfile.read_job(file, root / "workspace")
    folders = layout(root / "workspace", resolved.name, 1, "run-1", {})
    facts = AttemptFacts(namespace="default", name=resolved.name, uid="laptop", attempt=1, job_name=resolved.name)
    fence = fencing.claim(folders, resolved, facts, "run-1")
    folders.artifact.mkdir()
    (folders.artifact / "adapter_model.safetensors").write_bytes(WEIGHTS)
    digest, size = files.digest_folder(folders.artifact)
    artifact = Artifact(uri="pvc://claim/jobs/tune/artifact", kind="adapter", digest=digest, size_bytes=size)
    result = Result(kind="train", attempt=1, exit_code=0, reason="Completed", message="Trained", artifact=artifact)
    result = result.model_copy(update={"metrics": {"steps": "10", "finalLoss": "0.5"}})
    fencing.save_result(folders, fence, result)
    return file


def train(file: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune_trainer", "train", "--job", str(file)]
    command += ["--workspace", str(file.parent / "workspace")]
    return subprocess.run(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "0", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def published(file: Path) -> str | None:
    content = files.read_json(file.parent / "workspace" / "jobs" / "tune" / fencing.RESULT)
    assert content is not None
    return Result.model_validate(content["result"]).artifact.published  # type: ignore[union-attr]


def test_publish_to_a_bucket(tmp_path: Path, bucket: S3) -> None:
    file = trained(tmp_path, "s3://models/tuned")
    environment = {"ENDPOINT_URL": bucket.address, "ACCESS_KEY_ID": ACCESS, "SECRET_ACCESS_KEY": SECRET}
    ended = train(file, **{f"AWS_{name}": value for name, value in environment.items()})
    assert ended.returncode == 0, ended.stderr
    copy = bucket.client.get_object(Bucket="models", Key="tuned/adapter_model.safetensors")["Body"].read()
    assert copy == WEIGHTS
    assert published(file) == "s3://models/tuned"
    reported = files.read_json(file.parent / "workspace" / "jobs" / "tune" / "reports" / "status.json")
    assert reported is not None
    progress = reported["status"]["progress"]
    assert (progress["summary"], progress["loss"]) == ("10/10 (100%)", "0.5000"), "an upload may take long"
    assert SECRET not in ended.stdout + ended.stderr


def test_publish_to_a_hub(tmp_path: Path, hub: Hub) -> None:
    hub.token = "hf_not-to-be-seen"
    file = trained(tmp_path, "hf://team/tuned")
    ended = train(file, HF_ENDPOINT=hub.address, HF_TOKEN=hub.token, HF_HUB_DISABLE_XET="1")
    assert ended.returncode == 0, ended.stderr
    repository = hub.repositories["models/team/tuned"]
    commit = repository.branches["main"]
    assert repository.commits[commit]["adapter_model.safetensors"] == WEIGHTS
    assert repository.private
    assert published(file) == f"hf://team/tuned@{commit}"
    assert hub.token not in ended.stdout + ended.stderr


def test_a_refused_upload_is_reported_and_the_artifact_stays(tmp_path: Path, hub: Hub) -> None:
    hub.token = "hf_another"
    file = trained(tmp_path, "hf://team/tuned")
    ended = train(file, HF_ENDPOINT=hub.address, HF_TOKEN="hf_wrong")
    assert ended.returncode == 77, ended.stderr
    assert "HF_TOKEN" in ended.stderr
    assert published(file) is None
    assert (tmp_path / "workspace" / "jobs" / "tune" / "artifact" / "adapter_model.safetensors").exists()
