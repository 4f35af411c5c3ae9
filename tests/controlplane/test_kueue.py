"""FineTuneJobs in queues of the real Kueue: who starts when, what an eviction does, and what the status says of it.

Only Kueue starts a child job. Pods are played by script, and a real Job controller acts on them. A pod that saves ends
with exit code 75 and stays for a while, as on a node that still unmounts its volumes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import chart
from tests.controlplane.kueue import JOB_UID, QUEUE, SEEN, Kueue, kueue
from tests.controlplane.lane import Lane
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import FTJ, GARBAGE_SECONDS, Scene, result
from tests.controlplane.visibility import visible
from tests.kube import Kube, Object, until

CHECKPOINT = {"attempt": 1, "step": 40, "path": "jobs/job/checkpoints/1-x/40", "time": "2026-01-31T12:00:00Z"}
PREEMPTIONS = 20
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "queues.md"


def condition(scene: Scene, kind: str = "QuotaReserved", name: str = "job") -> tuple[str, str, str]:
    """Status, reason and message of a condition of a job."""
    [found] = [c for c in scene.status(name)["conditions"] if c["type"] == kind]
    return found["status"], found["reason"], found["message"]


def change(scene: Scene, name: str = "job", **spec: object) -> None:
    scene.kube.patch(FTJ, name, {"spec": spec}, scene.namespace)


def child(scene: Scene, name: str = "job") -> Object:
    """Its newest training Job."""
    return scene.batches(name)[-1]


def says(scene: Scene, reason: str, *words: str, name: str = "job") -> Object:
    """Wait until a job is Queued for a reason, with these words. Returns its status."""

    def there() -> Object | None:
        seen = scene.status(name)
        told = seen.get("phase") == "Queued" and seen.get("reason") == reason
        return seen if told and all(word in seen["message"] for word in words) else None

    try:
        return until(f"{name} is Queued: {reason}", there)
    except AssertionError as error:
        seen = scene.status(name)
        raise AssertionError(
            f"{error}; it is {seen.get('phase')} {seen.get('reason')}: {seen.get('message')}"
        ) from None


def terminating(scene: Scene) -> int:
    """Pods of the newest training Job that are asked to end and have not ended, as the Job controller counts them."""
    number: int = child(scene)["status"].get("terminating", 0)
    return number


def saves(scene: Scene, pod: Object, *, slowly: bool = False) -> None:
    """The pod is asked to end, saves and is gone; with `slowly`, after the Job controller has seen its exit code."""
    scene.asked_to_end(pod)
    if slowly:
        until("the Job controller waits for the pod", lambda: terminating(scene) == 1)
    scene.kubelet.finish(pod, 75)
    if slowly:
        until("the Job controller has seen its end", lambda: terminating(scene) == 0)
    scene.kubelet.remove(pod)


def test_a_queue_without_kueue_runs_nothing_and_says_why(scene: Scene, operator: OperatorProcess) -> None:
    """It comes before Kueue is installed."""
    submit(scene)
    status = says(scene, "NoWorkload", "this cluster has no Kueue", "remove spec.queue")
    assert status["attempts"][0]["state"] == "Queued"
    made = child(scene)
    assert made["spec"]["suspend"] is True
    assert made["metadata"]["labels"][QUEUE] == "team"
    assert condition(scene)[0] == "False"
    assert scene.kubelet.pods("job", 1) == []
    change(scene, suspend=True)
    scene.reaches("Suspended")
    change(scene, queue=None)
    change(scene, suspend=False)
    scene.running(attempt=2)
    assert operator.alive


@pytest.fixture(scope="module")
def queues(kube: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kueue]:
    with kueue(kube, tmp_path_factory.mktemp("kueue")) as made:
        yield made


def test_the_guide_shows_objects_that_kueue_and_the_operator_accept(scene: Scene, queues: Kueue) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    documents = [made for block in blocks for made in yaml.safe_load_all(block)]
    kinds = [made["kind"] for made in documents if "kind" in made]
    assert kinds == [FTJ, "ResourceFlavor", "ClusterQueue", "LocalQueue"]
    for made in documents:
        if "kind" in made:
            assert scene.kube.create(made, scene.namespace, dry_run=True)["spec"] is not None
        else:
            changed = {**scene.manifest, "spec": {**scene.manifest["spec"], **made}}
            assert scene.kube.create(changed, scene.namespace, dry_run=True)["spec"]["resources"]["resourceClaims"]
    assert queues.process is not None


@pytest.fixture
def seen(scene: Scene, queues: Kueue) -> Scene:
    """A namespace that Kueue looks at, with a queue for a single GPU."""
    scene.kube.patch("Namespace", scene.namespace, {"metadata": {"labels": {SEEN: "yes"}}})
    queues.queue(scene.namespace, gpus=1)
    return scene


def admitted(scene: Scene, name: str = "job") -> Object:
    """Let its training pod run, once Kueue has admitted it. Returns the pod."""
    pod = until(f"{name} is admitted", lambda: started(scene, name))[0]
    scene.kubelet.run(pod)
    scene.reaches("Running", name=name)
    return pod


def started(scene: Scene, name: str) -> list[Object]:
    """The pods of its training that have not been asked to end."""
    pods = scene.kubelet.pods(name, 1)
    phases = ("Pending", "Running")
    return [p for p in pods if "deletionTimestamp" not in p["metadata"] and p["status"]["phase"] in phases]


def done(scene: Scene, pod: Object, name: str = "job") -> Object:
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    return scene.reaches("Succeeded", name=name)


def submit(scene: Scene, name: str = "job", **changes: Any) -> None:
    """Create a job in the queue, and let its data be prepared."""
    scene.submit(name, **{"queue": "team", **changes})
    pod = scene.preparing(name)
    scene.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
    until(f"{name} is prepared", lambda: scene.status(name).get("attempt"))


def priority_class(scene: Scene, name: str, value: int) -> None:
    head = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "WorkloadPriorityClass"}
    scene.kube.apply({**head, "metadata": {"name": name}, "value": value, "description": ""})


@pytest.mark.usefixtures("operator")
def test_two_jobs_on_a_quota_of_one_run_in_order(seen: Scene) -> None:
    submit(seen, "first")
    pod = admitted(seen, "first")
    assert condition(seen, name="first")[:2] == ("True", "Admitted")
    submit(seen, "second")
    status = says(seen, "WaitingForQuota", "waits in queue team", "nvidia.com/gpu", name="second")
    value, reason, message = condition(seen, name="second")
    assert (value, reason) == ("False", "Pending")
    assert message in status["message"]
    assert seen.columns("second")["Phase"] == "Queued"
    assert seen.kubelet.pods("second", 1) == []
    done(seen, pod, "first")
    assert condition(seen, name="first")[:2] == ("False", "Completed")
    done(seen, admitted(seen, "second"), "second")


@pytest.mark.usefixtures("operator")
def test_a_job_that_waits_tells_its_place_in_the_queue(seen: Scene, queues: Kueue) -> None:
    priority_class(seen, "patient", -1)
    with visible(queues):
        submit(seen, "first")
        pod = admitted(seen, "first")
        submit(seen, "third", queuePriorityClass="patient")
        says(seen, "WaitingForQuota", "waits in queue team (place 1)", name="third")
        assert "place" not in seen.status("first")["message"], "it does not wait"
        submit(seen, "second")
        says(seen, "WaitingForQuota", "(place 1)", name="second")
        moved_back = says(seen, "WaitingForQuota", "(place 2)", name="third")
        assert "place 1" not in moved_back["message"]
        done(seen, pod, "first")
        admitted(seen, "second")
        moved_up = says(seen, "WaitingForQuota", "(place 1)", name="third")
        assert "place 2" not in moved_up["message"]
        assert "place" not in seen.status("second")["message"], "it does not wait any more"


@pytest.mark.usefixtures("operator")
def test_an_evicted_job_saves_waits_and_continues_as_the_same_attempt(seen: Scene, queues: Kueue) -> None:
    submit(seen, backoffLimit=0)
    first = admitted(seen)
    seen.report(first, {"checkpoint": CHECKPOINT})
    uid = child(seen)["metadata"]["uid"]
    queues.evict(seen.namespace, child(seen))
    says(seen, "Evicted", "ClusterQueueStopped", "They save and end")
    saves(seen, first, slowly=True)
    says(seen, "Evicted", "continues from the newest checkpoint (last reported: step 40)")
    queues.release(seen.namespace)
    second = admitted(seen)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    progress = {"attempt": 1, "kind": "train", "activity": "Training", "step": 41, "totalSteps": 80, "startStep": 40}
    seen.report(second, {"checkpoint": CHECKPOINT, "progress": {**progress, **PROGRESS}})
    until("it says from where", lambda: "resumes from checkpoint step 40" in seen.status()["message"])
    status = done(seen, second)
    assert [made["metadata"]["uid"] for made in seen.batches()] == [uid]
    [attempt] = status["attempts"]
    assert (attempt["number"], attempt["evictions"], attempt["failures"]) == (1, 1, 0)


PROGRESS = {"percent": 51, "summary": "41/80 (51%)", "lastUpdateTime": "2026-01-31T12:00:00Z"}


@pytest.mark.usefixtures("operator")
def test_twenty_preemptions_in_a_row_cost_no_attempt(seen: Scene, queues: Kueue) -> None:
    submit(seen, backoffLimit=0)
    for _ in range(PREEMPTIONS):
        pod = admitted(seen)
        queues.evict(seen.namespace, child(seen))
        saves(seen, pod)
        says(seen, "Evicted")
        queues.release(seen.namespace)
    status = done(seen, admitted(seen))
    [attempt] = status["attempts"]
    assert (attempt["evictions"], attempt["failures"], attempt["stalled"]) == (PREEMPTIONS, 0, 1)
    assert len(seen.batches()) == 1


@pytest.mark.usefixtures("operator")
def test_a_job_of_a_higher_priority_preempts(seen: Scene) -> None:
    priority_class(seen, "urgent", 1000)
    submit(seen, "slow")
    pod = admitted(seen, "slow")
    submit(seen, "urgent", queuePriorityClass="urgent")
    says(seen, "Evicted", "Preempted", name="slow")
    seen.asked_to_end(pod)
    seen.kubelet.finish(pod, 75)
    seen.kubelet.remove(pod)
    done(seen, admitted(seen, "urgent"), "urgent")
    done(seen, admitted(seen, "slow"), "slow")
    assert len(seen.batches("slow")) == 1


@pytest.mark.usefixtures("operator")
def test_a_quota_that_is_lowered_keeps_what_runs_and_stops_what_waits(seen: Scene, queues: Kueue) -> None:
    submit(seen, "runs")
    pod = admitted(seen, "runs")
    seen.kube.patch("ClusterQueue", f"{seen.namespace}-team", {"spec": queues.quota(0)})
    submit(seen, "waits")
    says(seen, "WaitingForQuota", "nvidia.com/gpu", name="waits")
    assert seen.status("runs")["phase"] == "Running"
    done(seen, pod, "runs")
    seen.kube.patch("ClusterQueue", f"{seen.namespace}-team", {"spec": queues.quota(1)})
    admitted(seen, "waits")


@pytest.mark.usefixtures("operator")
def test_a_deactivated_job_says_how_it_is_queued_again(seen: Scene, queues: Kueue) -> None:
    submit(seen)
    pod = admitted(seen)
    queues.change(seen.namespace, child(seen), active=False)
    saves(seen, pod)
    status = says(seen, "Deactivated", "kubectl patch workload", '{"spec":{"active":true}}')
    assert {c["type"]: c["status"] for c in status["conditions"]}["Stalled"] == "True"
    queues.change(seen.namespace, child(seen), active=True)
    done(seen, admitted(seen))
    assert condition(seen, "Stalled")[0] == "False"


@pytest.mark.usefixtures("operator")
def test_a_queue_that_is_missing_is_named(seen: Scene, queues: Kueue) -> None:
    submit(seen, queue="other")
    says(seen, "QueueUnusable", "LocalQueue other doesn't exist", "change spec.queue")
    queues.queue(seen.namespace, gpus=1, name="other")
    admitted(seen)
    assert condition(seen)[:2] == ("True", "Admitted")


@pytest.mark.usefixtures("operator")
def test_a_job_of_a_queue_that_somebody_suspends_is_started_by_kueue_again(seen: Scene) -> None:
    submit(seen)
    first = admitted(seen)
    seen.kube.patch("Job", child(seen)["metadata"]["name"], {"spec": {"suspend": True}}, seen.namespace)
    saves(seen, first)
    second = admitted(seen)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert done(seen, second)["attempt"] == 1


@pytest.fixture
def all_jobs(queues: Kueue) -> Iterator[None]:
    """Kueue manages Jobs without a queue, too."""
    queues.stop()
    queues.start(manageJobsWithoutQueueName=True)
    yield
    queues.stop()
    queues.start()


@pytest.mark.usefixtures("operator", "all_jobs")
def test_where_kueue_manages_every_job_prepare_needs_a_queue_too(seen: Scene) -> None:
    seen.submit(queue="team")
    says(seen, "QueueUnusable", "names no queue", "set spec.prepare.queue")
    assert seen.kubelet.pods("job", 1, "prepare") == []
    change(seen, suspend=True)
    seen.reaches("Suspended")
    change(seen, prepare={"queue": "team"})
    change(seen, suspend=False)
    pod = seen.preparing(attempt=2)
    assert condition(seen)[:2] == ("True", "Admitted")
    seen.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare", attempt=2)))
    admitted(seen)


@pytest.fixture
def impatient(queues: Kueue) -> Iterator[None]:
    """Kueue takes pods away that are not ready in time, as in a release: but after seconds."""
    queues.stop()
    queues.start(waitForPodsReady={"timeout": "1s", "requeuingStrategy": {"backoffBaseSeconds": 1}})
    yield
    queues.stop()
    queues.start()


@pytest.mark.usefixtures("operator", "impatient")
def test_pods_that_are_not_ready_in_time_go_back_to_the_queue(seen: Scene) -> None:
    submit(seen, backoffLimit=0)
    says(seen, "Evicted", "PodsReadyTimeout", "runs again when queue team admits it")
    pod = until("it is admitted again", lambda: started(seen, "job"))[0]
    assert pod["metadata"]["ownerReferences"][0]["name"] == child(seen)["metadata"]["name"]
    [attempt] = seen.status()["attempts"]
    assert (attempt["number"], attempt["failures"]) == (1, 0)


@pytest.mark.usefixtures("operator")
def test_a_queue_with_the_name_default_takes_jobs_that_name_none(seen: Scene, queues: Kueue) -> None:
    queues.queue(seen.namespace, gpus=0, name="default")
    seen.submit(queue=None)
    pod = until("the prepare pod is admitted", lambda: seen.kubelet.pods("job", 1, "prepare"))[0]
    seen.kubelet.run(pod)
    seen.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
    says(seen, "WaitingForQuota", "waits in queue default")
    seen.kube.patch("ClusterQueue", f"{seen.namespace}-default", {"spec": queues.quota(1)})
    admitted(seen)
    assert condition(seen)[:2] == ("True", "Admitted")


@pytest.mark.usefixtures("operator")
def test_suspending_frees_the_quota(seen: Scene) -> None:
    submit(seen, "first")
    pod = admitted(seen, "first")
    submit(seen, "second")
    says(seen, "WaitingForQuota", name="second")
    change(seen, "first", suspend=True)
    seen.asked_to_end(pod)
    seen.kubelet.finish(pod, 75)
    seen.kubelet.remove(pod)
    seen.reaches("Suspended", name="first")
    until("its Job is gone", lambda: not seen.unfinished("first"), timeout=GARBAGE_SECONDS)
    assert condition(seen, name="first")[0] == "False"
    admitted(seen, "second")
    change(seen, "first", suspend=False)
    says(seen, "WaitingForQuota", name="first")
    change(seen, "first", suspend=True)
    seen.reaches("Suspended", name="first")
    label = f"{JOB_UID}={child(seen, 'second')['metadata']['uid']}"
    until("one Workload is left", lambda: len(seen.kube.list("Workload", seen.namespace)) == 1, timeout=GARBAGE_SECONDS)
    assert len(seen.kube.list("Workload", seen.namespace, label)) == 1


def test_without_the_right_to_read_workloads_the_job_waits_and_says_how_to_ask(seen: Scene, own: Lane) -> None:
    """As with the chart value kueue.enabled off."""
    role = seen.kube.get("ClusterRole", chart.RELEASE)
    kept = [rule for rule in role["rules"] if rule["apiGroups"] != ["kueue.x-k8s.io"]]
    seen.kube.patch("ClusterRole", chart.RELEASE, {"rules": kept})
    try:
        own.operator.start()
        seen.kube.patch("ClusterQueue", f"{seen.namespace}-team", {"spec": Kueue.quota(0)})
        submit(seen)
        told = says(seen, "WaitingForQuota", "kueue.enabled", f"kubectl get workloads -n {seen.namespace}")["message"]
        assert told.endswith(f"{JOB_UID}={child(seen)['metadata']['uid']}")
        seen.kube.patch("ClusterQueue", f"{seen.namespace}-team", {"spec": Kueue.quota(1)})
        admitted(seen)
    finally:
        seen.kube.patch("ClusterRole", chart.RELEASE, {"rules": role["rules"]})


def test_the_operator_may_restart_while_a_job_waits_and_while_it_is_evicted(
    seen: Scene, queues: Kueue, own: Lane
) -> None:
    own.operator.start()
    submit(seen, "runs")
    pod = admitted(seen, "runs")
    submit(seen, "waits")
    says(seen, "WaitingForQuota", name="waits")
    own.operator.kill()
    queues.evict(seen.namespace, child(seen, "runs"))
    seen.asked_to_end(pod)
    seen.kubelet.finish(pod, 75)
    seen.kubelet.remove(pod)
    own.operator.start()
    says(seen, "Evicted", "runs again when queue team admits it", name="runs")
    queues.release(seen.namespace)
    names = ("runs", "waits")
    first = until("Kueue admits one of them", lambda: next((n for n in names if started(seen, n)), None))
    done(seen, admitted(seen, first), first)
    [second] = set(names) - {first}
    done(seen, admitted(seen, second), second)
    assert [len(seen.batches(name)) for name in ("runs", "waits")] == [1, 1]
