"""A child job that somebody else stops: it never says that its pods run, and continues when it is let go."""

from __future__ import annotations

import json
import time

import pytest

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import Scene, result
from tests.kube import Object, until

STOPS: dict[str, tuple[Object, Object, str]] = {
    "suspended": ({"suspend": True}, {"suspend": False}, "Somebody suspended Job"),
    "scaled to 0": ({"parallelism": 0}, {"parallelism": 1}, "Somebody set spec.parallelism of Job"),
}


def patch(scene: Scene, spec: Object) -> None:
    [child] = scene.batches()
    scene.kube.patch("Job", child["metadata"]["name"], {"spec": spec}, scene.namespace)


@pytest.mark.parametrize("case", STOPS)
def test_a_running_job_that_somebody_stops_is_told(scene: Scene, operator: OperatorProcess, case: str) -> None:
    stop, release, words = STOPS[case]
    scene.submit()
    first = scene.running()
    patch(scene, stop)
    until("its pod is to end", lambda: "deletionTimestamp" in scene.pod()["metadata"])
    scene.tells("JobSuspended", words)
    scene.kubelet.remove(first)
    until("it has no pod", lambda: not scene.kubelet.pods("job", 1))
    status = scene.tells("JobSuspended", words)
    assert status["phase"] == "Starting"
    patch(scene, release)
    second = until("it has another pod", lambda: scene.kubelet.pods("job", 1))[0]
    scene.tells("Starting")
    scene.kubelet.run(second)
    scene.reaches("Running")
    scene.kubelet.finish(second, 0, json.dumps(result(0)))
    assert scene.reaches("Succeeded")["attempt"] == 1
    assert operator.alive


@pytest.mark.usefixtures("operator")
def test_a_job_that_is_suspended_before_it_starts_has_its_whole_deadline_afterwards(scene: Scene) -> None:
    scene.submit(startDeadlineSeconds=10, backoffLimit=0)
    scene.pod()
    patch(scene, {"suspend": True})
    scene.tells("JobSuspended", "Somebody suspended Job")
    end = time.monotonic() + 11
    until("the deadline has passed", lambda: time.monotonic() > end)
    assert scene.status()["reason"] == "JobSuspended"
    patch(scene, {"suspend": False})
    pod = until("it has another pod", lambda: scene.kubelet.pods("job", 1))[0]
    scene.kubelet.run(pod)
    assert scene.reaches("Running")["attempt"] == 1
