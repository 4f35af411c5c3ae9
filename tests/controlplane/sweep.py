"""Whole lives of jobs, played to their end whatever breaks, and compared with each other. Used by test_faults."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.stored_job import load

from tests.controlplane.fault_proxy import FaultProxy
from tests.controlplane.kubelet import JOB
from tests.controlplane.scene import FTJ, GARBAGE_SECONDS, Scene, result
from tests.kube import Object, until

Codes = dict[str, tuple[int, ...]]
"""The exit code of each attempt, by kind."""
SUCCESS: Codes = {"prepare": (0,), "train": (0,)}
STUCK = -1
"""In place of an exit code: the pods never start, so the operator deletes their Job at the start deadline."""
SUSPENDED = -2
"""In place of an exit code: the user suspends the job when the attempt runs, and resumes it when its pods are gone."""
STOPPED = -3
"""In place of an exit code: the user stops the job when the attempt runs. Its pod saves and ends before it has made the
artifact, so the next attempt makes it."""
CHANGES: dict[int, Object] = {SUSPENDED: {"suspend": True}, STOPPED: {"stop": "keep"}}
"""What the user changes."""
EVICTED = -4
"""In place of an exit code: the pod is drained, saves a checkpoint, ends with 75 and is gone at once."""
DELETED = -5
"""In place of an exit code: the user deletes the job when the attempt runs."""
RESTARTED = -6
"""In place of an exit code: a rank crashes, the launcher restarts the ranks in their pod, and then they succeed."""
REQUEUED = -7
"""In place of an exit code: Kueue suspends the child job when the attempt runs, and the pod saves and ends. Then Kueue
admits the child job again, and it succeeds."""
LIVES: dict[str, dict[str, Codes]] = {
    "success": {"job": SUCCESS},
    "bad data": {"job": {"prepare": (65,), "train": ()}},
    "retry": {"job": {"prepare": (69, 0), "train": (70, 0)}},
    "chain": {"first": SUCCESS, "job": SUCCESS},
    "deadline": {"job": {"prepare": (0,), "train": (STUCK, 0)}},
    "stop": {"job": {"prepare": (0,), "train": (STOPPED, 0)}},
    "suspension": {"job": {"prepare": (SUSPENDED, 0), "train": (SUSPENDED, 0)}},
    "preemption": {"job": {"prepare": (EVICTED, 0), "train": (EVICTED, 0)}},
    "two nodes": {"job": {"prepare": (0,), "train": (70, 0)}},
    "restart in place": {"job": {"prepare": (0,), "train": (RESTARTED,)}},
    "queue": {"job": {"prepare": (0,), "train": (REQUEUED,)}},
    "deletion": {"job": {"prepare": (0,), "train": (DELETED,)}},
}
"""The jobs of each life. They are created in this order, and each starts from what the one before it makes."""
CLAIM = {"claimName": None, "claim": {"size": "1Gi", "accessMode": "ReadWriteMany"}}
SPECS: dict[str, Object] = {
    "deadline": {"startDeadlineSeconds": 40, "resources": {"nodes": 2}, "workspace": CLAIM},
    "two nodes": {"resources": {"nodes": 2}, "workspace": CLAIM},
    "queue": {"queue": "team", "prepare": {"queue": "team"}},
}
"""What the jobs of a life change in the example: with two nodes and a claim, all kinds of objects are created."""
NUMBER, ENTRIES = (
    {"prepare": "prepareAttempt", "train": "attempt"},
    {"prepare": "prepareAttempts", "train": "attempts"},
)
RESTARTING: Object = {
    "attempt": 1,
    "kind": "train",
    "activity": "Training",
    "step": 20,
    "totalSteps": 40,
    "percent": 50,
    "startStep": 10,
    "summary": "20/40 (50%)",
    "lastUpdateTime": "2026-01-31T12:00:00Z",
    "restart": {
        "number": 1,
        "failures": 1,
        "reason": "Killed",
        "exitCode": 137,
        "message": "Rank 1 was killed",
        "time": "2026-01-31T12:00:00Z",
    },
}
"""What the trainer reports after its restart."""
ACCESS = {"create serviceaccounts", "create rolebindings"}
"""What lives may lack: an operator that has seen them in an earlier life looks at them some seconds after the creation
of a child job. It may crash, or the job may end before that."""
GONE: Object = {"phase": "Gone", "reason": "Deleted"}
PATIENCE = 180.0
LOOK_SECONDS = 0.25
"""Between two looks at a life. A dozen is lived at a time, and who looks takes CPU from the operators."""


@dataclass(frozen=True)
class Ending:
    """What two lives are compared by: final statuses without times and uids, and what was created and deleted."""

    statuses: Object
    effects: Counter[str]

    def compare(self, reference: Ending) -> None:
        """Raises AssertionError when it is another ending."""
        assert self.statuses == reference.statuses, f"{json.dumps(self.statuses)} not {json.dumps(reference.statuses)}"
        differs = f"{self.effects} is not {reference.effects}"
        assert self.effects <= reference.effects, differs
        assert (reference.effects - self.effects).keys() <= ACCESS, differs


def live(scene: Scene, life: str, keep_up: Callable[[], None] = lambda: None) -> None:
    """Submit the jobs and play the kubelet until all have ended. `keep_up` is called all the time: it restarts
    operators.

    A pod's container ends only when the status says that its attempt is Running, and a job continues only when the job
    that waits for it shows its progress, so that every life has the same steps. Fails as soon as two Jobs of
    one job live at once.
    """
    end, jobs = time.monotonic() + PATIENCE, LIVES[life]
    statuses: dict[str, Object] = {}
    while len(statuses) < len(jobs) or not all(map(_ended, statuses.values())):
        keep_up()
        # The operator gives a reason at its first look.
        if len(statuses) < len(jobs) and all("reason" in status for status in statuses.values()):
            *before, name = list(jobs)[: len(statuses) + 1]
            model = {"model": {"source": None, "fromJob": before[-1]}} if before else {}
            scene.submit(name, **model, **SPECS.get(life, {}))
            statuses[name] = {}
        statuses = {name: status_of(scene, name) for name in statuses}
        assert time.monotonic() < end, f"no end in {PATIENCE:.0f} s: {json.dumps(statuses)}"
        for name, status in statuses.items():
            alive = [batch["metadata"]["name"] for batch in scene.unfinished(name)]
            assert len(alive) <= 1, f"two live Jobs: {alive}"
            if len(statuses) == len(jobs) and _told(statuses):
                go_on(scene, name, jobs[name], status)
        time.sleep(LOOK_SECONDS)


def status_of(scene: Scene, name: str) -> Object:
    """The status of a job; `GONE` if the job was deleted."""
    job = scene.kube.find(FTJ, name, scene.namespace)
    return GONE if job is None else job.get("status", {})


def _ended(status: Object) -> bool:
    return status is GONE or any(c["type"] in ("Succeeded", "Failed") for c in status.get("conditions", []))


def _told(statuses: dict[str, Object]) -> bool:
    """Whether each job that waits for the one before it says how that one stands."""
    for before, waiting in itertools.pairwise(statuses.values()):
        now = before["phase"] if before["phase"] == "Running" else f"{before['phase']} ({before['reason']})"
        if waiting.get("phase", "Pending") == "Pending" and f"which is {now}" not in waiting.get("message", ""):
            return False
    return True


def go_on(scene: Scene, name: str, codes: Codes, status: Object) -> None:
    """Play the kubelet for the pods of the job's newest attempts."""
    if status is GONE:
        return
    if status.get("reason") == "SuspendedByUser":
        scene.kube.patch(FTJ, name, {"spec": {"suspend": False}}, scene.namespace)
    if status.get("phase") == "Queued":
        _admit(scene, name)
    for kind in codes:
        attempt = status.get(NUMBER[kind], 0)
        assert attempt <= len(codes[kind]), f"attempt {attempt} to {kind} was made: {json.dumps(status)}"
        for pod in scene.kubelet.pods(name, attempt, kind) if attempt else []:
            code = codes[kind][attempt - 1]
            if code == STOPPED and status.get("reason") == "StoppedByUser":
                code = 75
            _play(scene, pod, kind, code, status)


