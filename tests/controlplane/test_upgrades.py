"""Upgrades: a CRD of a newer release, and what an older release left in the cluster."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from finetune_api.stored_job import load
from finetune_operator.workqueue import BACKOFF_MAX
from finetune_trainer.reporting.api import CURVES_UNKNOWN

from tests.controlplane.lane import Lane
from tests.controlplane.releases import Left, resolved_job, restore
from tests.controlplane.scene import FTJ, PREPARED, Scene, result
from tests.kube import PATIENCE, ApiError, Kube, Object, until

CRD = ("CustomResourceDefinition", "finetunejobs.finetune-operator.io")
OLDER = "b605ce9"


def accepted(scene: Scene, name: str = "job") -> Object:
    return next(c for c in scene.status(name)["conditions"] if c["type"] == "Accepted")


def newer(crd: Object) -> Object:
    """The CRD of an invented later release: fields with defaults, values of enums, and parts of the status."""
    crd = copy.deepcopy(crd)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    spec, status = schema["spec"]["properties"], schema["status"]["properties"]
    spec["invented"] = {"type": "boolean", "default": False}
    spec["training"]["properties"]["invented"] = {"type": "integer", "default": 7}
    depth = {"depth": {"type": "integer", "default": 1}}
    spec["resources"]["properties"]["invented"] = {"type": "object", "default": {}, "properties": depth}
    spec["training"]["properties"]["scheduler"]["enum"].append("invented")
    status["invented"] = {"type": "object", "properties": {"a": {"type": "string"}}}
    status["phase"]["enum"].append("Invented")
    status["attempts"]["items"]["properties"]["invented"] = {"type": "string"}
    return crd


def older(crd: Object) -> Object:
    """The CRD of a release that did not know two fields which this release writes."""
    crd = copy.deepcopy(crd)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    del schema["status"]["properties"]["resolved"]["properties"]["job"]
    del schema["status"]["properties"]["progress"]["properties"]["curves"]
    return crd


def laxer(crd: Object) -> Object:
    """The CRD of a release that has no rules about resources."""
    crd = copy.deepcopy(crd)
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    nodes: list[Any] = [schema["spec"]["properties"]["resources"]]
    for node in nodes:
        node.pop("x-kubernetes-validations", None)
        nodes += [*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])]
    return crd


class Crd:
    """The CRD in the cluster."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._stored = kube.get(*CRD)

    def install(self, change: Callable[[Object], Object] = copy.deepcopy) -> None:
        """Install a changed CRD, or the original CRD, and wait until it is served."""
        versions = change(self._stored)["spec"]["versions"]
        # The API server publishes the schema that it serves a little later.
        versions[0]["schema"]["openAPIV3Schema"]["description"] = marker = f"test {time.monotonic()}"
        self._kube.patch(*CRD, {"spec": {"versions": versions}})
        until("the API server serves the CRD", lambda: marker in json.dumps(self._served()))

    def _served(self) -> Any:
        return self._kube.call("GET", "openapi/v3/apis/finetune-operator.io/v1alpha1")


@pytest.fixture
def crd(kube: Kube) -> Iterator[Crd]:
    """The CRD, to change it. It is taken back at the end."""
    changed = Crd(kube)
    yield changed
    changed.install()


