"""Whole lives of jobs, played to their end whatever breaks, and compared with each other. Used by test_faults."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.controlplane.fault_proxy import FaultProxy
from tests.controlplane.scene import FTJ, GARBAGE_SECONDS, Scene, result
from tests.kube import Object, until

LIVES: dict[str, dict[str, tuple[int, ...]]] = {
    "success": {"prepare": (0,), "train": (0,)},
    "bad data": {"prepare": (65,), "train": ()},
    "retry": {"prepare": (69, 0), "train": (70, 0)},
}
"""The exit code of each attempt, by kind."""
NUMBER, ENTRIES = (
    {"prepare": "prepareAttempt", "train": "attempt"},
    {"prepare": "prepareAttempts", "train": "attempts"},
)
PATIENCE = 180.0


@dataclass(frozen=True)
class Ending:
    """What two lives are compared by: the final status without times and uids, and what was created and deleted."""

    status: Object
    effects: Counter[str]

    def compare(self, reference: Ending) -> None:
        """Raises AssertionError when it is another ending."""
        assert self.status == reference.status, f"{json.dumps(self.status)} is not {json.dumps(reference.status)}"
        assert self.effects == reference.effects, f"{self.effects} is not {reference.effects}"


def live(scene: Scene, life: str, name: str, keep_up: Callable[[], None] = lambda: None) -> None:
    """Submit a job and play the kubelet until it has ended. `keep_up` is called all the time: it restarts operators.

    A pod's container ends only when the status says that its attempt is Running, so that every life has the same steps.
    Fails as soon as two Jobs of it live at once.
    """
    scene.submit(name)
    end = time.monotonic() + PATIENCE
    while True:
        keep_up()
        status = scene.status(name)
        if any(c["type"] in ("Succeeded", "Failed") for c in status.get("conditions", [])):
            return
        assert time.monotonic() < end, f"no end in {PATIENCE:.0f} s: {json.dumps(status)}"
        alive = [batch["metadata"]["name"] for batch in scene.unfinished(name)]
        assert len(alive) <= 1, f"two live Jobs: {alive}"
        for kind, codes in LIVES[life].items():
            attempt = status.get(NUMBER[kind], 0)
            assert attempt <= len(codes), f"attempt {attempt} to {kind} was made: {json.dumps(status)}"
            for pod in scene.kubelet.pods(name, attempt, kind) if attempt else []:
                _play(scene, pod, kind, codes[attempt - 1], status[ENTRIES[kind]][-1])
        time.sleep(0.1)


def _play(scene: Scene, pod: Object, kind: str, code: int, attempt: Object) -> None:
    phase = pod["status"].get("phase")
    if phase == "Pending":
        scene.kubelet.run(pod)
    elif phase == "Running" and attempt["state"] == "Running":
        scene.kubelet.finish(pod, code, json.dumps(result(code, attempt=attempt["number"], kind=kind)))


def ending(scene: Scene, proxy: FaultProxy, name: str) -> Ending:
    """How a life ended."""
    job = scene.job(name)
    return Ending(_normal(job["status"], job["metadata"]["uid"]), proxy.effects(scene.namespace))


def _normal(value: Any, uid: str) -> Any:
    if isinstance(value, dict):
        return {key: "..." if key.endswith("Time") else _normal(part, uid) for key, part in value.items()}
    if isinstance(value, list):
        return [_normal(item, uid) for item in value]
    return value.replace(f"-{uid[:5]}-", "-uid-") if isinstance(value, str) else value


def tidy(scene: Scene, name: str) -> None:
    """Every trace of a life away, so that the next one in the namespace has all its calls to make."""
    scene.kube.delete(FTJ, name, scene.namespace)
    for kind in ("RoleBinding", "ServiceAccount"):
        scene.kube.delete(kind, "finetune-trainer", scene.namespace)
    scene.kubelet.shut_down()

    def gone() -> bool:
        return (
            not scene.kube.find(FTJ, name, scene.namespace)
            and not scene.batches(name, "prepare")
            and not scene.batches(name)
        )

    until(f"{name} is gone", gone, timeout=GARBAGE_SECONDS)
