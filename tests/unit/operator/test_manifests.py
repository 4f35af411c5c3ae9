"""Manifests: held still by golden files (`pytest --update-golden` rewrites them), and true to a few rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_operator.manifests.training import children
from finetune_operator.plan.acceptance import accept
from finetune_operator.settings import Settings

from tests.unit.operator.make import SETTINGS, UID, job

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "manifests"
EVERYTHING: dict[str, Any] = {
    "gpusPerNode": 2,
    "gpuResource": "amd.com/gpu",
    "cpu": "8",
    "memory": "64Gi",
    "image": "registry.example/own@sha256:" + "0" * 64,
    "imagePullSecrets": ["pull"],
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "kubernetes.io/hostname"}
            ]
        }
    },
    "priorityClassName": "high",
    "serviceAccountName": "workload-identity",
    "terminationGracePeriodSeconds": 600,
    "env": [
        {"name": "A", "value": "1"},
        {"name": "B", "secretKeyRef": {"name": "s", "key": "k"}},
        {"name": "C", "configMapKeyRef": {"name": "c", "key": "k"}},
    ],
    "volumes": [
        {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "ca", "configMap": {"name": "ca"}},
    ],
    "volumeMounts": [
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "ca", "mountPath": "/ca", "readOnly": True},
    ],
}


def made(settings: Settings = SETTINGS, nodes: int = 1, **spec: Any) -> list[dict[str, Any]]:
    accepted, resolved = accept(job(**spec), settings)
    resolved = resolved.model_copy(update={"runtime": resolved.runtime.model_copy(update={"nodes": nodes})})
    facts = AttemptFacts(namespace="team", name="demo", uid=UID, attempt=1, job_name="demo-0a1b2-1")
    image = accepted.spec.resources.image or settings.trainer_image
    return list(children(facts, accepted.spec, resolved, image, settings))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"resources": EVERYTHING, "training": {"maxSteps": 10}},
    "workspace-is-source": {"workspace": {"claimName": "models"}},
    "two-nodes": {"nodes": 2},
    "cpu": {"resources": {"gpusPerNode": 0}},
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, request: pytest.FixtureRequest) -> None:
    file = GOLDEN / f"{case}.yaml"
    text = yaml.safe_dump_all(made(**CASES[case]), sort_keys=True, width=110)
    if request.config.getoption("--update-golden"):
        file.write_text(text)
    assert text == file.read_text(), "manifests changed: if that is meant, run pytest with --update-golden"


def pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = manifests[-1]["spec"]["template"]["spec"]
    return spec


def test_what_travels_is_what_the_trainer_parses_and_holds_no_environment() -> None:
    manifests = made(resources={"env": [{"name": "TOKEN", "value": "hunter2"}]})
    annotations = manifests[-1]["spec"]["template"]["metadata"]["annotations"]
    resolved = ResolvedJob.model_validate_json(annotations["finetune-operator.io/resolved-job"])
    facts = AttemptFacts.model_validate_json(annotations["finetune-operator.io/attempt-facts"])
    assert (resolved.name, facts.uid) == ("demo", UID)
    assert "hunter2" not in json.dumps(annotations)


@pytest.mark.parametrize("case", CASES)
def test_pods_keep_the_restricted_profile(case: str) -> None:
    spec = pod(made(**CASES[case]))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_a_claim_is_one_volume_however_often_it_is_named() -> None:
    spec = pod(made(workspace={"claimName": "models"}))
    claims = [v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": "models"}]
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in spec["containers"][0]["volumeMounts"]}
    assert mounts["/workspace"] is False
    assert mounts["/volumes/models"] is True


def test_pull_secrets_of_the_installation_come_first() -> None:
    settings = SETTINGS.model_copy(update={"trainer_pull_secrets": ["ours"]})
    spec = pod(made(settings, resources={"imagePullSecrets": ["mine"]}))
    assert spec["imagePullSecrets"] == [{"name": "ours"}, {"name": "mine"}]
