"""spec.stop, from the user's change to the artifact: real API server and Job controller, pods played by script."""

from __future__ import annotations

import json

import pytest

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import ARTIFACT, FTJ, Scene, result
from tests.controlplane.test_suspension import CHECKPOINT, change, saves, suspended
from tests.kube import ApiError, Object, until

STOPPED = "Training was stopped by the user (spec.stop) at step 40 of 100"


@pytest.fixture(autouse=True)
def _one_operator_for_all(operator: OperatorProcess) -> None:
    """The module's."""


def kept(attempt: int) -> str:
    """The termination message of a trainer that has made the artifact."""
    return json.dumps(result(0, STOPPED, attempt=attempt, reason="StoppedByUser"))


def succeeded(scene: Scene) -> Object:
    status = scene.reaches("Succeeded", "StoppedByUser")
    assert status["artifact"] == ARTIFACT
    assert status["message"].startswith(STOPPED)
    return status


def test_the_trainer_learns_of_a_stop_from_the_answer_to_its_report(scene: Scene) -> None:
    scene.submit()
    pod = scene.running()
    assert "stop" not in answer(scene, pod)["spec"]
    change(scene, stop="keep")
    assert "next report" in scene.reaches("Running", "StoppedByUser")["message"]
    assert answer(scene, pod)["spec"]["stop"] == "keep"
    scene.kubelet.finish(pod, 0, kept(1))
    assert len(succeeded(scene)["attempts"]) == 1
    with pytest.raises(ApiError, match="cannot be taken back"):
        change(scene, stop=None)


def answer(scene: Scene, pod: Object) -> Object:
    """What the API server returns to a report of the pod."""
    meta = scene.job()["metadata"]
    body = {
        "apiVersion": scene.manifest["apiVersion"],
        "kind": FTJ,
        "metadata": {key: meta[key] for key in ("name", "namespace", "uid")},
        "status": {"checkpoint": CHECKPOINT},
    }
    trainer = scene.kube.as_pod(pod["metadata"]["name"], scene.namespace, pod["spec"]["serviceAccountName"])
    answered: Object = trainer.apply(body, manager="finetune-trainer", part="status")
    return answered


@pytest.mark.parametrize("how", ["suspended", "drained"])
def test_without_a_pod_a_pod_without_gpus_keeps_the_newest_checkpoint(scene: Scene, how: str) -> None:
    scene.submit(backoffLimit=0)
    pod = scene.running()
    scene.report(pod, {"checkpoint": CHECKPOINT})
    if how == "suspended":
        change(scene, suspend=True)
        saves(scene, pod)
        suspended(scene)
        change(scene, stop="keep")
    else:
        change(scene, stop="keep")
        scene.reaches("Running", "StoppedByUser")
        scene.kubelet.evict(pod, 75)
    scene.reaches("Starting", attempt=2)
    pod = scene.kubelet.pod("job", 2)
    [container] = pod["spec"]["containers"]
    assert container["args"][:2] == ["train", "--keep"]
    assert set(container["resources"]["limits"]) == {"memory"}
    scene.kubelet.run(pod)
    assert "last reported: step 40" in scene.reaches("Running", "StoppedByUser")["message"]
    scene.kubelet.finish(pod, 0, kept(2))
    [first, second] = succeeded(scene)["attempts"]
    assert (first.get("keeps"), second["keeps"]) == (None, True)


def test_a_job_that_prepares_has_nothing_to_keep(scene: Scene) -> None:
    scene.submit()
    pod = scene.preparing()
    change(scene, stop="keep")
    status = scene.reaches("Failed", "NothingToKeep")
    assert "before it had trained" in status["message"]
    scene.asked_to_end(pod)
    scene.kubelet.remove(pod)
    assert not scene.batches()


def test_an_attempt_that_never_ran_ends_and_nothing_is_kept(scene: Scene) -> None:
    scene.submit()
    scene.kubelet.find_no_node(scene.pod(), "no node fits")
    change(scene, stop="keep")
    scene.reaches("Failed", "NothingToKeep")
    until("its Jobs are gone", lambda: not scene.unfinished())
    assert "artifact" not in scene.status()
