"""One Job of ours tells the end of a job. It meets the restricted Pod Security level."""

from __future__ import annotations

import json

from tests.controlplane.lane import Lane
from tests.controlplane.scene import Scene, result
from tests.kube import Object, until


def told(scene: Scene) -> list[Object]:
    found = scene.kube.list("Job", scene.namespace, "app.kubernetes.io/component=notification")
    return [json.loads(_variable(job)) for job in found]


def _variable(job: Object) -> str:
    [container] = job["spec"]["template"]["spec"]["containers"]
    [value] = [v["value"] for v in container["env"] if v["name"] == "FINETUNE_NOTIFICATION"]
    return str(value)


def _events(scene: Scene) -> list[tuple[str, int]]:
    """Reason and count of each Event about the job."""
    found = (e for e in scene.kube.list("Event", scene.namespace) if e["involvedObject"]["kind"] == "FineTuneJob")
    return sorted((event["reason"], event["count"]) for event in found)


def test_the_end_is_told_once_also_across_a_crash_before_the_status(scene: Scene, own: Lane) -> None:
    own.operator.start()
    scene.submit(notify={"secret": "chat"})
    pod = scene.preparing()
    scene.kubelet.finish(pod, 65, json.dumps(result(65, kind="prepare")))
    scene.reaches("Failed", "InvalidData")
    until("the end is noted", lambda: scene.status().get("notifiedTime"))
    [payload] = told(scene)
    assert (payload["name"], payload["phase"], payload["reason"]) == ("job", "Failed", "InvalidData")
    pods = until(
        "its pod is admitted",
        lambda: scene.kube.list("Pod", scene.namespace, "app.kubernetes.io/component=notification"),
    )
    assert "chat" in json.dumps(pods[0]["spec"]["containers"][0]["env"])
    shown = own.operator.get("metrics")[1]
    assert f'finetune_jobs{{namespace="{scene.namespace}",stage="sft",phase="Failed"}} 1\n' in shown
    assert "finetune_job_phase_seconds{" not in shown
    events = _events(scene)
    assert events
    own.operator.kill()
    # As if it had crashed after it created the Job.
    job = scene.job()
    scene.kube.patch("FineTuneJob", "job", {"status": {"notifiedTime": None}}, scene.namespace, part="status")
    own.operator.start()
    until("the end is noted again", lambda: scene.status().get("notifiedTime"))
    assert len(told(scene)) == 1
    assert _events(scene) == events, "no Event is doubled"
    assert scene.job()["metadata"]["uid"] == job["metadata"]["uid"]
    scene.kube.patch("FineTuneJob", "job", {"spec": {"retry": 1}}, scene.namespace)
    until("the job is open again", lambda: scene.status().get("phase") != "Failed")
    assert "notifiedTime" not in scene.status()


def test_a_cluster_that_refuses_the_job_leaves_the_end_as_it_is(scene: Scene, own: Lane) -> None:
    own.operator.start()
    scene.submit(notify={"secret": "chat", "when": ["Failed"]})
    pod = scene.preparing()
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}}
    scene.kube.create({**quota, "spec": {"hard": {"count/jobs.batch": "0"}}}, scene.namespace)
    until(
        "the quota counts",
        lambda: scene.kube.get("ResourceQuota", "none", scene.namespace).get("status", {}).get("used"),
    )
    scene.kubelet.finish(pod, 65, json.dumps(result(65, kind="prepare")))
    scene.reaches("Failed", "InvalidData")
    until("it is tried", lambda: "tells the end of the job is refused" in own.operator.said())
    assert scene.status()["reason"] == "InvalidData"
    assert told(scene) == []
