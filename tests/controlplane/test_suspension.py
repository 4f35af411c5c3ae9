"""spec.suspend, from the user's change to free GPUs and back: real Job controller, pods played by script."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import FTJ, GARBAGE_SECONDS, Scene, claim, result
from tests.kube import ApiError, Object, until

CHECKPOINT = {"attempt": 1, "step": 40, "path": "jobs/job/checkpoints/1-x/40", "time": "2026-01-31T12:00:00Z"}


@pytest.fixture(autouse=True)
def _one_operator_for_all(operator: OperatorProcess) -> None:
    """The module's."""


def change(scene: Scene, name: str = "job", **spec: object) -> None:
    scene.kube.patch(FTJ, name, {"spec": spec}, scene.namespace)


def saves(scene: Scene, pod: Object, code: int = 75) -> None:
    """The pod is asked to end; its trainer saves and ends, and the pod is gone."""
    scene.asked_to_end(pod)
    said = result(code) if code in (0, 65) else None
    scene.kubelet.finish(pod, code, json.dumps(said) if said else "")
    scene.kubelet.remove(pod)


def suspended(scene: Scene, name: str = "job") -> Object:
    """The status of a job that is suspended: no pod and no unfinished Job is left."""
    status = scene.reaches("Suspended", "SuspendedByUser", name=name)
    until("its Jobs are gone", lambda: not scene.unfinished(name), timeout=GARBAGE_SECONDS)
    [condition] = [c for c in status["conditions"] if c["type"] == "Suspended"]
    assert (condition["status"], condition["reason"]) == ("True", "SuspendedByUser")
    return status


def test_a_job_is_suspended_and_resumed_as_often_as_the_user_likes(scene: Scene) -> None:
    scene.submit(backoffLimit=0)
    for attempt in (1, 2, 3, 4, 5):
        pod = scene.running(attempt=attempt)
        if attempt == 2:
            scene.report(pod, {"checkpoint": CHECKPOINT})
        change(scene, suspend=True)
        saves(scene, pod)
        message = suspended(scene)["message"]
        assert ("step 40" in message) == (attempt > 1)
        columns = scene.columns()
        assert (columns["Phase"], columns["Reason"], columns["Attempt"]) == (
            "Suspended",
            "SuspendedByUser",
            str(attempt),
        )
        change(scene, suspend=attempt % 2 == 0 or None)  # unset is false
        if attempt % 2 == 0:
            change(scene, suspend=False)
    pod = scene.running(attempt=6)
    scene.kubelet.finish(pod, 0, json.dumps(result(0, attempt=6)))
    status = scene.reaches("Succeeded")
    assert [entry["reason"] for entry in status["attempts"]] == [*["SuspendedByUser"] * 5, "Completed"]
    assert all((entry["failures"], entry["stalled"]) == (0, 0) for entry in status["attempts"][:-1])
    assert {c["type"]: c["status"] for c in status["conditions"]}["Suspended"] == "False"


def _preparing(scene: Scene) -> Object | None:
    scene.submit()
    return scene.preparing()


def _starting(scene: Scene) -> Object | None:
    scene.submit()
    scene.kubelet.find_no_node(scene.pod(), "no node fits")
    scene.reaches("Starting", "Unschedulable")
    return None


def _waiting(scene: Scene) -> Object | None:
    scene.submit(model={"source": None, "fromJob": "first"})
    scene.reaches("Pending", "WaitingForJob")
    return None


def _new(scene: Scene) -> Object | None:
    scene.submit(suspend=True)
    return None


