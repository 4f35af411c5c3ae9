"""A job that is accepted has pods that are accepted: whatever its resources, placement and volumes say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_api.base import ApiModel
from finetune_api.job import FineTuneJob
from finetune_api.resources import PrepareSpec, ResourcesSpec, WorkspaceSpec
from pydantic import ValidationError

from tests.controlplane.api import FULL, HEAD, Steps, changed
from tests.controlplane.corners import BASES, cases, children
from tests.controlplane.pod_violations import NODE_TERMS, POD_TERMS, TWO_MOUNTS, VIOLATIONS
from tests.kube import ApiError, Kube, Object, until

CASES = cases()


def refusal(kube: Kube, manifest: Object) -> str:
    """The API server's words; empty if it accepts the object."""
    try:
        kube.create(manifest, dry_run=True)
    except ApiError as error:
        return error.message
    return ""


def laptop(manifest: Object) -> str:
    """The words of the trainer on a laptop; empty if it accepts the job."""
    try:
        FineTuneJob.model_validate(manifest)
    except ValidationError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def place(kube: Kube) -> Iterator[str]:
    """A namespace in which pods can be created."""
    name = "corners"
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    until("the namespace has its account", lambda: bool(kube.list("ServiceAccount", name)))
    yield name
    kube.delete("Namespace", name)


@pytest.mark.parametrize("field", CASES)
def test_server_and_laptop_agree_and_the_pods_of_an_accepted_job_are_accepted(
    kube: Kube, place: str, field: str
) -> None:
    wrong: list[str] = []
    fine: set[str] = set()
    for spec in CASES[field]:
        manifest = {**HEAD, "metadata": {"name": "job", "namespace": place}, "spec": spec}
        server, own = refusal(kube, manifest), laptop(manifest)
        if bool(server) != bool(own):
            wrong.append(f"server: {server or 'accepted'}\nlaptop: {own or 'accepted'}")
        elif not server:
            made = {json.dumps(child, sort_keys=True): child for child in children(spec, place)}
            wrong += [said for text in made.keys() - fine if (said := refusal(kube, made[text]))]
            fine |= made.keys()
    assert not wrong, f"{len(wrong)} of {len(CASES[field])}:\n" + "\n".join(sorted(set(wrong))[:10])


@pytest.mark.parametrize("base", BASES, ids=["full", "with a claim"])
def test_the_specs_that_get_corners_are_accepted_with_their_pods(kube: Kube, place: str, base: Object) -> None:
    manifest = {**HEAD, "metadata": {"name": "job", "namespace": place}, "spec": base}
    made = children(base, place)
    assert {"Job", "Pod", "RoleBinding"} <= {one["kind"] for one in made}
    assert [said for one in (manifest, *made) if (said := refusal(kube, one))] == []


