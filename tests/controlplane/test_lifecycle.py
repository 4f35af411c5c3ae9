"""How a job's life goes: real API server and Job controller, the real operator, pods played by script."""

from __future__ import annotations

import json

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import ARTIFACT, METRICS, Scene, result


def conditions(status: dict[str, object]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}  # type: ignore[attr-defined]


def test_success(scene: Scene, operator: OperatorProcess) -> None:
    created = scene.submit()
    name = f"job-{created['metadata']['uid'][:5]}-1"
    scene.reaches("Starting")
    pod = scene.running()
    assert pod["metadata"]["name"].startswith(f"{name}-0-")
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded", "Completed")
    assert conditions(status) == {"Accepted": "True", "Running": "False", "Succeeded": "True"}
    assert status["artifact"] == ARTIFACT
    assert status["metrics"] == METRICS
    assert ARTIFACT["uri"] in status["message"]
    assert status["observedGeneration"] == 1
    assert status["resolved"]["image"] == "finetune-trainer:0.1.0"
    [attempt] = status["attempts"]
    assert (attempt["number"], attempt["job"], attempt["state"]) == (1, name, "Ended")
    assert (attempt["reason"], attempt["exitCode"], attempt["failures"]) == ("Completed", 0, 0)
    assert attempt["startTime"] <= attempt["runningTime"] <= attempt["endTime"] == status["completionTime"]
    assert status["startTime"] == attempt["startTime"]
    assert [job["metadata"]["name"] for job in scene.batches()] == [name]
