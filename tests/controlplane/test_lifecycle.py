"""How a job's life goes: real API server and Job controller, the real operator, pods played by script."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import ARTIFACT, FTJ, GARBAGE_SECONDS, METRICS, PREPARED, Scene, claim, result
from tests.kube import Object, until

pytestmark = pytest.mark.usefixtures("operator")

USER_ERRORS, FATAL, RETRIED = (65, 77), (72, 74), (70, 137, 1)
"""Some of each class: first and last of a rule, and a code that no rule names. Unit tests go through all."""


def end(scene: Scene, code: int, *, attempt: int = 1, message: str = "", why: str = "") -> Object:
    """Let an attempt run and end with a code; its pod."""
    pod = scene.running(attempt=attempt)
    scene.kubelet.finish(pod, code, message, why)
    return pod


def checkpoint(attempt: int, step: int) -> Object:
    path = f"jobs/job/checkpoints/{attempt}-x/{step}"
    return {"checkpoint": {"attempt": attempt, "step": step, "path": path, "time": "2026-01-31T12:00:00Z"}}


def test_success(scene: Scene, operator: OperatorProcess) -> None:
    created = scene.submit()
    name = f"job-{created['metadata']['uid'][:5]}-1"
    pod = scene.running()
    assert pod["metadata"]["name"].startswith(f"{name}-0-")
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded", "Completed")
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    ended = {"Accepted": "True", "Prepared": "True", "Running": "False", "Succeeded": "True", "Reconciling": "False"}
    assert conditions == ended
    assert status["artifact"] == ARTIFACT
    assert status["metrics"] == METRICS
    assert ARTIFACT["uri"] in status["message"]
    assert status["observedGeneration"] == 1
    [attempt] = status["attempts"]
    assert (attempt["number"], attempt["job"], attempt["state"]) == (1, name, "Ended")
    assert (attempt["reason"], attempt["exitCode"], attempt["failures"]) == ("Completed", 0, 0)
    assert attempt["startTime"] <= attempt["runningTime"] <= attempt["endTime"] == status["completionTime"]
    [preparing] = status["prepareAttempts"]
    assert status["startTime"] == preparing["startTime"]
    assert [job["metadata"]["name"] for job in scene.batches()] == [name]
    assert operator.health() == (200, "ok\n")


@pytest.mark.parametrize("told", ["termination message", "status"])
def test_a_job_that_is_done_already_ends_without_a_training_pod(scene: Scene, told: str) -> None:
    """Its prepare pod finds the artifact of an earlier job with the same spec."""
    found = {**result(0, kind="prepare"), "prepared": None, "artifact": ARTIFACT, "metrics": METRICS}
    scene.submit()
    pod = scene.preparing()
    if told == "status":
        scene.report(pod, {"result": {name: value for name, value in found.items() if value is not None}})
    scene.kubelet.finish(pod, 0, json.dumps(found) if told == "termination message" else "")
    status = scene.reaches("Succeeded", "Completed")
    assert (status["artifact"], status["metrics"]) == (ARTIFACT, METRICS)
    assert ARTIFACT["uri"] in status["message"]
    assert "attempt" not in status
    assert not scene.batches()


def test_success_is_known_without_a_termination_message(scene: Scene) -> None:
    """The trainer's own status.result says what was made."""
    scene.submit()
    pod = scene.running()
    scene.report(pod, {"result": result(0)})
    scene.kubelet.finish(pod, 0)
    assert scene.reaches("Succeeded")["artifact"] == ARTIFACT


def test_live_progress_stays_when_the_job_has_ended(scene: Scene) -> None:
    progress = {
        "attempt": 1,
        "activity": "Training",
        "step": 9,
        "totalSteps": 9,
        "percent": 100,
        "summary": "9/9 (100%)",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }
    scene.submit()
    pod = scene.running()
    scene.report(pod, {"progress": progress, **checkpoint(1, 7)})
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded")
    assert status["progress"] == progress
    assert status["attempts"][0]["checkpointStep"] == 7


@pytest.mark.parametrize("code", [*USER_ERRORS, *FATAL])
def test_what_another_attempt_would_not_mend_fails_at_once(scene: Scene, code: int) -> None:
    """With the trainer's words, whatever backoffLimit is."""
    said = result(code, f"trouble of kind {code}: do something about it")
    scene.submit(backoffLimit=5)
    end(scene, code, message=json.dumps(said))
    status = scene.reaches("Failed", said["reason"])
    assert status["message"] == said["message"]
    assert (status["attempts"][0]["exitCode"], status["attempts"][0]["failures"]) == (code, 0)
    assert status["completionTime"]
    assert len(scene.batches()) == 1


