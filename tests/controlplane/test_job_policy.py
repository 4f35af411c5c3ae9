"""What users may ask for: the chart's policy about jobs, and who may write presets, on a real API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import chart
from tests.controlplane.api import HEAD, SPEC_SCHEMA, fields, path_of, places
from tests.controlplane.scene import FTJ
from tests.kube import ApiError, Kube, Object, until

BASE: Object = {
    "stage": "sft",
    "model": {"source": "pvc://models/base"},
    "datasets": [{"source": "pvc://models/rows.jsonl", "format": "openai"}],
    "training": {"epochs": 1},
    "workspace": {"claimName": "work"},
}
ALLOWED = {
    "images": "{registry.example/,ghcr.example/team/trainer}",
    "sources": "{pvc://,hf://good}",
    "outputs": "{s3://models}",
    "addresses": "{https://tracker.example}",
    "secrets": "{hub,bucket}",
    "environment": "{A,B}",
    "serviceAccounts": "{trainer}",
    "priorityClasses": "{batch}",
    "remoteCode": "false",
}
MLFLOW = {"trackingUri": "https://tracker.example/a", "experiment": "e"}
WANDB = {"project": "p", "secret": "hub"}
PREFERENCE = [{"source": "pvc://models/rows.jsonl", "format": "preference"}]
ANSWERS = [{"source": "pvc://models/rows.jsonl", "format": "kto"}]


def ppo(**section: Any) -> Object:
    return {"stage": "ppo", "ppo": section}


CASES: dict[str, tuple[str, Object, Object]] = {
    "image": ("images", {"resources": {"image": "registry.example/a/b:1"}}, {"resources": {"image": "evil.example/a"}}),
    "image of a repository": (
        "images",
        {"resources": {"image": "ghcr.example/team/trainer:2"}},
        {"resources": {"image": "ghcr.example/team/trainer2:2"}},
    ),
    "model": ("sources", {"model": {"source": "hf://good/x@main"}}, {"model": {"source": "hf://good-evil/x@main"}}),
    "data": ("sources", {}, {"datasets": [*BASE["datasets"], {"source": "s3://evil/rows", "format": "openai"}]}),
    "evaluation": (
        "sources",
        {"evaluation": {"datasets": [{"source": "hf://good/rows", "format": "openai"}]}},
        {"evaluation": {"datasets": [{"source": "hf://evil/rows", "format": "openai"}]}},
    ),
    "adapter": (
        "sources",
        {"tuning": {"adapter": {"source": "pvc://models/a", "mode": "merge"}}},
        {"tuning": {"adapter": {"source": "s3://evil/a", "mode": "merge"}}},
    ),
    "reference": (
        "sources",
        {"stage": "dpo", "datasets": PREFERENCE, "dpo": {"reference": {"source": "pvc://models/r"}}},
        {"stage": "dpo", "datasets": PREFERENCE, "dpo": {"reference": {"source": "s3://evil/r"}}},
    ),
    "base of a reference": (
        "sources",
        {"stage": "dpo", "datasets": PREFERENCE, "dpo": {"reference": {"source": "pvc://a/b", "base": "pvc://a/c"}}},
        {"stage": "dpo", "datasets": PREFERENCE, "dpo": {"reference": {"source": "pvc://a/b", "base": "s3://evil/c"}}},
    ),
    "reference of kto": (
        "sources",
        {"stage": "kto", "datasets": ANSWERS, "kto": {"reference": {"source": "pvc://a/b", "base": "pvc://a/c"}}},
        {"stage": "kto", "datasets": ANSWERS, "kto": {"reference": {"source": "s3://evil/b", "base": "pvc://a/c"}}},
    ),
    "base of a reference of kto": (
        "sources",
        {},
        {"stage": "kto", "datasets": ANSWERS, "kto": {"reference": {"source": "pvc://a/b", "base": "s3://evil/c"}}},
    ),
    "reference of ppo": (
        "sources",
        ppo(rewardModel={"source": "pvc://a/b"}, reference={"source": "pvc://a/b", "base": "pvc://a/c"}),
        ppo(rewardModel={"source": "pvc://a/b"}, reference={"source": "s3://evil/b"}),
    ),
    "base of a reference of ppo": (
        "sources",
        {},
        ppo(rewardModel={"source": "pvc://a/b"}, reference={"source": "pvc://a/b", "base": "s3://evil/c"}),
    ),
    "reward model": (
        "sources",
        ppo(rewardModel={"source": "pvc://a/b", "base": "pvc://a/c"}),
        ppo(rewardModel={"source": "s3://evil/b"}),
    ),
    "base of a reward model": ("sources", {}, ppo(rewardModel={"source": "pvc://a/b", "base": "s3://evil/c"})),
    "reward service": (
        "addresses",
        ppo(rewardModel={"http": {"url": "https://tracker.example:8443/score"}}),
        ppo(rewardModel={"http": {"url": "https://evil.example/score"}}),
    ),
    "Secret of a reward service": (
        "secrets",
        ppo(rewardModel={"http": {"url": "https://tracker.example", "secret": "hub"}}),
        ppo(rewardModel={"http": {"url": "https://tracker.example", "secret": "payroll"}}),
    ),
    "address of Weights & Biases": (
        "addresses",
        {"reporting": {"wandb": {**WANDB, "baseUrl": "https://tracker.example"}}},
        {"reporting": {"wandb": {**WANDB, "baseUrl": "https://wandb.example"}}},
    ),
    "Secret of MLflow": (
        "secrets",
        {"reporting": {"mlflow": {**MLFLOW, "secret": "hub"}}},
        {"reporting": {"mlflow": {**MLFLOW, "secret": "payroll"}}},
    ),
    "upload": ("outputs", {"output": {"uri": "s3://models/a"}}, {"output": {"uri": "s3://models-of-others/a"}}),
    "tracker": (
        "addresses",
        {"reporting": {"mlflow": MLFLOW}},
        {"reporting": {"mlflow": {**MLFLOW, "trackingUri": "https://tracker.example.evil/a"}}},
    ),
    "path that leads elsewhere": (
        "addresses",
        {"reporting": {"mlflow": {**MLFLOW, "trackingUri": "https://tracker.example/team"}}},
        {"reporting": {"mlflow": {**MLFLOW, "trackingUri": "https://tracker.example/team/%2E./others"}}},
    ),
    "hub Secret": ("secrets", {"secrets": {"huggingFace": "hub"}}, {"secrets": {"huggingFace": "payroll"}}),
    "bucket Secret": ("secrets", {"secrets": {"s3": "bucket"}}, {"secrets": {"s3": "payroll"}}),
    "Secret of a webhook": ("secrets", {"notify": {"secret": "hub"}}, {"notify": {"secret": "payroll"}}),
    "tracker Secret": (
        "secrets",
        {"reporting": {"wandb": WANDB}},
        {"reporting": {"wandb": {**WANDB, "secret": "payroll"}}},
    ),
    "Secret of a variable": (
        "secrets",
        {"resources": {"env": [{"name": "A", "secretKeyRef": {"name": "hub", "key": "k"}}]}},
        {"resources": {"env": [{"name": "A", "secretKeyRef": {"name": "payroll", "key": "k"}}]}},
    ),
    "Secret as files": (
        "secrets",
        {"resources": {"volumes": [{"name": "v", "secret": {"secretName": "hub"}}]}},
        {"resources": {"volumes": [{"name": "v", "secret": {"secretName": "payroll"}}]}},
    ),
    "pull Secret": (
        "secrets",
        {"resources": {"imagePullSecrets": ["hub"]}},
        {"resources": {"imagePullSecrets": ["hub", "payroll"]}},
    ),
    "variable": (
        "environment",
        {"resources": {"env": [{"name": "A", "value": "1"}]}},
        {"resources": {"env": [{"name": "HF_ENDPOINT", "value": "https://evil.example"}]}},
    ),
    "ServiceAccount": (
        "serviceAccounts",
        {"resources": {"serviceAccountName": "trainer"}},
        {"resources": {"serviceAccountName": "admin"}},
    ),
    "PriorityClass": (
        "priorityClasses",
        {"resources": {"priorityClassName": "batch"}},
        {"resources": {"priorityClassName": "system-node-critical"}},
    ),
    "remote code": ("remoteCode", {}, {"model": {"source": "pvc://models/base", "trustRemoteCode": True}}),
}


def manifest(spec: Object, namespace: str, name: str = "job") -> Object:
    return {**HEAD, "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def refusal(act: Callable[[], object]) -> str:
    """What the server says; empty if it does it."""
    try:
        act()
    except ApiError as error:
        return error.message
    return ""


@pytest.fixture(scope="module")
def limited(kube: Kube, helm: Path) -> Iterator[str]:
    """A namespace that the policy, with every list, is bound to."""
    name = "limited"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    settings = [f"policy.allowed.{key}={value}" for key, value in ALLOWED.items()]
    rendered = chart.render(helm, "fullnameOverride=limited", *settings)
    policy = chart.only(rendered, "ValidatingAdmissionPolicy", "limited-jobs")
    binding = chart.only(rendered, "ValidatingAdmissionPolicyBinding", "limited-jobs")
    binding["spec"]["matchResources"] = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
    kube.create(manifest({**BASE, **CASES["image"][2]}, name, "stored"))
    kube.apply(policy)
    kube.apply(binding)
    probe = manifest({**BASE, **CASES["remote code"][2]}, name)
    until("the policy works", lambda: refusal(lambda: kube.create(probe, dry_run=True)))
    yield name
    kube.delete("ValidatingAdmissionPolicyBinding", "limited-jobs")
    kube.delete("ValidatingAdmissionPolicy", "limited-jobs")
    kube.delete("Namespace", name)


def test_the_expressions_fit_the_type(kube: Kube, limited: str) -> None:
    def status() -> Object | None:
        found = kube.get("ValidatingAdmissionPolicy", "limited-jobs").get("status", {})
        return found if "typeChecking" in found else None

    assert until("the API server has checked the types", status)["typeChecking"] == {}


@pytest.mark.parametrize("case", CASES)
def test_a_job_is_refused_for_what_is_not_allowed(kube: Kube, limited: str, case: str) -> None:
    value, fine, wrong = CASES[case]
    assert refusal(lambda: kube.create(manifest({**BASE, **fine}, limited), dry_run=True)) == ""
    said = refusal(lambda: kube.create(manifest({**BASE, **wrong}, limited), dry_run=True))
    assert f"(chart value policy.allowed.{value})" in said
    assert refusal(lambda: kube.create(manifest({**BASE, **wrong}, "default"), dry_run=True)) == ""


def test_the_message_says_what_is_allowed(kube: Kube, limited: str) -> None:
    said = refusal(lambda: kube.create(manifest({**BASE, **CASES["image"][2]}, limited), dry_run=True))
    assert (
        "the image evil.example/a is not allowed in this cluster. Allowed: registry.example/,"
        " ghcr.example/team/trainer. Use one of them, or ask the administrator of the operator to allow it"
        " (chart value policy.allowed.images)."
    ) in said


def test_every_source_and_every_secret_is_tried() -> None:
    """A new field for a source or a Secret needs a case, and a place in the policy."""
    tried: dict[str, set[str]] = {"evil": set(), "payroll": set()}
    for _, _, wrong in CASES.values():
        for steps, _, _ in places(wrong, SPEC_SCHEMA):
            value: Any = wrong
            for step in steps:
                value = value[step]
            for word in tried:
                if isinstance(value, str | list) and word in value:
                    tried[word].add(path_of(steps))
    paths = {path for path, _ in fields(SPEC_SCHEMA)}
    ends = (".secret", ".secretName", ".secretKeyRef.name", "secrets.huggingFace", "secrets.s3", ".imagePullSecrets")
    assert {path for path in paths if path.endswith((".source", ".base"))} <= tried["evil"]
    assert {path for path in paths if path.endswith(ends) and path != "resources.volumes.secret"} <= tried["payroll"]


def test_a_stored_job_stays_editable_and_can_be_deleted(kube: Kube, limited: str) -> None:
    """It has an image that is not allowed any more. What it already names is no obstacle; something new is."""
    kube.patch(FTJ, "stored", {"spec": {"backoffLimit": 7, "suspend": True}}, limited)
    kube.patch(FTJ, "stored", {"spec": {"resources": {"memory": "32Gi"}}}, limited)
    other = {"spec": {"resources": {"image": "evil.example/other"}}}
    assert "evil.example/other is not allowed" in refusal(lambda: kube.patch(FTJ, "stored", other, limited))
    account = {"spec": {"resources": {"serviceAccountName": "admin"}}}
    assert "policy.allowed.serviceAccounts" in refusal(lambda: kube.patch(FTJ, "stored", account, limited))
    kube.patch(FTJ, "stored", {"spec": {"resources": {"image": "registry.example/a:1"}}}, limited)
    kube.delete(FTJ, "stored", limited)
    until("it is gone", lambda: kube.find(FTJ, "stored", limited) is None)


def test_by_default_everything_is_allowed(helm: Path) -> None:
    names = {m["metadata"]["name"] for m in chart.render(helm) if m["kind"] == "ValidatingAdmissionPolicy"}
    assert names == {"finetune-operator-status", "finetune-operator-presets"}


@pytest.mark.parametrize("value", ALLOWED)
def test_each_value_alone_makes_a_policy(kube: Kube, helm: Path, value: str) -> None:
    rendered = chart.render(helm, f"policy.allowed.{value}={ALLOWED[value]}")
    policy = chart.only(rendered, "ValidatingAdmissionPolicy", "finetune-operator-jobs")
    assert len(policy["spec"]["validations"]) == 1
    kube.apply(policy, dry_run=True)


PRESETS: Object = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "finetune-presets"},
    "data": {"presets.yaml": "bounds: {gpus: 1}"},
}


def _bind(kube: Kube, namespace: str, user: str, role: str) -> None:
    rbac = "rbac.authorization.k8s.io"
    kube.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": f"{user}-{role}", "namespace": namespace},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": rbac, "name": user}],
        }
    )


def test_only_who_has_the_verb_writes_presets(kube: Kube, namespace: str) -> None:
    """An editor of the namespace may write every other ConfigMap."""
    rule = {"apiGroups": ["finetune-operator.io"], "resources": ["finetunejobs"], "verbs": ["set-presets"]}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "preset-writer"}}
    kube.apply({**role, "rules": [rule]})
    for user, roles in (("edda", ["edit"]), ("addi", ["edit", "preset-writer"])):
        for name in roles:
            _bind(kube, namespace, user, name)
    editor, manager = kube.as_user("edda"), kube.as_user("addi")
    other = {**PRESETS, "metadata": {"name": "other"}}
    until("the editor may write ConfigMaps", lambda: refusal(lambda: editor.create(other, namespace)) == "")
    lacks = "edda lacks the verb set-presets on finetunejobs"
    assert lacks in refusal(lambda: editor.create(PRESETS, namespace))
    until("the manager may write presets", lambda: refusal(lambda: manager.create(PRESETS, namespace)) == "")

    changes: dict[str, Callable[[], Any]] = {
        "change": lambda: editor.patch("ConfigMap", "finetune-presets", {"data": {"presets.yaml": ""}}, namespace),
        "label": lambda: editor.patch("ConfigMap", "finetune-presets", {"metadata": {"labels": {"a": "b"}}}, namespace),
        "delete": lambda: editor.call("DELETE", f"api/v1/namespaces/{namespace}/configmaps/finetune-presets"),
        "delete all": lambda: editor.call("DELETE", f"api/v1/namespaces/{namespace}/configmaps"),
    }
    for what, change in changes.items():
        assert lacks in refusal(change), what
    assert kube.get("ConfigMap", "finetune-presets", namespace)["data"] == PRESETS["data"]
    manager.patch("ConfigMap", "finetune-presets", {"data": {"presets.yaml": ""}}, namespace)
    manager.call("DELETE", f"api/v1/namespaces/{namespace}/configmaps/finetune-presets")


def test_presets_do_not_keep_a_namespace_from_its_end(kube: Kube) -> None:
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ends"}})
    kube.create(PRESETS, "ends")
    kube.delete("Namespace", "ends")
    assert until("it is gone", lambda: kube.find("Namespace", "ends") is None, timeout=120)
