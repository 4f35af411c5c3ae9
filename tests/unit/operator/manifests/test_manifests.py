"""Manifests: pinned by golden files (`pytest --update-golden` rewrites them), and checked against a few rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.contract import AttemptFacts, ResolvedJob, canonical
from finetune_api.resources import ResourcesSpec
from finetune_api.status import Reference
from finetune_operator.manifests.attempt import attempt_objects
from finetune_operator.names import Kind, attempt_job
from finetune_operator.plan.acceptance import accept, parse_spec
from finetune_operator.settings import Settings

from tests.unit.operator.make import SETTINGS, UID, job

GOLDEN = Path(__file__).resolve().parents[3] / "golden" / "manifests"
EVERYTHING: dict[str, Any] = {
    "gpusPerNode": 2,
    "gpuResource": "amd.com/gpu",
    "cpu": "8",
    "cpuLimit": "16",
    "memory": "64Gi",
    "podLabels": {"sidecar.istio.io/inject": "false"},
    "podAnnotations": {"linkerd.io/inject": "disabled"},
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
    "schedulerName": "volcano",
    "topology": {"preferred": "cloud.example.com/rack"},
    "resourceClaims": [
        {"name": "nic", "resourceClaimTemplateName": "nics", "request": "fast"},
        {"name": "gpus", "resourceClaimName": "node-gpus", "gpus": True},
    ],
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
    "prepare": {"cpu": "6", "cpuLimit": "8", "memory": "12Gi", "nodeSelector": {"pool": "cpu"}},
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
    accepted = parse_spec(job(**spec), settings).job
    resolved = accept(accepted, [Reference.model_validate(reference) for reference in references or []], settings)
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
    return list(attempt_objects(facts, accepted.spec, resolved, canonical(resolved.to_dict()), image, settings))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "resources": EVERYTHING,
        "training": {"maxSteps": 10},
        "queue": "team",
        "queuePriorityClass": "urgent",
    },
    "workspace-is-source": {"workspace": {"claimName": "models"}},
    "two-nodes": {"resources": TWO_NODES},
    "cpu": {"resources": {"gpusPerNode": 0}},
    "prepare": {"kind": "prepare"},
    "prepare-everything": {"kind": "prepare", "resources": EVERYTHING, "queue": "team", **FETCHED},
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


def test_the_annotations_are_what_the_trainer_parses_and_hold_no_environment() -> None:
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


def test_a_claim_that_is_named_twice_is_one_volume() -> None:
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
    both = pod(made(settings, resources={"imagePullSecrets": ["mine", "ours"]}))
    assert both["imagePullSecrets"] == spec["imagePullSecrets"]


def test_a_cpu_limit_is_a_limit_of_its_pods_only() -> None:
    limited: dict[str, Any] = {"resources": {"cpu": "8", "cpuLimit": "16"}, "prepare": {"cpu": "2", "cpuLimit": 4}}
    wanted: dict[Kind, tuple[str, str]] = {"train": ("8", "16"), "prepare": ("2", "4")}
    for kind, (request, limit) in wanted.items():
        resources = pod(made(kind=kind, **limited))["containers"][0]["resources"]
        assert (resources["requests"]["cpu"], resources["limits"]["cpu"]) == (request, limit)
        assert "cpu" not in pod(made(kind=kind))["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("kind", ["prepare", "train"])
def test_labels_and_annotations_of_the_job_are_on_its_pods_and_nowhere_else(kind: Kind) -> None:
    own: dict[str, Any] = {"podLabels": {"team": "a"}, "podAnnotations": {"linkerd.io/inject": "disabled"}}
    manifests = made(kind=kind, resources={**TWO_NODES, **own})
    without = made(kind=kind, resources=TWO_NODES)
    template, plain = (some[-1]["spec"]["template"]["metadata"] for some in (manifests, without))
    assert template["labels"] == {**plain["labels"], "team": "a"}
    assert template["annotations"] == {**plain["annotations"], "linkerd.io/inject": "disabled"}
    assert [one["metadata"] for one in manifests] == [one["metadata"] for one in without]
    assert manifests[:-1] == without[:-1], "the Service still finds its pods by the operator's labels"


def test_an_earlier_release_may_have_accepted_labels_that_are_the_operators() -> None:
    """Then they lose: the operator finds its pods by them."""
    accepted = parse_spec(job(), SETTINGS).job.spec
    lenient = ResourcesSpec.read({"podLabels": {"finetune-operator.io/job": "other"}})
    spec = accepted.model_copy(update={"resources": lenient})
    facts = AttemptFacts(namespace="team", name="demo", uid=UID, attempt=1, job_name="demo-1")
    resolved = accept(parse_spec(job(), SETTINGS).job, [], SETTINGS)
    labels = attempt_objects(facts, spec, resolved, "{}", "i", SETTINGS)[-1]["spec"]["template"]["metadata"]["labels"]
    assert labels["finetune-operator.io/job"] == "demo"


@pytest.mark.parametrize("kind", ["prepare", "train"])
def test_what_pods_receive_besides_does_not_change_the_resolved_job(kind: Kind) -> None:
    """Otherwise a checkpoint of an attempt without it would be another job's."""
    own = {"cpuLimit": "64", "podLabels": {"team": "a"}, "podAnnotations": {"linkerd.io/inject": "disabled"}}
    first, second = made(kind=kind), made(kind=kind, resources=own, prepare={"cpuLimit": "4"})
    annotations = [some[-1]["spec"]["template"]["metadata"]["annotations"] for some in (first, second)]
    for name in ("finetune-operator.io/resolved-job", "finetune-operator.io/attempt-facts"):
        assert annotations[0][name] == annotations[1][name]