def test_a_more_telling_reason_of_the_trainer_is_kept(scene: Scene) -> None:
    scene.submit()
    end(scene, 74, message=json.dumps(result(74, "another job's folder", reason="WorkspaceOccupied")))
    assert scene.reaches("Failed", "WorkspaceOccupied")["message"] == "another job's folder"


def test_a_gpu_out_of_memory_halves_the_micro_batch(scene: Scene) -> None:
    """Uncounted, down to 1; the next attempt's facts carry it, the resolved job stays as it is."""
    scene.submit(backoffLimit=0, training={"microBatchSize": 4, "recompute": "all"})
    pods = [end(scene, 71, attempt=attempt) for attempt in (1, 2, 3)]
    status = scene.reaches("Failed", "GPUOutOfMemory")
    assert "micro-batch is 1 already" in status["message"]
    assert [attempt.get("microBatchSize") for attempt in status["attempts"]] == [None, 2, 1]
    assert [attempt["failures"] for attempt in status["attempts"]] == [0, 0, 0]
    notes = [pod["metadata"]["annotations"] for pod in pods]
    facts = [json.loads(note["finetune-operator.io/attempt-facts"]) for note in notes]
    assert [fact.get("microBatchSize") for fact in facts] == [None, 2, 1]
    assert len({note["finetune-operator.io/resolved-job"] for note in notes}) == 1


@pytest.mark.parametrize("code", RETRIED)
def test_what_may_go_better_next_time_is_tried_again(scene: Scene, code: int) -> None:
    scene.submit(backoffLimit=1)
    end(scene, code)
    scene.running(attempt=2)
    [first, second] = scene.status()["attempts"]
    assert (first["exitCode"], first["failures"], first["state"]) == (code, 1, "Ended")
    assert (second["number"], second["state"]) == (2, "Running")


def test_attempts_are_used_up(scene: Scene) -> None:
    """The end names how many there were and what the last one said."""
    scene.submit(backoffLimit=1)
    end(scene, 70, message=json.dumps(result(70)))
    end(scene, 76, attempt=2, message=json.dumps(result(76, "no step for an hour", attempt=2)))
    message = scene.reaches("Failed", "BackoffLimitExceeded")["message"]
    assert "2 attempts failed" in message
    assert "backoffLimit is 1" in message
    assert "Hung: no step for an hour" in message
    assert len(scene.batches()) == 2


def test_raising_the_limit_in_mid_run_counts(scene: Scene) -> None:
    scene.submit(backoffLimit=0)
    pod = scene.running()
    scene.kube.patch(FTJ, "job", {"spec": {"backoffLimit": 1}}, scene.namespace)
    scene.kubelet.finish(pod, 70)
    scene.running(attempt=2)
    assert scene.status()["observedGeneration"] == 2


def test_what_was_killed_for_memory_names_the_limit(scene: Scene) -> None:
    scene.submit(backoffLimit=0)
    end(scene, 137, why="OOMKilled")
    status = scene.reaches("Failed", "BackoffLimitExceeded")
    assert status["attempts"][0]["reason"] == "OutOfMemory"
    assert "limit of 6Gi" in status["message"]
    assert "spec.resources.memory" in status["message"]


@pytest.mark.parametrize("code", [75, 143, 137, 0])
def test_a_drain_is_not_the_jobs_fault(scene: Scene, code: int) -> None:
    """Whether the trainer could save (75) or was killed; done before it was asked to end is done."""
    scene.submit(backoffLimit=0)
    pod = scene.running()
    scene.kubelet.evict(pod, code, json.dumps(result(code)) if code == 0 else "")
    if code == 0:
        scene.reaches("Succeeded")
        return
    scene.running(attempt=2)
    first = scene.status()["attempts"][0]
    assert (first["reason"], first["failures"]) == ("Disrupted", 0)


def test_saved_on_its_own_is_a_disruption_too(scene: Scene) -> None:
    scene.submit(backoffLimit=0)
    end(scene, 75)
    scene.running(attempt=2)
    assert scene.status()["attempts"][0]["failures"] == 0


