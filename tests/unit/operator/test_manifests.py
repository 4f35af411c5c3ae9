"""Manifests: held still by golden files (`pytest --update-golden` rewrites them), and true to a few rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.status import Reference
from finetune_operator.manifests.attempt import children
from finetune_operator.names import Kind, attempt_job
from finetune_operator.plan.acceptance import accept, typed
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

TWO_NODES = {"nodes": 2, "gpusPerNode": 8, "devices": {"rdma/hca_shared": 1}, "affinity": EVERYTHING["affinity"]}

FETCHED: dict[str, Any] = {
    "model": {"source": "hf://org/base@main"},
    "datasets": [
        {"source": "configmap://rows/a.jsonl", "format": "openai"},
        {"source": "configmap://rows/b.jsonl", "format": "openai"},
        {"source": "s3://bucket/more", "format": "openai"},
    ],
    "evaluation": {"datasets": [{"source": "pvc://held-out/test.jsonl", "format": "openai"}]},
    "workspace": {"claim": {"size": "20Gi", "storageClassName": "fast"}, "retain": False},
    "prepare": {"cpu": "6", "memory": "12Gi", "nodeSelector": {"pool": "cpu"}},
    "secrets": {"huggingFace": "hub", "s3": "bucket"},
}


SFT: dict[str, Any] = {
    "job": "sft",
    "uid": "1",
    "stage": "sft",
    "artifact": {
        "uri": "pvc://chained/jobs/sft/artifact",
        "kind": "adapter",
        "digest": "sha256:1",
        "sizeBytes": 1,
        "base": "pvc://models/base",
    },
}
RM: dict[str, Any] = {
    "job": "rm",
    "uid": "2",
    "stage": "rm",
    "artifact": {
        "uri": "pvc://scores/jobs/rm/artifact",
        "kind": "adapter",
        "digest": "sha256:2",
        "sizeBytes": 1,
        "base": "pvc://others/base",
    },
}

CHAINED: dict[str, Any] = {
    "references": [{"use": "model", **SFT}, {"use": "reference", **SFT}, {"use": "rewardModel", **RM}],
    "stage": "ppo",
    "model": {"fromJob": "sft"},
    "datasets": [{"source": "pvc://chained/prompts.jsonl", "format": "openai"}],
    "ppo": {"rewardModel": {"fromJob": "rm"}, "reference": {"fromJob": "sft"}},
    "workspace": {"claimName": "chained"},
}

SERVICES: dict[str, Any] = {
    "stage": "ppo",
    "ppo": {
        "rewardModel": {"http": {"url": "https://scores.example", "secret": "scorer"}},
        "reference": {"source": "pvc://references/one"},
    },
    "reporting": {
        "wandb": {"project": "p", "secret": "weights"},
        "mlflow": {"trackingUri": "https://mlflow.example", "experiment": "e", "secret": "flow"},
    },
}


def made(
    settings: Settings = SETTINGS, kind: Kind = "train", references: list[dict[str, Any]] | None = None, **spec: Any
) -> list[dict[str, Any]]:
    accepted = typed(job(**spec), settings)
    resolved = accept(accepted, [Reference.model_validate(one) for one in references or []], settings)
    facts = AttemptFacts(
        namespace="team",
        name="demo",
        uid=UID,
        kind=kind,
        attempt=1,
        job_name=attempt_job(kind, "demo", UID, 1),
        grace_period_seconds=accepted.spec.resources.termination_grace_period_seconds,
    )
    image = accepted.spec.resources.image or settings.trainer_image
    return list(children(facts, accepted.spec, resolved, image, settings))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"resources": EVERYTHING, "training": {"maxSteps": 10}},
    "workspace-is-source": {"workspace": {"claimName": "models"}},
    "two-nodes": {"resources": TWO_NODES},
    "cpu": {"resources": {"gpusPerNode": 0}},
    "prepare": {"kind": "prepare"},
    "prepare-everything": {"kind": "prepare", "resources": EVERYTHING, **FETCHED},
    "fetched": FETCHED,
    "chained": CHAINED,
    "services": SERVICES,
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


def environment(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By name; of two of one name the later counts, as for the kubelet."""
    return {variable["name"]: variable for variable in pod(manifests)["containers"][0]["env"]}


