"""Whole lives of jobs, played to their end whatever breaks, and compared with each other. Used by test_faults."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.controlplane.fault_proxy import FaultProxy
from tests.controlplane.scene import FTJ, GARBAGE_SECONDS, Scene, result
from tests.kube import Object, until

Codes = dict[str, tuple[int, ...]]
"""The exit code of each attempt, by kind."""
SUCCESS: Codes = {"prepare": (0,), "train": (0,)}
LIVES: dict[str, dict[str, Codes]] = {
    "success": {"job": SUCCESS},
    "bad data": {"job": {"prepare": (65,), "train": ()}},
    "retry": {"job": {"prepare": (69, 0), "train": (70, 0)}},
    "chain": {"first": SUCCESS, "job": SUCCESS},
}
"""The jobs of each life. They are created in this order, and each starts from what the one before it makes."""
NUMBER, ENTRIES = (
    {"prepare": "prepareAttempt", "train": "attempt"},
    {"prepare": "prepareAttempts", "train": "attempts"},
)
PATIENCE = 180.0


@dataclass(frozen=True)
class Ending:
    """What two lives are compared by: final statuses without times and uids, and what was created and deleted."""

    statuses: Object
    effects: Counter[str]

    def compare(self, reference: Ending) -> None:
        """Raises AssertionError when it is another ending."""
        assert self.statuses == reference.statuses, f"{json.dumps(self.statuses)} not {json.dumps(reference.statuses)}"
        assert self.effects == reference.effects, f"{self.effects} is not {reference.effects}"


def live(scene: Scene, life: str, keep_up: Callable[[], None] = lambda: None) -> None:
    """Submit the jobs and play the kubelet until all have ended. `keep_up` is called all the time: it restarts
    operators.

    A pod's container ends only when the status says that its attempt is Running, and a job goes on only when the one
    that waits for it has been told how far it is, so that every life has the same steps. Fails as soon as two Jobs of
    one job live at once.
    """
    end, jobs = time.monotonic() + PATIENCE, LIVES[life]
    statuses: dict[str, Object] = {}
    while len(statuses) < len(jobs) or not all(map(_ended, statuses.values())):
        keep_up()
        if len(statuses) < len(jobs) and all(statuses.values()):
            *before, name = list(jobs)[: len(statuses) + 1]
            model = {"model": {"source": None, "fromJob": before[-1]}} if before else {}
            scene.submit(name, **model)
            statuses[name] = {}
        statuses = {name: scene.status(name) for name in statuses}
        assert time.monotonic() < end, f"no end in {PATIENCE:.0f} s: {json.dumps(statuses)}"
        for name, status in statuses.items():
            alive = [batch["metadata"]["name"] for batch in scene.unfinished(name)]
            assert len(alive) <= 1, f"two live Jobs: {alive}"
            if len(statuses) == len(jobs) and _told(statuses):
                _go_on(scene, name, jobs[name], status)
        time.sleep(0.1)


def _ended(status: Object) -> bool:
    return any(c["type"] in ("Succeeded", "Failed") for c in status.get("conditions", []))


def _told(statuses: dict[str, Object]) -> bool:
    """Whether each job that waits for the one before it says how that one stands."""
    for before, waiting in itertools.pairwise(statuses.values()):
        now = before["phase"] if before["phase"] == "Running" else f"{before['phase']} ({before['reason']})"
        if waiting.get("phase", "Pending") == "Pending" and f"which is {now}" not in waiting.get("message", ""):
            return False
    return True


def _go_on(scene: Scene, name: str, codes: Codes, status: Object) -> None:
    for kind in codes:
        attempt = status.get(NUMBER[kind], 0)
        assert attempt <= len(codes[kind]), f"attempt {attempt} to {kind} was made: {json.dumps(status)}"
        for pod in scene.kubelet.pods(name, attempt, kind) if attempt else []:
            _play(scene, pod, kind, codes[kind][attempt - 1], status[ENTRIES[kind]][-1])


def _play(scene: Scene, pod: Object, kind: str, code: int, attempt: Object) -> None:
    phase = pod["status"].get("phase")
    if phase == "Pending":
        scene.kubelet.run(pod)
    elif phase == "Running" and attempt["state"] == "Running":
        scene.kubelet.finish(pod, code, json.dumps(result(code, attempt=attempt["number"], kind=kind)))


def ending(scene: Scene, proxy: FaultProxy, life: str) -> Ending:
    """How a life ended."""
    jobs = {name: scene.job(name) for name in LIVES[life]}
    uids = [job["metadata"]["uid"] for job in jobs.values()]
    statuses = {name: _normal(job["status"], uids) for name, job in jobs.items()}
    return Ending(statuses, proxy.effects(scene.namespace))


def _normal(value: Any, uids: Sequence[str]) -> Any:
    if isinstance(value, dict):
        return {key: "..." if key.endswith("Time") else _normal(part, uids) for key, part in value.items()}
    if isinstance(value, list):
        return [_normal(item, uids) for item in value]
    if isinstance(value, str):
        for uid in uids:
            value = value.replace(uid, "uid").replace(f"-{uid[:5]}-", "-uid-")
    return value


def tidy(scene: Scene, life: str) -> None:
    """Every trace of a life away, so that the next one in the namespace has all its calls to make."""
    for name in LIVES[life]:
        scene.kube.delete(FTJ, name, scene.namespace)
    for kind in ("RoleBinding", "ServiceAccount"):
        scene.kube.delete(kind, "finetune-trainer", scene.namespace)
    scene.kubelet.shut_down()

    def gone(name: str) -> bool:
        return (
            not scene.kube.find(FTJ, name, scene.namespace)
            and not scene.batches(name, "prepare")
            and not scene.batches(name)
        )

    until(f"{life} is gone", lambda: all(map(gone, LIVES[life])), timeout=GARBAGE_SECONDS)
