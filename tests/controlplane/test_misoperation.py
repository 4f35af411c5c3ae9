"""What people do to a job that exists: every field is set to something else, to something wrong, and back again; and
children are edited, deleted and orphaned. Everything is refused by name, restored, or reported."""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from typing import Any

import pytest

from tests.controlplane.api import (
    MEDIA_COLUMNS,
    MUTABLE,
    SPEC_SCHEMA,
    SPECS,
    Steps,
    another,
    changed,
    fields,
    invalid,
    path_of,
    places,
    updates,
)
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import FTJ, GARBAGE_SECONDS, Scene, result
from tests.kube import ApiError, Kube, Object, until

WATCHED_SECONDS = 90.0
"""A child job without the operator's label is looked at once a minute."""


Break = tuple[Steps, Any]
"""A field, and a value that it must not have; None: it must not be left out."""


def rounds(spec: Object, seen: set[str]) -> dict[tuple[object, ...], list[Break]]:
    """What can be wrong with the fields of a spec that are not seen yet, in as few requests as possible: the server
    names every wrong field of a request. What is wrong with a section would hide what is wrong inside it, and a field
    that is unknown or missing hides other mistakes."""
    out: dict[tuple[object, ...], list[Break]] = defaultdict(list)
    for steps, node, optional in places(spec, SPEC_SCHEMA):
        path = path_of(steps)
        if path in seen:
            continue
        seen.add(path)
        value: Any = spec
        for step in steps:
            value = value[step]
        holds = "properties" in node or "properties" in node.get("items", {})
        for number, bad in enumerate(invalid(value, node)):
            unknown = isinstance(bad, dict)
            out[("unknown",) if unknown else (number, holds and len(steps))].append((steps, bad))
        if not optional:
            out["missing", len(steps)].append((steps, None))
    return out


def broken(spec: Object, breaks: list[Break]) -> Object:
    """The spec with all of them. The innermost come first: they are inside of others if they are unknown fields."""
    spec = json.loads(json.dumps(spec))  # Parts that YAML shares would change together.
    for steps, bad in sorted(breaks, key=lambda one: -len(one[0])):
        if isinstance(bad, dict):
            bad = {**value_of(spec, steps), "noSuchField": 1}
        spec = changed(spec, steps, bad)
    return spec


def value_of(spec: Object, steps: Steps) -> Any:
    part: Any = spec
    for step in steps:
        part = part[step]
    return part


def test_a_wrong_value_of_every_field_is_refused_by_name(kube: Kube, namespace: str) -> None:
    """On a job that exists, whose spec is accepted again afterwards."""
    wrong: list[str] = []
    tried: set[str] = set()
    seen: set[str] = set()
    for at, spec in enumerate(SPECS):
        attempt = updates(kube, namespace, spec, f"job-{at}")
        for breaks in rounds(spec, seen).values():
            said = attempt(broken(spec, breaks))
            for steps, _ in breaks:
                path = path_of(steps)
                tried.add(path)
                if not re.search(r"(\[\d+\])?\.".join(["spec", *path.split(".")]) + r"\b", said):
                    wrong.append(f"{path}: {said[:300] or 'accepted'}")
        assert attempt(spec) == "", "a roll back is accepted"
    assert not wrong, "\n".join(wrong)
    free = {path for path, node in fields(SPEC_SCHEMA) if node.get("x-kubernetes-int-or-string")}
    assert tried | free == {path for path, _ in fields(SPEC_SCHEMA)} - MEDIA_COLUMNS


def value_at(spec: Object, path: str) -> Any:
    part: Any = spec
    for step in path.split("."):
        part = part.get(step) if isinstance(part, dict) else None
    return part


def put(scene: Scene, spec: Object) -> str:
    """Replace the spec of the live job; what the server says, '' if it accepts it."""
    while True:
        live = scene.job()
        path = f"apis/{live['apiVersion']}/namespaces/{scene.namespace}/finetunejobs/job"
        try:
            scene.kube.call("PUT", path, {**live, "spec": spec}, fieldValidation="Strict")
        except ApiError as error:
            if error.code != 409:  # The operator has written the status meanwhile.
                return error.message
        else:
            return ""


