"""The CustomResourceDefinition, generated from the models."""

from typing import Any

from finetune_api.job import GROUP, KIND, NAME_RULE, PLURAL, SHORT, SINGULAR, VERSION, FineTuneJob
from finetune_api.schema import Schema, structural

CRD_BYTES = 256_000
"""Most bytes of the CRD. `kubectl apply` stores it, as JSON on one line, in an annotation of at most 262,144 bytes."""

COLUMNS: list[tuple[str, str, str, int]] = [
    # name, type, path, priority (1: only with -o wide)
    ("Stage", "string", ".spec.stage", 0),
    ("Model", "string", ".spec.model.source", 0),
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress.summary", 0),
    ("Loss", "string", ".status.progress.loss", 0),
    ("ETA", "string", ".status.progress.eta", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("From", "string", ".spec.model.fromJob", 1),
    ("Queue", "string", ".spec.queue", 1),
    ("Attempt", "integer", ".status.attempt", 1),
    ("GPU-Hours", "string", ".status.gpu.hours", 1),
    ("Goodput", "string", ".status.gpu.goodput", 1),
    ("Reason", "string", ".status.reason", 1),
    ("Message", "string", ".status.message", 1),
    ("Artifact", "string", ".status.artifact.uri", 1),
]


def schema() -> Schema:
    """The structural schema of the whole object."""
    root = structural(FineTuneJob)
    # The API server owns metadata. A CRD may only bound its name, which the rule at the root does.
    root["properties"]["metadata"] = {"type": "object"}
    for name in ("apiVersion", "kind"):
        root["properties"][name] = {"type": "string", "description": root["properties"][name]["description"]}
    root["required"] = ["spec"]
    root["x-kubernetes-validations"] = [NAME_RULE]
    return root


def crd() -> dict[str, Any]:
    """The manifest."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    # By which the operator finds new jobs among thousands.
                    "selectableFields": [{"jsonPath": ".status.observedGeneration"}],
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path} | ({"priority": priority} if priority else {})
                        for name, kind, path, priority in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": schema()},
                }
            ],
        },
    }
