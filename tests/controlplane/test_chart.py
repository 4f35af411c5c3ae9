"""The chart: what it renders, what it refuses, what it lets the operator do, and that a real API server takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator.views.presets import presets_view

from tests import chart
from tests.chart import CHART, only, render
from tests.kube import ApiError, Kube, until

GOLDEN = Path(__file__).with_name("operator-rights.yaml")
SELECTOR = f"app.kubernetes.io/name=finetune-operator,app.kubernetes.io/instance={chart.RELEASE}"
IMAGE_ENV = "FINETUNE_TRAINER_IMAGE"


def _env(manifests: list[dict[str, Any]]) -> dict[str, str]:
    [container] = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def _pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = only(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def test_lint_is_silent(helm: Path) -> None:
    told = chart.helm(helm, "lint", "--strict", "--quiet", str(CHART))
    assert "WARNING" not in told
    assert "ERROR" not in told


def test_values_reach_the_operator(helm: Path) -> None:
    env = _env(
        render(
            helm,
            "trainer.allowCpu=true",
            "trainer.allowRemoteCode=true",
            "trainer.readNodeLabels=true",
            "trainer.hubEndpoint=https://hub.example",
            "trainer.s3Endpoint=https://s3.example",
            "trainer.temporaryStorage=1Ti",
            "trainer.proxy.http=http://proxy.example:3128",
            "trainer.proxy.https=http://proxy.example:3129",
            "trainer.proxy.noProxy={.corp.example,10.0.0.0/8}",
            "trainer.caBundle.configMap=corp-ca",
            "trainer.caBundle.key=bundle.pem",
            "trainer.progressIntervalSeconds=60",
            "trainer.image.pullPolicy=Always",
            "imagePullSecrets[0].name=one",
            "imagePullSecrets[1].name=two",
            "ttlSecondsAfterFinished=2592000",
            "presets.default.defaults.ttlSecondsAfterFinished=31536000",
            "presets.default.bounds.gpus=8",
            "resyncSeconds=5",
            "lostNodeTimeout=86400",
            "partlyScheduledTimeout=45",
            "workers=3",
            "logLevel=debug",
            "logFormat=json",
            "metrics.perJob=pods",
        )
    )
    assert env == {
        IMAGE_ENV: "finetune-trainer:0.1.0",
        "FINETUNE_TRAINER_IMAGE_PULL_POLICY": "Always",
        "FINETUNE_TRAINER_PULL_SECRETS": "one,two",
        "FINETUNE_TRAINER_ROLE": "finetune-trainer",
        "FINETUNE_WATCH_NAMESPACES": "",
        "FINETUNE_INSTALLATION": f"{chart.NAMESPACE}/{chart.RELEASE}",
        "FINETUNE_ALLOW_CPU": "true",
        "FINETUNE_ALLOW_REMOTE_CODE": "true",
        "FINETUNE_READ_NODE_LABELS": "true",
        "FINETUNE_HUB_ENDPOINT": "https://hub.example",
        "FINETUNE_S3_ENDPOINT": "https://s3.example",
        "FINETUNE_HTTP_PROXY": "http://proxy.example:3128",
        "FINETUNE_HTTPS_PROXY": "http://proxy.example:3129",
        "FINETUNE_NO_PROXY": ".corp.example,10.0.0.0/8",
        "FINETUNE_CA_CONFIG_MAP": "corp-ca",
        "FINETUNE_CA_KEY": "bundle.pem",
        "FINETUNE_TEMPORARY_STORAGE": "1Ti",
        "FINETUNE_PROGRESS_INTERVAL_SECONDS": "60",
        "FINETUNE_TTL_SECONDS_AFTER_FINISHED": "2592000",  # not 2.592e+06, as templates write large numbers
        "FINETUNE_PRESETS": '{"bounds":{"gpus":8},"defaults":{"ttlSecondsAfterFinished":31536000}}',
        "FINETUNE_RESYNC_SECONDS": "5",
        "FINETUNE_LOST_NODE_TIMEOUT": "86400",
        "FINETUNE_PARTLY_SCHEDULED_TIMEOUT": "45",
        "FINETUNE_WORKERS": "3",
        "FINETUNE_LEASE_NAMESPACE": chart.NAMESPACE,
        "FINETUNE_LEASE_NAME": chart.RELEASE,
        "FINETUNE_IDENTITY": "",  # the pod's name
        "FINETUNE_OPERATOR_SELECTOR": SELECTOR,
        "FINETUNE_LOG_LEVEL": "debug",
        "FINETUNE_LOG_FORMAT": "json",
        "FINETUNE_METRICS_PER_JOB": "pods",
        "FINETUNE_HEALTH_PORT": "8080",
    }


def test_an_upgrade_keeps_an_operator_until_its_successor_is_ready(helm: Path) -> None:
    """Both fields are stated: a change back to Recreate then removes them, also by server-side apply."""
    deployment = only(render(helm), "Deployment")["spec"]
    assert deployment["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert deployment["template"]["metadata"]["labels"]["finetune-operator.io/leader-election"] == "true"
    assert "finetune-operator.io/leader-election" not in deployment["selector"]["matchLabels"]


def test_the_lease_is_the_installations_own(helm: Path) -> None:
    """The rights are in its namespace alone, and the operator asks for the object that they name."""
    manifests = render(helm, "fullnameOverride=tuner", namespace="elsewhere")
    role = only(manifests, "Role")
    assert role["metadata"]["namespace"] == "elsewhere"
    assert _env(manifests)["FINETUNE_LEASE_NAMESPACE"] == "elsewhere"
    [named] = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert named == {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [_env(manifests)["FINETUNE_LEASE_NAME"]],
        "verbs": ["get", "update"],
    }
    assert not any("leases" in rule["resources"] for rule in only(manifests, "ClusterRole", "tuner")["rules"])


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


def test_presets_become_config_maps_that_the_operator_reads(kube: Kube, helm: Path, namespace: str) -> None:
    """Also large numbers, which templates may write as 3.1536e+07."""
    values = f"presets.namespaces.{namespace}"
    rendered = render(helm, f"{values}.bounds.gpus=8", f"{values}.defaults.ttlSecondsAfterFinished=31536000")
    made = only(rendered, "ConfigMap")
    assert made["metadata"]["namespace"] == namespace
    found = presets_view(kube.apply(made))
    assert found.problem == ""
    assert found.presets.to_dict() == {"defaults": {"ttlSecondsAfterFinished": 31536000}, "bounds": {"gpus": 8}}
    assert "ConfigMap" not in {m["kind"] for m in render(helm)}


def test_the_protection_of_presets_can_be_left_out(helm: Path) -> None:
    def policies(*settings: str) -> set[str]:
        return {m["metadata"]["name"] for m in render(helm, *settings) if m["kind"] == "ValidatingAdmissionPolicy"}

    assert policies() - policies("policy.protectPresets=false") == {"finetune-operator-presets"}
    assert policies("policy.enabled=false", "policy.allowed.images={a.example/}") == set()


def test_the_operator_has_its_rights_by_any_name(helm: Path) -> None:
    manifests = render(helm, "fullnameOverride=tuner", namespace="elsewhere")
    account = only(manifests, "ServiceAccount")["metadata"]
    assert only(manifests, "ClusterRoleBinding")["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert _pod(manifests)["serviceAccountName"] == account["name"]


def test_the_operators_rights_are_these_and_no_more(helm: Path) -> None:
    """The golden file is what a security review reads; a change of it is a decision."""
    manifests = render(helm)
    cluster, inside, own = yaml.safe_load_all(GOLDEN.read_text())
    assert only(manifests, "ClusterRole", chart.RELEASE)["rules"] == cluster
    assert only(manifests, "Role")["rules"] == own
    roles = [m for m in render(helm, "watchNamespaces={a,b}") if m["kind"] == "Role"]
    # It also looks for pods of earlier releases in its own namespace, where no ClusterRole lets it.
    [elects] = [m for m in roles if m["metadata"]["namespace"] == chart.NAMESPACE]
    assert elects["rules"] == [*own, {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    mine = {m["metadata"]["namespace"]: m["rules"] for m in roles if m["metadata"]["name"] == chart.RELEASE}
    assert mine == {"a": inside, "b": inside}


def test_nodes_are_listed_only_by_an_operator_that_is_told_to(helm: Path) -> None:
    def may(*settings: str) -> list[list[str]]:
        rules = only(render(helm, *settings), "ClusterRole", chart.RELEASE)["rules"]
        return [rule["verbs"] for rule in rules if "nodes" in rule["resources"]]

    assert may() == []
    assert may("trainer.readNodeLabels=true") == [["list"]]


def test_no_role_has_a_wildcard_or_a_secret(helm: Path) -> None:
    for role in (m for m in render(helm) if m["kind"] in ("ClusterRole", "Role")):
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
    settings = ["networkPolicy.enabled=true", f"networkPolicy.training.namespaces={{{chart.NAMESPACE}}}"]
    settings += ["networkPolicy.apiServerAddresses={10.0.0.1/32,fd00::1/128}", "imagePullSecrets[0].name=registry"]
    settings += ["tests.storageClassName=fast", "podDisruptionBudget.minAvailable=2", "replicas=3"]
    manifests = render(helm, *settings, tests=True)
    assert {"Pod", "NetworkPolicy", "PersistentVolumeClaim"} < {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        # A pod is refused while its account does not exist.
        kube.apply(manifest, dry_run=manifest["kind"] != "ServiceAccount")
    policy = kube.get("ValidatingAdmissionPolicy", f"{chart.RELEASE}-status")
    assert not policy.get("status", {}).get("typeChecking", {}).get("expressionWarnings")


def test_all_pods_are_restricted(kube: Kube, helm: Path) -> None:
    """Those of `helm test`, too."""
    name = "restricted-by-pod-security"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    until("the namespace has its account", lambda: kube.find("ServiceAccount", "default", name))
    manifests = render(helm, tests=True)
    specs = [m["spec"] for m in manifests if m["kind"] == "Pod"]
    specs.append(only(manifests, "Deployment")["spec"]["template"]["spec"])
    assert len(specs) == 3
    for spec in specs:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": name}}
        spec = {**spec, "serviceAccountName": "default"}
        assert kube.create({**pod, "spec": spec}, dry_run=True)["metadata"]["name"] == "pod"
        with pytest.raises(ApiError, match="violates PodSecurity"):
            kube.create({**pod, "spec": {**spec, "hostNetwork": True}}, dry_run=True)