def test_preparing_asks_for_no_gpu_and_is_placed_where_they_are() -> None:
    spec = pod(made(kind="prepare", resources=EVERYTHING, prepare={"cpu": "6", "memory": "12Gi"}))
    [container] = spec["containers"]
    assert container["args"] == ["prepare", "--job", "/etc/finetune/job.json"]
    assert container["resources"] == {"requests": {"cpu": "6", "memory": "12Gi"}, "limits": {"memory": "12Gi"}}
    train = pod(made(resources=EVERYTHING))
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "securityContext", "volumes"):
        assert spec[field] == train[field]


def test_preparing_may_go_elsewhere() -> None:
    wanted: dict[str, Any] = {
        "resources": {"nodeSelector": {"pool": "gpu"}},
        "prepare": {"nodeSelector": {"pool": "cpu"}},
    }
    assert pod(made(kind="prepare", **wanted))["nodeSelector"] == {"pool": "cpu"}
    assert pod(made(**wanted))["nodeSelector"] == {"pool": "gpu"}


def test_preparing_needs_one_pod_and_no_service() -> None:
    manifests = made(kind="prepare", resources=TWO_NODES)
    assert [manifest["kind"] for manifest in manifests] == ["ServiceAccount", "RoleBinding", "Job"]
    assert manifests[-1]["spec"]["completions"] == 1


def test_pods_of_several_nodes_find_each_other_and_rather_share_a_node_than_wait() -> None:
    manifests = made(resources=TWO_NODES)
    service, batch = manifests[-2:]
    assert (service["kind"], service["metadata"]["name"]) == ("Service", batch["metadata"]["name"])
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    spec = pod(manifests)
    assert spec["subdomain"] == service["metadata"]["name"]
    [spread] = spec["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert (batch["spec"]["completions"], batch["spec"]["parallelism"]) == (2, 2)
    assert "topologySpreadConstraints" not in pod(made())


def test_other_devices_are_asked_for_where_there_is_training() -> None:
    limits = pod(made(resources=TWO_NODES))["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "16Gi", "nvidia.com/gpu": "8", "rdma/hca_shared": "1"}
    assert set(pod(made(kind="prepare", resources=TWO_NODES))["containers"][0]["resources"]["limits"]) == {"memory"}


def test_what_is_fetched_mounts_nothing() -> None:
    spec = pod(made(model={"source": "hf://org/base"}, datasets=[{"source": "s3://rows/x.jsonl", "format": "openai"}]))
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["work"]


def test_keys_of_a_config_map_are_files_of_one_folder() -> None:
    spec = pod(made(**FETCHED))
    [volume] = [v for v in spec["volumes"] if "configMap" in v]
    assert volume["configMap"] == {
        "name": "rows",
        "items": [{"key": "a.jsonl", "path": "a.jsonl"}, {"key": "b.jsonl", "path": "b.jsonl"}],
    }
    [mount] = [m for m in spec["containers"][0]["volumeMounts"] if m["name"] == volume["name"]]
    assert (mount["mountPath"], mount["readOnly"]) == ("/configmaps/rows", True)


def test_sources_of_evaluation_and_adapter_are_mounted() -> None:
    tuning: dict[str, Any] = {"method": "lora", "adapter": {"source": "pvc://adapters/one"}}
    spec = pod(made(tuning=tuning, evaluation={"datasets": [{"source": "pvc://held-out/x", "format": "openai"}]}))
    paths = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    assert {"/volumes/models", "/volumes/adapters", "/volumes/held-out"} <= paths


@pytest.mark.parametrize(("retain", "owned"), [(True, False), (False, True)])
def test_a_workspace_outlives_the_job_unless_told_otherwise(retain: bool, owned: bool) -> None:
    manifests = made(kind="prepare", workspace={"claim": {"size": "5Gi"}, "retain": retain})
    [claim] = [manifest for manifest in manifests if manifest["kind"] == "PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == "demo-workspace"
    assert claim["metadata"]["labels"]["finetune-operator.io/job-uid"] == UID
    assert ("ownerReferences" in claim["metadata"]) == owned
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}}
    volumes = pod(manifests)["volumes"]
    assert {"claimName": "demo-workspace"} in [v.get("persistentVolumeClaim") for v in volumes]


def test_keys_come_from_secrets_by_reference() -> None:
    for kind in ("prepare", "train"):
        env = environment(made(kind=kind, **FETCHED))
        assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "HF_TOKEN"}
        asked = {name: env[name]["valueFrom"]["secretKeyRef"] for name in env if name.startswith("AWS_")}
        optional = {name for name, reference in asked.items() if reference.get("optional")}
        assert set(asked) - optional == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert optional == {"AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"}