def _admit(scene: Scene, name: str) -> None:
    """What Kueue does when it admits a child job."""
    for batch in scene.unfinished(name):
        if batch["spec"].get("suspend"):
            scene.kube.patch("Job", batch["metadata"]["name"], {"spec": {"suspend": False}}, scene.namespace)


def _play(scene: Scene, pod: Object, kind: str, code: int, status: Object) -> None:
    attempt, name = status[ENTRIES[kind]][-1], pod["metadata"]["labels"][JOB]
    phase = pod["status"].get("phase")
    ending = "deletionTimestamp" in pod["metadata"]
    if code in (SUSPENDED, REQUEUED) and ending:
        scene.kubelet.finish(pod, 75)
        scene.kubelet.remove(pod)
        return
    if code == STUCK or (code == DELETED and ending):
        return
    if code in CHANGES and attempt["state"] == "Running":
        scene.kube.patch(FTJ, name, {"spec": CHANGES[code]}, scene.namespace)
    elif phase == "Pending":
        scene.kubelet.run(pod)
    elif phase == "Running" and attempt["state"] == "Running":
        if code == EVICTED:
            scene.kubelet.evict(pod, 75)
            return
        if code == DELETED:
            scene.kube.delete(FTJ, name, scene.namespace)
            return
        if code == REQUEUED and not attempt.get("evictions"):
            scene.kube.patch("Job", attempt["job"], {"spec": {"suspend": True}}, scene.namespace)
            return
        if code == RESTARTED and "progress" not in status:
            scene.report(pod, {"progress": RESTARTING}, name)
        if code == RESTARTED and "restarts" not in attempt:
            return
        code = max(code, 0)
        scene.kubelet.finish(pod, code, json.dumps(result(code, attempt=attempt["number"], kind=kind)))