def test_a_job_goes_on_under_the_crd_of_a_newer_release(scene: Scene, own: Lane, crd: Crd) -> None:
    own.operator.start()
    scene.submit()
    pod = scene.running()
    [before] = scene.batches()
    crd.install(newer)

    meta = scene.job()["metadata"]
    head: Object = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": FTJ}
    head["metadata"] = {name: meta[name] for name in ("name", "namespace", "uid")}
    moment = "2026-01-31T12:00:00Z"
    frozen = {"type": "Frozen", "status": "True", "reason": "New", "message": "", "lastTransitionTime": moment}
    # As the newer release's operator left it, before this operator replaced it.
    operators = {name: value for name, value in scene.status().items() if name not in ("progress", "checkpoint")}
    attempts = [{**operators["attempts"][0], "invented": "kept"}]
    own.operator.kill()
    operators |= {"invented": {"a": "kept"}, "phase": "Invented", "attempts": attempts}
    operators["conditions"] = [*operators["conditions"], frozen]
    scene.kube.apply({**head, "status": operators}, manager="finetune-operator", part="status")
    assert scene.job()["spec"]["invented"] is False
    own.operator.start()

    scene.reaches("Running")
    until("the message names the ignored fields", lambda: "spec.resources.invented" in accepted(scene)["message"])
    assert accepted(scene)["status"] == "True"
    scene.kubelet.evict(pod, 75)
    second = scene.running(attempt=2)
    assert resolved_job(scene.batches()[-1]) == resolved_job(before)
    scene.kubelet.finish(second, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded")
    assert status["invented"] == {"a": "kept"}
    assert frozen in status["conditions"]
    assert status["attempts"][0]["invented"] == "kept"


def test_a_new_job_under_the_crd_of_a_newer_release(scene: Scene, own: Lane, crd: Crd) -> None:
    crd.install(newer)
    own.operator.start()
    scene.submit()
    scene.kubelet.finish(scene.running(), 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    assert "spec.training.invented" in accepted(scene)["message"]

    scene.submit("unknown", training={"scheduler": "invented"})
    scene.reaches("Pending", "NotSupported", name="unknown")
    assert accepted(scene, "unknown")["status"] == "Unknown"
    assert not scene.batches("unknown", "prepare")


def test_under_an_older_crd_the_operator_waits_and_says_what_to_do(scene: Scene, own: Lane, crd: Crd) -> None:
    crd.install(older)
    own.operator.start()
    scene.submit()
    advice = "Install the CRD of the operator's chart"
    until("the operator tells what to do", lambda: advice in own.operator.said())
    assert not scene.batches(kind="prepare")
    body = {**scene.manifest, "metadata": {"name": "job", "namespace": scene.namespace}}
    body = {name: value for name, value in body.items() if name != "spec"} | {"status": {"progress": {"curves": {}}}}
    with pytest.raises(ApiError, match=re.escape(CURVES_UNKNOWN)):  # the trainer then reports without them
        scene.kube.apply(body, manager="finetune-trainer", part="status")
    crd.install()
    longest = 1.25 * BACKOFF_MAX + PATIENCE
    until("the operator has tried again", lambda: scene.batches(kind="prepare"), timeout=longest)
    scene.kubelet.finish(scene.running(), 0, json.dumps(result(0)))
    scene.reaches("Succeeded")


def finish(scene: Scene, attempt: int) -> Object:
    """Let a training attempt run and succeed; the status then."""
    scene.kubelet.finish(scene.running(attempt=attempt), 0, json.dumps(result(0, attempt=attempt)))
    return scene.reaches("Succeeded")


def drain(scene: Scene, attempt: int) -> None:
    scene.kubelet.evict(scene.running(attempt=attempt), 75)


def same_terms(scene: Scene, left: Left) -> None:
    """All attempts received what the older release resolved, with its image; and so it is kept."""
    for child in [*scene.batches(), *scene.batches(kind="prepare")]:
        assert resolved_job(child) == left.document
        image = child["spec"]["template"]["spec"]["containers"][0]["image"]
        assert image == left.job["status"]["resolved"]["image"]
    resolved = scene.status()["resolved"]
    assert load(resolved.pop("job")) == left.document
    assert resolved == left.job["status"]["resolved"]


@pytest.mark.parametrize("situation", ["running", "disrupted", "chained", "starting"])
def test_a_training_that_an_older_release_began_is_drained_and_finished(
    scene: Scene, own: Lane, situation: str
) -> None:
    left = restore(scene, OLDER, situation)
    own.operator.start()
    drain(scene, 1)
    status = finish(scene, 2)
    same_terms(scene, left)
    assert status.get("references") == left.job["status"].get("references")
    assert status["attempts"][0]["reason"] == "Disrupted"
    assert status["prepared"] == {**left.job["status"]["prepared"], **PREPARED}


def test_a_job_that_an_older_release_accepted_and_this_one_refuses_is_drained_and_finished(
    scene: Scene, own: Lane, crd: Crd
) -> None:
    """It starts new attempts as it was, and what may be edited can be edited."""
    crd.install(laxer)
    twice = [{"name": "SAME", "value": "first"}, {"name": "SAME", "value": "second"}]
    left = restore(scene, OLDER, "running", resources={"env": twice, "sharedMemory": "900Gi", "memory": 2**34})
    crd.install()
    own.operator.start()
    drain(scene, 1)
    scene.running(attempt=2)
    scene.kube.patch(FTJ, "job", {"spec": {"backoffLimit": 7}}, scene.namespace)
    until("the edit is seen", lambda: scene.status()["observedGeneration"] == 2)
    assert accepted(scene)["reason"] == "AcceptedEarlier"
    assert "must not have the same name twice" in accepted(scene)["message"]
    finish(scene, 2)
    same_terms(scene, left)
    [container] = scene.batches()[-1]["spec"]["template"]["spec"]["containers"]
    assert [one for one in container["env"] if one["name"] == "SAME"] == twice


def test_a_retry_that_an_older_release_began_keeps_its_counts(scene: Scene, own: Lane) -> None:
    left = restore(scene, OLDER, "retried")
    own.operator.start()
    drain(scene, 2)
    status = finish(scene, 3)
    same_terms(scene, left)
    assert [entry["failures"] for entry in status["attempts"]] == [1, 1, 1]


def test_a_preparation_that_an_older_release_began_is_finished(scene: Scene, own: Lane) -> None:
    left = restore(scene, OLDER, "preparing")
    own.operator.start()
    status = finish(scene, 1)
    same_terms(scene, left)
    assert status["phase"] == "Succeeded"


def test_a_job_of_an_older_release_that_lost_its_child_jobs_is_resolved_again_to_the_same(
    scene: Scene, own: Lane
) -> None:
    left = restore(scene, OLDER, "running", child_jobs=False)
    own.operator.start()
    status = finish(scene, 2)
    assert status["attempts"][0]["reason"] == "JobDeleted"
    same_terms(scene, left)


@pytest.mark.parametrize("situation", ["succeeded", "failed"])
def test_a_job_that_ended_under_an_older_release_stays_as_it_is(scene: Scene, own: Lane, situation: str) -> None:
    left = restore(scene, OLDER, situation)
    own.operator.start()
    scene.submit("another")
    scene.preparing("another")
    assert scene.status() == left.job["status"]
    assert not scene.batches()
