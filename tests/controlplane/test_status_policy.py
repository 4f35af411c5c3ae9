"""Who may write what in a job's status: the chart's admission policy, on a real API server.

Pods are played by impersonation: the API server puts a pod's name into the same place from its token.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests import chart
from tests.kube import ApiError, Kube, until

ATTEMPT, PREPARE_ATTEMPT = 2, 4
TIME = "2026-01-31T12:00:00Z"
PROGRESS = {
    "progress": {
        "attempt": ATTEMPT,
        "activity": "Training",
        "step": 10,
        "totalSteps": 99,
        "percent": 10,
        "summary": "10%",
        "lastUpdateTime": TIME,
    }
}
CHECKPOINT = {"checkpoint": {"attempt": ATTEMPT, "step": 10, "path": "jobs/one/checkpoints/2-x/10", "time": TIME}}
RESULT = {
    "result": {
        "kind": "train",
        "attempt": ATTEMPT,
        "exitCode": 65,
        "reason": "InvalidData",
        "message": "row 7 is empty",
    }
}
RUNNING = {"type": "Running", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": TIME}
OPERATORS = {
    "phase": "Running",
    "reason": "Running",
    "attempt": ATTEMPT,
    "prepareAttempt": PREPARE_ATTEMPT,
    "conditions": [RUNNING],
}


@pytest.fixture
def job(kube: Kube, namespace: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """A job that the operator has brought to its second attempt, in a namespace where pods may patch status."""
    _allow(kube, namespace, namespace)
    return _running(kube, namespace, manifest, "one")


def _running(kube: Kube, namespace: str, manifest: dict[str, Any], name: str) -> dict[str, Any]:
    created = kube.create({**manifest, "metadata": {"name": name}}, namespace)
    operator = kube.as_account(chart.RELEASE, chart.NAMESPACE)
    return operator.apply({**_head(created), "status": OPERATORS}, manager="finetune-operator", part="status")


def _allow(kube: Kube, namespace: str, pods_of: str) -> None:
    """What the operator does before a namespace's first job, for the pods of `pods_of`."""
    kube.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"trainer-{pods_of}", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-trainer"},
            "subjects": [{"kind": "ServiceAccount", "name": "finetune-trainer", "namespace": pods_of}],
        }
    )


def _head(job: dict[str, Any]) -> dict[str, Any]:
    meta = job["metadata"]
    return {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
    }


def _pod(job: dict[str, Any], attempt: int | str = ATTEMPT, rank: int = 0) -> str:
    return f"{job['metadata']['name']}-{job['metadata']['uid'][:5]}-{attempt}-{rank}-x7k2p"


def _write(
    kube: Kube, job: dict[str, Any], status: dict[str, Any], pod: str | None = None, namespace: str | None = None
) -> dict[str, Any]:
    """As the trainer does it: server-side apply with force, and the uid of its job."""
    writer = kube.as_pod(pod or _pod(job), namespace or job["metadata"]["namespace"])
    return writer.apply({**_head(job), "status": status}, manager="finetune-trainer", part="status")


@pytest.mark.parametrize(
    "status", [PROGRESS, CHECKPOINT, RESULT, PROGRESS | CHECKPOINT | RESULT], ids=lambda s: "+".join(s)
)
def test_a_pod_of_the_current_attempt_writes_its_three_fields(
    kube: Kube, job: dict[str, Any], status: dict[str, Any]
) -> None:
    written = _write(kube, job, status)["status"]
    assert {key: written[key] for key in status} == status
    assert {key: written[key] for key in OPERATORS} == OPERATORS


def test_any_pod_of_the_attempt_may_write(kube: Kube, job: dict[str, Any]) -> None:
    """Whatever its index; a name that only begins like one may not."""
    for rank in (1, 17, 9998):
        assert _write(kube, job, PROGRESS, _pod(job, rank=rank))["status"]["progress"] == PROGRESS["progress"]
    with pytest.raises(ApiError, match="is not the current attempt"):
        _write(kube, job, PROGRESS, _pod(job, rank=1).replace("-1-x7k2p", "-1-2-x7k2p"))


def test_it_may_write_again_and_take_back_what_is_its_own(kube: Kube, job: dict[str, Any]) -> None:
    _write(kube, job, PROGRESS | CHECKPOINT)
    later = {"progress": PROGRESS["progress"] | {"step": 20}}
    written = _write(kube, job, later)["status"]
    assert written["progress"]["step"] == 20
    assert "checkpoint" not in written


