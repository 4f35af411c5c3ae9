"""What a job shows of its trainer's reports on a real API server: its own progress, and that reports are missed."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import FTJ, METRICS, Scene, result
from tests.kube import Object, until


def progress(attempt: int = 1, ago: float = 0, **fields: Any) -> Object:
    """What the trainer reports, so many seconds ago."""
    moment = datetime.now(UTC) - timedelta(seconds=ago)
    plain = {
        "attempt": attempt,
        "kind": "train",
        "step": 40,
        "totalSteps": 80,
        "percent": 50,
        "summary": "40/80 (50%)",
        "loss": "0.5",
        "eta": "1m",
        "etaSeconds": 60,
        "lastUpdateTime": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {"progress": {**plain, **fields}}


CURVES = {"loss": "1;10*4;2.3457,1.9,,.985", "evalLoss": "1;20*2;2.1,1.1"}
LONGER = {"loss": "1;10*4,20;2.3457,1.9,,.985,.5", "evalLoss": "1;20*3;2.1,1.1,.9"}


@pytest.mark.usefixtures("operator")
def test_each_attempt_shows_its_own_progress_alone(scene: Scene) -> None:
    scene.submit()
    preparing = scene.preparing()
    fetched = progress(kind="prepare", activity="Tokenizing", summary="Tokenizing 1/1 MiB (100%)")
    scene.report(preparing, fetched)
    scene.kubelet.finish(preparing, 0, json.dumps(result(0, kind="prepare")))
    first = scene.kubelet.pod("job")
    assert "progress" not in scene.status(), "it is removed before the child job is created"

    scene.kubelet.run(first)
    scene.reaches("Running")
    scene.report(first, progress(startStep=0, curves=CURVES))
    assert scene.columns()["Progress"] == "40/80 (50%)"
    scene.kubelet.evict(first, 75)
    second = scene.pod(attempt=2)
    assert scene.status()["progress"] == {"curves": CURVES}, "they are of all attempts"
    assert not {"Progress", "Loss", "ETA"} & set(scene.columns())

    scene.kubelet.run(second)
    scene.reaches("Running", attempt=2)
    scene.report(second, progress(2, step=37, startStep=37, summary="37/80 (46%)", curves=LONGER))
    words = "Training: attempt 2 resumes from checkpoint step 37."
    until("it says where it resumed", lambda: scene.status()["message"] == words)
    done = {**result(0, attempt=2), "metrics": {**METRICS, "steps": "80", "finalLoss": "0.25"}}
    scene.kubelet.finish(second, 0, json.dumps(done))
    scene.reaches("Succeeded")
    until("the progress is complete", lambda: scene.status()["progress"]["step"] == 80)
    shown = scene.columns()
    assert (shown["Progress"], shown["Loss"], shown["ETA"]) == ("80/80 (100%)", "0.2500", "0s")
    assert scene.status()["progress"]["curves"] == LONGER


@pytest.mark.usefixtures("operator")
def test_a_job_that_failed_shows_no_activity_and_no_time_to_the_end(scene: Scene) -> None:
    scene.submit("preparing")
    pod = scene.preparing("preparing")
    scene.report(pod, progress(kind="prepare", activity="Fetching", summary="Fetching 1/1 MiB (0%)"), "preparing")
    scene.kubelet.finish(pod, 65, json.dumps(result(65, kind="prepare")))
    scene.reaches("Failed", name="preparing")
    until("it fetches no more", lambda: "progress" not in scene.status("preparing"))

    scene.submit("training")
    pod = scene.running("training")
    scene.report(pod, progress(curves=CURVES), "training")
    scene.kubelet.finish(pod, 72, json.dumps(result(72)))
    scene.reaches("Failed", name="training")
    until("it has no time to the end", lambda: "eta" not in scene.status("training")["progress"])
    assert scene.status("training")["progress"]["summary"] == "40/80 (50%)"
    assert scene.status("training")["progress"]["curves"] == CURVES
    scene.kube.patch(FTJ, "training", {"spec": {"retry": 1}}, scene.namespace)
    until("it is tried again", lambda: scene.status("training")["progress"] == {"curves": CURVES})


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize("kind", ["prepare", "train"])
def test_missed_reports_are_told_until_a_report_comes(scene: Scene, kind: str) -> None:
    scene.submit()
    # The operator measures from the start of the pods at the latest.
    pod, phase = (scene.preparing(), "Preparing") if kind == "prepare" else (scene.running(), "Running")
    old = datetime.now(UTC) - timedelta(hours=1)
    entries, number = ("prepareAttempts", "prepareAttempt") if kind == "prepare" else ("attempts", "attempt")
    status = scene.status()
    assert status[number] == 1
    aged = [{**status[entries][0], "runningTime": old.strftime("%Y-%m-%dT%H:%M:%SZ")}]
    meta = scene.job()["metadata"]
    head: Object = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": FTJ}
    head["metadata"] = {name: meta[name] for name in ("name", "namespace", "uid")}
    scene.kube.apply({**head, "status": {**status, entries: aged}}, manager="finetune-operator", part="status")
    told = scene.reaches(phase, "NotReporting")
    conditions = [c["message"] for c in told["conditions"] if c["reason"] == "NotReporting"]
    for message in (told["message"], *conditions):
        assert "No report since" in message
        assert "ServiceAccount finetune-trainer and RoleBinding finetune-trainer" in message
    assert len(conditions) == 1
    activity = "Training" if kind == "train" else "Fetching"
    scene.report(pod, progress(kind=kind, activity=activity))
    until("it reports again", lambda: scene.status()["reason"] != "NotReporting")
    assert "No report" not in scene.status()["message"]


@pytest.mark.usefixtures("operator")
def test_a_wiped_status_says_only_what_is_known(scene: Scene) -> None:
    scene.submit()
    pod = scene.running()
    scene.report(pod, progress())
    [preparing] = scene.batches(kind="prepare")
    time.sleep(1.1)  # times count seconds
    scene.kubelet.evict(pod, 75)
    second = scene.running(attempt=2)
    scene.kube.patch(FTJ, "job", {"status": None}, scene.namespace, part="status")
    status = scene.reaches("Running", attempt=2)
    assert status["startTime"] == preparing["metadata"]["creationTimestamp"]
    assert status["message"] == "Training: attempt 2."
    scene.report(second, progress(2, startStep=37))
    words = "Training: attempt 2 resumes from checkpoint step 37."
    until("it says where it resumed", lambda: scene.status()["message"] == words)


def test_a_child_job_whose_labels_somebody_removed_is_not_taken_for_deleted(
    scene: Scene, operator: OperatorProcess
) -> None:
    scene.submit()
    pod = scene.running()
    [child] = scene.batches()
    name = child["metadata"]["name"]
    gone = {label: None for label in child["metadata"]["labels"] if label.startswith("finetune-operator.io/")}
    scene.kube.patch("Job", name, {"metadata": {"labels": gone}}, scene.namespace)
    until("the message says so", lambda: "kubectl label job" in scene.status()["message"])
    assert (scene.status()["phase"], scene.status()["attempt"]) == ("Running", 1)
    scene.kube.patch("Job", name, {"metadata": {"labels": child["metadata"]["labels"]}}, scene.namespace)
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded")
    assert [entry["reason"] for entry in status["attempts"]] == ["Completed"]
    assert operator.alive
