"""GPU time by use on a real API server: through an eviction, a kill, an operator that was away, and a success."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.controlplane.lane import Lane
from tests.controlplane.scene import Scene, result
from tests.controlplane.test_reports import progress
from tests.kube import Object, until

GPUS = 1


def later(pod: Object, scene: Scene, seconds: int) -> str:
    """A time so long after the pod got its node. The kubelet here is a script: it needs not wait until then."""
    conditions = scene.kube.get("Pod", pod["metadata"]["name"], scene.namespace)["status"]["conditions"]
    scheduled = next(c["lastTransitionTime"] for c in conditions if c["type"] == "PodScheduled")
    moment = datetime.fromisoformat(scheduled) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def uses(pod: Object, scene: Scene, after: int, **milliseconds: int) -> Object:
    return {"run": pod["metadata"]["uid"], "since": later(pod, scene, after), "milliseconds": milliseconds}


def shown(own: Lane) -> dict[str, float]:
    """GPU seconds by use, as GET /metrics shows them."""
    lines = [line for line in own.operator.get("metrics")[1].splitlines() if line.startswith("finetune_gpu_seconds")]
    return {line.split('use="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}


def test_every_gpu_second_of_a_job_is_told_by_use(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=3600)
    scene.submit(backoffLimit=2)
    first = scene.running()
    assert scene.status()["gpu"]["run"]["gpus"] == GPUS
    assert scene.status()["gpu"]["seconds"] == 0

    # Drained: it saves, reports its end, and is gone at once.
    reported = uses(first, scene, 10, load=10_000, train=60_000, save=5000)
    scene.report(first, progress(uses=uses(first, scene, 10, load=10_000, train=20_000)))
    until("the metric follows the report", lambda: shown(own).get("train") == 20)
    said = json.dumps({**result(75), "uses": reported})
    scene.kubelet.drain(first)
    scene.kubelet.finish(first, 75, said, at=later(first, scene, 100))
    scene.kubelet.remove(first)
    second = scene.running(attempt=2)
    assert scene.status()["gpu"]["uses"] == {"startup": 10, "load": 10, "train": 60, "save": 5, "idle": 15}

    # Killed, while no operator looks: what it did since its last report is lost.
    own.operator.kill()
    scene.report(second, progress(2, uses={**uses(second, scene, 10, load=5000, train=30_000), "redoneSteps": 3}))
    scene.kubelet.finish(second, 137, at=later(second, scene, 80))
    own.operator.start(resync_seconds=3600)
    third = scene.running(attempt=3)
    gpu = scene.status()["gpu"]
    assert gpu["uses"] == {"startup": 20, "load": 15, "train": 90, "save": 5, "redone": 35, "idle": 15}
    assert (gpu["seconds"], gpu["redoneSteps"], gpu["goodput"]) == (180, 3, "0.50")

    final = {**result(0, attempt=3), "uses": uses(third, scene, 0, train=20_000)}
    scene.kubelet.finish(third, 0, json.dumps(final), at=later(third, scene, 20))
    gpu = scene.reaches("Succeeded")["gpu"]
    assert (gpu["seconds"], sum(gpu["uses"].values()), gpu["uses"]["train"]) == (200, 200, 110)
    assert "run" not in gpu
    assert scene.columns()["Phase"] == "Succeeded"
    # The second operator counts what was new to it: the lost time of the second run, and the third run.
    until("the metric has them", lambda: sum(shown(own).values()) == pytest.approx(55, abs=1))


def test_a_pod_without_gpus_costs_none(scene: Scene, own: Lane) -> None:
    own.operator.start()
    plain: dict[str, Any] = {"gpusPerNode": 0}
    scene.submit(resources=plain)
    pod = scene.running()
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    assert "gpu" not in scene.reaches("Succeeded")
