"""How a job ends at its deadline, what stays of it afterwards, and how it is opened again."""

from __future__ import annotations

import json

import pytest

from tests.controlplane.lane import Lane
from tests.controlplane.scene import ARTIFACT, FTJ, GARBAGE_SECONDS, METRICS, Scene, claim, result
from tests.controlplane.test_chaining import PREFERENCE, from_job, succeed
from tests.controlplane.test_lifecycle import checkpoint
from tests.controlplane.test_nodes import NODES, running
from tests.kube import Object, until

RARELY = 3600
COUNTS = {"restored": 20, "wiped": 2}


@pytest.fixture(autouse=True)
def operator(scene: Scene, own: Lane) -> None:
    """One that looks at everything but rarely: what happens is by events and timers alone."""
    scene.kube.create(claim(), scene.namespace)
    own.operator.start(resync_seconds=RARELY)


def edit(scene: Scene, name: str = "job", **spec: int) -> None:
    scene.kube.patch(FTJ, name, {"spec": spec}, scene.namespace)


def conditions(status: Object) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


def fail(scene: Scene, code: int, *, attempt: int = 1, name: str = "job") -> Object:
    """Let an attempt fail for good; the status then."""
    scene.kubelet.finish(scene.running(name, attempt), code, json.dumps(result(code, attempt=attempt)))
    return scene.reaches("Failed", name=name)


def test_a_deadline_saves_and_a_raised_one_with_a_retry_continues(scene: Scene, own: Lane) -> None:
    """Also if the operator ends between the decision and the end."""
    scene.submit(activeDeadlineSeconds=86_400)
    pod = scene.running()
    scene.report(pod, checkpoint(1, 40))
    edit(scene, activeDeadlineSeconds=1)
    scene.asked_to_end(pod)
    own.operator.kill()
    scene.kubelet.finish(pod, 75)
    scene.kubelet.remove(pod)
    own.operator.start()
    status = scene.reaches("Failed", "DeadlineExceeded")
    assert "newest checkpoint that was reported is of step 40" in status["message"]
    assert '"retry":1' in status["message"]
    assert (status["attempts"][0]["failures"], status["activeSeconds"] >= 1) == (0, True)
    edit(scene, retry=1)
    assert (
        until("the job reports it again", lambda: scene.status() if scene.status().get("retry") else None)["phase"]
        == "Failed"
    )
    edit(scene, activeDeadlineSeconds=86_400, retry=2)
    scene.kubelet.finish(scene.running(attempt=2), 0, json.dumps(result(0, attempt=2)))
    status = scene.reaches("Succeeded")
    assert conditions(status) | {"Failed": "False", "Succeeded": "True"} == conditions(status)
    assert status["retry"] == 2


def test_a_retry_has_a_budget_of_its_own_and_forgets_no_attempt(scene: Scene, own: Lane) -> None:
    scene.submit(backoffLimit=0)
    fail(scene, 70)
    assert not scene.unfinished()
    edit(scene, retry=1)
    status = fail(scene, 70, attempt=2)
    assert [(a["number"], a["failures"], a.get("retry")) for a in status["attempts"]] == [(1, 1, 1), (2, 1, None)]
    effects = own.proxy.effects(scene.namespace)
    own.operator.kill()
    looks = own.proxy.listings
    own.operator.start()
    until("it has looked at everything", lambda: own.proxy.listings > looks)
    edit(scene, retry=2)
    scene.running(attempt=3)
    assert own.proxy.effects(scene.namespace)["create jobs"] == effects["create jobs"] + 1


