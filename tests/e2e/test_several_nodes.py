"""Two pods of two processes each train together, and are struck again and again: the run goes on as if it had not been.

One job is drained, outgrows its memory and loses the pod of rank 1; another is left alone. Where every step is the same
set of rows, and every resume exact, both have the same loss in every step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from examples.demo import cluster as demo
from examples.demo.kubectl import DemoError, Pod
from tests.e2e.conftest import POD_MINUTES, TRAINING, Scene
from tests.kube import until

STEPS = 500
pytestmark = pytest.mark.timeout(1800)  # four attempts of four processes, and as many in peace
SHARED_MEMORY = "8Gi"
"""More than the pod's memory, so that filling it is what outgrows that."""


def pair(scene: Scene, name: str) -> dict[str, Any]:
    """A job of two pods with two processes each, saved every 20 steps, with dropout on."""
    job = scene.job(
        name,
        tuning={"method": "lora", "lora": {"rank": 4, "dropout": 0.1}},
        training={**TRAINING, "maxSteps": STEPS, "microBatchSize": 2},
        checkpoints={"everySteps": 20, "everyMinutes": 15, "keep": 2},
        backoffLimit=2,
    )
    job["spec"]["resources"] |= {"nodes": 2, "gpusPerNode": 2, "memory": "3Gi", "sharedMemory": SHARED_MEMORY}
    return job


def pod_of(scene: Scene, name: str, index: int) -> str:
    """The name of the running pod with that completion index."""
    for pod in scene.pods(name):
        found = pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
        if found == str(index) and pod["status"]["phase"] == "Running":
            return str(pod["metadata"]["name"])
    raise AssertionError(f"no running pod {index} of {name}")


def evict(scene: Scene, name: str) -> None:
    pod = pod_of(scene, name, 0)
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    scene.kube.call("POST", f"api/v1/namespaces/{scene.namespace}/pods/{pod}/eviction", body)


def outgrow_memory(scene: Scene, name: str) -> None:
    """What fills /dev/shm belongs to no process, so the kernel ends the largest: a rank."""
    filler = "f = open('/dev/shm/filler', 'wb')\nwhile True: f.write(bytes(1 << 24))"
    with suppress(DemoError):  # it ends with the pod
        Pod(scene.kubectl, pod_of(scene, name, 1))("python", "-c", filler)


def delete_pod(scene: Scene, name: str) -> None:
    scene.kube.delete("Pod", pod_of(scene, name, 1), scene.namespace)


FAULTS: list[tuple[Callable[[Scene, str], None], str]] = [
    (evict, "Disrupted"),
    (outgrow_memory, "OutOfMemory"),
    (delete_pod, "Disrupted"),
]


def saved_by(scene: Scene, name: str, attempt: int) -> Callable[[], int | None]:
    """The step of a checkpoint that this attempt saved, once it has."""

    def step() -> int | None:
        checkpoint = scene.status(name).get("checkpoint", {})
        return checkpoint["step"] if checkpoint.get("attempt") == attempt else None

    return step


def has_ended(scene: Scene, name: str, attempt: int) -> bool:
    return bool(scene.status(name)["attempts"][attempt - 1]["state"] == "Ended")


@dataclass(frozen=True)
class Struck:
    """The job that all faults have struck."""

    status: dict[str, Any]
    """In the end."""
    said: list[str]
    """What status said while each attempt after the first ran."""


def says_while_running(scene: Scene, name: str, attempt: int) -> str | None:
    status = scene.status(name)
    running = status["phase"] == "Running" and status["attempt"] == attempt
    return str(status["message"]) if running else None


@pytest.fixture(scope="module")
def struck(scene: Scene) -> Struck:
    scene.kubectl.apply(pair(scene, "struck"))
    said = []
    for attempt, (strike, _) in enumerate(FAULTS, start=1):
        until(f"attempt {attempt} has saved", saved_by(scene, "struck", attempt), 2 * POD_MINUTES, every=0.5)
        strike(scene, "struck")
        until(f"attempt {attempt} has ended", partial(has_ended, scene, "struck", attempt), POD_MINUTES, every=0.5)
        runs = partial(says_while_running, scene, "struck", attempt + 1)
        said.append(until(f"attempt {attempt + 1} runs", runs, POD_MINUTES, every=0.5))
    return Struck(scene.reaches("struck", "Succeeded", "Failed", timeout=2 * POD_MINUTES), said)


def test_each_end_is_named_and_the_next_attempt_says_from_which_checkpoint(struck: Struck) -> None:
    assert struck.status["phase"] == "Succeeded", struck.status["message"]
    ends = struck.status["attempts"]
    assert [end["reason"] for end in ends[:-1]] == [reason for _, reason in FAULTS]
    assert "3Gi" in ends[1]["message"], "the limit that was outgrown"
    assert struck.status["attempt"] == len(FAULTS) + 1
    steps = [end["checkpointStep"] for end in ends[:-1]]
    assert steps == sorted(steps)
    for step, said in zip(steps, struck.said, strict=True):
        assert f"goes on from checkpoint step {step}" in said


def test_the_loss_goes_on_unbroken(scene: Scene, struck: Struck, trainer_image: str) -> None:
    del struck  # it has ended
    scene.kubectl.apply(pair(scene, "alone"))
    assert scene.reaches("alone", "Succeeded", "Failed", timeout=2 * POD_MINUTES)["phase"] == "Succeeded"
    manifest = demo.files_pod(trainer_image)
    manifest["metadata"]["namespace"] = scene.namespace
    with scene.kubectl.pod(manifest) as pod:
        curves = {
            name: [
                json.loads(line)
                for line in pod("cat", f"/workspace/jobs/{name}/reports/trainer_log.jsonl").splitlines()
            ]
            for name in ("struck", "alone")
        }
    assert [line["current_steps"] for line in curves["struck"]] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in curves["struck"]] == [line["loss"] for line in curves["alone"]]