def test_a_pod_that_prepares_writes_them_too(kube: Kube, job: dict[str, Any]) -> None:
    written = _write(kube, job, PROGRESS | RESULT, pod=_pod(job, f"p{PREPARE_ATTEMPT}"))["status"]
    assert written["result"] == RESULT["result"]


def test_it_may_write_before_anything_is_trained(kube: Kube, namespace: str, manifest: dict[str, Any]) -> None:
    _allow(kube, namespace, namespace)
    fresh = kube.create({**manifest, "metadata": {"name": "fresh"}}, namespace)
    operator = kube.as_account(chart.RELEASE, chart.NAMESPACE)
    preparing = {"phase": "Preparing", "prepareAttempt": 1}
    operator.apply({**_head(fresh), "status": preparing}, manager="finetune-operator", part="status")
    assert _write(kube, fresh, PROGRESS, pod=_pod(fresh, "p1"))["status"]["progress"] == PROGRESS["progress"]


@pytest.mark.parametrize("attempt", [1, 3, 20, 22, 4, "p1", "p2", "p40", "p44"])
def test_pods_of_other_attempts_are_refused(kube: Kube, job: dict[str, Any], attempt: int | str) -> None:
    with pytest.raises(ApiError, match="is not the current attempt of FineTuneJob one") as refused:
        _write(kube, job, PROGRESS, pod=_pod(job, attempt))
    assert refused.value.code == 422


def test_pods_of_other_jobs_are_refused(
    kube: Kube, job: dict[str, Any], namespace: str, manifest: dict[str, Any]
) -> None:
    """Whatever their names begin with; and a namesake that was deleted had another uid."""
    other = _running(kube, namespace, manifest, "one-2")
    gone = {"metadata": job["metadata"] | {"uid": "00000" + job["metadata"]["uid"][5:]}}
    for stranger in (other, gone):
        with pytest.raises(ApiError, match="is not the current attempt"):
            _write(kube, job, PROGRESS, pod=_pod(stranger))
    assert "progress" not in kube.get("FineTuneJob", "one", namespace)["status"]


def test_a_job_named_like_anothers_job_gains_nothing(kube: Kube, job: dict[str, Any]) -> None:
    """The uid is no secret: a FineTuneJob may be named so that its pods' names begin like those of our attempt."""
    for attempt in (ATTEMPT, f"p{PREPARE_ATTEMPT}"):
        lookalike = f"one-{job['metadata']['uid'][:5]}-{attempt}-x-1a2b3-1-0-x7k2p"
        with pytest.raises(ApiError, match="is not the current attempt"):
            _write(kube, job, PROGRESS, pod=lookalike)


def test_pods_of_other_namespaces_are_refused(kube: Kube, job: dict[str, Any], namespace: str) -> None:
    """Also when their account was given the right here, and with the very name of our pod."""
    _allow(kube, namespace, "default")
    with pytest.raises(ApiError, match="training pods of its own namespace"):
        _write(kube, job, PROGRESS, namespace="default")


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Succeeded"},
        {"attempt": 3},
        {"conditions": [RUNNING | {"status": "False"}]},
        {"conditions": [RUNNING, RUNNING | {"type": "Succeeded"}]},
        {"artifact": {"uri": "pvc://mine/instead", "kind": "model", "digest": "sha256:0", "sizeBytes": 1}},
        {"message": "all is well"},
        {"completionTime": TIME},
    ],
    ids=lambda s: "-".join(s),
)
def test_a_pod_may_write_nothing_else(kube: Kube, job: dict[str, Any], status: dict[str, Any]) -> None:
    """Neither changed nor added, and not in the shadow of an honest progress."""
    before = kube.get("FineTuneJob", "one", job["metadata"]["namespace"])["status"]
    with pytest.raises(ApiError, match="and nothing else of status"):
        _write(kube, job, PROGRESS | status)
    assert kube.get("FineTuneJob", "one", job["metadata"]["namespace"])["status"] == before


@pytest.mark.parametrize("field", OPERATORS)
def test_a_pod_may_remove_nothing_else(kube: Kube, job: dict[str, Any], field: str) -> None:
    namespace = job["metadata"]["namespace"]
    with pytest.raises(ApiError, match="and nothing else of status"):
        kube.as_pod(_pod(job), namespace).patch(
            "FineTuneJob", "one", {"status": {field: None}}, namespace, part="status"
        )


