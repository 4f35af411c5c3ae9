"""What a laptop knows of the jobs that a job names."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.job import FineTuneJob
from finetune_api.status import Artifact, Reference, Result
from finetune_trainer import chained
from finetune_trainer.errors import NotFound, WorkspaceUnusable

from tests.unit.trainer.test_jobfile import manifest


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
    """The folder of the job that is named."""
    home = workspace / "jobs" / "early"
    result = Result(kind="train", attempt=1, exit_code=0, reason="Completed", message="", artifact=artifact(digest))
    save(home / "artifact" / "provenance.json", {"job": {"stage": "sft"}, "uid": "u-1", "references": []})
    save(home / "RESULT.json", {"digest": "sha256:job", "result": result.to_dict()})
    return home


def test_what_a_job_that_is_named_has_made_is_found(tmp_path: Path) -> None:
    trained(tmp_path, "sha256:now")
    (one,) = chained.references(late(), tmp_path)
    assert one == Reference(use="model", job="early", uid="u-1", stage="sft", artifact=artifact("sha256:now"))


def test_what_a_job_was_made_with_stays_so(tmp_path: Path) -> None:
    trained(tmp_path, "sha256:now")
    then = Reference(use="model", job="early", uid="u-0", stage="sft", artifact=artifact("sha256:then"))
    save(tmp_path / "jobs" / "late" / "artifact" / "provenance.json", {"references": [then.to_dict()]})
    assert chained.references(late(), tmp_path) == [then]


@pytest.mark.parametrize("lost", ["RESULT.json", "artifact/provenance.json"])
def test_what_is_missing_is_named(tmp_path: Path, lost: str) -> None:
    (trained(tmp_path, "sha256:now") / lost).unlink()
    with pytest.raises(NotFound, match=rf"spec\.model\.fromJob: nothing that early has made .* lacks {lost}"):
        chained.references(late(), tmp_path)


@pytest.mark.parametrize("damaged", ["RESULT.json", "artifact/provenance.json"])
def test_what_says_nothing_is_named(tmp_path: Path, damaged: str) -> None:
    save(trained(tmp_path, "sha256:now") / damaged, {})
    with pytest.raises(WorkspaceUnusable, match="jobs/early does not say what is in it"):
        chained.references(late(), tmp_path)
