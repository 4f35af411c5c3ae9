"""The main job on a real Kubernetes: trained, refused, drained and deleted, with images and chart as built."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_trainer.workspace.files import digest_folder

from examples.demo import volume
from examples.demo.kubectl import Pod
from tests.e2e.conftest import BROKEN_ROW, CRASH, LONG, POD_MINUTES, ROWS, TRAINING, Scene
from tests.e2e.pod_times import PodTimes
from tests.kube import until

SECRET = "hunter2-is-not-to-be-seen"


def test_a_job_is_trained_and_its_status_tells_all(scene: Scene, tmp_path: Path) -> None:
    scene.kubectl("delete", "secret", "token", "--ignore-not-found")
    scene.kubectl("create", "secret", "generic", "token", f"--from-literal=key={SECRET}")
    job = scene.job("trained")
    job["spec"]["resources"]["env"] = [{"name": "TOKEN", "secretKeyRef": {"name": "token", "key": "key"}}]
    scene.kubectl.apply(job)
    status = scene.reaches("trained", "Succeeded", "Failed")
    assert status["phase"] == "Succeeded", status["message"]
    assert status["artifact"]["uri"] == "pvc://workspace/jobs/trained/artifact"
    assert status["artifact"]["digest"].startswith("sha256:")
    assert float(status["metrics"]["trainLoss"]) > 0
    assert status["progress"]["step"] == status["progress"]["totalSteps"] == 20
    assert status["attempt"] == status["prepareAttempt"] == 1
    assert status["prepared"]["rows"] == ROWS
    assert status["startTime"] < status["completionTime"]
    logs = scene.kubectl("logs", "-l", "finetune-operator.io/job=trained", "--tail=-1")
    everything = json.dumps(scene.kube.get("FineTuneJob", "trained", scene.namespace)) + logs
    assert SECRET not in everything
    shown = scene.kubectl("get", "ftj", "trained")
    assert "20/20 (100%)" in shown
    the_command_line_reads_its_workspace(scene, tmp_path, status["artifact"])

    # Deleted and applied again, the workspace remembers: no training pod, the same artifact.
    scene.kubectl("delete", "ftj", "trained", "--timeout=60s")
    scene.kubectl.apply(job)
    again = scene.reaches("trained", "Succeeded", "Failed")
    assert again["phase"] == "Succeeded", again["message"]
    assert again["artifact"] == status["artifact"]
    assert again["metrics"] == status["metrics"]
    assert again["prepareAttempt"] == 1
    shows = partial(scene.kubectl, "get", "ftj", "trained")
    until("it shows what the metrics say", lambda: "20/20 (100%)" in shows(), POD_MINUTES, every=0.5)
    assert f"{float(again['metrics']['finalLoss']):.4f}" in shows()
    assert not again.get("attempts")
    uid = scene.kube.get("FineTuneJob", "trained", scene.namespace)["metadata"]["uid"]
    jobs = scene.kube.list("Job", scene.namespace, "finetune-operator.io/job=trained,finetune-operator.io/kind=train")
    assert not [made for made in jobs if made["metadata"]["ownerReferences"][0]["uid"] == uid]

    # With another spec, the results stay as they are. Only the prepare pod runs.
    scene.kubectl("delete", "ftj", "trained", "--timeout=60s")
    job["spec"]["training"]["learningRate"] = 0.02
    scene.kubectl.apply(job)
    refused = scene.reaches("trained", "Succeeded", "Failed")
    assert refused["reason"] == "WorkspaceOccupied", refused["message"]
    assert not refused.get("attempts")


def the_command_line_reads_its_workspace(scene: Scene, folder: Path, artifact: dict[str, Any]) -> None:
    """Every verb that runs a pod, as a user with the role edit, in a namespace that enforces restricted pods."""
    user = "scientist"
    scene.kubectl("create", "rolebinding", user, "--clusterrole=edit", f"--user={user}")
    config = yaml.safe_load(scene.kube.kubeconfig.read_text())
    for entry in config["users"]:
        entry["user"]["as"] = user
    own = folder / "kubeconfig"
    own.write_text(yaml.safe_dump(config))

    def finetune(*words: str) -> str:
        command = [sys.executable, "-m", "finetune_cli", *words, "--namespace", scene.namespace]
        environment = {**scene.kubectl.env, "KUBECONFIG": str(own)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=POD_MINUTES)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        assert artifact["digest"] in finetune("fetch", "trained", "-o", str(folder / "artifact"))
        assert digest_folder(folder / "artifact") == (artifact["digest"], artifact["sizeBytes"])
        report = finetune("report", "trained")
        assert "What is trained is in [[ ]]." in report
        assert json.loads(finetune("report", "trained", "-o", "json"))["splits"]["train"]["rows"] == ROWS
        points = json.loads(finetune("plot", "trained", "--full", "-o", "json"))["trained"]
        assert [step for step, _ in points] == list(range(1, 21))
        answers = json.loads(
            finetune("ask", "trained", "say alpha 2", "say beta 1", "--max-new-tokens", "8", "-o", "json")
        )
        assert [answer["question"] for answer in answers] == ["say alpha 2", "say beta 1"]
        assert "step 20/20  loss" in finetune("logs", "trained", "--kind", "train")
        left = partial(scene.kube.list, "Pod", scene.namespace, "finetune-operator.io/reads=trained")
        until("no pod of the command line is left", lambda: not left(), 30)
    finally:
        scene.kubectl("delete", "rolebinding", user)


EXAMPLES = {"sft-lora": "adapter", "sft-qlora": "model"}
"""The trainer alone runs all of them (tests/trainer/test_examples.py), and the API server takes all of them; these
differ in what pods need."""


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run_as_they_stand(scene: Scene, example: str) -> None:
    """On a tiny model under the real one's name, and for fewer steps; nothing else is changed."""
    job = yaml.safe_load((volume.CHECKOUT / "examples" / f"{example}.yaml").read_text())
    job["metadata"]["namespace"] = scene.namespace
    job["spec"]["training"].pop("epochs", None)
    job["spec"]["training"]["maxSteps"] = 4
    scene.kubectl.apply(job)
    status = scene.reaches(example, "Succeeded", "Failed")
    assert status["phase"] == "Succeeded", status["message"]
    assert status["artifact"]["kind"] == EXAMPLES[example]