def test_another_jobs_artifact_is_mounted_with_the_model_that_it_goes_on() -> None:
    """Read-only, and the workspace's own claim once."""
    for kind in ("prepare", "train"):
        spec = pod(made(kind=kind, **CHAINED))
        volumes = {v["name"]: v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
        found = {
            mount["mountPath"]: (volumes[mount["name"]]["claimName"], mount.get("readOnly", False))
            for mount in spec["containers"][0]["volumeMounts"]
            if mount["name"] in volumes
        }
        assert found == {
            "/workspace": ("chained", False),
            "/volumes/chained": ("chained", True),
            "/volumes/scores": ("scores", True),
            "/volumes/models": ("models", True),
            "/volumes/others": ("others", True),
        }


def test_keys_to_services_are_for_training_alone() -> None:
    env = environment(made(**SERVICES))
    asked = {name: env[name]["valueFrom"]["secretKeyRef"] for name in env if "secretKeyRef" in str(env[name])}
    assert {name: (key["name"], key["key"], key.get("optional", False)) for name, key in asked.items()} == {
        "REWARD_TOKEN": ("scorer", "REWARD_TOKEN", False),
        "WANDB_API_KEY": ("weights", "WANDB_API_KEY", False),
        "MLFLOW_TRACKING_USERNAME": ("flow", "MLFLOW_TRACKING_USERNAME", True),
        "MLFLOW_TRACKING_PASSWORD": ("flow", "MLFLOW_TRACKING_PASSWORD", True),
        "MLFLOW_TRACKING_TOKEN": ("flow", "MLFLOW_TRACKING_TOKEN", True),
    }
    assert "secretKeyRef" not in str(environment(made(kind="prepare", **SERVICES)))


def test_a_variable_of_the_users_goes_before_ours() -> None:
    env = [{"name": "HF_TOKEN", "value": "mine"}, {"name": "HF_HUB_OFFLINE", "value": "0"}]
    manifests = made(secrets={"huggingFace": "hub"}, resources={"env": env})
    names = [variable["name"] for variable in pod(manifests)["containers"][0]["env"]]
    assert len(names) == len(set(names))
    assert environment(manifests)["HF_TOKEN"]["value"] == "mine"
    assert environment(manifests)["HF_HUB_OFFLINE"]["value"] == "0"


def test_training_asks_no_hub_unless_it_publishes_there() -> None:
    assert "HF_HUB_OFFLINE" in environment(made())
    assert "HF_HUB_OFFLINE" in environment(made(output={"uri": "s3://bucket/out"}))
    assert "HF_HUB_OFFLINE" not in environment(made(output={"uri": "hf://org/tuned"}))
    assert "HF_HUB_OFFLINE" not in environment(made(kind="prepare"))


def test_endpoints_of_the_installation_reach_every_pod_and_a_secrets_own_goes_before() -> None:
    settings = SETTINGS.model_copy(update={"hub_endpoint": "https://hub.example", "s3_endpoint": "https://s3.example"})
    for kind in ("prepare", "train"):
        env = environment(made(settings, kind=kind))
        assert env["HF_ENDPOINT"]["value"] == "https://hub.example"
        assert env["AWS_ENDPOINT_URL"]["value"] == "https://s3.example"
    named = [v for v in pod(made(settings, **FETCHED))["containers"][0]["env"] if v["name"] == "AWS_ENDPOINT_URL"]
    assert ["value" in variable for variable in named] == [True, False]
