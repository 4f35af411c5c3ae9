"""The chart is upgraded and rolled back in mid-run, and uninstalled: the trainer continues. Last of all by its name:
afterwards there is no operator."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from examples.demo import cluster as demo
from examples.demo.kubectl import helm
from tests.e2e.conftest import LONG, POD_MINUTES, Scene, installed
from tests.kube import Object, until

GARBAGE_SECONDS = 60.0
NAME = "through-releases"
STAYS = {
    "customresourcedefinition.apiextensions.k8s.io/finetunejobs.finetune-operator.io",
    "apiservice.apiregistration.k8s.io/v1alpha1.finetune-operator.io",
    # Helm makes the namespace, and never deletes one. Kubernetes puts these two into every namespace.
    "configmap/kube-root-ca.crt",
    "serviceaccount/default",
}
"""What an installation leaves, besides the FineTuneJobs and what is theirs."""


def uids(scene: Scene) -> set[str]:
    return {job["metadata"]["uid"] for job in scene.kube.list("FineTuneJob", scene.namespace)}


@pytest.fixture(scope="module")
def pod(scene: Scene) -> Iterator[Object]:
    """The pod of a job that trains through all of this."""
    scene.kubectl.apply(scene.job(NAME, **LONG, backoffLimit=0))
    until("a checkpoint is reported", lambda: scene.status(NAME).get("checkpoint"), POD_MINUTES, every=0.5)
    (trains,) = scene.pods(NAME)
    yield trains
    scene.kube.delete("FineTuneJob", NAME, scene.namespace)


def goes_on(scene: Scene, pod: Object) -> None:
    """The pod is the same, and reports more steps."""
    step = scene.status(NAME)["progress"]["step"]
    until(f"more than {step} steps", lambda: scene.status(NAME)["progress"]["step"] > step, POD_MINUTES, every=0.5)
    assert [same["metadata"]["uid"] for same in scene.pods(NAME)] == [pod["metadata"]["uid"]]
    assert scene.status(NAME)["attempt"] == 1


def test_a_running_job_goes_on_through_an_upgrade_and_a_roll_back(scene: Scene, operator: str, pod: Object) -> None:
    release = ["--namespace", operator, "--wait", "--timeout=5m"]
    before = scene.kube.list("Pod", operator)
    changed = ["--reuse-values", "--set=podLabels.release=next", "--set=trainer.temporaryStorage=16Gi"]
    helm(scene.kubectl.env, None, "upgrade", demo.RELEASE, str(demo.CHART), *release, *changed)
    goes_on(scene, pod)
    upgraded = scene.kube.list("Pod", operator, "release=next")
    assert upgraded
    assert {old["metadata"]["uid"] for old in before}.isdisjoint(new["metadata"]["uid"] for new in upgraded)
    helm(scene.kubectl.env, None, "rollback", demo.RELEASE, *release)
    goes_on(scene, pod)
    scene.kubectl.apply(scene.job("after-the-roll-back"))
    assert scene.reaches("after-the-roll-back", "Succeeded", "Failed")["phase"] == "Succeeded"


def test_uninstalling_leaves_the_jobs_and_their_definition(
    scene: Scene, operator: str, pod: Object, before_installation: set[str]
) -> None:
    before = uids(scene)
    assert before
    values = helm(scene.kubectl.env, None, "get", "values", demo.RELEASE, "--namespace", operator, "--output=json")
    assert json.loads(values)["trainer"]["allowCpu"] is True
    helm(scene.kubectl.env, None, "uninstall", demo.RELEASE, "--namespace", operator, "--wait")
    assert uids(scene) == before
    step = newest_step(scene, pod)
    until(f"it trains beyond step {step}", lambda: newest_step(scene, pod) > step, POD_MINUTES, every=0.5)
    assert [same["metadata"]["uid"] for same in scene.pods(NAME)] == [pod["metadata"]["uid"]]
    kubectl = replace(scene.kubectl, namespace=operator)
    others = {name for name in installed(kubectl) if name.startswith("namespace/")}  # Helm never deletes one
    known = before_installation | STAYS | others
    with suppress(AssertionError):  # the next line says what is left
        until("only the definition is left", lambda: installed(kubectl) <= known, timeout=GARBAGE_SECONDS)
    assert installed(kubectl) - known == set()


def newest_step(scene: Scene, pod: Object) -> int:
    """By the trainer's log: its right to write status went with the chart."""
    lines = scene.kubectl("logs", pod["metadata"]["name"], "--tail=20")
    return max(int(step) for step in re.findall(r" step (\d+)/", lines))