def test_a_users_error_ends_the_job_in_the_trainers_words(scene: Scene) -> None:
    data = [{"source": "pvc://models/data/broken.jsonl", "format": "openai"}]
    scene.kubectl.apply(
        scene.job("broken-row", datasets=data), scene.job("no-model", model={"source": "pvc://models/no"})
    )
    status = scene.reaches("broken-row", "Failed", "Succeeded")
    assert status["reason"] == "InvalidData"
    assert f"broken.jsonl:{BROKEN_ROW}" in status["message"]
    assert status["prepareAttempt"] == 1
    assert len(scene.pods("broken-row", "prepare")) == 1
    assert not scene.pods("broken-row"), "no GPU is held for data that can't be trained on"
    status = scene.reaches("no-model", "Failed", "Succeeded")
    assert status["reason"] == "NotFound"
    assert "pvc://models/no" in status["message"]


@pytest.mark.parametrize("propagation", ["Background", pytest.param("Foreground", marks=pytest.mark.sweep)])
def test_a_job_deleted_while_it_runs_is_gone_at_once(scene: Scene, propagation: str) -> None:
    """Within 30 s, although its pods would have ten minutes to save: nobody wants what they would save."""
    name = f"deleted-{propagation.lower()}"
    job = scene.job(name, **LONG)
    job["spec"]["resources"]["terminationGracePeriodSeconds"] = 600
    scene.kubectl.apply(job)
    scene.trains(name)
    began = time.monotonic()
    scene.kube.delete("FineTuneJob", name, scene.namespace, propagation=propagation)
    labels = f"finetune-operator.io/job={name}"
    until(
        "job, Job and pod are gone",
        lambda: (
            scene.kube.find("FineTuneJob", name, scene.namespace) is None
            and not scene.kube.list("Job", scene.namespace, labels)
            and not scene.kube.list("Pod", scene.namespace, labels)
        ),
        timeout=30,
    )
    assert time.monotonic() - began < 40


def suspended(scene: Scene, name: str) -> dict[str, Any]:
    """The status of a job that runs, once it is suspended: all of its runs have ended."""
    scene.kube.patch("FineTuneJob", name, {"spec": {"suspend": True}}, scene.namespace)
    status = scene.reaches(name, "Suspended", "Failed")
    assert status["phase"] == "Suspended", status["message"]
    return status


