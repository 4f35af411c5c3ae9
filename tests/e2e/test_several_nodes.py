"""Two pods of two processes each train together, and fail again and again. The run continues as if nothing happened.

One job is drained, outgrows its memory and loses the pod of rank 1; another is left alone. Where every step is the same
set of rows, and every resume exact, both have the same loss in every step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from examples.demo import cluster as demo
from examples.demo.kubectl import DemoError, Kubectl, Pod
from tests import cluster
from tests.cluster import Cluster, node, process
from tests.e2e.conftest import LONG, POD_MINUTES, TRAINING, Scene, curve
from tests.injection import gated
from tests.kube import until

STEPS = 500
pytestmark = pytest.mark.timeout(2700)  # four attempts of four processes, and as many in peace
MEMORY = "3Gi"
"""A pod and its /dev/shm have as much. Filling that outgrows the memory of the pod: its processes need some, too."""


def pair(scene: Scene, name: str) -> dict[str, Any]:
    """A job of two pods with two processes each, saved every 20 steps, with dropout on."""
    job = scene.job(
        name,
        tuning={"method": "lora", "lora": {"rank": 4, "dropout": 0.1}},
        training={**TRAINING, "maxSteps": STEPS, "microBatchSize": 2},
        checkpoints={"everySteps": 20, "everyMinutes": 15, "keep": 2},
        backoffLimit=2,
    )
    job["spec"]["resources"] |= {"nodes": 2, "gpusPerNode": 2, "memory": MEMORY, "sharedMemory": MEMORY}
    return job


INDEX = "batch.kubernetes.io/job-completion-index"


def pod_of(scene: Scene, name: str, index: int, phase: str = "Running") -> str:
    """The name of the pod of that phase with that completion index."""
    for pod in scene.pods(name):
        if pod["metadata"]["labels"][INDEX] == str(index) and pod["status"]["phase"] == phase:
            return str(pod["metadata"]["name"])
    raise AssertionError(f"no pod {index} of {name} is {phase}")


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


def says_while_running(scene: Scene, name: str, after: int) -> tuple[int, str] | None:
    """An attempt that has reported where it resumed, later than `after`, and what status says of it."""
    status = scene.status(name)
    running = status["phase"] == "Running" and status["attempt"] > after
    resumed = running and "resumes from checkpoint step" in status["message"]
    return (status["attempt"], str(status["message"])) if resumed else None


@pytest.fixture(scope="module")
def struck(scene: Scene) -> Struck:
    scene.kubectl.apply(pair(scene, "struck"))
    said, attempt = [], 1
    for strike, _ in FAULTS:
        until(f"attempt {attempt} has saved", saved_by(scene, "struck", attempt), 2 * POD_MINUTES, every=0.5)
        strike(scene, "struck")
        until(f"attempt {attempt} has ended", partial(has_ended, scene, "struck", attempt), POD_MINUTES, every=0.5)
        runs = partial(says_while_running, scene, "struck", attempt)
        attempt, message = until(f"an attempt after {attempt} runs", runs, 2 * POD_MINUTES, every=0.5)
        said.append(message)
    return Struck(scene.reaches("struck", "Succeeded", "Failed", timeout=2 * POD_MINUTES), said)


def test_each_end_is_named_and_the_next_attempt_says_from_which_checkpoint(struck: Struck) -> None:
    assert struck.status["phase"] == "Succeeded", struck.status["message"]
    # Four processes on a busy machine are uneven. If a rank straggles when an attempt ends, the next attempt
    # looks for another node and finds none.
    ends = [end for end in struck.status["attempts"][:-1] if end["reason"] != "Unschedulable"]
    assert [end["reason"] for end in ends] == [reason for _, reason in FAULTS]
    assert "3Gi" in ends[1]["message"], "the limit that was outgrown"
    steps = [end["checkpointStep"] for end in ends]
    assert steps == sorted(steps)
    for step, said in zip(steps, struck.said, strict=True):
        resumed = re.search(r"resumes from checkpoint step (\d+)", said)
        assert resumed is not None, said
        assert int(resumed[1]) >= step, "what was saved last may not have been reported"


def test_the_loss_goes_on_unbroken(scene: Scene, struck: Struck, trainer_image: str) -> None:
    del struck  # it has ended
    scene.kubectl.apply(pair(scene, "alone"))
    assert scene.reaches("alone", "Succeeded", "Failed", timeout=2 * POD_MINUTES)["phase"] == "Succeeded"
    curves = {name: curve(scene, trainer_image, name) for name in ("struck", "alone")}
    assert [line["current_steps"] for line in curves["struck"]] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in curves["struck"]] == [line["loss"] for line in curves["alone"]]


FIRST, SECOND = "node-1", "node-2"
TIMEOUTS = {"FINETUNE_LOST_NODE_TIMEOUT": (20, 300), "FINETUNE_PARTLY_SCHEDULED_TIMEOUT": (5, 60)}
"""Seconds, for the operator of these tests and by the chart. The shortest grace period of a job is 20 s, too."""


@pytest.fixture(scope="module")
def second_node(whole_cluster: Cluster, scene: Scene, operator: str) -> Iterator[Cluster]:
    """The cluster with a second node, and an operator that gives up early pods on silent nodes and nodes for a part of
    the pods. Other tests get neither."""
    made = cluster.up(whole_cluster.state.name, nodes=2)
    of_operator = Kubectl(whole_cluster.env, operator)
    early, usual = ([f"{name}={values[i]}" for name, values in TIMEOUTS.items()] for i in range(2))
    of_operator("set", "env", f"deployment/{demo.RELEASE}", *early)
    of_operator("rollout", "status", f"deployment/{demo.RELEASE}", "--timeout=5m")
    scene.kubectl("uncordon", SECOND)
    until("the second node is ready", lambda: is_ready(scene), POD_MINUTES, every=0.5)
    yield made
    scene.kubectl("cordon", SECOND)
    of_operator("set", "env", f"deployment/{demo.RELEASE}", *usual)


def is_ready(scene: Scene) -> bool:
    conditions = scene.kube.get("Node", SECOND)["status"].get("conditions", [])
    return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)


def on_second_node(scene: Scene, name: str) -> dict[str, Any]:
    """A job without an end that would like to train on the second node."""
    job = scene.job(name, **LONG, backoffLimit=0)
    wanted = {"key": "kubernetes.io/hostname", "operator": "In", "values": [SECOND]}
    preferred = [{"weight": 100, "preference": {"matchExpressions": [wanted]}}]
    job["spec"]["resources"] |= {
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}},
        "terminationGracePeriodSeconds": 20,
    }
    return job


def trains_on_second_node(scene: Scene, name: str) -> dict[str, Any]:
    """The pod, once the job has saved."""
    scene.kubectl.apply(on_second_node(scene, name))
    until(f"{name} has saved", saved_by(scene, name, 1), 2 * POD_MINUTES, every=0.5)
    [pod] = scene.pods(name)
    assert pod["spec"]["nodeName"] == SECOND
    return pod


def stop(scene: Scene, name: str) -> dict[str, Any]:
    """Let the job end with what it has trained; its status then."""
    scene.kube.patch("FineTuneJob", name, {"spec": {"stop": "keep"}}, scene.namespace)
    status = scene.reaches(name, "Succeeded", "Failed", timeout=2 * POD_MINUTES)
    assert status["phase"] == "Succeeded", status["message"]
    return status


def is_unbroken(lines: list[dict[str, Any]]) -> None:
    """Each step is there once, in order: no run wrote beside another."""
    steps = [line["current_steps"] for line in lines]
    assert steps == list(range(1, len(steps) + 1))


PLACE = "example.com/place"


def places(scene: Scene, node: str, count: int | None) -> None:
    """Let a node have so many places for pods that ask for one, as a device plugin does. None: it knows of none."""
    amount = {PLACE: None if count is None else str(count)}
    scene.kube.patch("Node", node, {"status": {"capacity": amount, "allocatable": amount}}, part="status")


def has_places(scene: Scene, name: str, count: int) -> bool:
    """Whether so many of the job's pods have one."""
    return sum("nodeName" in pod["spec"] for pod in scene.pods(name)) == count