MOUNT, TOLERATION, CONDITION = (
    ("resources", "volumeMounts", 0),
    ("resources", "tolerations", 0),
    (*NODE_TERMS[0], "matchExpressions", 0),
)
SAME_VOLUME = [{"name": "same", "emptyDir": {}}, {"name": "same", "emptyDir": {}}]
NOT_AT_RESERVED, NOT_PLAIN = "mountPath must not be at, below or above", "mountPath must be absolute"
ONCE = "must not have the same"
NAMED: dict[str, tuple[Steps, Any, str]] = {
    "two volumes of a name": (("resources", "volumes"), SAME_VOLUME, f"volumes {ONCE} name twice"),
    "two mounts at a path": (("resources", "volumeMounts"), TWO_MOUNTS, f"volumeMounts {ONCE} mountPath twice"),
    "a way back": ((*MOUNT, "mountPath"), "/x/../workspace", NOT_PLAIN),
    "two slashes": ((*MOUNT, "mountPath"), "//workspace", NOT_PLAIN),
    "a dot": ((*MOUNT, "mountPath"), "/./workspace", NOT_PLAIN),
    "a slash at the end": ((*MOUNT, "mountPath"), "/workspace/", NOT_AT_RESERVED),
    "above the job's files": ((*MOUNT, "mountPath"), "/etc", NOT_AT_RESERVED),
    "over the account's token": (
        (*MOUNT, "mountPath"),
        "/var/run/secrets/kubernetes.io/serviceaccount",
        NOT_AT_RESERVED,
    ),
    "a colon": ((*MOUNT, "mountPath"), "/a:b", "mountPath"),
    "a path out of the volume": ((*MOUNT, "subPath"), "../y", "subPath must be relative"),
    "an absolute path in the volume": ((*MOUNT, "subPath"), "/y", "subPath must be relative"),
    "Exists with a value": ((*TOLERATION, "operator"), "Exists", "operator Exists takes no value"),
    "seconds without NoExecute": ((*TOLERATION, "effect"), None, "tolerationSeconds needs effect NoExecute"),
    "Equal without a key": ((*TOLERATION, "key"), "", "a toleration without key needs operator Exists"),
    "In without values": ((*CONDITION, "values"), None, "In and NotIn need values"),
    "Exists with values": ((*CONDITION, "operator"), "Exists", "Exists and DoesNotExist take no values"),
    "Gt without a number": ((*CONDITION, "operator"), "Gt", "Gt and Lt take a single value, which is a whole number"),
    "Gt for pods": ((*POD_TERMS[0], "labelSelector", "matchExpressions", 0, "operator"), "Gt", "operator"),
    "another field": ((*NODE_TERMS[0], "matchFields", 0, "key"), "metadata.uid", "matchFields[0].key"),
    "fields of two nodes": ((*NODE_TERMS[0], "matchFields", 0, "values"), ["a", "b"], "the name of a single node"),
    "an empty term": (NODE_TERMS[0], {}, "an empty term matches no node"),
    "a long label key": (("resources", "nodeSelector"), {"a" * 64: "b"}, "must be a label key"),
    "a long domain": (("resources", "nodeSelector"), {"a" * 254 + "/a": "b"}, "must be a label key"),
    "memory without a unit": (("resources", "memory"), "16", "16 bytes; write 16Gi"),
    "memory as a number": (("resources", "memory"), 16, "16 bytes; write 16Gi"),
    "memory in a small unit": (("resources", "memory"), "64000", "64000 bytes; write 64000Mi"),
    "memory in thousandths": (("resources", "memory"), "500m", "must be at least 1Mi, with a unit"),
    "no memory": (("prepare", "memory"), "0", "must be at least 1Mi, with a unit"),
    "shared memory without a unit": (("resources", "sharedMemory"), "1", "1 bytes; write 1Gi"),
    "a claim without a unit": (("workspace",), {"claim": {"size": "100"}}, "100 bytes; write 100Gi"),
    "no CPU": (("resources", "cpu"), 0, "must be a number of cores of at least 1m"),
    "a bit of a CPU": (("resources", "cpu"), "0.0001", "must be a number of cores of at least 1m"),
    "a limit below the request": (("resources", "cpuLimit"), "1", "cpuLimit must be at least cpu"),
    "shared memory above memory": (("resources", "sharedMemory"), "9Gi", "sharedMemory counts against memory"),
    "a volume above memory": (("resources", "volumes", 3, "emptyDir", "sizeLimit"), "9Gi", "emptyDir.sizeLimit"),
    "a key that is no file": (("resources", "env", 1, "secretKeyRef", "key"), "..data", "secretKeyRef.key"),
    "two pull secrets of a name": (
        ("resources", "imagePullSecrets"),
        ["a", "a"],
        f"imagePullSecrets {ONCE} name twice",
    ),
    "no image": (("resources", "image"), "Trainer:1", "spec.resources.image"),
    "a resource of Kubernetes": (("resources", "gpuResource"), "x.kubernetes.io/gpu", "must be an extended resource"),
    "a class that cannot exist": (("resources", "priorityClassName"), "a..b", "priorityClassName"),
    "a label of the operator": (("resources", "podLabels"), {"x.finetune-operator.io/a": "b"}, "finetune-operator.io"),
    "a label of Kueue": (("resources", "podLabels"), {"kueue.x-k8s.io/queue-name": "b"}, "x-k8s.io"),
    "a label of the child job": (("resources", "podLabels"), {"job-name": "b"}, "job-name"),
    "an annotation of the autoscaler": (
        ("resources", "podAnnotations"),
        {"karpenter.sh/do-not-disrupt": "f"},
        "karpenter",
    ),
}


@pytest.mark.parametrize("mistake", NAMED)
def test_a_mistake_is_refused_and_the_message_names_the_field(kube: Kube, place: str, mistake: str) -> None:
    steps, value, words = NAMED[mistake]
    spec = changed(FULL, steps, value)
    spec["resources"]["nodes"] = 1  # A claim that the operator makes is for the pods of one node.
    manifest = {**HEAD, "metadata": {"name": "job", "namespace": place}, "spec": spec}
    server, own = refusal(kube, manifest), laptop(manifest)
    assert words in server
    assert words.replace("[", ".").replace("]", "") in own.replace("[", ".").replace("]", "")
    assert f"spec.{steps[0]}" in server


@pytest.mark.parametrize("rule", VIOLATIONS, ids=" ".join)
def test_what_an_earlier_release_accepted_can_still_be_read(rule: tuple[str, str]) -> None:
    """Its rules may have been laxer, but a section has always had the same parts."""
    spec = changed(FULL, *VIOLATIONS[rule])
    models: list[type[ApiModel]] = [ResourcesSpec, PrepareSpec, WorkspaceSpec]
    for name, model in zip(("resources", "prepare", "workspace"), models, strict=True):
        if "exactly one" in rule[1] and rule[0].startswith(f"spec.{name}"):
            with pytest.raises(ValidationError):
                model.read(spec[name])
        else:
            assert spec[name].items() <= model.read(spec[name]).to_dict().items()
