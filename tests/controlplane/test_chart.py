"""The chart: what it renders, what it refuses, what it lets the operator do, and that a real API server takes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import chart
from tests.chart import CHART, HelmError, only, render
from tests.kube import ApiError, Kube, until

GOLDEN = Path(__file__).with_name("operator-rights.yaml")
IMAGE_ENV = "FINETUNE_TRAINER_IMAGE"


def _env(manifests: list[dict[str, Any]]) -> dict[str, str]:
    [container] = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


def _pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def test_lint_is_silent(helm: Path) -> None:
    told = chart.helm(helm, "lint", "--strict", "--quiet", "--kube-version", chart.KUBERNETES, str(CHART))
    assert "WARNING" not in told
    assert "ERROR" not in told


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("policy.enabeld=false", "enabeld"),
        ("replicas=2", "replicas"),
        ("trainer.image.tga=1", "tga"),
        ("logLevel=verbose", "logLevel"),
        ("workers=0", "workers"),
        ("trainer.progressIntervalSeconds=often", "progressIntervalSeconds"),
        ("image.digest=latest", "digest"),
        ("imagePullSecrets[0]=mine", "imagePullSecrets"),
        ("crds.keep=yes-please", "keep"),
    ],
)
def test_a_wrong_value_is_refused_by_name(helm: Path, setting: str, complaint: str) -> None:
    with pytest.raises(HelmError, match=complaint):
        render(helm, setting)


def test_an_old_kubernetes_is_refused(helm: Path) -> None:
    with pytest.raises(HelmError, match=r">=1\.31"):
        render(helm, kubernetes="1.30.9")


def _leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in values.items():
        inner = isinstance(value, dict) and value and prefix + key != "resources"
        found |= _leaves(value, f"{prefix}{key}.") if inner else {prefix + key}
    return found


def _schema_leaves(schema: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, sub in schema["properties"].items():
        inner = "properties" in sub and prefix + key != "resources"
        found |= _schema_leaves(sub, f"{prefix}{key}.") if inner else {prefix + key}
    return found


def test_values_and_schema_list_the_same(helm: Path) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert _leaves(values) == _schema_leaves(schema) - {"global"}


def test_every_value_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        # A key that opens a section speaks through those in it; resources are Kubernetes' own words.
        if re.match(r" *[A-Za-z]+: \S", line) and not re.match(r" +(cpu|memory):", line):
            assert lines[number - 1].lstrip().startswith("#"), f"values.yaml:{number + 1} has no comment: {line}"


def test_every_value_is_used() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    # Images are handed over whole to a helper.
    unused = {leaf for leaf in _leaves(values) if ".image." not in f".{leaf}" and f".Values.{leaf}" not in templates}
    assert not unused


def test_values_reach_the_operator(helm: Path) -> None:
    env = _env(
        render(
            helm,
            "trainer.allowCpu=true",
            "trainer.allowRemoteCode=true",
            "trainer.readNodeLabels=true",
            "trainer.hubEndpoint=https://hub.example",
            "trainer.s3Endpoint=https://s3.example",
            "trainer.progressIntervalSeconds=60",
            "trainer.image.pullPolicy=Always",
            "imagePullSecrets[0].name=one",
            "imagePullSecrets[1].name=two",
            "resyncSeconds=5",
            "workers=3",
            "logLevel=debug",
        )
    )
    assert env == {
        IMAGE_ENV: "finetune-trainer:0.1.0",
        "FINETUNE_TRAINER_IMAGE_PULL_POLICY": "Always",
        "FINETUNE_TRAINER_PULL_SECRETS": "one,two",
        "FINETUNE_TRAINER_CLUSTER_ROLE": "finetune-trainer",
        "FINETUNE_ALLOW_CPU": "true",
        "FINETUNE_ALLOW_REMOTE_CODE": "true",
        "FINETUNE_READ_NODE_LABELS": "true",
        "FINETUNE_HUB_ENDPOINT": "https://hub.example",
        "FINETUNE_S3_ENDPOINT": "https://s3.example",
        "FINETUNE_PROGRESS_INTERVAL_SECONDS": "60",
        "FINETUNE_RESYNC_SECONDS": "5",
        "FINETUNE_WORKERS": "3",
        "FINETUNE_LOG_LEVEL": "debug",
        "FINETUNE_HEALTH_PORT": "8080",
    }


def test_images_go_by_digest_where_there_is_one(helm: Path) -> None:
    digest = "sha256:" + "a" * 64
    settings = ("image.repository=r.example:5000/op", "image.tag=v1", f"trainer.image.digest={digest}")
    manifests = render(helm, *settings)
    assert _pod(manifests)["containers"][0]["image"] == "r.example:5000/op:v1"
    assert _env(manifests)[IMAGE_ENV] == f"finetune-trainer@{digest}"


def test_pull_secrets_and_placement_reach_the_pod(helm: Path) -> None:
    pod = _pod(
        render(
            helm,
            "imagePullSecrets[0].name=registry",
            "nodeSelector.pool=system",
            "tolerations[0].operator=Exists",
            "priorityClassName=high",
            "affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight=1",
        )
    )
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"pool": "system"}
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["priorityClassName"] == "high"
    assert pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == [{"weight": 1}]


def test_never_two_operators_at_once(helm: Path) -> None:
    spec = only(render(helm), "Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


def test_the_crd_survives_an_uninstall_unless_told_otherwise(helm: Path) -> None:
    def annotations(*settings: str) -> dict[str, str]:
        found: dict[str, str] = only(render(helm, *settings), "CustomResourceDefinition")["metadata"].get(
            "annotations", {}
        )
        return found

    assert annotations() == {"helm.sh/resource-policy": "keep"}
    assert annotations("crds.keep=false") == {}
    assert annotations("crds.annotations.team=ml") == {"helm.sh/resource-policy": "keep", "team": "ml"}


@pytest.mark.parametrize(
    ("setting", "kinds"),
    [
        ("crds.enabled=false", {"CustomResourceDefinition"}),
        ("policy.enabled=false", {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}),
    ],
)
def test_parts_can_be_left_out(helm: Path, setting: str, kinds: set[str]) -> None:
    assert {m["kind"] for m in render(helm)} - {m["kind"] for m in render(helm, setting)} == kinds


def test_the_policy_knows_the_operator_by_any_name(helm: Path) -> None:
    manifests = render(helm, "fullnameOverride=tuner", namespace="elsewhere")
    [condition] = [
        c["expression"]
        for c in only(manifests, "ValidatingAdmissionPolicy")["spec"]["matchConditions"]
        if c["name"] == "not-the-operator"
    ]
    account = only(manifests, "ServiceAccount")["metadata"]
    assert f"'system:serviceaccount:{account['namespace']}:{account['name']}'" in condition
    assert only(manifests, "ClusterRoleBinding")["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert _pod(manifests)["serviceAccountName"] == account["name"]


def test_the_operators_rights_are_these_and_no_more(helm: Path) -> None:
    """The golden file is what a security review reads; a change of it is a decision."""
    rules = only(render(helm), "ClusterRole", chart.RELEASE)["rules"]
    assert rules == yaml.safe_load(GOLDEN.read_text())


def test_nodes_are_listed_only_by_an_operator_that_is_told_to(helm: Path) -> None:
    def may(*settings: str) -> list[list[str]]:
        rules = only(render(helm, *settings), "ClusterRole", chart.RELEASE)["rules"]
        return [rule["verbs"] for rule in rules if "nodes" in rule["resources"]]

    assert may() == []
    assert may("trainer.readNodeLabels=true") == [["list"]]


def test_no_role_has_a_wildcard_or_a_secret(helm: Path) -> None:
    for role in (m for m in render(helm) if m["kind"] == "ClusterRole"):
        for rule in role["rules"]:
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert "*" not in words
            assert "secrets" not in words
            assert not {"escalate", "impersonate"} & set(words)


def test_training_pods_have_one_right(helm: Path) -> None:
    assert only(render(helm), "ClusterRole", "finetune-trainer")["rules"] == [
        {"apiGroups": ["finetune-operator.io"], "resources": ["finetunejobs/status"], "verbs": ["patch"]}
    ]


def _may(kube: Kube, account: str, namespace: str, verb: str, resource: str, name: str = "", sub: str = "") -> bool:
    group, _, plural = resource.rpartition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural, "name": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {},
        "spec": {"user": account, "resourceAttributes": {**attributes, "subresource": sub}},
    }
    allowed: bool = kube.create(review)["status"]["allowed"]
    return allowed


def test_the_operator_makes_a_namespaces_identity_and_gives_it_one_role_only(kube: Kube, namespace: str) -> None:
    operator = kube.as_account(chart.RELEASE, chart.NAMESPACE)
    subjects = [{"kind": "ServiceAccount", "name": "finetune-trainer", "namespace": namespace}]

    def binding(name: str, role: str) -> dict[str, Any]:
        return {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": subjects,
        }

    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "finetune-trainer"}}
    operator.apply(account, namespace)
    operator.apply(binding("finetune-trainer", "finetune-trainer"))
    trainer = f"system:serviceaccount:{namespace}:finetune-trainer"
    until(
        "the training pods' right is there",
        lambda: _may(kube, trainer, namespace, "patch", "finetune-operator.io/finetunejobs", sub="status"),
    )
    assert not _may(kube, trainer, namespace, "patch", "finetune-operator.io/finetunejobs")
    assert not _may(kube, trainer, namespace, "get", "secrets")

    kube.delete("RoleBinding", "finetune-trainer", namespace)
    kube.apply({**binding("somebodys", "edit"), "subjects": []})
    for name, role in (("finetune-trainer", "cluster-admin"), ("mine", "view"), ("somebodys", "edit")):
        with pytest.raises(ApiError) as refused:
            operator.apply(binding(name, role))
        assert refused.value.code == 403


def test_editors_of_a_namespace_make_jobs_and_viewers_see_them(
    kube: Kube, namespace: str, manifest: dict[str, Any]
) -> None:
    for person, role in (("ed", "edit"), ("vi", "view")):
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": person, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": person}],
        }
        kube.apply(binding)
    until(
        "the roles are aggregated",
        lambda: (
            _may(kube, "ed", namespace, "create", "finetune-operator.io/finetunejobs")
            and _may(kube, "vi", namespace, "list", "finetune-operator.io/finetunejobs")
        ),
    )
    kube.as_user("ed").create(manifest, namespace)
    assert [job["metadata"]["name"] for job in kube.as_user("vi").list("FineTuneJob", namespace)] == ["sft-lora"]
    with pytest.raises(ApiError) as refused:
        kube.as_user("vi").delete("FineTuneJob", "sft-lora", namespace)
    assert refused.value.code == 403
    assert not _may(kube, "ed", namespace, "patch", "finetune-operator.io/finetunejobs", sub="status")


def test_the_api_server_takes_every_object(kube: Kube, helm: Path) -> None:
    """Strictly: a field that it does not know would be an error, and so would CEL that does not compile."""
    for manifest in render(helm, "imagePullSecrets[0].name=registry"):
        kube.apply(manifest, dry_run=True)
    policy = kube.get("ValidatingAdmissionPolicy", f"{chart.RELEASE}-status")
    assert not policy.get("status", {}).get("typeChecking", {}).get("expressionWarnings")


def test_the_operators_pod_is_restricted(kube: Kube, helm: Path) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = "restricted-by-pod-security"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    template = only(render(helm), "Deployment")["spec"]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator", "namespace": name},
        "spec": template["spec"],
    }
    pod["spec"] = {**template["spec"], "serviceAccountName": "default"}
    until("the namespace has its account", lambda: kube.find("ServiceAccount", "default", name))
    assert kube.create(pod, dry_run=True)["metadata"]["name"] == "operator"
    [container] = template["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]

    loose = {**pod, "spec": {**pod["spec"], "hostNetwork": True}}
    with pytest.raises(ApiError, match="violates PodSecurity"):
        kube.create(loose, dry_run=True)
