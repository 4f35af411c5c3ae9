"""For how long the pods of a job held their GPUs, by what the API server shows of the pods while they exist."""

from __future__ import annotations

import time
from datetime import datetime
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from tests.e2e.conftest import Scene

POLL = 0.3


class PodTimes:
    """Watches the pods of a job for the time of a ``with``."""

    def __init__(self, scene: Scene, job: str) -> None:
        self._scene, self._job = scene, job
        self._times: dict[str, tuple[float, float]] = {}
        """Uid of a pod that has a node -> since when, and until when as far as it was seen."""
        self._stop = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def compare(self, gpu: dict[str, Any]) -> None:
        """Compare them with status.gpu of a job whose runs have ended; each of its pods has one GPU."""
        held = sum(until - since for since, until in self._times.values())
        print(f"{self._job}: {len(self._times)} pods held GPUs for {held:.1f} s; status.gpu: {gpu}")
        assert sum(gpu["uses"].values()) == gpu["seconds"]
        assert abs(gpu["seconds"] - held) <= max(0.01 * held, 2 * len(self._times))
        assert "run" not in gpu

    def _watch(self) -> None:
        while not self._stop.wait(POLL):
            for pod in self._scene.pods(self._job):
                conditions = pod["status"].get("conditions", [])
                scheduled = [c for c in conditions if c["type"] == "PodScheduled" and c["status"] == "True"]
                if not scheduled:
                    continue
                states = [container["state"] for container in pod["status"].get("containerStatuses", [])]
                ends = [state["terminated"]["finishedAt"] for state in states if "terminated" in state]
                over = bool(states) and len(ends) == len(states)
                until = max(map(_seconds, ends)) if over else time.time()
                self._times[pod["metadata"]["uid"]] = (_seconds(scheduled[0]["lastTransitionTime"]), until)


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