def acted_on(scene: Scene) -> Object:
    """The job once the operator has acted on its newest spec."""

    def seen() -> Object | None:
        live = scene.job()
        return live if live["status"].get("observedGeneration") == live["metadata"]["generation"] else None

    seen_job: Object = until("the operator acts on the newest spec", seen)
    return seen_job


@pytest.mark.usefixtures("operator")
def test_a_running_job_lives_through_changes_of_all_its_mutable_fields(scene: Scene) -> None:
    """A valid value, every wrong value, and back: the same attempt runs, and no pod is touched."""
    nodes = dict(fields(SPEC_SCHEMA))
    scene.submit(notify={"secret": "webhook", "when": ["Failed"]})
    pod = scene.running()
    before, spec = scene.status(), copy.deepcopy(scene.job()["spec"])
    for path in sorted(MUTABLE - {"notify"}):
        node, value, steps = nodes[path], value_at(spec, path), tuple(path.split("."))
        # Unset is false for a boolean. What follows if the job is suspended is in test_suspension.
        other = node.get("maximum", False) if value is None else another(value, node)
        assert put(scene, changed(spec, steps, other)) == ""
        acted_on(scene)
        for bad in invalid(value, node):
            assert f"spec.{path}" in put(scene, changed(spec, steps, bad))
        said = put(scene, spec)
        if path == "retry":
            assert "spec.retry can only be raised" in said
            spec["retry"] = other
        else:
            assert said == ""
        assert value_at(acted_on(scene)["spec"], path) == value_at(spec, path)
    after = scene.status()
    assert {**after, "observedGeneration": None, "conditions": None} == {
        **before,
        "observedGeneration": None,
        "conditions": None,
        "retry": 1,
    }
    assert (after["phase"], after["attempt"], after["reason"]) == ("Running", 1, "Running")
    assert scene.pod()["metadata"]["uid"] == pod["metadata"]["uid"]
    assert "deletionTimestamp" not in scene.pod()["metadata"]
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    scene.reaches("Succeeded")


