"""Why a job does not start: said in its status with what to do, and ended by startDeadlineSeconds.

The reasons take their time (events are asked for after 15 quiet seconds, the shortest deadline is 10 s), so all jobs of
this module are submitted at once, each in a namespace of its own, and each test waits for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import Scene, stage
from tests.kube import Kube, Object, until

NO_FIT = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
NO_CPU = "0/3 nodes are available: 3 Insufficient cpu."
PULL = 'Back-off pulling image "finetune-trainer:0.1.0": not found'
SECRET = 'secret "hf-token" not found'
MOUNT = 'MountVolume.SetUp failed for volume "extra": secret "certs" not found'


def no_node(scene: Scene) -> None:
    scene.kubelet.find_no_node(scene.pod(), NO_FIT)


def no_image(scene: Scene) -> None:
    scene.kubelet.hold(scene.pod(), "ImagePullBackOff", PULL)


def no_secret(scene: Scene) -> None:
    scene.kubelet.hold(scene.pod(), "CreateContainerConfigError", SECRET)


def no_mount(scene: Scene) -> None:
    pod = scene.pod()
    scene.kubelet.hold(pod, "ContainerCreating", "")
    say(scene, pod, "FailedMount", MOUNT)


def pulling(scene: Scene) -> None:
    pod = scene.pod()
    scene.kubelet.hold(pod, "ContainerCreating", "")
    say(scene, pod, "Pulling", 'Pulling image "finetune-trainer:0.1.0"', "Normal")


def lost(scene: Scene) -> None:
    scene.kubelet.lose_node(scene.running())


def no_node_to_prepare(scene: Scene) -> None:
    scene.kubelet.find_no_node(scene.kubelet.pod("job", kind="prepare"), NO_CPU)


def no_image_to_prepare(scene: Scene) -> None:
    scene.kubelet.hold(scene.kubelet.pod("job", kind="prepare"), "ImagePullBackOff", PULL)


def nothing(_scene: Scene) -> None: ...


def say(scene: Scene, pod: Object, reason: str, message: str, kind: str = "Warning") -> None:
    """An Event of the kubelet."""
    meta = pod["metadata"]
    scene.kube.create(
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "kubelet-"},
            "involvedObject": {"kind": "Pod", "name": meta["name"], "namespace": scene.namespace, "uid": meta["uid"]},
            "type": kind,
            "reason": reason,
            "message": message,
            "lastTimestamp": "2026-01-31T12:00:00Z",
        },
        scene.namespace,
    )


CASES: dict[tuple[str, str], tuple[Callable[[Scene], None], tuple[str, ...]]] = {
    ("Starting", "Unschedulable"): (no_node, (NO_FIT, "Check spec.resources")),
    ("Starting", "ImagePullFailed"): (no_image, (PULL, "spec.resources.image")),
    ("Starting", "ConfigMissing"): (no_secret, (SECRET, "spec.resources.env")),
    ("Starting", "VolumeNotMounted"): (no_mount, (MOUNT, "Check the claims")),
    ("Starting", "PullingImage"): (pulling, ("node-1", "first pull")),
    ("Starting", "NodeLost"): (lost, ("node-1 does not answer",)),
    ("Preparing", "PodsRejected"): (nothing, ("exceeded quota: none", "quota")),
    ("Preparing", "Unschedulable"): (no_node_to_prepare, (NO_CPU, "Check spec.prepare")),
    ("Preparing", "ImagePullFailed"): (no_image_to_prepare, (PULL, "spec.resources.image")),
}
"""By phase and reason."""
REJECTED = ("Preparing", "PodsRejected")
DEADLINES: dict[str, dict[str, Any]] = {
    "ended": {"startDeadlineSeconds": 10, "backoffLimit": 0},
    "again": {"startDeadlineSeconds": 10, "backoffLimit": 1},
    "refused": {"startDeadlineSeconds": 10, "backoffLimit": 0},
}


def quota_holds(kube: Kube, namespace: str) -> bool:
    return "hard" in kube.get("ResourceQuota", "none", namespace).get("status", {})


@pytest.fixture(scope="module")
def waiting(kube: Kube, example: Path, shared_operator: OperatorProcess) -> Iterator[dict[Any, Scene]]:
    """A namespace with a job for each case, all under way."""
    manifest: dict[str, Any] = yaml.safe_load(example.read_text())
    deadlines: dict[str, Callable[[Scene], None]] = {"ended": no_node, "again": no_image, "refused": nothing}
    scenes: dict[Any, Scene] = {}
    with ExitStack() as stack:
        for case in (*DEADLINES, *CASES):
            made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "startup-"}})
            name = made["metadata"]["name"]
            stack.callback(kube.delete, "Namespace", name)
            scenes[case] = stack.enter_context(stage(kube, name, manifest))
            if case in (REJECTED, "refused"):
                quota = {
                    "apiVersion": "v1",
                    "kind": "ResourceQuota",
                    "metadata": {"name": "none"},
                    "spec": {"hard": {"pods": "0"}},
                }
                kube.create(quota, name)
                until("the quota holds", partial(quota_holds, kube, name))
            scenes[case].submit(**(DEADLINES[case] if isinstance(case, str) else {}))
            if isinstance(case, str):
                deadlines[case](scenes[case])
        for case, (trouble, _) in CASES.items():
            trouble(scenes[case])
        yield scenes


@pytest.mark.parametrize("case", CASES, ids="-".join)
@pytest.mark.usefixtures("operator")
def test_why_it_does_not_start_is_said(waiting: dict[Any, Scene], case: tuple[str, str]) -> None:
    """In the status, as `kubectl get -o wide` shows it, within 30 s; and once it is fixed the job runs."""
    scene, (_, words), (phase, reason) = waiting[case], CASES[case], case
    status = scene.reaches(phase, reason)
    assert all(word in status["message"] for word in words), status["message"]
    told, value = ("Prepared", "Unknown") if phase == "Preparing" else ("Running", "False")
    [condition] = [c for c in status["conditions"] if c["type"] == told]
    assert (condition["status"], condition["reason"], condition["message"]) == (value, reason, status["message"])
    if case == REJECTED:
        scene.kube.delete("ResourceQuota", "none", scene.namespace)
    if reason != "NodeLost":
        scene.running()


@pytest.mark.usefixtures("operator")
def test_the_deadline_ends_what_does_not_start(waiting: dict[Any, Scene]) -> None:
    """Its Job goes first, so its GPUs are free by the time that the job is Failed; the entry keeps why."""
    scene = waiting["ended"]
    status = scene.reaches("Failed", "StartDeadlineExceeded")
    assert not scene.batches()
    assert not scene.kubelet.pods("job", 1)
    [attempt] = status["attempts"]
    assert (attempt["reason"], attempt["state"], attempt["failures"]) == ("StartDeadlineExceeded", "Ended", 1)
    for said in (attempt["message"], status["message"]):
        assert "did not start within 10 s: Unschedulable" in said
        assert NO_FIT in said


@pytest.mark.usefixtures("operator")
def test_the_deadline_ends_what_was_not_even_allowed_pods(waiting: dict[Any, Scene]) -> None:
    scene = waiting["refused"]
    status = scene.reaches("Failed", "StartDeadlineExceeded")
    assert not scene.batches(kind="prepare")
    assert not scene.batches()
    assert "did not start within 10 s" in status["message"]


@pytest.mark.usefixtures("operator")
def test_the_deadline_leaves_another_attempt(waiting: dict[Any, Scene]) -> None:
    """It starts when the pod is really gone, which its kubelet has to say."""
    scene = waiting["again"]
    pod = scene.pod()
    until(
        "its pod is asked to end",
        lambda: "deletionTimestamp" in scene.kube.get("Pod", pod["metadata"]["name"], scene.namespace)["metadata"],
    )
    assert len(scene.status()["attempts"]) == 1
    scene.kubelet.remove(pod)
    scene.running(attempt=2)
    first, second = scene.status()["attempts"]
    assert (first["reason"], first["failures"]) == ("StartDeadlineExceeded", 1)
    assert (second["number"], second["state"]) == (2, "Running")
