"""The SDK's scenario on a cluster that is played: an operator that trains in no time. tests/e2e/test_sdk.py plays
it in a real cluster, and tests/trainer/test_sdk.py on this machine."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetune import Job, TrainerClient
from finetune_api.curves import encode
from finetune_cli import paths

from tests import sdk_scenario
from tests.kube import until
from tests.sdk_scenario import NAME, STEPS
from tests.unit.cli.job_server import JOBS, NAMESPACE, PODS, Store, kubeconfig, served

STEP_SECONDS = 0.01
BEGUN = "2026-01-31T12:00:00Z"


def condition(kind: str, reason: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": BEGUN}


class Operator:
    """Trains each job that is created."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lines: list[bytes] = []
        self._ended = threading.Event()
        store.on_create = self.train

    def train(self, name: str) -> None:
        threading.Thread(target=self._train, args=(name,), daemon=True).start()

    def _train(self, name: str) -> None:
        job = self._store.objects[JOBS][name]
        pod = f"{name}-{job['metadata']['uid'][:5]}-1-0"
        labels = {paths.LABEL_JOB: name, paths.LABEL_KIND: "train", paths.LABEL_ATTEMPT: "1"}
        self._store.logs[pod] = self._log
        self._pod(pod, labels, {"running": {"startedAt": BEGUN}}, "Running")
        losses = [2.5 - 0.1 * step for step in range(STEPS)]
        for step, loss in enumerate(losses, start=1):
            time.sleep(STEP_SECONDS)
            self._lines.append(f"2026-01-31T12:00:{step:02}.5Z step {step}/{STEPS}  loss {loss:.4f}\n".encode())
            self._status(
                name,
                phase="Running",
                progress={
                    "attempt": 1,
                    "kind": "train",
                    "step": step,
                    "totalSteps": STEPS,
                    "percent": 100 * step // STEPS,
                    "summary": f"{step}/{STEPS} ({100 * step // STEPS}%)",
                    "curves": {"loss": encode(list(enumerate(losses[:step], start=1)))},
                    "lastUpdateTime": BEGUN,
                },
            )
        self._ended.set()
        self._pod(pod, labels, {"terminated": {"exitCode": 0}}, "Succeeded")
        artifact = {
            "uri": f"pvc://workspace/jobs/{name}/artifact",
            "kind": "adapter",
            "digest": "sha256:0",
            "sizeBytes": 1,
        }
        metrics = {"steps": str(STEPS), "finalLoss": f"{losses[-1]:.5f}"}
        done = condition("Succeeded", "Completed")
        self._status(name, phase="Succeeded", conditions=[done], artifact=artifact, metrics=metrics)

    def _status(self, name: str, **status: Any) -> None:
        job = copy.deepcopy(self._store.objects[JOBS][name])
        job["status"] = {**job.get("status", {}), "observedGeneration": 1, **status}
        self._store.put(JOBS, job)

    def _pod(self, name: str, labels: dict[str, str], state: dict[str, Any], phase: str) -> None:
        head = {"name": name, "namespace": NAMESPACE, "uid": name, "labels": labels, "creationTimestamp": BEGUN}
        container = {"name": paths.CONTAINER, "state": state}
        self._store.put(PODS, {"metadata": head, "status": {"phase": phase, "containerStatuses": [container]}})

    def _log(self, since: str | None) -> Iterator[bytes]:
        at = 0
        while True:
            over = self._ended.is_set()
            new, at = self._lines[at:], len(self._lines)
            yield b"".join(line for line in new if since is None or line.decode() >= since.removesuffix("Z"))
            if over:
                return
            time.sleep(STEP_SECONDS)


def test_a_wait_outlasts_a_restart_of_the_api_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is away, and then refuses for a moment what it allowed."""
    monkeypatch.setattr("finetune_cli.cluster.client.TRIES", 1)
    monkeypatch.setattr("finetune_cli.cluster.refusals.PAUSE_SECONDS", 0.01)
    store, came = Store(), list[Job]()
    job = {
        "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": "u", "generation": 1},
        "spec": {"stage": "sft", "model": {"source": "hf://a/b"}},
        "status": {"phase": "Running", "observedGeneration": 1},
    }
    store.put(JOBS, job)
    config = tmp_path / "kubeconfig"
    with served(store) as url:
        config.write_text(kubeconfig(url))
        client = TrainerClient(kubeconfig=str(config))
        waiting = threading.Thread(
            target=lambda: came.append(client.wait_for_job_status(NAME, timeout=60, polling_interval=0.01)), daemon=True
        )
        waiting.start()
        until("it is watched", lambda: len(store.asked) > 1)
    waiting.join(0.1)  # while the API server is away
    store.refusals = 5
    store.put(JOBS, {**copy.deepcopy(job), "status": {"phase": "Succeeded", "observedGeneration": 1}})
    with served(store, int(url.rpartition(":")[2])):
        waiting.join(30)
    assert [each.status for each in came] == ["Succeeded"]
    assert store.refusals == 0


def test_a_notebook_trains_in_a_cluster(tmp_path: Path) -> None:
    store = Store()
    Operator(store)
    config = tmp_path / "kubeconfig"
    with served(store) as url:
        config.write_text(kubeconfig(url))
        client = TrainerClient(kubeconfig=str(config))
        sdk_scenario.play(client, "pvc://models/tiny", "pvc://models/data/rows.jsonl=openai", timeout=60)
    assert NAME not in store.objects[JOBS]
