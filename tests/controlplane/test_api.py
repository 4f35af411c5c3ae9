"""The API as the API server holds it: what is refused, what may change, what is explained, what fits."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from finetune_api.contract import AttemptFacts, canonical, resolve
from finetune_api.crd import CRD_BYTES, crd, schema
from finetune_api.job import FineTuneJob
from finetune_api.job_name import NAME_MAX
from finetune_api.status import MAX_ATTEMPTS
from finetune_operator.manifests.attempt import attempt_objects
from finetune_operator.names import attempt_job
from finetune_operator.settings import Settings
from pydantic import ValidationError

from tests.cluster import Cluster
from tests.controlplane.api import (
    FULL,
    HEAD,
    MEDIA_COLUMNS,
    MOST_NODES,
    MUTABLE,
    REFUSED,
    SPEC_SCHEMA,
    SPECS,
    another,
    changed,
    fields,
    path_of,
    places,
    updates,
)
from tests.controlplane.scene import FTJ, Scene
from tests.kube import ApiError, Kube, Object


def test_full_is_full() -> None:
    """The tests below change every field that a job can have."""
    named = {path_of(steps) for spec in SPECS for steps, _, _ in places(spec, SPEC_SCHEMA)}
    assert named == {path for path, _ in fields(SPEC_SCHEMA)} - MEDIA_COLUMNS
    for spec in SPECS:
        read = FineTuneJob.model_validate({**HEAD, "metadata": {"name": "job"}, "spec": spec}).spec
        assert json.loads(read.model_dump_json(by_alias=True, exclude_unset=True)) == spec


@pytest.mark.parametrize("spec", SPECS, ids=[f"{at}-{spec['stage']}" for at, spec in enumerate(SPECS)])
def test_fields_changed_or_removed_are_refused_unless_mutable(kube: Kube, namespace: str, spec: Object) -> None:
    attempt, wrong, tried = updates(kube, namespace, spec), [], set()
    for steps, node, optional in places(spec, SPEC_SCHEMA):
        value: Any = spec
        for step in steps:
            value = value[step]
        other = another(value, node)
        wanted = [] if other is None else [("changed", other)]
        # What is left out at its default comes back.
        wanted += [("removed", None)] if optional and node.get("default") != value else []
        for how, new in wanted:
            said, path = attempt(changed(spec, steps, new)), path_of(steps)
            tried.add(path)
            refused = f"spec.{path.split('.')[0]}" in said and any(words in said for words in REFUSED)
            if path == "retry" and how == "removed":
                refused = "spec.retry can only be raised" not in said  # It may be changed, in one direction.
            if refused == (path in MUTABLE) or (said and not refused and path not in MUTABLE):
                wrong.append(f"{path} {how}: {said or 'accepted'}")
    assert not wrong, "\n".join(wrong)
    # A section that must be there has no other value of its own: its fields are tried. Nor has an enum of one.
    fixed = {path for path, node in fields(SPEC_SCHEMA) if len(node.get("enum", "two")) == 1}
    untried = {path_of(steps) for steps, _, _ in places(spec, SPEC_SCHEMA)} - tried - fixed
    assert untried == {path for path in untried if any(other.startswith(f"{path}.") for other in tried)}


def test_fields_added_are_refused(kube: Kube, namespace: str, manifest: Object) -> None:
    """To a job that says only what it must. (A per-field rule would not see a section come.)"""
    least = {key: FULL[key] for key in SPEC_SCHEMA["required"]} | {"training": {"maxSteps": 100}}
    least["datasets"] = [{"source": "pvc://models/rows.jsonl", "format": "alpaca"}]
    attempt, wrong = updates(kube, namespace, least), []
    for section in (set(FULL) - set(least)) | {"training.learningRate", "training.microBatchSize"}:
        if section in MUTABLE | {"stop"}:
            continue
        steps = tuple(section.split("."))
        part: Any = FULL
        for step in steps:
            part = part[step]
        if not any(words in (said := attempt(changed(least, steps, part))) for words in REFUSED):
            wrong.append(f"{section} added: {said or 'accepted'}")
    assert not wrong, "\n".join(wrong)


def test_what_pods_are_made_from_changes_only_while_the_job_is_suspended(kube: Kube, namespace: str) -> None:
    """Before the change and after it: a change together with the suspension, or with its end, could be missed."""
    least: Object = {key: FULL[key] for key in SPEC_SCHEMA["required"]} | {"training": {"maxSteps": 100}}
    least["datasets"] = [{"source": "pvc://models/rows.jsonl", "format": "alpaca"}]
    changes: list[Object] = [
        {"resources": {"memory": "64Gi"}},
        {"prepare": {"cpu": "1"}},
        {"secrets": {"huggingFace": "other"}},
        {"queue": "team"},
        {"resources": {}, "prepare": {}, "secrets": {}},
    ]
    for was in (None, False, True):
        before = least if was is None else {**least, "suspend": was}
        attempt = updates(kube, namespace, before)
        for becomes in (None, False, True):
            after = least if becomes is None else {**least, "suspend": becomes}
            assert attempt(after) == "", "suspend itself may change"
            for change in changes[:-1]:
                said = attempt({**after, **change})
                assert (REFUSED[1] in said) == (not (was and becomes)), f"{was} {becomes}: {said or 'accepted'}"
            assert attempt({**after, **changes[-1]}) == "", "the defaults are no change"
            assert REFUSED[0] in attempt({**after, "training": {"maxSteps": 7}})
        kube.delete(FTJ, "job", namespace)


def kubectl(control_plane: Cluster, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    program = str(control_plane.bin / "kubectl")
    return subprocess.run([program, *arguments], input=given, capture_output=True, text=True, env=control_plane.env)


def _without_model(manifest: Object) -> None:
    del manifest["spec"]["model"]


MISTAKES: dict[str, tuple[Callable[[Object], Any], str]] = {
    "unknown stage": (lambda m: m["spec"].update(stage="sfft"), r'spec\.stage.*"sfft".*supported values: "pt", "sft"'),
    "negative rank": (
        lambda m: m["spec"]["tuning"]["lora"].update(rank=-4),
        r"spec\.tuning\.lora\.rank.*-4.*greater than or equal to 1",
    ),
    "no model": (_without_model, r"spec\.model: Required value"),
    "unknown field": (
        lambda m: m["spec"]["training"].update(learningrate=1),
        r'unknown field "spec\.training\.learningrate"',
    ),
    "dot in the name": (
        lambda m: m["metadata"].update(name="qwen2.5-sft"),
        r"becomes part of host names: use at most 40 lower-case letters.*use no dots",
    ),
    "no such format": (
        lambda m: m["spec"]["datasets"][0].update(format="csv"),
        r'spec\.datasets\[0\]\.format.*"csv".*"alpaca", "sharegpt", "openai", "text"',
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_kubectl_apply_refuses_mistakes_and_says_what_is_allowed(
    control_plane: Cluster, kube: Kube, namespace: str, manifest: Object, mistake: str
) -> None:
    make, words = MISTAKES[mistake]
    make(manifest)
    said = kubectl(control_plane, "apply", "-n", namespace, "-f", "-", given=yaml.safe_dump(manifest))
    assert said.returncode != 0
    assert re.search(words, said.stderr, re.DOTALL), said.stderr
    assert not kube.list(FTJ, namespace)


def test_kubectl_applies_and_shows_a_job(control_plane: Cluster, namespace: str, manifest: Object) -> None:
    """By its short name, with the columns of the README; and the same file again changes nothing."""
    given = yaml.safe_dump(manifest)
    assert kubectl(control_plane, "apply", "-n", namespace, "-f", "-", given=given).stdout.endswith(" created\n")
    assert kubectl(control_plane, "apply", "-n", namespace, "-f", "-", given=given).stdout.endswith(" unchanged\n")
    shown = kubectl(control_plane, "get", "ftj", "-n", namespace, "-o", "wide").stdout.splitlines()
    columns = [
        "NAME",
        "STAGE",
        "MODEL",
        "PHASE",
        "PROGRESS",
        "LOSS",
        "ETA",
        "AGE",
        "FROM",
        "QUEUE",
        "ATTEMPT",
        "GPU-HOURS",
        "GOODPUT",
        "REASON",
        "MESSAGE",
        "ARTIFACT",
    ]
    assert shown[0].split() == columns
    assert shown[1].split()[:3] == [manifest["metadata"]["name"], "sft", manifest["spec"]["model"]["source"]]


def test_kubectl_explains_every_field(control_plane: Cluster, kube: Kube) -> None:
    del kube  # there for the CRD
    explained = kubectl(control_plane, "explain", "finetunejob.spec", "--recursive").stdout
    found, stack = set(), [""] * 32
    for line in explained.splitlines():
        if match := re.match(r"( +)(\w+)\t<", line):
            depth = len(match[1]) // 2
            stack[depth] = match[2]
            found.add(".".join(stack[1 : depth + 1]))
    assert found == {path for path, _ in fields(SPEC_SCHEMA)}
    mute = [path for path, node in fields(schema()) if not node.get("description") and path != "metadata"]
    assert not mute


@pytest.mark.parametrize("name", ["Upper", "7b-sft", "qwen2.5", "under_score", "end-", "a" * (NAME_MAX + 1)])
def test_names_are_the_same_to_the_server_and_on_a_laptop(kube: Kube, name: str) -> None:
    broken = {**HEAD, "metadata": {"name": name, "namespace": "default"}, "spec": FULL}
    with pytest.raises(ApiError):
        kube.create(broken, dry_run=True)
    with pytest.raises(ValidationError):
        FineTuneJob.model_validate(broken)


def test_the_longest_names_fit_every_child(kube: Kube, namespace: str) -> None:
    """A name of 40 characters, attempt 999, the last of 9999 nodes: nothing is refused, and nothing is cut."""
    name = "a" * NAME_MAX
    stored = kube.create({**HEAD, "metadata": {"name": name}, "spec": FULL}, namespace)
    job = FineTuneJob.model_validate({**HEAD, "metadata": stored["metadata"], "spec": FULL})
    uid = stored["metadata"]["uid"]
    facts = AttemptFacts(
        namespace=namespace,
        name=name,
        uid=uid,
        attempt=MAX_ATTEMPTS,
        job_name=attempt_job("train", name, uid, MAX_ATTEMPTS),
    )
    resolved = resolve(job, allow_remote_code=True)
    resolved = resolved.model_copy(update={"runtime": resolved.runtime.model_copy(update={"nodes": MOST_NODES})})
    spec = job.spec.model_copy(
        update={"resources": job.spec.resources.model_copy(update={"service_account_name": None})}
    )
    document = canonical(resolved.to_dict())
    made = attempt_objects(facts, spec, resolved, document, "trainer:1", Settings(trainer_image="trainer:1"))
    assert [child["kind"] for child in made] == ["ServiceAccount", "RoleBinding", "Service", "Job"]
    for child in made:
        kube.create(child, dry_run=True)
    batch = made[-1]
    prefix = f"{batch['metadata']['name']}-{MOST_NODES - 1}-"
    assert len(prefix) <= 58, "the Job controller cuts pod names there"
    pod = batch["spec"]["template"]
    pod["metadata"]["name"] = f"{prefix}x7k2p"
    pod["spec"] |= {"hostname": prefix.rstrip("-"), "serviceAccountName": "default"}
    del pod["spec"]["priorityClassName"]
    kube.create({"apiVersion": "v1", "kind": "Pod", **pod}, namespace, dry_run=True)


def test_the_crd_is_small_enough_to_be_applied(kube: Kube) -> None:
    assert len(json.dumps(crd())) < CRD_BYTES
    served = kube.get("CustomResourceDefinition", "finetunejobs.finetune-operator.io")
    assert len(json.dumps(served["spec"])) < CRD_BYTES


def test_a_job_has_its_phase_before_any_operator_sees_it(scene: Scene) -> None:
    for name in ("one", "two"):
        scene.submit(name)
    assert scene.columns("two")["Phase"] == "Pending"
    assert scene.status("one") == {"phase": "Pending", "observedGeneration": -1}
