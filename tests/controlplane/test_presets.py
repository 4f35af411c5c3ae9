"""Jobs in a namespace with presets: real API server and operator, with the chart's rights."""

from __future__ import annotations

import json

from tests.controlplane.fault_proxy import WATCHED
from tests.controlplane.lane import Lane
from tests.controlplane.scene import FTJ, Scene, result
from tests.kube import Object, until

RARELY = 3600
TOLERATION = {"key": "gpu", "operator": "Exists"}
PRESETS = """
defaults:
  nodeSelector: {pool: gpu}
  tolerations: [{key: gpu, operator: Exists}]
  cpuLimit: 8
  podLabels: {cost-center: "42"}
  podAnnotations: {note: preset}
  ttlSecondsAfterFinished: 600
bounds:
  gpus: 2
  memory: 32Gi
  sources: [pvc://]
"""


def set_presets(scene: Scene, text: str = PRESETS) -> None:
    """Create or change the ConfigMap."""
    meta = {"name": "finetune-presets", "namespace": scene.namespace}
    scene.kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"presets.yaml": text}})


def has_presets(pod: Object) -> bool:
    spec, meta = pod["spec"], pod["metadata"]
    return (
        spec.get("nodeSelector") == {"pool": "gpu"}
        and TOLERATION in [{k: v for k, v in t.items() if k in TOLERATION} for t in spec["tolerations"]]
        and spec["containers"][0]["resources"]["limits"]["cpu"] == "8"
        and meta["labels"].get("cost-center") == "42"
        and meta["annotations"].get("note") == "preset"
    )


def test_a_job_lives_with_its_presets_whatever_happens_to_them(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=RARELY)
    set_presets(scene)
    scene.submit()
    pod = scene.preparing()
    assert has_presets(pod)
    presets = scene.status()["resolved"]["presets"]
    assert presets["source"] == f"ConfigMap finetune-presets of namespace {scene.namespace}"
    assert presets["bounds"] == {"gpus": 2, "memory": "32Gi", "sources": ["pvc://"]}
    assert presets["filled"]["resources"]["nodeSelector"] == {"pool": "gpu"}
    assert presets["filled"]["ttlSecondsAfterFinished"] == 600
    spec = scene.job()["spec"]
    assert "nodeSelector" not in spec["resources"], "the user's object stays as it is"
    scene.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
    scene.reaches("Starting")

    set_presets(scene, "bounds: {gpus: 0}")
    first = scene.running()
    assert has_presets(first)
    set_presets(scene, "bouns: {}")
    scene.kubelet.finish(first, 70, json.dumps(result(70)))
    own.operator.kill()
    own.operator.start()
    second = scene.running(attempt=2)
    assert has_presets(second)
    assert scene.status()["resolved"]["presets"] == presets
    scene.kubelet.finish(second, 0, json.dumps(result(0, attempt=2)))
    scene.reaches("Succeeded")


def test_what_exceeds_a_bound_is_refused_by_name(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=RARELY)
    set_presets(scene)
    scene.submit("many", resources={"gpusPerNode": 4}, training={"microBatchSize": None})
    scene.submit("foreign", model={"source": "hf://org/base@main"})
    scene.submit("fine", resources={"gpusPerNode": 2})
    scene.reaches("Failed", "InvalidSpec", name="many")
    status = scene.tells("InvalidSpec", "ConfigMap finetune-presets of namespace", "(bounds.gpus)", name="many")
    assert "spec.resources.gpusPerNode is 4, and at most 2 is allowed" in status["message"]
    scene.tells("InvalidSpec", "spec.model.source is hf://org/base@main, and only pvc:// is allowed", name="foreign")
    scene.preparing("fine")
    assert not scene.batches("many", "prepare")


