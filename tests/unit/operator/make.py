"""Views and settings for tests of pure code: sensible everywhere, changed where a test says so."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.status import Result
from finetune_operator.names import Kind, attempt_job
from finetune_operator.observed import BatchView, ClaimView, JobView, Observed, Others, PodView
from finetune_operator.plan import Plan, plan
from finetune_operator.settings import Settings

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
MOMENT = "2026-01-31T11:00:00Z"
UID = "0a1b2c3d-0000-4000-8000-000000000000"
SETTINGS = Settings(trainer_image="registry.example/finetune-trainer:1")
SPEC: dict[str, Any] = {
    "stage": "sft",
    "model": {"source": "pvc://models/base"},
    "datasets": [{"source": "pvc://models/data/train.jsonl", "format": "openai"}],
    "training": {"epochs": 1},
    "workspace": {"claimName": "work"},
}


def job(status: dict[str, Any] | None = None, **spec: Any) -> JobView:
    """A FineTuneJob named demo."""
    return JobView(
        namespace="team",
        name="demo",
        uid=UID,
        resource_version=1,
        generation=1,
        deleting=False,
        spec={**SPEC, **spec},
        status=status or {},
    )


def other(name: str, stage: str = "sft", status: dict[str, Any] | None = None, **spec: Any) -> JobView:
    """Another FineTuneJob of the namespace, of the same workspace."""
    return replace(job(status, stage=stage, **spec), name=name, uid=f"uid-of-{name}")


def artifact(job: str, tokenizer: str | None = "sha256:t", **changes: Any) -> dict[str, Any]:
    """What a job made, on the workspace that all share."""
    plain = {
        "uri": f"pvc://{SPEC['workspace']['claimName']}/jobs/{job}/artifact",
        "kind": "adapter",
        "digest": f"sha256:{job}",
        "sizeBytes": 1,
        "base": "pvc://models/base",
        "tokenizerDigest": tokenizer,
    }
    return {**plain, **changes}


def over(kind: str, reason: str = "Completed", message: str = "", **status: Any) -> dict[str, Any]:
    """The status of a job that has Succeeded or Failed."""
    condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": MOMENT}
    return {"phase": kind, "reason": reason, "message": message, "conditions": [condition], **status}


def succeeded(name: str, stage: str = "sft", **changes: Any) -> JobView:
    """Another job that has Succeeded."""
    return other(name, stage, over("Succeeded", artifact=artifact(name, **changes)))


WORK = {"work": ClaimView(("ReadWriteOnce",))}
"""The claim that all share unless a test says so."""


def among(*others: JobView, claims: dict[str, ClaimView] = WORK, ring: tuple[str, ...] = ()) -> Observed:
    """What is seen of a job that waits for others."""
    return Observed(others=Others({view.name: view for view in others}, claims, ring))


def batch(attempt: int = 1, kind: Kind = "train", **changes: Any) -> BatchView:
    """The Job of an attempt, under way."""
    name = attempt_job(kind, "demo", UID, attempt)
    plain = BatchView(
        key=("team", "demo"),
        name=name,
        uid=f"uid-of-{name}",
        resource_version=1,
        kind=kind,
        attempt=attempt,
        owner_uid=UID,
        created=NOW,
        deleting=False,
        complete=False,
        failed_reason=None,
        failed_message="",
    )
    return replace(plain, **changes)


def pod(attempt: int = 1, rank: int = 0, kind: Kind = "train", **changes: Any) -> PodView:
    """A pod of an attempt, waiting to be looked at by anybody."""
    name = f"{attempt_job(kind, 'demo', UID, attempt)}-{rank}-abcde"
    plain = PodView(
        key=("team", "demo"),
        name=name,
        uid=f"uid-of-{name}",
        resource_version=1,
        kind=kind,
        attempt=attempt,
        rank=rank,
        created=NOW,
        deleting=False,
        phase="Pending",
        status_reason="",
        node="",
        unschedulable=None,
        disruption=None,
        waiting_reason="",
        waiting_message="",
        running=False,
        exit_code=None,
        ended="",
        terminated_reason="",
        terminated_message="",
        memory_limit="16Gi",
    )
    return replace(plain, **changes)


def running(attempt: int = 1, rank: int = 0, kind: Kind = "train") -> PodView:
    return pod(attempt, rank, kind, phase="Running", running=True, node="node-1")


def ended(code: int, attempt: int = 1, rank: int = 0, kind: Kind = "train", **changes: Any) -> PodView:
    """A pod whose container has ended with a code."""
    phase = "Succeeded" if code == 0 else "Failed"
    return pod(attempt, rank, kind, **{"phase": phase, "exit_code": code, "node": "node-1", **changes})


def result(code: int, attempt: int = 1, message: str = "said by the trainer", **fields: Any) -> Result:
    return Result.model_validate(
        {"kind": "train", "attempt": attempt, "exitCode": code, "reason": "x", "message": message, **fields}
    )


def step(view: JobView, observed: Observed | None = None, *, after: float = 0, settings: Settings = SETTINGS) -> Plan:
    """One plan, so many seconds after NOW."""
    return plan(view, observed or Observed(), NOW + timedelta(seconds=after), settings)


PREPARED = {"digest": "sha256:1", "rows": 1200, "tokens": 45678, "trainedTokens": 12345}
"""What the prepare pod says of the data."""


def prepared(**spec: Any) -> JobView:
    """A job whose data was prepared a moment ago, and whose training has not begun: nothing but status says so."""
    condition = {
        "type": "Prepared",
        "status": "True",
        "reason": "Completed",
        "message": "",
        "lastTransitionTime": MOMENT,
    }
    return job({"conditions": [condition], "prepared": PREPARED}, **spec)


def with_status(view: JobView, planned: Plan) -> JobView:
    """The FineTuneJob once the plan's status is written."""
    return replace(view, status=planned.status.to_dict())
