"""References to other jobs, resolved from the workspace."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.job import FineTuneJob
from finetune_api.status import Artifact, Reference, Result
from finetune_trainer.errors import NotFound, WorkspaceUnusable
from finetune_trainer.launcher import local_references

from tests.unit.trainer.launcher.test_jobfile import manifest


def late() -> FineTuneJob:
    document = manifest()
    document["metadata"]["name"] = "late"
    document["spec"]["model"] = {"fromJob": "early"}
    return FineTuneJob.model_validate(document)


def artifact(digest: str) -> Artifact:
    return Artifact(
        uri="pvc://claim/jobs/early/artifact", kind="adapter", digest=digest, size_bytes=1, base="pvc://m/x"
    )


def save(file: Path, content: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def trained(workspace: Path, digest: str) -> Path:
    """The directory of the referenced job, which has ended."""
    home = workspace / "jobs" / "early"
    result = Result(kind="train", attempt=1, exit_code=0, reason="Completed", message="", artifact=artifact(digest))
    save(home / "artifact" / "provenance.json", {"job": {"stage": "sft"}, "uid": "u-1", "references": []})
    save(home / "RESULT.json", {"digest": "sha256:job", "result": result.to_dict()})
    return home


def test_the_artifact_of_a_referenced_job_is_resolved(tmp_path: Path) -> None:
    trained(tmp_path, "sha256:now")
    (reference,) = local_references.read_references(late(), tmp_path)
    assert reference == Reference(use="model", job="early", uid="u-1", stage="sft", artifact=artifact("sha256:now"))


def test_provenance_pins_the_references_of_a_trained_job(tmp_path: Path) -> None:
    trained(tmp_path, "sha256:now")
    pinned = Reference(use="model", job="early", uid="u-0", stage="sft", artifact=artifact("sha256:then"))
    save(tmp_path / "jobs" / "late" / "artifact" / "provenance.json", {"references": [pinned.to_dict()]})
    assert local_references.read_references(late(), tmp_path) == [pinned]


@pytest.mark.parametrize("lost", ["RESULT.json", "artifact/provenance.json"])
def test_a_missing_file_is_named(tmp_path: Path, lost: str) -> None:
    (trained(tmp_path, "sha256:now") / lost).unlink()
    with pytest.raises(NotFound, match=rf"spec\.model\.fromJob: job early has no artifact in .* lacks {lost}"):
        local_references.read_references(late(), tmp_path)


@pytest.mark.parametrize("damaged", ["RESULT.json", "artifact/provenance.json"])
def test_a_damaged_file_is_named(tmp_path: Path, damaged: str) -> None:
    save(trained(tmp_path, "sha256:now") / damaged, {})
    with pytest.raises(WorkspaceUnusable, match=r"jobs/early.* is damaged"):
        local_references.read_references(late(), tmp_path)
