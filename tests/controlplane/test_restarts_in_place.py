"""Restarts of the trainer in the same pods on a real API server: what the pod may report, what the status shows of it,
and what it counts, also for an operator that was away."""

from __future__ import annotations

import json
from typing import Any

from tests.controlplane.lane import Lane
from tests.controlplane.scene import Scene, result
from tests.controlplane.test_reports import progress
from tests.kube import Object, until


def restart(number: int, failures: int, **fields: Any) -> Object:
    """What the trainer reports of its newest restart."""
    plain = {"reason": "Killed", "exitCode": 137, "message": "Rank 1 was killed", "time": "2026-01-31T12:00:00Z"}
    return {"number": number, "failures": failures, **plain, **fields}


def restarts_allowed(pod: Object) -> int:
    """What attempt.json of the pod says."""
    facts = json.loads(pod["metadata"]["annotations"]["finetune-operator.io/attempt-facts"])
    allowed: int = facts["restarts"]
    return allowed


def test_restarts_are_shown_while_they_happen_and_count_in_the_end(scene: Scene, own: Lane) -> None:
    own.operator.start()
    scene.submit(backoffLimit=4)
    pod = scene.running()
    assert restarts_allowed(pod) == 4
    scene.report(pod, progress(activity="Loading", restart=restart(1, 1)))
    told = scene.tells("Restarting", "Restarting in place after Killed (restart 1 of attempt 1): Rank 1 was killed.")
    assert (told["phase"], told["attempt"]) == ("Running", 1)
    scene.report(pod, progress(startStep=37, restart=restart(1, 1)))
    words = "Training: attempt 1, restarted in place once (last after Killed), resumes from checkpoint step 37."
    until("it trains again", lambda: scene.status()["message"] == words)
    until("an event tells it", lambda: ("Warning", "Restarting") in scene.told())

    # Nobody sees the next restarts happen. The last of them is in the termination message alone.
    own.operator.kill()
    scene.report(pod, progress(activity="Loading", restart=restart(2, 2)))
    scene.kubelet.finish(pod, 70, json.dumps({**result(70), "restart": restart(3, 3)}))
    own.operator.start()
    second = scene.running(attempt=2)
    first = scene.status()["attempts"][0]
    assert (first["restarts"]["number"], first["failures"], first["exitCode"]) == (3, 4, 70)
    assert restarts_allowed(second) == 0
    assert len(scene.batches()) == 2
    scene.kubelet.finish(second, 70, json.dumps(result(70, attempt=2)))
    assert (
        "5 failures, those before restarts in the same pods included"
        in scene.reaches("Failed", "BackoffLimitExceeded")["message"]
    )


def test_a_micro_batch_that_was_halved_in_place_is_that_of_the_next_attempt(scene: Scene, own: Lane) -> None:
    own.operator.start()
    scene.submit(backoffLimit=0, training={"microBatchSize": 4})
    pod = scene.running()
    halved = restart(1, 0, reason="GPUOutOfMemory", exitCode=71, microBatchSize=2)
    scene.report(pod, progress(restart=halved))
    until("the entry has it", lambda: scene.status()["attempts"][0].get("microBatchSize") == 2)
    scene.kubelet.evict(pod, 75)
    second = scene.pod(attempt=2)
    facts = json.loads(second["metadata"]["annotations"]["finetune-operator.io/attempt-facts"])
    assert (facts["microBatchSize"], facts["restarts"]) == (2, 0)