def test_two_jobs_that_hold_places_of_each_other_take_turns(scene: Scene, second_node: Cluster) -> None:
    """Each holds a place on a node and needs two. A third place comes later, and does not lead to the same again."""
    del second_node
    names = ("older", "younger")
    second_pods = {"finetune-operator.io/kind": "train", INDEX: "1"}
    for node_name in (FIRST, SECOND):
        places(scene, node_name, 1)
    try:
        # One by one, or a job would have both.
        with gated(scene.kube, scene.namespace, second_pods, "example.com/later"):
            for name in names:
                job = scene.job(name, backoffLimit=0)
                job["spec"]["training"] |= {"microBatchSize": 4}
                job["spec"]["resources"] |= {"nodes": 2, "gpuResource": PLACE}
                scene.kubectl.apply(job)
            for name in names:
                until(f"{name} has a place", partial(has_places, scene, name, 1), POD_MINUTES, every=0.5)
        for name in names:
            waits = pod_of(scene, name, 1, "Pending")
            scene.kube.patch("Pod", waits, {"spec": {"schedulingGates": None}}, scene.namespace)
        until("the older has both places", partial(has_places, scene, "older", 2), POD_MINUTES, every=0.5)
        places(scene, FIRST, 2)
        ends = {name: scene.reaches(name, "Succeeded", "Failed", timeout=2 * POD_MINUTES) for name in names}
    finally:
        for node_name in (FIRST, SECOND):
            places(scene, node_name, None)
    assert {name: end["phase"] for name, end in ends.items()} == dict.fromkeys(names, "Succeeded")
    assert len(ends["older"]["attempts"]) == 1, "it keeps its place"
    gave_way = ends["younger"]["attempts"][0]
    assert (gave_way["reason"], gave_way["failures"]) == ("PartlyScheduled", 0)
    assert "Job older, which is older, also holds some nodes and lacks others" in gave_way["message"]


