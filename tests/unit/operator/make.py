"""Views and settings for tests of pure code, with sensible defaults that a test can change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.status import FineTuneJobStatus, Result
from finetune_operator.names import Kind, attempt_job
from finetune_operator.plan import Need, Plan, plan
from finetune_operator.settings import Settings
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.claim import ClaimView
from finetune_operator.views.container import OtherContainer
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import format_time
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Dependencies, Read, Snapshot

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
MOMENT = "2026-01-31T11:00:00Z"
UID = "0a1b2c3d-0000-4000-8000-000000000000"
SETTINGS = Settings(trainer_image="registry.example/finetune-trainer:1")
SPEC: dict[str, Any] = {
    "stage": "sft",
    "model": {"source": "pvc://models/base"},
    "datasets": [{"source": "pvc://models/data/train.jsonl", "format": "openai"}],
    "training": {"epochs": 1},
    "workspace": {"claimName": "workspace"},
}


async def everywhere(_namespace: str) -> bool:
    """An operator that serves every namespace."""
    return True


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
    """The artifact of a job, on the shared workspace."""
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


TWO_NODES = {"nodes": 2}

WORK = {"workspace": ClaimView(("ReadWriteOnce",))}
"""The claim of all jobs, unless a test changes it."""


def among(*others: JobView, claims: dict[str, ClaimView] = WORK, cycle: tuple[str, ...] = ()) -> Snapshot:
    """The snapshot of a job that waits for other jobs."""
    return Snapshot(dependencies=Dependencies({view.name: view for view in others}, claims, cycle))


def child_job(attempt: int = 1, kind: Kind = "train", **changes: Any) -> ChildJobView:
    """The child job of an attempt, not finished."""
    name = attempt_job(kind, "demo", UID, attempt)
    plain = ChildJobView(
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
    """A pod of an attempt that neither scheduler nor kubelet has seen."""
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
        ended=None,
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


def proxy(**changes: Any) -> OtherContainer:
    """A container that a webhook has added, and that runs for ever."""
    plain = OtherContainer("proxy", "container", image="registry.example/proxy:1", running=True, started=True)
    return replace(plain, **changes)


def kept(code: int, *, rank: int = 0, kind: Kind = "train", after: float = 0, **changes: Any) -> PodView:
    """A pod whose trainer has ended so many seconds after NOW, but whose proxy has not."""
    moment = NOW + timedelta(seconds=after)
    return ended(code, rank=rank, kind=kind, **{"phase": "Running", "ended": moment, "others": (proxy(),), **changes})


def result(code: int, attempt: int = 1, message: str = "the trainer's message", **fields: Any) -> Result:
    return Result.model_validate(
        {"kind": "train", "attempt": attempt, "exitCode": code, "reason": "x", "message": message, **fields}
    )


def step(view: JobView, snapshot: Snapshot | None = None, *, after: float = 0, settings: Settings = SETTINGS) -> Plan:
    """A plan, so many seconds after NOW. The snapshot answers every need."""
    return needs(view, snapshot, after=after, settings=settings)[1]


def needs(
    view: JobView, snapshot: Snapshot | None = None, *, after: float = 0, settings: Settings = SETTINGS
) -> tuple[list[Read], Plan]:
    """The live reads that a plan needs, in order, and the plan."""
    snapshot = snapshot or Snapshot()
    order: list[Read] = []
    while isinstance(planned := plan(view, snapshot, NOW + timedelta(seconds=after), settings), Need):
        assert not planned.reads & snapshot.reads, "a read is needed once"
        snapshot = replace(snapshot, reads=snapshot.reads | planned.reads)
        order = [*order, *sorted(planned.reads)]
    return order, planned


def wait(planned: Plan, *, after: float = 0) -> float | None:
    """Seconds until the plan looks again, so many seconds after NOW."""
    return planned.look_again(NOW + timedelta(seconds=after))


PREPARED = {"digest": "sha256:1", "rows": 1200, "tokens": 45678, "trainedTokens": 12345}
"""What the prepare pod reports about the data."""


def prepared(**spec: Any) -> JobView:
    """A job whose data is prepared and whose training has not begun, by its status alone."""
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


def observed(status: dict[str, Any], generation: int) -> dict[str, Any]:
    """The same status for another generation."""
    conditions = [{**found, "observedGeneration": generation} for found in status["conditions"]]
    return {**status, "observedGeneration": generation, "conditions": conditions}


def begun(**spec: Any) -> JobView:
    """A job whose first attempt is in the status, but its child job is not created yet."""
    view = prepared(**spec)
    return with_status(view, step(view))


def condition(status: FineTuneJobStatus, kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    match = next(c for c in status.conditions or [] if c.type == kind)
    return match.status, match.reason


def fail(view: JobView, code: int, *, after: float = 0, **pod_changes: Any) -> tuple[JobView, Plan]:
    """The current attempt runs and ends with a code; the job afterwards."""
    number = view.status["attempt"]
    snapshot = Snapshot((child_job(number, failed_reason="PodFailurePolicy"),), (ended(code, number, **pod_changes),))
    planned = step(view, snapshot, after=after)
    return with_status(view, planned), planned


def retried(view: JobView, snapshot: Snapshot, *, after: float) -> JobView:
    """The job once its next attempt has begun."""
    planned = step(view, snapshot, after=after)
    assert planned.status.attempt == view.status["attempt"] + 1, "the next attempt begins"
    return with_status(view, planned)


def saved(view: JobView, at: int, **fields: Any) -> JobView:
    checkpoint = {"attempt": 1, "step": at, "path": "p", "time": "2026-01-31T12:00:00Z", **fields}
    return replace(view, status={**view.status, "checkpoint": checkpoint})


def reporting(view: JobView, attempt: int = 1, after: float = 0, **fields: Any) -> JobView:
    """The job after a training attempt has reported, so many seconds after NOW."""
    progress = {
        "attempt": attempt,
        "kind": "train",
        "step": 62,
        "totalSteps": 80,
        "percent": 77,
        "summary": "62/80 (77%)",
        "loss": "0.2117",
        "etaSeconds": 74,
        "eta": "1m14s",
        "memoryBytes": 2**30,
        "lastUpdateTime": format_time(NOW + timedelta(seconds=after)),
        **fields,
    }
    return replace(view, status={**view.status, "progress": progress})


def preparing_progress(activity: str, step: int = 1) -> dict[str, Any]:
    """What the trainer reports while it prepares."""
    return {
        "attempt": 1,
        "activity": activity,
        "step": step,
        "totalSteps": 10,
        "percent": step,
        "summary": f"{activity} {step}/10",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }
