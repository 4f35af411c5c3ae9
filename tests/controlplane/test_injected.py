"""Pods into which a policy of the cluster puts a container: the API server changes them, and the trainer decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.controlplane.kubelet import TRAINER
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import ARTIFACT, METRICS, PREPARED, Scene, result, stage
from tests.injection import container, injected
from tests.kube import Kube, Object, until

pytestmark = pytest.mark.usefixtures("operator")

SMALL = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}}
PROXY = container("proxy", "registry.example/proxy:1", resources=SMALL)
INIT = container("init-net", "registry.example/init:1")
NO_TAG = 'Back-off pulling image "registry.example/init:1": not found'
NO_CPU = "0/3 nodes are available: 3 Insufficient cpu."
WITH_PROXY, WITH_INIT = ("done", "failed", "crash", "memory", "cpu"), ("waiting", "broken")


@pytest.fixture(scope="module")
def scenes(kube: Kube, example: Path, shared_operator: OperatorProcess) -> Iterator[dict[str, Scene]]:
    """A namespace for each test, all with their policy in effect. The job of each has the name of the test's case."""
    del shared_operator
    manifest: Object = yaml.safe_load(example.read_text())
    with ExitStack() as stack:
        made: dict[str, Scene] = {}
        for case in (*WITH_PROXY, *WITH_INIT):
            namespace = kube.create(
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "injected-"}}
            )["metadata"]["name"]
            stack.callback(kube.delete, "Namespace", namespace)
            made[case] = stack.enter_context(stage(kube, namespace, manifest))
            parts = {"first": PROXY} if case in WITH_PROXY else {"init": INIT}
            stack.enter_context(injected(kube, namespace, case, **parts))
        yield made


def let_go(scene: Scene, pod: Object) -> None:
    """The operator deletes the child job. Its pod is asked to end, and ends."""
    scene.asked_to_end(pod)
    scene.kubelet.remove(pod)


def prepared(scene: Scene, name: str) -> None:
    """Let its data be prepared, in a pod whose proxy does not end either."""
    pod = scene.preparing(name)
    assert [made["name"] for made in pod["spec"]["containers"]] == ["proxy", TRAINER]
    scene.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
    let_go(scene, pod)
    until("training begins", lambda: scene.status(name).get("attempt"))
    assert scene.status(name)["prepared"]["digest"] == PREPARED["digest"]


def test_a_sidecar_that_never_ends_keeps_neither_result_nor_gpu(scenes: dict[str, Scene]) -> None:
    scene = scenes["done"]
    scene.submit("done")
    prepared(scene, "done")
    pod = scene.running("done")
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded", "Completed", name="done")
    assert (status["artifact"], status["metrics"]) == (ARTIFACT, METRICS)
    let_go(scene, pod)
    until("its child jobs are gone", lambda: not scene.batches("done") and not scene.batches("done", "prepare"))
    status = scene.status("done")
    assert status["phase"] == "Succeeded"
    [attempt] = status["attempts"]
    assert (attempt["reason"], attempt["exitCode"], attempt["failures"]) == ("Completed", 0, 0)
    assert "proxy. The job does not ask for them." in attempt["message"]


def test_a_failure_counts_once_and_the_next_attempt_waits_for_the_sidecar(scenes: dict[str, Scene]) -> None:
    scene = scenes["failed"]
    scene.submit("failed")
    prepared(scene, "failed")
    pod = scene.running("failed")
    scene.kubelet.finish(pod, 70, json.dumps(result(70, "a bug")))
    until("the attempt has ended", lambda: scene.status("failed")["attempts"][0]["state"] == "Ended")
    assert scene.status("failed")["attempt"] == 1
    let_go(scene, pod)
    scene.running("failed", attempt=2)
    first = scene.status("failed")["attempts"][0]
    assert (first["reason"], first["failures"]) == ("InternalError", 1)
    assert first["message"].startswith("a bug. ")


def test_a_sidecar_that_crashes_is_not_the_trainer(scenes: dict[str, Scene]) -> None:
    """Its pod has the phase Failed, and the Job has Failed."""
    scene = scenes["crash"]
    scene.submit("crash", backoffLimit=0)
    prepared(scene, "crash")
    pod = scene.running("crash")
    scene.kubelet.finish(pod, 137, container="proxy")
    scene.report(pod, {"progress": progress()}, "crash")
    until("it trains still", lambda: scene.status("crash").get("progress", {}).get("step") == 7)
    assert scene.status("crash")["phase"] == "Running"
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    assert scene.reaches("Succeeded", name="crash")["artifact"] == ARTIFACT
    [child] = scene.batches("crash")
    assert any(c["type"] == "Failed" for c in child["status"]["conditions"])


def progress() -> Object:
    return {
        "attempt": 1,
        "activity": "Training",
        "step": 7,
        "totalSteps": 10,
        "percent": 70,
        "summary": "7/10 (70%)",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }


def test_out_of_memory_names_the_trainers_limit_not_the_first_containers(scenes: dict[str, Scene]) -> None:
    scene = scenes["memory"]
    scene.submit("memory", backoffLimit=0, resources={"memory": "24Gi"})
    prepared(scene, "memory")
    pod = scene.running("memory")
    scene.kubelet.finish(pod, 137, reason="OOMKilled")
    scene.kubelet.finish(pod, 0, container="proxy")
    status = scene.reaches("Failed", "BackoffLimitExceeded", name="memory")
    assert "used more host memory than its limit of 24Gi" in status["message"]
    assert status["attempts"][0]["reason"] == "OutOfMemory"


def test_an_unschedulable_pod_tells_what_was_added(scenes: dict[str, Scene]) -> None:
    scene = scenes["cpu"]
    scene.submit("cpu")
    scene.kubelet.find_no_node(scene.kubelet.pod("cpu", kind="prepare"), NO_CPU)
    status = scene.reaches("Preparing", "Unschedulable", name="cpu")
    assert f"{NO_CPU} The cluster changed the pod" in status["message"]
    assert "container proxy requests cpu 100m, memory 64Mi." in status["message"]
    assert "the trainer requests" not in status["message"]


def test_an_init_container_that_waits_is_named(scenes: dict[str, Scene]) -> None:
    scene = scenes["waiting"]
    scene.submit("waiting")
    pod = scene.kubelet.pod("waiting", kind="prepare")
    scene.kubelet.hold(pod, "ImagePullBackOff", NO_TAG, container="init-net")
    status = scene.reaches("Preparing", "ImagePullFailed", name="waiting")
    assert f"init container init-net: {NO_TAG}. A webhook or policy" in status["message"]
    scene.kubelet.run(pod)
    scene.reaches("Preparing", "Fetching", name="waiting")


def test_an_init_container_that_fails_ends_the_attempt_by_its_name(scenes: dict[str, Scene]) -> None:
    scene = scenes["broken"]
    scene.submit("broken", backoffLimit=0)
    pod = scene.kubelet.pod("broken", kind="prepare")
    scene.kubelet.finish(pod, 1, "a text that nobody asked for", container="init-net")
    status = scene.reaches("Failed", "BackoffLimitExceeded", name="broken")
    assert "init container init-net failed with exit code 1." in status["message"]
    assert "nobody asked" not in status["message"]
    [attempt] = status["prepareAttempts"]
    assert attempt["reason"] == "OtherContainerFailed"
    assert "exitCode" not in attempt