def test_jobs_join_the_queue_of_the_presets_and_no_other(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=RARELY)
    set_presets(scene, "defaults: {queue: team, prepareQueue: team}\nbounds: {queues: [team]}")
    scene.submit("fine")
    [made] = until("the Job is there", lambda: scene.unfinished("fine"))
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert made["spec"]["suspend"] is True
    assert scene.status("fine")["resolved"]["presets"]["filled"] == {"queue": "team", "prepare": {"queue": "team"}}
    assert "queue" not in scene.job("fine")["spec"], "the user's object stays as it is"
    scene.submit("other", queue="theirs")
    scene.tells("InvalidSpec", "spec.queue is theirs, and only team is allowed (bounds.queues)", name="other")


def test_jobs_wait_without_requests_until_broken_presets_are_repaired(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=RARELY)
    scene.submit("runs")
    running = scene.running("runs")
    set_presets(scene, "defaults: {imagee: a}")
    names = ("one", "two", "three")
    for name in names:
        scene.submit(name)
    for name in names:
        status = scene.tells("PresetsInvalid", "unknown field defaults.imagee", "Correct the ConfigMap", name=name)
        assert status["phase"] == "Pending"
    scene.kubelet.finish(running, 0, json.dumps(result(0)))
    scene.reaches("Succeeded", name="runs")

    set_presets(scene, "bounds: [also wrong]")
    until("they tell of the new mistake", lambda: all("bounds: " in scene.status(name)["message"] for name in names))
    reads = own.proxy.requests[scene.namespace]["get configmaps"]
    set_presets(scene)
    for name in names:
        scene.preparing(name)
    spent = own.proxy.requests[scene.namespace]["get configmaps"] - reads
    assert spent <= 2 * len(names)


def test_presets_that_are_deleted_hold_no_job(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=RARELY)
    set_presets(scene, "no: presets")
    scene.submit()
    scene.reaches("Pending", "PresetsInvalid")
    # New jobs are looked at before the watches begin.
    until("it watches", lambda: own.proxy.watches == len(WATCHED))
    scene.kube.delete("ConfigMap", "finetune-presets", scene.namespace)
    scene.preparing()
    assert "presets" not in scene.status()["resolved"]


def test_a_suspended_job_cannot_be_edited_beyond_the_bounds(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=RARELY)
    set_presets(scene)
    scene.submit()
    pod = scene.running()

    def change(**spec: object) -> None:
        scene.kube.patch(FTJ, "job", {"spec": spec}, scene.namespace)

    change(suspend=True)
    scene.asked_to_end(pod)
    scene.kubelet.finish(pod, 75, "")
    scene.kubelet.remove(pod)
    scene.reaches("Suspended", "SuspendedByUser")
    change(resources={"memory": "64Gi"})
    change(suspend=False)
    scene.tells("InvalidSpec", "spec.resources.memory is 64Gi, and at most 32Gi is allowed (bounds.memory)")
    assert not scene.unfinished()
    change(suspend=True)
    scene.reaches("Suspended", "SuspendedByUser")
    change(resources={"memory": "24Gi"})
    set_presets(scene, "{")
    change(suspend=False)
    scene.tells("PresetsInvalid", "cannot be resumed yet", "no YAML")
    set_presets(scene)
    resumed = scene.running(attempt=2)
    assert resumed["spec"]["containers"][0]["resources"]["limits"]["memory"] == "24Gi"


def test_the_installation_has_presets_for_other_namespaces(scene: Scene, own: Lane) -> None:
    default = {"defaults": {"podLabels": {"cost-center": "0"}}, "bounds": {"gpus": 1}}
    own.operator.start(resync_seconds=RARELY, presets=json.dumps(default))
    scene.submit("many", resources={"gpusPerNode": 2})
    scene.tells("InvalidSpec", "(chart value presets.default)", name="many")
    scene.submit("fine")
    assert scene.preparing("fine")["metadata"]["labels"]["cost-center"] == "0"
    set_presets(scene)
    scene.submit("own", resources={"gpusPerNode": 2})
    assert has_presets(scene.preparing("own"))