@pytest.mark.usefixtures("operator")
def test_a_finished_job_stays_finished_whatever_is_changed(scene: Scene) -> None:
    scene.submit(notify={"secret": "webhook", "when": ["Succeeded", "Failed"]})
    scene.kubelet.finish(scene.running(), 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    until("a webhook gets the end", lambda: scene.status().get("notifiedTime"))
    before = scene.status()
    nodes, spec = dict(fields(SPEC_SCHEMA)), copy.deepcopy(scene.job()["spec"])
    for path in sorted(MUTABLE - {"notify"}):
        value = value_at(spec, path)
        other = nodes[path].get("maximum", True) if value is None else another(value, nodes[path])
        spec = changed(spec, tuple(path.split(".")), other)
        assert put(scene, spec) == ""
    assert put(scene, {**spec, "stop": "keep"}) == ""
    after = acted_on(scene)["status"]
    conditions = [{**found, "observedGeneration": 1} for found in after["conditions"]]
    assert {**after, "observedGeneration": 1, "conditions": conditions} == {**before, "retry": 1}


# Children


def child(scene: Scene) -> Object:
    [found] = scene.batches()
    return found


@pytest.mark.usefixtures("operator")
def test_a_pod_that_somebody_deletes_is_a_retry_or_a_disruption_never_the_end(scene: Scene) -> None:
    scene.submit(backoffLimit=1)
    pod = scene.running()
    scene.kube.delete("Pod", pod["metadata"]["name"], scene.namespace)
    scene.kubelet.finish(pod, 75)
    scene.kubelet.remove(pod)
    scene.running(attempt=2)
    assert scene.status()["attempts"][0]["state"] == "Ended"


@pytest.mark.usefixtures("operator")
def test_a_child_job_that_lost_its_owner_is_not_adopted(scene: Scene) -> None:
    """The attempt counts as deleted once its pods have ended; the Job of nobody is left alone."""
    scene.submit(backoffLimit=1)
    pod, name = scene.running(), child(scene)["metadata"]["name"]
    scene.kube.patch("Job", name, {"metadata": {"ownerReferences": None}}, scene.namespace)
    scene.tells("Ending", "Waiting for pods of a deleted child job to end")
    assert "deletionTimestamp" not in scene.pod()["metadata"]
    scene.kubelet.finish(pod, 75)
    scene.running(attempt=2)
    first = scene.status()["attempts"][0]
    assert (first["reason"], first["failures"]) == ("JobDeleted", 1)
    assert scene.kube.find("Job", name, scene.namespace) is not None


def test_children_that_a_deleted_job_left_behind_are_not_those_of_its_namesake(
    scene: Scene, operator: OperatorProcess
) -> None:
    """`kubectl delete --cascade=orphan`: the new job has its own attempt, and never touches the old, which a metric
    counts."""
    scene.submit()
    old = scene.running()
    left = child(scene)["metadata"]
    scene.kube.delete(FTJ, "job", scene.namespace, propagation="Orphan")
    until("the job is gone", lambda: scene.kube.find(FTJ, "job", scene.namespace) is None, timeout=GARBAGE_SECONDS)
    new = scene.submit()["metadata"]["uid"]
    prefix = f"job-{new[:5]}-"
    [preparing] = until(
        "the new job prepares",
        lambda: [p for p in scene.kubelet.pods("job", 1, "prepare") if p["metadata"]["name"].startswith(prefix)],
    )
    scene.kubelet.run(preparing)
    scene.kubelet.finish(preparing, 0, json.dumps(result(0, kind="prepare")))
    until("the new job trains", lambda: len(scene.batches()) == 2)
    kept = scene.kube.get("Job", left["name"], scene.namespace)["metadata"]
    assert (kept["uid"], kept.get("ownerReferences")) == (left["uid"], None)
    assert re.search(r"orphaned_child_jobs [1-9]", operator.get("metrics")[1])
    scene.kubelet.finish(old, 0, json.dumps(result(0)))
    until("the old Job has ended", lambda: len(scene.unfinished()) == 1)
    assert scene.status()["phase"] == "Starting"
    assert "artifact" not in scene.status()


@pytest.mark.usefixtures("operator")
def test_a_template_that_somebody_changes_is_refused_by_kubernetes(scene: Scene) -> None:
    """What else of a Job may be changed, stops it, and test_stopped.py shows how that is reported."""
    scene.submit()
    scene.running()
    for spec in ({"completions": 2}, {"podFailurePolicy": None}, {"template": {"spec": {"nodeName": "other"}}}):
        with pytest.raises(ApiError):
            scene.kube.patch("Job", child(scene)["metadata"]["name"], {"spec": spec}, scene.namespace)
    for labels in ({"finetune-operator.io/attempt": "7"}, {"finetune-operator.io/kind": "prepare"}):
        name = child(scene)["metadata"]["name"]
        scene.kube.patch("Job", name, {"metadata": {"labels": labels}}, scene.namespace)
        scene.kube.patch("Job", name, {"metadata": {"labels": child_labels(scene, name)}}, scene.namespace)
    scene.reaches("Running", "Running")
    assert scene.status()["attempt"] == 1


def child_labels(scene: Scene, name: str) -> dict[str, str]:
    template = scene.kube.get("Job", name, scene.namespace)["spec"]["template"]["metadata"]["labels"]
    return {key: template[key] for key in ("finetune-operator.io/attempt", "finetune-operator.io/kind")}


def test_every_operator_is_well_afterwards(operator: OperatorProcess) -> None:
    assert operator.health() == (200, "ok\n")