def test_disrupted_without_end_is_no_progress(scene: Scene) -> None:
    scene.submit(backoffLimit=0)
    for attempt in (1, 2, 3):
        end(scene, 75, attempt=attempt)
    status = scene.reaches("Failed", "NoProgress")
    assert "spec.checkpoints" in status["message"]
    assert len(status["attempts"]) == 3


def test_disrupted_with_newer_checkpoints_goes_on(scene: Scene) -> None:
    scene.submit(backoffLimit=0)
    for attempt in (1, 2, 3, 4):
        pod = scene.running(attempt=attempt)
        scene.report(pod, checkpoint(attempt, 10 * attempt))
        scene.kubelet.finish(pod, 75)
    scene.running(attempt=5)
    assert [a["stalled"] for a in scene.status()["attempts"][:4]] == [0, 0, 0, 0]


def test_a_job_deleted_while_it_starts_is_made_again(scene: Scene) -> None:
    scene.submit()
    before = scene.pod()
    [batch] = scene.batches()
    scene.kube.delete("Job", batch["metadata"]["name"], scene.namespace)
    until(
        "another pod",
        lambda: [p for p in scene.kubelet.pods("job", 1) if p["metadata"]["uid"] != before["metadata"]["uid"]],
    )
    scene.running()
    [attempt] = scene.status()["attempts"]
    assert (attempt["number"], attempt["failures"]) == (1, 0)


def test_a_job_deleted_while_it_runs_counts_as_failed(scene: Scene) -> None:
    """The next attempt waits until the last pod of the deleted attempt is gone."""
    scene.submit(backoffLimit=1)
    pod = scene.running()
    [batch] = scene.batches()
    scene.kube.delete("Job", batch["metadata"]["name"], scene.namespace)
    until("its Job is gone", lambda: not scene.batches())
    scene.reaches("Starting", "Ending")
    scene.kubelet.remove(pod)
    scene.running(attempt=2)
    first = scene.status()["attempts"][0]
    assert (first["reason"], first["failures"]) == ("JobDeleted", 1)


@pytest.mark.parametrize("propagation", ["Background", "Foreground"])
def test_a_job_deleted_in_mid_run_leaves_nothing(scene: Scene, propagation: str) -> None:
    scene.submit()
    scene.running()
    scene.kube.delete(FTJ, "job", scene.namespace, propagation=propagation)
    until(
        "its pod is asked to end",
        lambda: [p for p in scene.kubelet.pods("job", 1) if "deletionTimestamp" in p["metadata"]],
        timeout=GARBAGE_SECONDS,
    )
    scene.kubelet.remove_all("job")
    kinds = ("Job", "Pod", "Service", FTJ)
    assert until("all is gone", lambda: not any(scene.kube.list(kind, scene.namespace) for kind in kinds))


def test_a_job_made_anew_under_the_same_name_is_another(scene: Scene) -> None:
    """While pods of the first still end, too."""
    first = scene.submit()
    old = scene.running()
    scene.kube.delete(FTJ, "job", scene.namespace)
    second = scene.submit()
    scene.prepared()
    new = until(
        "the second has a pod",
        lambda: [p for p in scene.kubelet.pods("job", 1) if second["metadata"]["uid"][:5] in p["metadata"]["name"]],
    )[0]
    scene.kubelet.run(new)
    scene.reaches("Running")
    scene.kubelet.finish(old, 65, json.dumps(result(65)))
    scene.kubelet.remove_all("job")
    until("the first's Job is gone", lambda: len(scene.batches()) == 1, timeout=GARBAGE_SECONDS)
    scene.kubelet.finish(new, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded")
    assert first["metadata"]["uid"][:5] not in status["attempts"][0]["job"]
    assert len(status["attempts"]) == 1


def test_a_wiped_status_is_found_again(scene: Scene) -> None:
    """From its Job; none is created beside it."""
    scene.submit()
    pod = scene.running()
    scene.kube.patch(FTJ, "job", {"status": None}, scene.namespace, part="status")
    status = scene.reaches("Running")
    assert [a["number"] for a in status["attempts"]] == [1]
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    assert len(scene.batches()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resources": {"gpusPerNode": 3}}, "8, which 3 GPUs cannot share evenly: use a multiple of 3"),
        ({"datasets": [{"source": "pvc://models/" + "x" * 1000, "format": "openai"}] * 64}, "at most 65536 fit"),
    ],
    ids=["numbers that do not fit together", "more than fits into a Job"],
)
def test_what_the_server_can_not_check_fails_before_anything_is_made(
    scene: Scene, changes: dict[str, Any], words: str
) -> None:
    scene.submit(**changes)
    status = scene.reaches("Failed", "InvalidSpec")
    assert words in status["message"]
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    assert (conditions["Accepted"], conditions["Failed"]) == ("False", "True")
    assert not status.get("attempts")
    assert not scene.batches()
    assert not scene.kube.find("RoleBinding", "finetune-trainer", scene.namespace)