def environment(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By name. The later of two variables with the same name counts, as for the kubelet."""
    return {variable["name"]: variable for variable in pod(manifests)["containers"][0]["env"]}


def test_a_prepare_pod_requests_no_gpu_and_is_placed_like_training_pods() -> None:
    spec = pod(made(kind="prepare", resources=EVERYTHING, queue="team", prepare={"cpu": "6", "memory": "12Gi"}))
    [container] = spec["containers"]
    assert container["args"] == ["prepare", "--job", "/etc/finetune/job.json"]
    assert container["resources"] == {"requests": {"cpu": "6", "memory": "12Gi"}, "limits": {"memory": "12Gi"}}
    train = pod(made(resources=EVERYTHING, queue="team"))
    for field in ("nodeSelector", "tolerations", "affinity", "priorityClassName", "securityContext", "volumes"):
        assert spec[field] == train[field]


def test_a_prepare_pod_may_have_its_own_node_selector() -> None:
    wanted: dict[str, Any] = {
        "resources": {"nodeSelector": {"pool": "gpu"}},
        "prepare": {"nodeSelector": {"pool": "cpu"}},
    }
    assert pod(made(kind="prepare", **wanted))["nodeSelector"] == {"pool": "cpu"}
    assert pod(made(**wanted))["nodeSelector"] == {"pool": "gpu"}


def test_preparing_has_one_pod_and_no_service() -> None:
    manifests = made(kind="prepare", resources=TWO_NODES)
    assert [manifest["kind"] for manifest in manifests] == ["ServiceAccount", "RoleBinding", "Job"]
    assert manifests[-1]["spec"]["completions"] == 1


def test_pods_on_several_nodes_resolve_each_other_and_may_share_a_node() -> None:
    manifests = made(resources=TWO_NODES)
    service, child = manifests[-2:]
    assert (service["kind"], service["metadata"]["name"]) == ("Service", child["metadata"]["name"])
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    spec = pod(manifests)
    assert spec["subdomain"] == service["metadata"]["name"]
    [spread] = spec["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert (child["spec"]["completions"], child["spec"]["parallelism"]) == (2, 2)
    assert "topologySpreadConstraints" not in pod(made())


def test_only_training_pods_request_other_devices() -> None:
    limits = pod(made(resources=TWO_NODES))["containers"][0]["resources"]["limits"]
    assert limits == {"memory": "16Gi", "nvidia.com/gpu": "8", "rdma/hca_shared": "1"}
    assert set(pod(made(kind="prepare", resources=TWO_NODES))["containers"][0]["resources"]["limits"]) == {"memory"}


def test_fetched_sources_mount_nothing() -> None:
    spec = pod(made(model={"source": "hf://org/base"}, datasets=[{"source": "s3://rows/x.jsonl", "format": "openai"}]))
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert claims == ["workspace"]


def test_keys_of_a_config_map_are_files_in_one_directory() -> None:
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
def test_a_workspace_outlives_the_job_unless_retain_is_false(retain: bool, owned: bool) -> None:
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


def test_another_jobs_artifact_is_mounted_with_its_base_model() -> None:
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


def test_only_training_pods_get_keys_to_services() -> None:
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


def test_a_variable_of_the_user_overrides_ours() -> None:
    env = [{"name": "HF_TOKEN", "value": "mine"}, {"name": "HF_HUB_OFFLINE", "value": "0"}]
    manifests = made(secrets={"huggingFace": "hub"}, resources={"env": env})
    names = [variable["name"] for variable in pod(manifests)["containers"][0]["env"]]
    assert len(names) == len(set(names))
    assert environment(manifests)["HF_TOKEN"]["value"] == "mine"
    assert environment(manifests)["HF_HUB_OFFLINE"]["value"] == "0"


def test_training_is_offline_unless_it_publishes_to_the_hub() -> None:
    assert "HF_HUB_OFFLINE" in environment(made())
    assert "HF_HUB_OFFLINE" in environment(made(output={"uri": "s3://bucket/out"}))
    assert "HF_HUB_OFFLINE" not in environment(made(output={"uri": "hf://org/tuned"}))
    assert "HF_HUB_OFFLINE" not in environment(made(kind="prepare"))


def test_every_pod_gets_the_endpoints_of_the_installation_unless_a_secret_overrides_them() -> None:
    settings = SETTINGS.model_copy(update={"hub_endpoint": "https://hub.example", "s3_endpoint": "https://s3.example"})
    for kind in ("prepare", "train"):
        env = environment(made(settings, kind=kind))
        assert env["HF_ENDPOINT"]["value"] == "https://hub.example"
        assert env["AWS_ENDPOINT_URL"]["value"] == "https://s3.example"
    named = [v for v in pod(made(settings, **FETCHED))["containers"][0]["env"] if v["name"] == "AWS_ENDPOINT_URL"]
    assert ["value" in variable for variable in named] == [True, False]


OUTBOUND = {
    "http_proxy": "http://proxy.example:3128",
    "https_proxy": "http://proxy.example:3129",
    "no_proxy": [".corp.example"],
    "ca_config_map": "corp-ca",
    "ca_key": "bundle.pem",
}


def test_every_pod_gets_the_proxy_and_the_certificates_of_the_installation() -> None:
    for kind in ("prepare", "train"):
        manifests = made(SETTINGS.model_copy(update=OUTBOUND), kind=kind, resources=TWO_NODES)
        env = {name: variable.get("value") for name, variable in environment(manifests).items()}
        assert env["HTTP_PROXY"] == "http://proxy.example:3128"
        assert env["HTTPS_PROXY"] == "http://proxy.example:3129"
        direct = str(env["NO_PROXY"]).split(",")
        [ranks] = [name for name in direct if manifests[-1]["metadata"]["name"] in name]
        assert ranks.startswith("."), "the ranks call each other <job>-<index>.<job>"
        assert {"$(KUBERNETES_SERVICE_HOST)", "localhost", ".svc", ".corp.example"} <= set(direct)
        [file] = {env[name] for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")}
        [mount] = [m for m in pod(manifests)["containers"][0]["volumeMounts"] if m["name"] == "finetune-ca"]
        [volume] = [v for v in pod(manifests)["volumes"] if v["name"] == "finetune-ca"]
        assert volume["configMap"] == {"name": "corp-ca", "items": [{"key": "bundle.pem", "path": "ca.crt"}]}
        assert file == f"{mount['mountPath']}/ca.crt"
        assert mount["readOnly"]


def test_proxy_and_certificates_change_nothing_that_a_job_keeps() -> None:
    """Not the resolved job, and so neither its digest nor what its checkpoints belong to."""
    plain, with_both = (made(settings) for settings in (SETTINGS, SETTINGS.model_copy(update=OUTBOUND)))
    annotations = [manifests[-1]["spec"]["template"]["metadata"]["annotations"] for manifests in (plain, with_both)]
    assert annotations[0] == annotations[1]


def test_a_users_own_proxy_wins() -> None:
    own = {"env": [{"name": "HTTPS_PROXY", "value": "http://mine.example"}, {"name": "SSL_CERT_FILE", "value": "/ca"}]}
    names = [v["name"] for v in pod(made(SETTINGS.model_copy(update=OUTBOUND), resources=own))["containers"][0]["env"]]
    assert (names.count("HTTPS_PROXY"), names.count("SSL_CERT_FILE")) == (1, 1)