def ending(scene: Scene, proxy: FaultProxy, life: str) -> Ending:
    """How a life ended."""
    jobs = {name: scene.kube.find(FTJ, name, scene.namespace) or {"status": GONE} for name in LIVES[life]}
    uids = [job["metadata"]["uid"] for job in jobs.values() if job["status"] is not GONE]
    statuses = {name: _normal(_uncompressed(job["status"]), uids) for name, job in jobs.items()}
    return Ending(statuses, proxy.effects(scene.namespace))


def _uncompressed(status: Object) -> Object:
    """The status with its resolved job as JSON: the uids of other jobs are in it."""
    resolved = status.get("resolved")
    return {**status, "resolved": {**resolved, "job": json.loads(load(resolved["job"]))}} if resolved else status


def _normal(value: Any, uids: Sequence[str]) -> Any:
    if isinstance(value, dict):
        varies = {key for key in value if key.endswith("Time") or key in ("activeSeconds", "gpu")}
        if value.get("reason") == "Disrupted":
            # A drained pod is gone at once. What it said is there for an operator that has seen it in time.
            varies |= {"message"}
        return {key: "..." if key in varies else _normal(part, uids) for key, part in value.items()}
    if isinstance(value, list):
        return [_normal(item, uids) for item in value]
    if isinstance(value, str):
        for uid in uids:
            value = value.replace(uid, "uid").replace(f"-{uid[:5]}-", "-uid-")
    return value


def tidy(scene: Scene, life: str) -> None:
    """Remove every trace of a life, so that the next life in the namespace makes all its calls."""
    for name in LIVES[life]:
        scene.kube.delete(FTJ, name, scene.namespace)
    scene.kubelet.shut_down()
    claims = [f"{name}-workspace" for name in LIVES[life]]
    for claim in claims:
        scene.kube.delete("PersistentVolumeClaim", claim, scene.namespace)

    def gone(name: str) -> bool:
        return (
            not scene.kube.find(FTJ, name, scene.namespace)
            and not scene.batches(name, "prepare")
            and not scene.batches(name)
        )

    until(f"{life} is gone", lambda: all(map(gone, LIVES[life])), timeout=GARBAGE_SECONDS)
    until(
        "its claims are gone",
        lambda: not any(scene.kube.find("PersistentVolumeClaim", claim, scene.namespace) for claim in claims),
    )
    # Last: the operator restores them for jobs that run.
    for kind in ("RoleBinding", "ServiceAccount"):
        scene.kube.delete(kind, "finetune-trainer", scene.namespace)