def test_the_largest_job_that_is_accepted_travels_whole(scene: Scene) -> None:
    datasets = [{"source": f"pvc://models/{number}-" + "x" * 960, "format": "openai"} for number in range(62)]
    scene.submit(datasets=datasets)
    pod = scene.running()
    resolved = pod["metadata"]["annotations"]["finetune-operator.io/resolved-job"]
    assert json.loads(resolved)["datasets"] == datasets
    assert 60_000 < len(resolved) <= 65_536


def test_an_account_of_the_users_own_may_report_progress(scene: Scene) -> None:
    """For workload identity. The operator gives it the one right it needs, and makes no other account."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mine"}}
    scene.kube.create(account, scene.namespace)
    scene.submit(resources={"serviceAccountName": "mine"})
    pod = scene.running()
    assert pod["spec"]["serviceAccountName"] == "mine"
    scene.report(pod, checkpoint(1, 5))
    assert scene.status()["checkpoint"]["step"] == 5
    assert not scene.kube.find("ServiceAccount", "finetune-trainer", scene.namespace)


def test_children_carry_our_labels_and_none_of_the_jobs_own(scene: Scene) -> None:
    """Else what looks after the FineTuneJob, as Argo CD does by a label, would take them for its own."""
    foreign = {"app.kubernetes.io/instance": "argo-app", "team": "nlp"}
    scene.submit(metadata={"labels": foreign, "annotations": {"note": "private"}})
    pod = scene.pod()
    made = [
        pod,
        *scene.batches(),
        *(scene.kube.get(k, "finetune-trainer", scene.namespace) for k in ("ServiceAccount", "RoleBinding")),
    ]
    for child in made:
        text = json.dumps(child["metadata"])
        assert not any(word in text for word in (*foreign, "argo-app", "private"))
        assert child["metadata"]["labels"]["finetune-operator.io/managed"] == "true"


def test_events_tell_the_story_once(scene: Scene, operator: OperatorProcess) -> None:
    """Also when the same happens twice to an attempt; and none is too much for the operator's rights."""
    before = operator.log.stat().st_size
    scene.submit()
    scene.kubelet.find_no_node(scene.pod(), "no node fits")
    scene.reaches("Starting", "Unschedulable")
    for why in ("ErrImagePull", "", "ErrImagePull"):
        scene.kubelet.hold(scene.pod(), why or "ContainerCreating", "not found")
        scene.reaches("Starting", "ImagePullFailed" if why else "Starting")
    end(scene, 65, message=json.dumps(result(65)))
    scene.reaches("Failed")

    def told() -> list[Object]:
        return [e for e in scene.kube.list("Event", scene.namespace) if e["involvedObject"]["kind"] == FTJ]

    until("the last Event", lambda: any(event["reason"] == "InvalidData" for event in told()))
    assert sorted((e["type"], e["reason"], e["count"]) for e in told()) == [
        ("Normal", "Fetching", 1),
        ("Normal", "Running", 1),
        ("Normal", "Starting", 1),
        ("Normal", "Starting", 1),
        ("Warning", "ImagePullFailed", 1),
        ("Warning", "InvalidData", 1),
        ("Warning", "Unschedulable", 1),
    ]
    assert "event not posted" not in operator.said(before)


def test_bad_data_fails_before_a_gpu_is_asked_for(scene: Scene) -> None:
    said = result(65, "train.jsonl:7: output is empty", kind="prepare")
    scene.submit(backoffLimit=5)
    scene.kubelet.finish(scene.preparing(), 65, json.dumps(said))
    status = scene.reaches("Failed", "InvalidData")
    assert status["message"] == said["message"]
    [condition] = [c for c in status["conditions"] if c["type"] == "Prepared"]
    assert (condition["status"], condition["reason"]) == ("False", "InvalidData")
    assert not status.get("attempts")
    assert not scene.batches()


