"""FineTuneJobs in every state that Argo CD distinguishes, as the operator's plan writes them.

`python -m tests.unit.argocd.states` writes them into the testdata of charts/finetune-operator/argocd. A test compares
the files with the states, so no fixture is older than the operator.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from finetune_api.job import API_VERSION, KIND
from finetune_api.status import NOT_OBSERVED
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot
from finetune_operator.views.workload import Condition, QueueView, WorkloadView

from tests.unit.operator.make import (
    MOMENT,
    among,
    artifact,
    begun,
    child_job,
    ended,
    fail,
    job,
    other,
    pod,
    prepared,
    reporting,
    result,
    running,
    saved,
    step,
    with_status,
)
from tests.unit.operator.plan.test_reopening import exhausted, retry
from tests.unit.operator.plan.test_stopping import stopped
from tests.unit.operator.plan.test_suspension import UNDER_WAY, at_rest, set_suspend, stopping, trains

CHART = Path(__file__).resolve().parents[3] / "charts" / "finetune-operator"
CUSTOMIZATION = CHART / "argocd" / "resource_customizations" / "finetune-operator.io" / "FineTuneJob"
TESTDATA = CUSTOMIZATION / "testdata"
ACTION_TESTDATA = CUSTOMIZATION / "actions" / "testdata"
Manifest = dict[str, Any]


def manifest(view: JobView) -> Manifest:
    """The object on the API server. No script reads the resolved job, which is long."""
    meta = {"name": view.name, "namespace": view.namespace, "uid": view.uid, "generation": view.generation}
    status = {name: value for name, value in view.status.items() if name != "resolved"}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": view.spec, "status": status}


def stale(view: JobView) -> JobView:
    """The job after an edit that the operator has not seen."""
    return replace(view, generation=view.generation + 1)


def deleted(made: Manifest) -> Manifest:
    """The job while a finalizer keeps it, such as that of a hook of Argo CD."""
    return {**made, "metadata": {**made["metadata"], "deletionTimestamp": MOMENT}}


def _written(view: JobView, snapshot: Snapshot | None = None) -> JobView:
    return with_status(view, step(view, snapshot))


def _succeeded() -> JobView:
    words = result(0, artifact=artifact("demo"), metrics={"loss": "0.5"}).model_dump_json(by_alias=True)
    return _written(trains(), Snapshot((child_job(complete=True),), (ended(0, terminated_message=words),)))


def _held() -> JobView:
    """Resumed with GPUs that cannot share the batch."""
    rest = at_rest()
    edited = _written(replace(rest, spec={**rest.spec, "resources": {"gpusPerNode": 3}}, generation=3))
    return _written(set_suspend(edited, suspend=False))


def _queued(**changes: Any) -> JobView:
    """A job whose child job Kueue has not admitted."""
    said = {"QuotaReserved": Condition(False, "Pending", "insufficient unused quota for nvidia.com/gpu")}
    workload = replace(WorkloadView("job-demo", "team", True, said), **changes)
    snapshot = Snapshot((child_job(suspended=True, queue="team"),), queue=QueueView(workload))
    return _written(begun(queue="team"), snapshot)


def states() -> dict[str, JobView]:
    """Name of a state -> a job in it."""
    after_sft = job(model={"fromJob": "first"})
    return {
        "new": job({"phase": "Pending", "observedGeneration": NOT_OBSERVED}),
        "waiting-for-job": _written(after_sft, among(other("first", status={"phase": "Running"}))),
        "preparing": _written(_written(job()), Snapshot((child_job(kind="prepare"),), (running(kind="prepare"),))),
        "starting": _written(begun(), Snapshot((child_job(),), (pod(unschedulable="0/1 nodes are available"),))),
        "child-job-suspended": _written(begun(), Snapshot((child_job(suspended=True),))),
        "queued": _queued(),
        "deactivated": _queued(active=False),
        "running": reporting(saved(trains(), 40)),
        "stopping": _written(stopped(saved(trains(), 40)), UNDER_WAY),
        "waiting-for-retry": fail(saved(trains(), 40), 70)[0],
        "ending-for-suspension": set_suspend(stopping(saved(trains(), 40))),
        "suspended": at_rest(saved(trains(), 40)),
        "suspended-before-training": _written(prepared(suspend=True)),
        "resumed-with-misfit": _held(),
        "reopened": _written(retry(exhausted())),
        "succeeded": _succeeded(),
        "failed": exhausted(),
        "invalid": _written(job(stage="dpo")),
        "nothing-to-keep": _written(stopped(prepared())),
    }


STALE = ("running", "suspended", "succeeded", "failed")
DELETED = ("running", "suspended", "succeeded", "failed")


def files() -> dict[Path, str]:
    """Path -> content of every fixture."""
    known = states()
    made = {name: manifest(view) for name, view in known.items()}
    made |= {f"stale-{name}": manifest(stale(known[name])) for name in STALE}
    made |= {f"deleted-{name}": deleted(made[name]) for name in DELETED}
    written = {TESTDATA / f"{name}.yaml": made[name] for name in made}
    for name in ("running", "suspended", "succeeded", "failed", "nothing-to-keep", "suspended-before-training"):
        written[ACTION_TESTDATA / f"{name}.yaml"] = made[name]
    after: dict[str, tuple[str, Manifest]] = {
        "running-suspended": ("running", {"suspend": True}),
        "running-stopped": ("running", {"stop": "keep"}),
        "suspended-resumed": ("suspended", {"suspend": False}),
        "failed-retried": ("failed", {"retry": 1}),
    }
    for name, (before, spec) in after.items():
        written[ACTION_TESTDATA / f"{name}.yaml"] = {**made[before], "spec": {**made[before]["spec"], **spec}}
    return {path: yaml.safe_dump(content, sort_keys=False, width=120) for path, content in written.items()}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
