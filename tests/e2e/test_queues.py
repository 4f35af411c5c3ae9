"""Two jobs on a quota for one, under a real Kueue: one of them is evicted when it trains, and both train the same.

Kueue runs as a process in the network of the node, where the API server reaches its webhooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from examples.demo import cluster as demo
from tests.cluster import Cluster, process
from tests.controlplane.kueue import SEEN, Kueue, kueue
from tests.e2e.conftest import NAMESPACE, POD_MINUTES, TRAINING, Scene
from tests.kube import until

STEPS, BEFORE = 1000, 10
WEIGHTS = "adapter_model.safetensors"
pytestmark = pytest.mark.timeout(2400)  # three runs, one after the other


@pytest.fixture(scope="module")
def queues(scene: Scene, whole_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kueue]:
    node = process.read(whole_cluster.state, "node-1")
    assert node is not None
    inside = ("nsenter", f"--net=/proc/{node['pid']}/ns/net", "--")
    with kueue(scene.kube, tmp_path_factory.mktemp("kueue"), *inside) as made:
        scene.kube.patch("Namespace", NAMESPACE, {"metadata": {"labels": {SEEN: "yes"}}})
        made.queue(NAMESPACE, gpus=1)
        yield made
        scene.kube.patch("Namespace", NAMESPACE, {"metadata": {"labels": {SEEN: None}}})


def queued(scene: Scene, name: str) -> dict[str, Any]:
    """A job with dropout, so that its weights depend on every step."""
    tuning = {"method": "lora", "lora": {"rank": 4, "dropout": 0.1}}
    training = {**TRAINING, "maxSteps": STEPS}
    checkpoints = {"everySteps": 400, "everyMinutes": 15, "keep": 2}
    return scene.job(name, queue="team", tuning=tuning, training=training, checkpoints=checkpoints, backoffLimit=0)


def waits(scene: Scene, name: str, reason: str) -> dict[str, Any]:
    """Wait until it is Queued for a reason, and its pods are gone. Returns its status."""

    def there() -> dict[str, Any] | None:
        status = scene.status(name)
        return status if (status.get("phase"), status.get("reason")) == ("Queued", reason) else None

    until(f"{name} is Queued: {reason}", there, POD_MINUTES, every=0.5)
    until(f"the pods of {name} are gone", lambda: not scene.pods(name), POD_MINUTES, every=0.5)
    return scene.status(name)


def test_an_evicted_job_saves_and_ends_with_the_weights_of_one_that_was_not(
    scene: Scene, queues: Kueue, trainer_image: str
) -> None:
    scene.kubectl.apply(queued(scene, "evicted"))
    scene.trains("evicted", steps=BEFORE)
    [job] = scene.kube.list("Job", NAMESPACE, "finetune-operator.io/job=evicted,finetune-operator.io/kind=train")
    queues.evict(NAMESPACE, job)
    saved = waits(scene, "evicted", "Evicted")["checkpoint"]["step"]
    assert BEFORE <= saved < STEPS
    scene.kubectl.apply(queued(scene, "whole"))
    scene.reaches("whole", "Queued", "Failed")
    queues.release(NAMESPACE)
    ends = {name: scene.reaches(name, "Succeeded", "Failed", timeout=2 * POD_MINUTES) for name in ("evicted", "whole")}
    assert {name: end["phase"] for name, end in ends.items()} == dict.fromkeys(ends, "Succeeded")
    first, second = sorted((end["attempts"][0] for end in ends.values()), key=lambda run: str(run["runningTime"]))
    assert first["endTime"] <= second["runningTime"], "there is quota for one of them"
    [attempt] = ends["evicted"]["attempts"]
    assert (attempt["number"], attempt["evictions"]) == (1, 1)
    assert attempt["checkpointStep"] >= saved
    assert ends["whole"]["attempts"][0].get("evictions") is None
    manifest = demo.files_pod(trainer_image)
    manifest["metadata"]["namespace"] = NAMESPACE
    with scene.kubectl.pod(manifest) as pod:
        digests = {pod("sha256sum", f"/workspace/jobs/{name}/artifact/{WEIGHTS}").split()[0] for name in ends}
    assert len(digests) == 1, "bit for bit"
