"""Jobs that start from what others make: real API server and operator, pods played by script.

The operator looks at everything but rarely, so that what one job makes of another is by events alone.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.controlplane.lane import Lane
from tests.controlplane.scene import ARTIFACT, FTJ, GARBAGE_SECONDS, Scene, claim, result
from tests.kube import Object, until

RARELY = 600
PREFERENCE = [{"source": "pvc://models/data/pairs.jsonl", "format": "preference"}]


def from_job(name: str) -> dict[str, Any]:
    return {"model": {"source": None, "fromJob": name}}


def artifact(name: str) -> Object:
    return {**ARTIFACT, "uri": f"pvc://workspace/jobs/{name}/artifact", "digest": f"sha256:{name}"}


def succeed(scene: Scene, name: str, attempt: int = 1) -> Object:
    """Let a job's attempt end well; its pod."""
    pod = scene.running(name, attempt)
    said = {**result(0, attempt=attempt), "artifact": artifact(name)}
    scene.kubelet.finish(pod, 0, json.dumps(said))
    scene.reaches("Succeeded", name=name)
    return pod


def says(scene: Scene, name: str, text: str) -> None:
    until(f"{name} says {text!r}", lambda: text in scene.status(name).get("message", ""))


def resolved(pod: Object) -> Object:
    told: Object = json.loads(pod["metadata"]["annotations"]["finetune-operator.io/resolved-job"])
    return told


@pytest.fixture(autouse=True)
def operator(scene: Scene, own: Lane) -> None:
    scene.kube.create(claim(), scene.namespace)
    own.operator.start(resync_seconds=RARELY)


def test_three_jobs_in_the_wrong_order_follow_each_other(scene: Scene, own: Lane) -> None:
    """Argo CD gives no order. The operator is killed while two wait."""
    ppo = {"rewardModel": {"fromJob": "rm"}, "reference": {"fromJob": "sft"}, "maxNewTokens": 64}
    scene.submit("ppo", stage="ppo", ppo=ppo, **from_job("sft"))
    status = scene.reaches("Pending", "WaitingForJob", name="ppo")
    assert "job rm (ppo.rewardModel.fromJob), which does not exist" in status["message"]
    assert "job sft (model.fromJob), which does not exist" in status["message"]
    [accepted] = [c for c in status["conditions"] if c["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("Unknown", "WaitingForJob")
    scene.submit("rm", stage="rm", datasets=PREFERENCE, **from_job("sft"))
    scene.submit("sft")
    says(scene, "ppo", "job rm (ppo.rewardModel.fromJob), which is Pending (WaitingForJob)")
    pod = scene.running("sft")
    says(scene, "rm", "Waiting for job sft (model.fromJob), which is Running.")
    progress = {
        "attempt": 1,
        "step": 47,
        "totalSteps": 100,
        "percent": 47,
        "summary": "47/100 (47%)",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }
    scene.report(pod, {"progress": progress}, "sft")
    says(scene, "rm", "Waiting for job sft (model.fromJob), which is Running, 40 % done.")
    assert not scene.batches("rm", "prepare")
    own.operator.kill()
    scene.kubelet.finish(pod, 0, json.dumps({**result(0), "artifact": artifact("sft")}))
    own.operator.start(resync_seconds=RARELY)
    scene.reaches("Succeeded", name="sft")
    succeed(scene, "rm")
    told = resolved(succeed(scene, "ppo"))
    assert {one["use"]: (one["job"], one["uid"], one["artifact"]["digest"]) for one in told["references"]} == {
        "model": ("sft", scene.job("sft")["metadata"]["uid"], "sha256:sft"),
        "reference": ("sft", scene.job("sft")["metadata"]["uid"], "sha256:sft"),
        "rewardModel": ("rm", scene.job("rm")["metadata"]["uid"], "sha256:rm"),
    }
    assert told["references"] == scene.status("ppo")["references"]
    assert (told["model"]["source"], told["tuning"]["adapter"]["source"]) == (ARTIFACT["base"], artifact("sft")["uri"])


def test_a_failure_goes_down_the_chain(scene: Scene) -> None:
    scene.submit("dpo", stage="dpo", datasets=PREFERENCE, **from_job("sft"))
    scene.submit("last", **from_job("dpo"))
    scene.submit("sft")
    pod = scene.preparing("sft")
    scene.kubelet.finish(pod, 65, json.dumps(result(65, "rows.jsonl:7: output is empty", kind="prepare")))
    status = scene.reaches("Failed", "DependencyFailed", name="last")
    assert "job dpo (model.fromJob) has Failed: DependencyFailed: The job sft" in status["message"]
    assert "InvalidData: rows.jsonl:7: output is empty" in status["message"]
    assert not scene.batches("dpo", "prepare")


def test_a_ring_is_named_to_all_of_it(scene: Scene) -> None:
    ring = {"a": "b", "b": "c", "c": "a"}
    for name, other in ring.items():
        scene.submit(name, **from_job(other))
    for name in ring:
        status = scene.reaches("Failed", "InvalidSpec", name=name)
        assert f"{name} -> {ring[name]} -> {ring[ring[name]]} -> {name}" in status["message"]


def test_what_was_fixed_stays_when_the_other_is_made_anew(scene: Scene) -> None:
    """Also where the job's own status is wiped while the other is gone: its Job still knows."""
    scene.submit("sft")
    succeed(scene, "sft")
    scene.submit("dpo", stage="dpo", datasets=PREFERENCE, **from_job("sft"))
    first = scene.running("dpo")
    fixed = scene.status("dpo")["references"]
    scene.kube.delete(FTJ, "sft", scene.namespace)
    until("it is gone", lambda: not scene.kube.find(FTJ, "sft", scene.namespace), timeout=GARBAGE_SECONDS)
    scene.kube.patch(FTJ, "dpo", {"status": None}, scene.namespace, part="status")
    assert scene.reaches("Running", name="dpo")["references"] == fixed
    scene.submit("sft")
    scene.kubelet.finish(first, 70)
    second = scene.running("dpo", attempt=2)
    assert resolved(second) == resolved(first)
    assert scene.status("dpo")["references"] == fixed
    scene.submit("late", **from_job("sft"))
    scene.reaches("Pending", "WaitingForJob", name="late")


def test_an_artifact_where_no_other_node_can_mount_it_is_told_before_it_is_made(scene: Scene) -> None:
    scene.submit("sft", workspace={"claimName": None, "claim": {"size": "1Gi"}})
    scene.reaches("Preparing", name="sft")
    scene.submit("dpo", stage="dpo", datasets=PREFERENCE, **from_job("sft"))
    status = scene.reaches("Pending", "WorkspaceNotShareable", name="dpo")
    assert "claim sft-workspace, which only the pods of one node can mount (ReadWriteOnce)" in status["message"]