def test_preparing_holds_no_gpu_and_says_how_far_it_is(scene: Scene) -> None:
    created = scene.submit()
    pod = scene.preparing()
    assert pod["metadata"]["name"].startswith(f"job-{created['metadata']['uid'][:5]}-p1-0-")
    [container] = pod["spec"]["containers"]
    assert set(container["resources"]["limits"]) == {"memory"}
    for activity in ("Validating", "Tokenizing"):
        scene.report(pod, {"progress": preparing_progress(activity)})
        status = scene.reaches("Preparing", activity)
        [condition] = [c for c in status["conditions"] if c["type"] == "Prepared"]
        assert (condition["status"], condition["reason"]) == ("Unknown", activity)
    scene.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
    status = scene.reaches("Starting", attempt=1)
    assert status["prepared"] == {**PREPARED, "evaluationRows": 0, "invalidRows": 0, "truncatedRows": 0}
    [condition] = [c for c in status["conditions"] if c["type"] == "Prepared"]
    assert condition["status"] == "True"
    assert "1,200 rows" in condition["message"]


def preparing_progress(activity: str) -> Object:
    return {
        "attempt": 1,
        "activity": activity,
        "step": 1,
        "totalSteps": 9,
        "percent": 11,
        "summary": f"{activity} 1/9 (11%)",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }


def test_preparing_is_tried_again_by_the_rules_of_training_and_counted_apart(scene: Scene) -> None:
    scene.submit(backoffLimit=1)
    scene.kubelet.finish(scene.preparing(), 69)
    scene.kubelet.evict(scene.preparing(attempt=2), 143)
    scene.kubelet.finish(scene.preparing(attempt=3), 0, json.dumps(result(0, attempt=3, kind="prepare")))
    scene.reaches("Starting")
    end(scene, 70)
    scene.running(attempt=2)
    status = scene.status()
    ends = [(entry["reason"], entry["failures"]) for entry in status["prepareAttempts"]]
    assert ends == [("SourceUnreachable", 1), ("Disrupted", 1), ("Completed", 1)]
    assert status["attempts"][0]["failures"] == 1


def test_a_status_wiped_while_it_prepares_is_found_again(scene: Scene) -> None:
    scene.submit()
    pod = scene.preparing()
    scene.kube.patch(FTJ, "job", {"status": None}, scene.namespace, part="status")
    scene.reaches("Preparing", "Fetching")
    scene.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
    scene.reaches("Starting")
    scene.running()
    assert len(scene.batches(kind="prepare")) == 1


@pytest.mark.parametrize("retain", [True, False])
def test_a_workspace_is_made_once_and_goes_with_the_job_only_if_told_to(scene: Scene, retain: bool) -> None:
    spec = {"claimName": None, "claim": {"size": "5Gi"}, "retain": retain}
    created = scene.submit(workspace=spec)
    scene.preparing()
    claim = scene.kube.get("PersistentVolumeClaim", "job-workspace", scene.namespace)
    assert claim["spec"]["resources"]["requests"] == {"storage": "5Gi"}
    owners = [owner["uid"] for owner in claim["metadata"].get("ownerReferences", [])]
    assert owners == ([] if retain else [created["metadata"]["uid"]])
    labels = {"labels": {"changed-by": "somebody"}}
    scene.kube.patch("PersistentVolumeClaim", "job-workspace", {"metadata": labels}, scene.namespace)
    pod = scene.running()
    volumes = [volume.get("persistentVolumeClaim") for volume in pod["spec"]["volumes"]]
    assert {"claimName": "job-workspace"} in volumes
    claim = scene.kube.get("PersistentVolumeClaim", "job-workspace", scene.namespace)
    assert claim["metadata"]["labels"]["changed-by"] == "somebody"


def test_a_claim_of_somebody_elses_is_no_workspace(scene: Scene) -> None:
    """It is named, and left alone; the job continues once it is gone."""
    scene.kube.create(claim("job-workspace"), scene.namespace)
    scene.submit(workspace={"claimName": None, "claim": {"size": "5Gi"}})
    status = scene.reaches("Preparing", "PodsRejected")
    assert "job-workspace exists, but the operator did not create it" in status["message"]
    assert not scene.batches(kind="prepare")