PHASES: dict[str, Callable[[Scene], Object | None]] = {
    "preparing": _preparing,
    "starting": _starting,
    "waiting for a job": _waiting,
    "new": _new,
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_job_is_suspended_in_any_phase(scene: Scene, phase: str) -> None:
    pod = PHASES[phase](scene)
    change(scene, suspend=True)
    if pod is not None:
        saves(scene, pod, 143)
    status = suspended(scene)
    begun = [*status.get("prepareAttempts", []), *status.get("attempts", [])]
    assert all(entry["state"] == "Ended" for entry in begun)
    if phase in ("new", "waiting for a job"):
        assert not begun
        assert not scene.batches(kind="prepare")
    change(scene, suspend=False)
    if phase == "waiting for a job":
        scene.reaches("Pending", "WaitingForJob")
        return
    number = status.get("prepareAttempt", 0) + 1
    if phase in ("preparing", "new"):
        pod = scene.preparing(attempt=number)
        scene.kubelet.finish(pod, 0, json.dumps(result(0, attempt=number, kind="prepare")))
    attempt = status.get("attempt", 0) + 1
    scene.reaches("Starting", attempt=attempt)
    scene.running(attempt=attempt)


@pytest.mark.parametrize(("code", "phase"), [(0, "Succeeded"), (65, "Failed")])
def test_an_attempt_that_ended_by_itself_meanwhile_is_judged(scene: Scene, code: int, phase: str) -> None:
    scene.submit()
    pod = scene.running()
    scene.report(pod, {"result": result(code)})
    change(scene, suspend=True)
    saves(scene, pod, code)
    status = scene.reaches(phase)
    assert {c["type"]: c["status"] for c in status["conditions"]}["Suspended"] == "False"
    change(scene, suspend=False)
    until("the change is observed", lambda: scene.status()["observedGeneration"] == 3)
    assert scene.status()["phase"] == phase
    assert not scene.unfinished()


def test_other_resources_are_taken_when_the_job_is_resumed(scene: Scene) -> None:
    """Numbers that do not fit hold the job, and can be corrected. Other GPUs make another estimate."""
    scene.submit()
    pod = scene.running()
    digest = scene.status()["resolved"]["digest"]
    change(scene, suspend=True)
    change(scene, resources={"gpusPerNode": 3, "nodeSelector": {"gpu": "large"}})
    saves(scene, pod)
    assert "3 GPUs cannot share evenly" in suspended(scene)["message"]
    change(scene, suspend=False)
    scene.tells("InvalidSpec", "correct spec.resources")
    change(scene, suspend=True)
    scene.reaches("Suspended", "SuspendedByUser")
    change(scene, resources={"gpusPerNode": 2})
    change(scene, suspend=False)
    pod = scene.preparing(attempt=1 + scene.status()["prepareAttempt"])
    scene.kubelet.finish(pod, 0, json.dumps(result(0, attempt=2, kind="prepare")))
    scene.reaches("Starting", attempt=2)
    pod = scene.running(attempt=2)
    [container] = pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert pod["spec"]["nodeSelector"] == {"gpu": "large"}
    received = json.loads(pod["metadata"]["annotations"]["finetune-operator.io/resolved-job"])
    assert received["runtime"]["gpusPerNode"] == 2
    assert received["digest"] == digest == scene.status()["resolved"]["digest"]


def test_gpus_that_the_trainer_finds_too_small_hold_the_job(scene: Scene) -> None:
    """Only the trainer knows: it estimates again when it prepares for other GPUs."""
    scene.submit()
    pod = scene.running()
    change(scene, suspend=True)
    change(scene, resources={"gpuMemory": "8Gi"})
    saves(scene, pod)
    change(scene, suspend=False)
    pod = scene.preparing(attempt=2)
    why = "The model needs at least 12 GiB of GPU memory, and a GPU has 8 GiB."
    refusal = {**result(64, attempt=2, kind="prepare"), "reason": "InvalidSpec", "message": why}
    scene.kubelet.finish(pod, 64, json.dumps(refusal))
    scene.reaches("Suspended", "InvalidSpec")
    scene.tells("InvalidSpec", why, "correct spec.resources")
    change(scene, suspend=True)
    scene.reaches("Suspended", "SuspendedByUser")
    change(scene, suspend=False)
    scene.tells("InvalidSpec", why)
    assert scene.status()["prepareAttempt"] == 2, "the same GPUs are not tried again"
    change(scene, suspend=True)
    change(scene, resources={"gpuMemory": "80Gi"})
    change(scene, suspend=False)
    pod = scene.preparing(attempt=3)
    scene.kubelet.finish(pod, 0, json.dumps(result(0, attempt=3, kind="prepare")))
    scene.reaches("Starting", attempt=2)


def test_tokens_are_rotated_while_the_job_is_suspended(scene: Scene) -> None:
    """Pods name the Secret, and the kubelet reads it when they start: nothing of its content is kept anywhere. The job
    may name another Secret, too."""

    def secret(name: str, token: str) -> None:
        data = {"HF_TOKEN": token}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": scene.namespace}}
        scene.kube.apply({**body, "stringData": data})

    def token_of(pod: Object) -> str:
        """What the kubelet gives to a container that starts now."""
        [variable] = [one for one in pod["spec"]["containers"][0]["env"] if one["name"] == "HF_TOKEN"]
        reference = variable["valueFrom"]["secretKeyRef"]
        found = scene.kube.get("Secret", reference["name"], scene.namespace)["data"][reference["key"]]
        return base64.b64decode(found).decode()

    secret("hub", "hf_first")
    scene.submit(secrets={"huggingFace": "hub"})
    pod = scene.running()
    assert token_of(pod) == "hf_first"
    change(scene, suspend=True)
    secret("hub", "hf_second")
    saves(scene, pod)
    suspended(scene)
    change(scene, suspend=False)
    pod = scene.running(attempt=2)
    assert token_of(pod) == "hf_second"

    secret("hub-2027", "hf_third")
    with pytest.raises(ApiError, match=r"spec\.secrets can be changed only while the job is suspended"):
        change(scene, secrets={"huggingFace": "hub-2027"})
    change(scene, suspend=True)
    saves(scene, pod)
    suspended(scene)
    change(scene, secrets={"huggingFace": "hub-2027"})
    digest = scene.status()["resolved"]["digest"]
    change(scene, suspend=False)
    pod = scene.running(attempt=3)
    assert token_of(pod) == "hf_third"
    assert scene.status()["resolved"]["digest"] == digest
    kept = json.dumps([scene.job(), pod, scene.batches(), scene.kube.list("Event", scene.namespace)])
    assert "hf_" not in kept


def test_changes_in_quick_succession_converge(scene: Scene) -> None:
    scene.submit(backoffLimit=0)
    pod = scene.running()
    for suspend in (True, False, True, False, True):
        change(scene, suspend=suspend)
    saves(scene, pod)
    attempts = suspended(scene)["attempts"]
    for suspend in (False, True, False):
        change(scene, suspend=suspend)
    scene.reaches("Starting")
    pod = until("a pod of a later attempt", lambda: _newest(scene, len(attempts)))
    scene.kubelet.run(pod)
    status = scene.reaches("Running")
    assert all(entry["failures"] == 0 for entry in status["attempts"])


def _newest(scene: Scene, before: int) -> Object | None:
    status = scene.status()
    found = scene.kubelet.pods("job", status["attempt"]) if status["attempt"] > before else []
    return found[0] if found and "deletionTimestamp" not in found[0]["metadata"] else None


def test_a_suspended_job_is_deleted_like_any_other(scene: Scene) -> None:
    scene.submit()
    pod = scene.running()
    change(scene, suspend=True)
    scene.asked_to_end(pod)
    scene.kube.delete(FTJ, "job", scene.namespace)
    scene.kubelet.remove(pod)
    until("its Jobs are gone", lambda: not scene.batches(), timeout=GARBAGE_SECONDS)
    scene.submit(suspend=True)
    suspended(scene)
    scene.kube.delete(FTJ, "job", scene.namespace)
    until("it is gone", lambda: scene.kube.find(FTJ, "job", scene.namespace) is None)
    assert not scene.batches()


def test_a_job_that_waits_says_that_the_other_is_suspended(scene: Scene) -> None:
    scene.kube.create(claim("other"), scene.namespace)
    scene.submit("first", suspend=True)
    suspended(scene, "first")
    scene.submit("second", model={"source": None, "fromJob": "first"})
    status = scene.reaches("Pending", "WaitingForJob", name="second")
    assert "which is Suspended (SuspendedByUser)" in status["message"]
