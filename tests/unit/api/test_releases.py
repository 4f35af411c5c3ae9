"""What the jobs of earlier releases left in the cluster is understood as it was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import CONTRACTS_ACCEPTED, ResolvedJob, job_digest
from finetune_api.job import FineTuneJob
from finetune_api.status import FineTuneJobStatus

CAPTURED = sorted((Path(__file__).resolve().parents[2] / "golden" / "releases").glob("*/*.json"))
ANNOTATION = "finetune-operator.io/resolved-job"


@pytest.fixture(params=CAPTURED, ids=lambda path: f"{path.parent.name} {path.stem}")
def captured(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(request.param.read_text())
    return loaded


def test_the_trainer_reads_every_job_of_its_contract(captured: dict[str, Any]) -> None:
    """Strictly, as the trainer does: an unknown key is an error."""
    for child in captured["childJobs"]:
        document = json.loads(child["spec"]["template"]["metadata"]["annotations"][ANNOTATION])
        assert document["contract"] in CONTRACTS_ACCEPTED
        resolved = ResolvedJob.model_validate(document, by_alias=True, by_name=False)
        assert job_digest(resolved) == document["digest"], "checkpoints in the workspace stay those of the job"


def test_spec_and_status_are_read_without_loss(captured: dict[str, Any]) -> None:
    job = captured["job"]
    FineTuneJob.model_validate(job | {"metadata": {"name": job["metadata"]["name"]}})
    assert FineTuneJobStatus.model_validate(job["status"]).to_dict() == job["status"]
