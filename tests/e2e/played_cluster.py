"""A cluster that is played: the small API server of the unit tests, and a thread that plays the operator.

No pod runs and nothing is trained; curves are formulas. `FINETUNE_PAGE=played pytest tests/e2e/test_page.py` tries the
steps of the browser on it in a minute. The pictures in docs/ are taken on it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.curves import Point, pack

from tests.unit.ui.api_server import ApiServer, Object, pod, served

NAMESPACE = "team-a"
TOKEN = "token-of-a"
BEAT_SECONDS = 0.25
STEPS_PER_BEAT = 4


def now(ago: float = 0) -> str:
    """The time some seconds ago, as Kubernetes writes it."""
    return (datetime.now(UTC) - timedelta(seconds=ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def loss_at(step: int, speed: float = 40, seed: int = 1) -> float:
    """A loss that falls, with noise that is the same each time."""
    return 0.35 + 2.1 * math.exp(-step / speed) + 0.06 * math.sin(7.1 * step * seed) * math.cos(2.3 * step)


def curves(step: int, total: int, **shape: Any) -> dict[str, list[Point]]:
    """Curves of a run that has come to a step."""
    steps = range(1, step + 1)
    return {
        "loss": [(at, loss_at(at, **shape)) for at in steps],
        "evalLoss": [(at, loss_at(at, **shape) + 0.08) for at in steps if at % 20 == 0],
        "learningRate": [(at, 0.0002 * min(1, at / 10) * (1 - at / (total + 1))) for at in steps],
        "gradientNorm": [(at, 0.4 + 1.5 * math.exp(-at / 25) + 0.1 * math.sin(3.3 * at)) for at in steps],
        "tokensPerSecond": [(at, 3150 + 90 * math.sin(0.9 * at)) for at in steps],
    }


def progress(step: int, total: int, attempt: int = 1, **shape: Any) -> Object:
    """status.progress of a run that has come to a step."""
    percent = 100 * step // total
    return {
        "attempt": attempt,
        "kind": "train",
        "step": step,
        "totalSteps": total,
        "percent": percent,
        "summary": f"{step}/{total} ({percent}%)",
        "loss": f"{loss_at(step, **shape):.4f}",
        "epoch": f"{3 * step / total:.2f}",
        "tokensPerSecond": "3150",
        "eta": f"{max(1, (total - step) // 2)}s",
        "lastUpdateTime": now(),
        "curves": pack(curves(step, total, **shape)),
    }


def artifact(name: str) -> Object:
    """status.artifact of a job that has ended well."""
    return {
        "uri": f"pvc://workspace/jobs/{name}/artifact",
        "kind": "adapter",
        "digest": "sha256:" + "5f3a" * 16,
        "sizeBytes": 9_834_211,
        "base": "pvc://models/tiny",
    }


class Played:
    """The server, and what it plays."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)

    def find(self, name: str) -> Object | None:
        """The job as it is."""
        return self.api.jobs.get((NAMESPACE, name))

    def _play(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            for job in list(self.api.jobs.values()):
                if (status := self._next(job)) is not None:
                    self.api.put({**job, "status": status})

    def _next(self, job: Object) -> Object | None:
        """The next status of a job; None if it stays as it is."""
        status, spec, name = job.get("status") or {}, job["spec"], job["metadata"]["name"]
        phase, seen = status.get("phase", ""), {"observedGeneration": 1}
        if phase in ("Succeeded", "Failed") or (spec.get("suspend") and phase == "Suspended"):
            return None
        if spec.get("suspend"):
            saved = status.get("progress", {}).get("step", 0)
            point = {"step": saved, "time": now(), "path": f"jobs/{name}/checkpoints/{saved}"}
            kept = {"checkpoint": point} if saved else {}
            return {**status, **seen, **kept, "phase": "Suspended", "reason": "SuspendedByUser"}
        if spec.get("stop") and phase == "Running":
            return {**status, "phase": "Succeeded", "reason": "StoppedByUser", "artifact": artifact(name)}
        if not phase:
            return {**seen, "phase": "Preparing", "reason": "Preparing"}
        total = (spec.get("training") or {}).get("maxSteps", 100)
        if phase != "Running":
            attempt = {"number": status.get("attempt", 0) + 1, "startTime": now(), "job": f"{name}-1"}
            self._pod(job)
            begun = {"attempt": attempt["number"], "attempts": [*status.get("attempts", []), attempt]}
            return {**status, **seen, **begun, "phase": "Running", "reason": "Running"}
        step = min(status.get("progress", {}).get("step", 0) + STEPS_PER_BEAT, total)
        if status.get("progress", {}).get("step") == total:
            return {**status, "phase": "Succeeded", "reason": "Completed", "artifact": artifact(name)}
        return {**status, "progress": progress(step, total, status.get("attempt", 1))}

    def _pod(self, job: Object) -> None:
        known = {each["metadata"]["name"] for each in self.api.pods}
        made = pod(job)
        if made["metadata"]["name"] not in known:
            self.api.pods.append(made)


@contextmanager
def played() -> Iterator[Played]:
    """The cluster, while the block runs."""
    with served() as api:
        api.log += [f"step {at}/100000  loss {loss_at(at):.4f}" for at in range(1, 40)]
        cluster = Played(api)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
