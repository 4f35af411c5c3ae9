"""Nothing that the operator writes has a value of a Secret or of a variable: neither status, nor Events, nor its log,
nor its metrics. It never has the values of Secrets; those of plain variables are in the spec alone, and in the pods."""

from __future__ import annotations

import json

from finetune_api.stored_job import load

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import Scene, claim, result

SECRET, PLAIN = "canary-in-the-secret-5f1e", "canary-in-a-variable-77ab"
HUB = {"HF_TOKEN": SECRET}
ENV = [
    {"name": "TEAM_KEY", "secretKeyRef": {"name": "keys", "key": "HF_TOKEN"}},
    {"name": "TEAM_PLAIN", "value": PLAIN},
]


def test_what_the_operator_writes_has_no_values(scene: Scene, operator: OperatorProcess) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": HUB}
    scene.kube.create(secret, scene.namespace)
    scene.kube.create(claim(), scene.namespace)
    scene.submit("job", secrets={"huggingFace": "keys"}, resources={"env": ENV})
    scene.submit("fails", secrets={"huggingFace": "keys"}, resources={"env": ENV})
    pod = scene.running()
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    scene.kubelet.finish(scene.preparing("fails"), 65, json.dumps(result(65, kind="prepare")))
    scene.reaches("Failed", name="fails")

    statuses = [scene.status(name) for name in ("job", "fails")]
    written = {
        "status": json.dumps(statuses),
        "resolved job": "".join(load(status["resolved"]["job"]) for status in statuses),
        "events": json.dumps(scene.kube.list("Event", scene.namespace)),
        "log": operator.said(),
        "metrics": operator.get("metrics")[1],
        "child jobs": json.dumps([*scene.batches(), *scene.batches("job", "prepare")]),
    }
    assert "HF_TOKEN" in written["child jobs"], "the pods get it by reference"
    assert all(SECRET not in text for text in written.values())
    assert [place for place, text in written.items() if PLAIN in text] == ["child jobs"]
