"""A violation of every rule about what pods receive: (field, message) -> what to change in the first full spec."""

from __future__ import annotations

from typing import Any

from finetune_api.container import ENV_NAME, MOUNT_FORM, MOUNT_PATH, SUB_PATH, VOLUME_NAME
from finetune_api.kubernetes import CPU, LABEL_KEY, OTHERS_KEY, RESOURCE_NAME, SIZE
from finetune_api.placement import (
    EMPTY_TERM,
    FIELD_VALUES,
    NO_SELECTOR,
    NODE_VALUES,
    ONE_CLAIM,
    ONE_LEVEL,
    TOLERATED_KEY,
    TOLERATED_SECONDS,
    TOLERATED_VALUE,
    VALUES,
)
from finetune_api.resources import (
    CPU_LIMIT,
    GPUS_TWICE,
    MEMORY_VOLUMES,
    NEVER_DELETED,
    SHARED_MEMORY,
    UNKNOWN_VOLUME,
    twice,
)

from tests.controlplane.api import Steps, path_of

Violations = dict[tuple[str, str], tuple[Steps, Any]]
REQUIRED, PREFERRED = (f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred"))
NODE_TERMS: list[Steps] = [
    ("resources", "affinity", "nodeAffinity", REQUIRED, "nodeSelectorTerms", 0),
    ("resources", "affinity", "nodeAffinity", PREFERRED, 0, "preference"),
]
POD_TERMS: list[Steps] = [
    ("resources", "affinity", relation, *term)
    for relation in ("podAffinity", "podAntiAffinity")
    for term in ((REQUIRED, 0), (PREFERRED, 0, "podAffinityTerm"))
]
LABELS: list[Steps] = [
    ("resources", "nodeSelector"),
    ("resources", "podLabels"),
    ("resources", "podAnnotations"),
    ("prepare", "nodeSelector"),
    *((*term, "labelSelector", "matchLabels") for term in POD_TERMS),
]
KEYS: list[Steps] = [
    ("resources", "tolerations", 0, "key"),
    ("resources", "topology", "required"),
    *((*term, "matchExpressions", 0, "key") for term in NODE_TERMS),
    *((*term, "labelSelector", "matchExpressions", 0, "key") for term in POD_TERMS),
    *((*term, "topologyKey") for term in POD_TERMS),
]
SIZES: list[Steps] = [
    ("resources", "memory"),
    ("resources", "sharedMemory"),
    ("resources", "gpuMemory"),
    ("resources", "volumes", 3, "emptyDir", "sizeLimit"),
    ("prepare", "memory"),
]
CPUS: list[Steps] = [(section, field) for section in ("resources", "prepare") for field in ("cpu", "cpuLimit")]
TWO_MOUNTS = [{"name": "config", "mountPath": path} for path in ("/etc/extra", "/etc/extra/")]
MOUNT: Steps = ("resources", "volumeMounts", 0)
TOLERATION: Steps = ("resources", "tolerations", 0)


def _at(steps: Steps, message: str, change: Steps = (), value: Any = None) -> Violations:
    """The rule at a place, broken by a value there or below; None: without the field."""
    return {(f"spec.{path_of(steps)}", message): ((*steps, *change), value)}


def violations() -> Violations:
    found: Violations = {}
    for steps in LABELS:
        found |= _at(steps, LABEL_KEY, (), {"a b": "c"})
    for steps in KEYS:
        found |= _at(steps, LABEL_KEY, (), "a" * 64)
    for steps in SIZES:
        found |= _at(steps, SIZE, (), "1Ki")
    for steps in CPUS:
        found |= _at(steps, CPU, (), "0.0001")
    for section in ("resources", "prepare"):
        found |= _at((section,), CPU_LIMIT, ("cpuLimit",), "10m")
    for field in ("podLabels", "podAnnotations"):
        found |= _at(("resources", field), OTHERS_KEY, (), {"kueue.x-k8s.io/queue-name": "mine"})
    for term in NODE_TERMS:
        found |= _at((*term, "matchExpressions"), NODE_VALUES, (0, "values"), None)
        found |= _at((*term, "matchFields"), FIELD_VALUES, (0, "values"), ["a", "b"])
        found |= _at(term, EMPTY_TERM, (), {})
    for term in POD_TERMS:
        found |= _at((*term, "labelSelector", "matchExpressions"), VALUES, (0, "operator"), "Exists")
        found |= _at(term, NO_SELECTOR, ("labelSelector",), None)
    found |= _at(TOLERATION, TOLERATED_KEY, ("key",), None)
    found |= _at(TOLERATION, TOLERATED_VALUE, ("operator",), "Exists")
    found |= _at(TOLERATION, TOLERATED_SECONDS, ("effect",), "NoSchedule")
    found |= _at(("resources", "gpuResource"), RESOURCE_NAME, (), "requests.example.com/gpu")
    found |= _at(("resources", "devices"), RESOURCE_NAME, (), {"example.kubernetes.io/nic": 1})
    resources: Steps = ("resources",)
    found |= _at(resources, SHARED_MEMORY, ("sharedMemory",), "8.5Gi")
    found |= _at(resources, MEMORY_VOLUMES, ("volumes", 3, "emptyDir", "sizeLimit"), "9Gi")
    found |= _at(resources, GPUS_TWICE, ("devices",), {"example.com/gpu": 1})
    found |= _at(resources, UNKNOWN_VOLUME, ("volumeMounts", 0, "name"), "other")
    found |= _at(resources, twice("imagePullSecrets", "name"), ("imagePullSecrets",), ["one", "one"])
    found |= _at(resources, twice("resourceClaims", "name"), ("resourceClaims", 1, "name"), "nic")
    found |= _at(("resources", "resourceClaims"), ONE_CLAIM, (0, "resourceClaimName"), "mine")
    found |= _at(("resources", "topology"), ONE_LEVEL, (), {})
    preferred = {("spec.resources.topology.preferred", LABEL_KEY): (("resources", "topology"), {"preferred": "a b"})}
    found |= preferred
    found |= _at(resources, twice("env", "name"), ("env", 1, "name"), "PLAIN")
    found |= _at(resources, twice("volumes", "name"), ("volumes", 1, "name"), "claim")
    found |= _at(resources, twice("volumeMounts", "mountPath"), ("volumeMounts",), TWO_MOUNTS)
    found |= _at(MOUNT, MOUNT_FORM, ("mountPath",), "/x/../data")
    found |= _at(MOUNT, MOUNT_PATH, ("mountPath",), "/workspace/mine")
    found |= _at(MOUNT, SUB_PATH, ("subPath",), "../outside")
    one_value = "set exactly one of value, secretKeyRef and configMapKeyRef"
    found |= _at(("resources", "env"), one_value, (1, "value"), "both")
    found |= _at(("resources", "env"), ENV_NAME, (0, "name"), "FINETUNE_POD_UID")
    one_kind = "set exactly one of persistentVolumeClaim, configMap, secret and emptyDir"
    found |= _at(("resources", "volumes"), one_kind, (0, "emptyDir"), {})
    found |= _at(("resources", "volumes"), VOLUME_NAME, (0, "name"), "finetune-shm")
    found |= _at(("workspace",), "set exactly one of claimName and claim", ("claim",), {"size": "1Gi"})
    found |= _at(("workspace",), NEVER_DELETED, ("retain",), False)
    return found


VIOLATIONS = violations()
"""But for the size of a claim, which the first full spec doesn't have."""