def test_a_drained_node_hands_its_job_to_another(scene: Scene, second_node: Cluster, trainer_image: str) -> None:
    del second_node
    trains_on_second_node(scene, "handed-over")
    scene.kubectl("drain", SECOND, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=3m")
    try:
        says = partial(says_while_running, scene, "handed-over", 1)
        until("it trains again", says, POD_MINUTES, every=0.5)
    finally:
        scene.kubectl("uncordon", SECOND)
    drained, _ = stop(scene, "handed-over")["attempts"]
    assert (drained["reason"], drained["failures"]) == ("Disrupted", 0)
    is_unbroken(curve(scene, trainer_image, "handed-over"))


def test_what_lives_on_on_a_silent_node_harms_nothing(scene: Scene, second_node: Cluster, trainer_image: str) -> None:
    """Its kubelet is dead, and its containers train on, until they find that another attempt has the workspace."""
    pod = trains_on_second_node(scene, "left-behind")
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    holder = process.read(second_node.state, SECOND)
    assert holder is not None

    def lives() -> bool:
        return container in node.ctr(holder["pid"], "tasks", "list", "--quiet").split()

    second_node.stop_process("kubelet-2")
    try:
        until("the node is lost", lambda: scene.status("left-behind")["reason"] == "NodeLost", POD_MINUTES, every=0.5)
        assert lives(), "nobody has ended it"
        says = partial(says_while_running, scene, "left-behind", 1)
        until("another trains", says, POD_MINUTES, every=0.5)
        until("the old run ends by itself", lambda: not lives(), POD_MINUTES, every=0.5)
        left = scene.kube.get("Pod", pod["metadata"]["name"], scene.namespace)
        assert left["metadata"]["uid"] == pod["metadata"]["uid"], "it is never deleted by force"
    finally:
        second_node.start_process("kubelet-2")
    until("the node is ready again", lambda: is_ready(scene), POD_MINUTES, every=0.5)
    lost, done = stop(scene, "left-behind")["attempts"]
    assert (lost["reason"], lost["failures"], lost["suspect"]) == ("NodeLost", 0, SECOND)
    assert done["avoids"] == [SECOND]
    is_unbroken(curve(scene, trainer_image, "left-behind"))
    until(
        "what was left of it is gone",
        lambda: scene.kube.find("Pod", pod["metadata"]["name"], scene.namespace) is None,
        POD_MINUTES,
        every=0.5,
    )