def test_before_the_first_attempt_no_pod_may_write(kube: Kube, namespace: str, manifest: dict[str, Any]) -> None:
    _allow(kube, namespace, namespace)
    fresh = kube.create({**manifest, "metadata": {"name": "fresh"}}, namespace)
    with pytest.raises(ApiError, match="is not the current attempt"):
        _write(kube, fresh, PROGRESS, pod=_pod(fresh, 1))


def test_who_is_no_pod_is_refused(kube: Kube, job: dict[str, Any], namespace: str) -> None:
    """The account without a pod, as by a token made by hand; and a person with the same right."""
    kube.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "people", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "finetune-trainer"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
        }
    )
    for writer in (kube.as_account("finetune-trainer", namespace), kube.as_user("jane")):
        with pytest.raises(ApiError, match="is written by the operator and by the training pods"):
            writer.apply({**_head(job), "status": PROGRESS}, part="status")


def test_operator_and_administrators_write_everything(kube: Kube, job: dict[str, Any]) -> None:
    ended = {"phase": "Failed", "reason": "InvalidData", "attempt": ATTEMPT, "completionTime": TIME}
    operator = kube.as_account(chart.RELEASE, chart.NAMESPACE)
    written = operator.apply({**_head(job), "status": ended}, manager="finetune-operator", part="status")
    assert written["status"]["phase"] == "Failed"
    namespace = job["metadata"]["namespace"]
    mended = kube.patch("FineTuneJob", "one", {"status": {"phase": "Pending"}}, namespace, part="status")
    assert mended["status"]["phase"] == "Pending"


def test_an_operator_writes_only_where_it_may_operate(kube: Kube, job: dict[str, Any], namespace: str) -> None:
    """As operators of some namespaces. The policy asks for the right in the namespace of the job."""
    rbac = "rbac.authorization.k8s.io"
    head = {"apiVersion": f"{rbac}/v1", "metadata": {"name": "operate"}}
    rules = [{"apiGroups": ["finetune-operator.io"], "resources": ["finetunejobs"], "verbs": ["operate"]}]
    subjects = [{"kind": "User", "apiGroup": rbac, "name": "robot"}]

    def bind(kind: str, role: str, where: str) -> None:
        reference = {"apiGroup": rbac, "kind": kind, "name": role}
        kube.apply(
            {**head, "kind": "RoleBinding", "metadata": {"name": role}, "roleRef": reference, "subjects": subjects},
            where,
        )

    ended = {**_head(job), "status": OPERATORS | {"phase": "Failed"}}
    bind("ClusterRole", "finetune-trainer", namespace)
    kube.apply({**head, "kind": "Role", "rules": rules}, "default")
    bind("Role", "operate", "default")
    with pytest.raises(ApiError, match="is written by the operator and by the training pods"):
        kube.as_user("robot").apply(ended, part="status")
    kube.apply({**head, "kind": "Role", "rules": rules}, namespace)
    bind("Role", "operate", namespace)

    def written() -> bool:
        try:
            return bool(kube.as_user("robot").apply(ended, part="status")["status"]["phase"] == "Failed")
        except ApiError:
            return False

    until("the right is known", written)


def test_the_operators_apply_leaves_the_trainers_fields_alone(kube: Kube, job: dict[str, Any]) -> None:
    _write(kube, job, PROGRESS | RESULT)
    operator = kube.as_account(chart.RELEASE, chart.NAMESPACE)
    ended = {**_head(job), "status": OPERATORS | {"phase": "Failed"}}
    status = operator.apply(ended, manager="finetune-operator", part="status")["status"]
    assert status["phase"] == "Failed"
    assert status["progress"] == PROGRESS["progress"]
    assert status["result"] == RESULT["result"]


def test_the_curves_of_a_pod_are_bounded(kube: Kube, job: dict[str, Any]) -> None:
    """An unbounded status could fill the cluster's store."""

    def curves(characters: int) -> dict[str, Any]:
        return {"progress": PROGRESS["progress"] | {"curves": {f"m{n}": "1" * (characters // 64) for n in range(64)}}}

    written = _write(kube, job, curves(16_384))
    assert len(written["status"]["progress"]["curves"]) == 64
    owners = [entry for entry in written["metadata"]["managedFields"] if entry["manager"] == "finetune-trainer"]
    assert "m1" not in str(owners), "one entry for all curves"
    with pytest.raises(ApiError, match="all curves fit into 16 KiB"):
        _write(kube, job, curves(16_384 + 64))