def test_a_drained_pod_is_followed_by_one_that_goes_on_where_it_was(scene: Scene) -> None:
    job = scene.job("drained", **LONG, backoffLimit=0)
    with PodTimes(scene, "drained") as times:
        scene.kubectl.apply(job)
        until("a checkpoint is reported", lambda: scene.status("drained").get("checkpoint"), POD_MINUTES, every=0.5)
        (pod,) = scene.pods("drained")
        scene.kube.call(
            "POST",
            f"api/v1/namespaces/{scene.namespace}/pods/{pod['metadata']['name']}/eviction",
            {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod["metadata"]["name"]}},
        )
        until("the second attempt runs", lambda: scene.status("drained").get("attempt") == 2, POD_MINUTES, every=0.5)
        status = scene.status("drained")
        first = status["attempts"][0]
        assert first["reason"] == "Disrupted", first
        saved = first["checkpointStep"]

        def resumed() -> dict[str, Any] | None:
            progress = scene.status("drained").get("progress", {})
            return progress if progress.get("attempt") == 2 and progress.get("step", 0) > saved else None

        until("the second attempt continues beyond the checkpoint", resumed, POD_MINUTES, every=0.5)
        logs = scene.kubectl(
            "logs", "-l", "finetune-operator.io/job=drained,finetune-operator.io/attempt=2", "--tail=-1"
        )
        assert f"checkpoint-{saved}" in logs
        gpu = suspended(scene, "drained")["gpu"]
    times.compare(gpu)
    assert gpu["redoneSteps"] == 0, "it saved before it ended"
    assert {"startup", "load", "train"} <= set(gpu["uses"]), "to save a tiny model takes no second"
    scene.kube.delete("FineTuneJob", "drained", scene.namespace)


LOGGED = r"step (\d+)/\d+  loss"


def test_a_rank_that_crashes_is_started_again_in_its_pod(scene: Scene) -> None:
    with PodTimes(scene, "crashed") as times:
        scene.kubectl.apply(scene.job("crashed", **LONG, backoffLimit=1))
        until("a checkpoint is reported", lambda: scene.status("crashed").get("checkpoint"), POD_MINUTES, every=0.5)
        (pod,) = scene.pods("crashed")
        name = pod["metadata"]["name"]
        saved = scene.status("crashed")["checkpoint"]["step"]
        Pod(scene.kubectl, name)("python", "-c", CRASH)
        until(
            "the status tells", lambda: scene.status("crashed")["attempts"][0].get("restarts"), POD_MINUTES, every=0.5
        )

        def trains() -> bool:
            progress = scene.status("crashed").get("progress", {})
            return bool(progress.get("startStep", -1) >= saved and progress["step"] > progress["startStep"])

        until("it trains from its checkpoint", trains, POD_MINUTES, every=0.5)
        status = scene.status("crashed")
        assert (status["phase"], status["attempt"], len(status["attempts"])) == ("Running", 1, 1)
        assert (status["attempts"][0]["restarts"]["number"], status["attempts"][0]["restarts"]["exitCode"]) == (1, 139)
        assert [same["metadata"]["uid"] for same in scene.pods("crashed")] == [pod["metadata"]["uid"]]

        def trains_on() -> bool:
            """Every step that had been done is done again: the newest step is new."""
            steps = re.findall(LOGGED, scene.kubectl("logs", name, "--tail=-1"))
            return steps.count(steps[-1]) == 1

        until("it trains on", trains_on, POD_MINUTES, every=0.5)
        logged = re.findall(LOGGED, scene.kubectl("logs", name, "--tail=-1"))
        gpu = suspended(scene, "crashed")["gpu"]
    times.compare(gpu)
    # A step may be done and not logged yet.
    assert abs(gpu["redoneSteps"] - (len(logged) - len(set(logged)))) <= 1
    scene.kube.delete("FineTuneJob", "crashed", scene.namespace)


def test_a_job_is_suspended_resumed_and_stopped(scene: Scene) -> None:
    """A trainer that runs keeps what it has trained; then a pod without GPUs does the same for a suspended job."""
    patch = partial(scene.kube.patch, "FineTuneJob", namespace=scene.namespace)

    def checkpoint(name: str) -> Any:
        return scene.status(name).get("checkpoint")

    def no_pods(name: str) -> bool:
        return not scene.pods(name)

    scene.kubectl.apply(*(scene.job(name, **LONG, backoffLimit=0) for name in ("kept-live", "kept-later")))
    for name in ("kept-live", "kept-later"):
        until("a checkpoint is reported", partial(checkpoint, name), POD_MINUTES, every=0.5)
        patch(name, {"spec": {"suspend": True}})
        status = scene.reaches(name, "Suspended", "Failed")
        assert status["reason"] == "SuspendedByUser", status["message"]
        assert status["attempts"][0]["failures"] == 0
        until(f"the pods of {name} are gone", partial(no_pods, name), POD_MINUTES)
    saved = scene.status("kept-live")["attempts"][0]["checkpointStep"]

    patch("kept-later", {"spec": {"stop": "keep"}})
    patch("kept-live", {"spec": {"suspend": False}})

    def resumed() -> bool:
        progress = scene.status("kept-live").get("progress", {})
        return bool(progress.get("attempt") == 2 and progress.get("step", 0) > saved)

    until("the second attempt continues beyond the checkpoint", resumed, POD_MINUTES, every=0.5)
    patch("kept-live", {"spec": {"stop": "keep"}})
    for name in ("kept-live", "kept-later"):
        status = scene.reaches(name, "Succeeded", "Failed")
        assert status["reason"] == "StoppedByUser", status["message"]
        assert status["artifact"]["digest"].startswith("sha256:")
        assert int(status["metrics"]["steps"]) >= saved or name == "kept-later"
        assert bool(status["attempts"][-1].get("keeps")) == (name == "kept-later")


