"""What an operator makes of what happened while it was away, and what it does not do when it comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.controlplane.lane import Lane
from tests.controlplane.scene import FTJ, GARBAGE_SECONDS, Scene, result
from tests.kube import Object, until


def finished(scene: Scene) -> None:
    """Wait until the Job controller has said its last word."""
    until("the Job has ended", lambda: not scene.unfinished())


@pytest.fixture
def running(scene: Scene, own: Lane) -> Object:
    """The pod of a job that runs, and whose operator has just died. No second attempt would count against it."""
    own.operator.start()
    scene.submit(backoffLimit=0)
    pod = scene.running()
    own.operator.kill()
    return pod


def test_the_job_ends_as_if_nothing_had_happened(scene: Scene, own: Lane, running: Object) -> None:
    scene.kubelet.finish(running, 0, json.dumps(result(0)))
    finished(scene)
    own.operator.start()
    scene.reaches("Succeeded")
    assert own.proxy.effects(scene.namespace)["create jobs"] == 2  # one to prepare, one to train


def test_it_goes_on_with_what_still_runs(scene: Scene, own: Lane, running: Object) -> None:
    own.operator.start()
    scene.kubelet.finish(running, 65, json.dumps(result(65)))
    scene.reaches("Failed", "InvalidData")
    assert own.operator.stop() == 0


def test_the_curves_of_a_run_stay(scene: Scene, own: Lane, running: Object) -> None:
    """The operator keeps none of them in its memory."""
    curves = {"loss": "1;10*2;2,1"}
    last = {"attempt": 1, "kind": "train", "step": 20, "totalSteps": 80, "percent": 25, "summary": "20/80 (25%)"}
    scene.report(running, {"progress": {**last, "lastUpdateTime": "2026-01-31T12:00:00Z", "curves": curves}})
    scene.kubelet.evict(running, 75)
    own.operator.start()
    scene.running(attempt=2)
    assert scene.status()["progress"] == {"curves": curves}


@pytest.mark.parametrize(
    ("code", "reason"),
    [(75, "Disrupted"), (143, "Disrupted"), (65, "InvalidData"), (72, "Diverged"), (70, "InternalError")],
)
def test_a_pod_that_is_gone_is_judged_by_what_its_job_remembers(
    scene: Scene, own: Lane, running: Object, code: int, reason: str
) -> None:
    """A drained pod's object is gone at once, and nobody looked."""
    if reason == "Disrupted":
        scene.kubelet.drain(running)
    scene.kubelet.finish(running, code)
    scene.kubelet.remove(running)
    finished(scene)
    until("the pod is gone", lambda: not scene.kubelet.pods("job", 1))
    own.operator.start()
    if reason == "Disrupted":
        scene.running(attempt=2)
    else:
        scene.reaches("Failed")
    first = scene.status()["attempts"][0]
    assert first["reason"] == reason
    assert first["failures"] == (1 if code == 70 else 0)


@pytest.mark.parametrize(("attempt", "reason"), [(1, "InvalidData"), (2, "BackoffLimitExceeded")])
def test_a_pod_that_left_no_code_is_judged_by_what_the_trainer_wrote(
    scene: Scene, own: Lane, running: Object, attempt: int, reason: str
) -> None:
    """A result of another attempt says nothing about this attempt."""
    scene.report(running, {"result": result(65, attempt=attempt)})
    scene.kubelet.lose(running)
    finished(scene)
    own.operator.start()
    assert scene.reaches("Failed", reason)["attempt"] == 1


def test_attempts_keep_the_image_they_were_accepted_with(scene: Scene, own: Lane) -> None:
    own.operator.start(trainer_image="trainer:old")
    scene.submit()
    pod = scene.running()
    assert own.operator.stop() == 0
    own.operator.start(trainer_image="trainer:new")
    scene.kubelet.finish(pod, 70)
    assert scene.running(attempt=2)["spec"]["containers"][0]["image"] == "trainer:old"
    assert scene.status()["resolved"]["image"] == "trainer:old"
    scene.submit("later")
    assert scene.pod("later")["spec"]["containers"][0]["image"] == "trainer:new"


@pytest.mark.parametrize("code", [0, 65])
def test_an_end_is_for_good(scene: Scene, own: Lane, code: int) -> None:
    """Though its Job is deleted, and the operator looks at everything again and again, also after a restart."""
    own.operator.start(resync_seconds=0.3)
    scene.submit()
    scene.kubelet.finish(scene.running(), code, json.dumps(result(code)))
    end = scene.reaches("Failed" if code else "Succeeded")
    # Its event follows the write of the status, so the proxy has counted that. The end of a Job has an event of the
    # same reason.
    told = ("Warning" if code else "Normal", end["reason"])
    until("an event reports its end", lambda: told in scene.told())
    before = own.proxy.counted(scene.namespace)
    scene.kube.delete("Job", scene.batches()[0]["metadata"]["name"], scene.namespace)
    until("its Job is gone", lambda: not scene.batches())
    own.proxy.wait_for_listings(3)
    own.operator.kill()
    own.operator.start()
    own.proxy.wait_for_listings(3)
    assert own.proxy.counted(scene.namespace) == before
    assert scene.status() == end


def test_a_stranger_with_the_name_of_our_job_is_named_and_left_alone(scene: Scene, own: Lane) -> None:
    """Once it is gone, the job continues by itself."""
    uid = scene.submit()["metadata"]["uid"]
    name = f"job-{uid[:5]}-1"
    scene.kube.create(_stranger(name), scene.namespace)
    own.operator.start(resync_seconds=1)
    scene.prepared()
    status = scene.reaches("Starting", "PodsRejected")
    assert f"A Job named {name} exists" in status["message"]
    scene.kube.delete("Job", name, scene.namespace)
    scene.running()
    assert "DELETE" not in {call.method for call in own.proxy.counted(scene.namespace)}


def _stranger(name: str) -> dict[str, Any]:
    container = {"name": "c", "image": "i"}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"suspend": True, "template": template},
    }


def test_deleted_while_it_was_away(scene: Scene, own: Lane, running: Object) -> None:
    """And another made under the name: it gets a Job of its own, the first's goes."""
    scene.kube.delete(FTJ, "job", scene.namespace)
    scene.submit()
    own.operator.start()
    old = running["metadata"]["labels"]["batch.kubernetes.io/job-name"]
    until("the first's Job is gone", lambda: not scene.kube.find("Job", old, scene.namespace), timeout=GARBAGE_SECONDS)
    scene.kubelet.remove(running)
    until("its pod is gone", lambda: running["metadata"]["name"] not in json.dumps(scene.kubelet.pods("job", 1)))
    scene.running()
    assert len(scene.batches()) == 1


def test_a_job_is_suspended_in_its_back_off(scene: Scene, own: Lane) -> None:
    own.operator.start(retry_seconds=600, retry_seconds_max=600)
    scene.submit()
    scene.kubelet.finish(scene.running(), 70)
    scene.reaches("Starting", "RetryBackoff")
    scene.kube.patch(FTJ, "job", {"spec": {"suspend": True}}, scene.namespace)
    status = scene.reaches("Suspended", "SuspendedByUser")
    assert [(entry["reason"], entry["failures"]) for entry in status["attempts"]] == [("InternalError", 1)]
    assert not scene.unfinished()