def test_bad_data_is_prepared_again_and_the_chain_continues_with_it(scene: Scene) -> None:
    """Three links, one of which waits for two jobs. Only the first is retried."""
    ppo = {"rewardModel": {"fromJob": "rm"}, "maxNewTokens": 64}
    scene.submit("ppo", stage="ppo", ppo=ppo, **from_job("sft"))
    scene.submit("rm", stage="rm", datasets=PREFERENCE, **from_job("sft"))
    scene.submit("sft")
    bad = result(65, "rows.jsonl:7: output is empty", kind="prepare")
    scene.kubelet.finish(scene.preparing("sft"), 65, json.dumps(bad))
    for name in ("rm", "ppo"):
        status = scene.reaches("Failed", "DependencyFailed", name=name)
    edit(scene, "sft", retry=1)
    for name in ("rm", "ppo"):
        status = scene.reaches("Pending", "WaitingForJob", name=name)
        assert (conditions(status)["Failed"], "completionTime" in status) == ("False", False)
    good = result(0, kind="prepare", attempt=2)
    scene.kubelet.finish(scene.preparing("sft", attempt=2), 0, json.dumps(good))
    scene.reaches("Starting", name="sft")
    succeed(scene, "sft")
    succeed(scene, "rm")
    succeed(scene, "ppo")


def test_children_go_when_their_time_is_over_and_nothing_else_does(scene: Scene, own: Lane) -> None:
    """Two nodes, so that a Service goes, too; the operator is away when the time is over, and idle afterwards."""
    spec = {"workspace": {"claimName": None, "claim": {"size": "1Gi", "accessMode": "ReadWriteMany"}}, **NODES}
    scene.submit(ttlSecondsAfterFinished=86_400, **spec)
    for pod in running(scene):
        scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    end = scene.reaches("Succeeded")
    kinds = ("Job", "Pod", "Service")
    assert all(scene.kube.list(kind, scene.namespace) for kind in kinds)
    own.operator.kill()
    edit(scene, ttlSecondsAfterFinished=0)
    own.operator.start()
    status = until("it says so", lambda: scene.status() if scene.status().get("childrenDeletedTime") else None)
    assert not any(scene.kube.list(kind, scene.namespace) for kind in kinds)
    assert scene.kube.find("PersistentVolumeClaim", "job-workspace", scene.namespace)
    assert (status["phase"], status["artifact"]) == ("Succeeded", end["artifact"])
    before = own.proxy.counted(scene.namespace)
    own.operator.kill()
    own.operator.start(resync_seconds=0.3)
    own.proxy.wait_for_listings(3)
    assert own.proxy.counted(scene.namespace) == before


def test_a_job_whose_children_are_gone_can_be_retried(scene: Scene) -> None:
    scene.submit(backoffLimit=0, ttlSecondsAfterFinished=0)
    fail(scene, 70)
    until("its children are gone", lambda: scene.status().get("childrenDeletedTime"), timeout=GARBAGE_SECONDS)
    assert not scene.batches()
    edit(scene, retry=1)
    scene.running(attempt=2)
    assert "childrenDeletedTime" not in scene.status()


def found(attempt: int = 1) -> str:
    """What a prepare pod reports that finds the artifact in the workspace."""
    said = {**result(0, kind="prepare", attempt=attempt), "prepared": None, "artifact": ARTIFACT, "metrics": METRICS}
    return json.dumps(said)


@pytest.mark.parametrize("how", COUNTS)
def test_jobs_that_are_restored_without_status_succeed_again_without_a_gpu(scene: Scene, own: Lane, how: str) -> None:
    """A backup has no status, and makes objects with other uids; a script that replaces objects wipes the status. The
    children of both are gone."""
    names = [f"job-{number}" for number in range(COUNTS[how])]
    for name in names:
        scene.submit(name)
        scene.kubelet.finish(scene.preparing(name), 0, found())
    for name in names:
        scene.reaches("Succeeded", name=name)
        if how == "wiped":
            edit(scene, name, ttlSecondsAfterFinished=0)
            until("its children are gone", lambda at=name: scene.status(at).get("childrenDeletedTime"))  # type: ignore[misc]
            scene.kube.patch(FTJ, name, {"status": None}, scene.namespace, part="status")
        else:
            scene.kube.delete(FTJ, name, scene.namespace, propagation="Foreground")
    for name in names if how == "restored" else ():
        until(f"{name} is gone", lambda at=name: not scene.kube.find(FTJ, at, scene.namespace), timeout=GARBAGE_SECONDS)  # type: ignore[misc]
        scene.submit(name)
    for name in names:
        scene.kubelet.finish(scene.preparing(name), 0, found())
    for name in names:
        assert scene.reaches("Succeeded", name=name)["artifact"] == ARTIFACT
        assert not scene.batches(name)