def test_the_operator_may_die_while_a_job_runs(scene: Scene, operator: str) -> None:
    scene.kubectl.apply(scene.job("survivor", training={**TRAINING, "maxSteps": 400}))
    scene.trains("survivor")
    before = scene.kube.list("Pod", operator)
    for pod in before:
        scene.kube.delete("Pod", pod["metadata"]["name"], operator, grace=0)
    status = scene.reaches("survivor", "Succeeded", "Failed", timeout=2 * POD_MINUTES)
    assert status["phase"] == "Succeeded", status["message"]
    assert status["attempt"] == 1
    after = scene.kube.list("Pod", operator)
    assert {pod["metadata"]["uid"] for pod in after}.isdisjoint(pod["metadata"]["uid"] for pod in before)


def test_too_little_memory_is_named_with_its_limit(scene: Scene) -> None:
    job = scene.job("small", backoffLimit=0)
    job["spec"]["resources"]["memory"] = "150Mi"
    scene.kubectl.apply(job)
    status = scene.reaches("small", "Failed", "Succeeded")
    assert status["attempts"][0]["reason"] == "OutOfMemory", status
    assert "150Mi" in status["message"]


def missing_secret(job: dict[str, Any]) -> None:
    job["spec"]["resources"]["env"] = [{"name": "HF_TOKEN", "secretKeyRef": {"name": "not-there", "key": "token"}}]


def missing_volume(job: dict[str, Any]) -> None:
    resources = job["spec"]["resources"]
    resources["volumes"] = [{"name": "ca", "configMap": {"name": "not-there"}}]
    resources["volumeMounts"] = [{"name": "ca", "mountPath": "/ca"}]


def wrong_image(job: dict[str, Any]) -> None:
    job["spec"]["resources"]["image"] = "registry.local:5000/no-such-image:1"


def no_node(job: dict[str, Any]) -> None:
    job["spec"]["resources"]["nodeSelector"] = {"gpu": "of-the-future"}


STUCK: list[tuple[str, Callable[[dict[str, Any]], None], str, str]] = [
    ("no-secret", missing_secret, "ConfigMissing", "not-there"),
    ("no-volume", missing_volume, "VolumeNotMounted", "not-there"),
    ("no-image", wrong_image, "ImagePullFailed", "no-such-image"),
    ("no-node", no_node, "Unschedulable", "spec.resources"),
]


def test_whatever_keeps_a_job_from_starting_is_named_and_ends_at_its_deadline(scene: Scene) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": "e2e-quota"}}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "e2e-quota"}}
    scene.kube.apply(namespace)
    scene.kube.apply({**quota, "spec": {"hard": {"pods": "0"}}})
    wanted = {name: (reason, word, scene.namespace) for name, _, reason, word in STUCK}
    wanted["no-quota"] = ("PodsRejected", "exceeded quota", "e2e-quota")
    jobs = {name: scene.job(name, startDeadlineSeconds=45, backoffLimit=0) for name in wanted}
    for name, change, _, _ in STUCK:
        change(jobs[name])
    jobs["no-quota"]["metadata"]["namespace"] = "e2e-quota"
    for job in jobs.values():
        scene.kube.apply(job)

    def is_so(name: str, field: str, value: str) -> Callable[[], bool]:
        return lambda: status(name).get(field) == value

    def status(name: str) -> dict[str, Any]:
        found: dict[str, Any] = scene.kube.get("FineTuneJob", name, wanted[name][2]).get("status", {})
        return found

    for name, (reason, word, _) in wanted.items():
        until(f"{name} says {reason}", is_so(name, "reason", reason), 30)
        assert word in status(name)["message"]
    for name, (reason, _, place) in wanted.items():
        until(f"{name} is given up", is_so(name, "phase", "Failed"), 90)
        assert status(name)["reason"] == "StartDeadlineExceeded"
        assert reason in status(name)["message"]
        assert scene.kube.list("Job", place, f"finetune-operator.io/job={name}") == []
    scene.kube.delete("Namespace", "e2e-quota")
