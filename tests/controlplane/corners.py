"""Corners of what pods receive: for every field of resources, prepare and workspace, values at and beyond its bounds.

They are generated from the schema, so a new field has corners without a line here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from finetune_api.contract import AttemptFacts, canonical, resolve
from finetune_api.job import FineTuneJob
from finetune_operator.manifests.attempt import attempt_objects
from finetune_operator.names import Kind, attempt_job
from finetune_operator.settings import Settings

from tests.controlplane.api import FULL, HEAD, SPEC_SCHEMA, WITH_CLAIM, Steps, changed, path_of, places
from tests.controlplane.pod_violations import NODE_TERMS, POD_TERMS
from tests.kube import Object

SECTIONS = ("resources", "prepare", "workspace")
BASES = (FULL, WITH_CLAIM)
TEXTS: tuple[str, ...] = (
    *("", "a", "A", "é", "a b", "a\n", "a\x00", "a:b", "a=b", "a_b", "a-", "-a", "1", "-1", "007", "9" * 19),
    *(".", "..", ".a", "..a", "a.", "a.b", "a..b", "../a", "a/..", "a/./b", "a//b", "/a\x1f", "/", "/a", "/a/", "//a"),
    *("/etc", "/workspace/", "//workspace", "/workspaces", "/x/../workspace", "example.com/a", "Example.com/a"),
    *("x.kubernetes.io/a", "requests.example.com/a", "job-name", "FINETUNE_A", "finetune-a", "metadata.name", "cpu"),
    *("a" * 63, "a" * 64, "a" * 253, "a" * 254, f"{'a' * 253}/a", f"{'a' * 254}/a", f"{'a' * 244}/a"),
    *(f"{'a' * 245}/a", f"example.com/{'a' * 63}", f"example.com/{'a' * 64}", f"/{'a' * 511}"),
)
QUANTITIES: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 4, 16, 1024, 2**20 - 1, 2**20, 2**33, 2**62, 0.5, True),
    *("", "0", "-1", "1", "16", "4096", "1048575", "1048576", "0.0", "0.5", "0.001", "0.0001", "1.5", "1.", ".5", "+1"),
    *("0m", "1m", "500m", "0.5m", "1k", "1Ki", "1023Ki", "1024Ki", "1Mi", "0.9Mi", "1M", "1.1M", "1Gi", "1.5Gi", "8Gi"),
    *("8.1Gi", "1Ti", "1Pi", "1Ei", "1e9", "1E", "16GB", "16 Gi", "16gi", "Gi", "9" * 30 + "Ti", "9" * 31, "1n", "1u"),
)


def leaf(node: Object) -> Iterator[Any]:
    """Values at and beyond the bounds of a field."""
    if node.get("x-kubernetes-int-or-string"):
        yield from QUANTITIES
    elif "enum" in node:
        yield from (*node["enum"], "Other", "")
    elif node.get("type") == "boolean":
        yield from (True, False)
    elif node.get("type") == "integer":
        yield from sorted({-1, 0, 1, node["minimum"] - 1, node["minimum"], node["maximum"], node["maximum"] + 1})
    elif node.get("type") == "string":
        yield from TEXTS
    elif "additionalProperties" in node:
        value = {"integer": 1, "string": "a"}[node["additionalProperties"]["type"]]
        yield {}
        yield {f"a{number}": value for number in range(node["maxProperties"] + 1)}
        yield from ({text: value} for text in TEXTS)
        yield from ({"example.com/a": one} for one in list(leaf(node["additionalProperties"]))[::4])


def corners(base: Object, seen: set[str]) -> Iterator[tuple[Steps, Any]]:
    """Every field of a spec with each of its corners; None: without the field. A field that has the same name and the
    same rules at several places is tried at one of them: every rule is tried at every place in test_api_rules.py."""
    sections = {name: base[name] for name in SECTIONS if name in base}
    for steps, node, optional in places(sections, SPEC_SCHEMA):
        names = path_of(steps).split(".")
        rules = {name: value for name, value in node.items() if name not in ("description", "default")}
        same = json.dumps([names[-1:] if "affinity" in names else names[1:][-2:], rules], sort_keys=True)
        if same in seen:
            continue
        seen.add(same)
        if optional:
            yield steps, None
        if "items" in node:
            value: Any = base
            for step in steps:
                value = value[step]
            yield from ((steps, []), (steps, [*value, value[0]]), (steps, value * 40))
            yield from ((steps, [one]) for one in leaf(node["items"]))
        elif "properties" in node:
            yield steps, {}
        else:
            yield from ((steps, value) for value in leaf(node))


def products() -> Iterator[tuple[Steps, Any]]:
    """Fields that only together make sense."""
    unset: tuple[None] = (None,)
    several: dict[Steps, dict[str, tuple[Any, ...]]] = {
        ("resources", "tolerations", 0): {
            "key": (*unset, "", "gpu"),
            "operator": (*unset, "Exists", "Equal"),
            "value": (*unset, "yes"),
            "effect": (*unset, "NoSchedule", "NoExecute"),
            "tolerationSeconds": (*unset, 60),
        },
        ("resources", "volumeMounts", 0): {
            "name": ("config",),
            "mountPath": ("/data", "/data/", "/workspace"),
            "subPath": (*unset, "", "a", "/a", "..", "a/../b", "a/..b"),
            "readOnly": (*unset, True),
        },
    }
    values: tuple[Any, ...] = (*unset, [], [""], ["a"], ["1"], ["-1"], ["1.5"], ["1", "2"], ["9" * 19], ["A"])
    operators = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
    conditions = ((*NODE_TERMS[0], "matchExpressions", 0), (*POD_TERMS[0], "labelSelector", "matchExpressions", 0))
    several |= {at: {"key": ("zone",), "operator": operators, "values": values} for at in conditions}
    fields = {"key": ("metadata.name",), "operator": operators, "values": values}
    several[(*NODE_TERMS[0], "matchFields", 0)] = fields
    for steps, choices in several.items():
        for chosen in itertools.product(*choices.values()):
            yield steps, {name: one for name, one in zip(choices, chosen, strict=True) if one is not None}
    for one, other in itertools.product(("/data", "/data/", "/data/a", "/data//"), repeat=2):
        mounts = [{"name": "config", "mountPath": one}, {"name": "secret", "mountPath": other}]
        yield ("resources", "volumeMounts"), mounts


def cases() -> dict[str, list[Object]]:
    """Field -> specs with a corner there."""
    found: dict[str, list[Object]] = {}
    seen: set[str] = set()
    for base in BASES:
        for steps, value in corners(base, seen):
            found.setdefault(path_of(steps), []).append(changed(base, steps, value))
    for steps, value in products():
        found.setdefault(f"{path_of(steps)} as a whole", []).append(changed(FULL, steps, value))
    return found


def children(spec: Object, namespace: str) -> list[Object]:
    """What the operator creates for both attempts of an accepted job, and the pods that follow."""
    uid = "01234567-89ab-cdef-0123-456789abcdef"
    meta = {"name": "job", "namespace": namespace, "uid": uid}
    job = FineTuneJob.model_validate({**HEAD, "metadata": meta, "spec": spec})
    try:
        resolved = resolve(job, allow_remote_code=True)
    except ValueError:
        return []  # The operator refuses it: batch sizes do not fit the GPUs.
    made: list[Object] = []
    kinds: tuple[Kind, Kind] = ("prepare", "train")
    for kind in kinds:
        name = attempt_job(kind, "job", uid, 1)
        facts = AttemptFacts(namespace=namespace, name="job", uid=uid, kind=kind, attempt=1, job_name=name)
        document = canonical(resolved.to_dict())
        made += attempt_objects(facts, job.spec, resolved, document, "trainer:1", Settings(trainer_image="trainer:1"))
        pod = made[-1]["spec"]["template"]
        # Admission looks priority class and account up, which do not exist. The child job has them too.
        own = {name: value for name, value in pod["spec"].items() if name != "priorityClassName"}
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {**pod["metadata"], "name": name, "namespace": namespace},
                "spec": {**own, "serviceAccountName": "default"},
            }
        )
    return made
