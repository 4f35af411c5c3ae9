"""What belongs together: the order of the objects, the pods' security, `helm test`, and the notes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import CHART, NAMESPACE, RELEASE
from tests.helm.conftest import Objects, Text, at, pick

KINDS = re.compile(r"^kind: (\w+)$", re.MULTILINE)


def test_the_definition_and_the_rights_come_before_the_operator(default: str) -> None:
    """Helm sorts by kind. An operator that starts before them would log errors until they are there."""
    kinds = KINDS.findall(default)
    for earlier in ("CustomResourceDefinition", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "RoleBinding"):
        assert kinds.index(earlier) < kinds.index("Deployment")


def test_a_namespaced_object_says_its_namespace(objects: Objects) -> None:
    """`helm template | kubectl apply` would put it into the namespace of the kubeconfig."""
    cluster_wide = {
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    for manifest in objects({"networkPolicy.enabled": True}):
        assert manifest["metadata"].get("namespace") == (None if manifest["kind"] in cluster_wide else NAMESPACE)


def test_the_selector_of_the_deployment_never_changes(objects: Objects) -> None:
    """It is immutable: another selector would make every upgrade fail."""
    assert pick(objects(), "Deployment")["spec"]["selector"]["matchLabels"] == {
        "app.kubernetes.io/name": "finetune-operator",
        "app.kubernetes.io/instance": RELEASE,
    }


@pytest.mark.parametrize("role", ["-viewer", "-editor"])
def test_the_roles_of_users_join_those_of_the_cluster_only_if_wanted(objects: Objects, role: str) -> None:
    prefix = "rbac.authorization.k8s.io/aggregate-to-"

    def joins(aggregate: bool) -> set[str]:
        labels = pick(objects({"rbac.aggregate": aggregate}), "ClusterRole", role)["metadata"]["labels"]
        return {label.removeprefix(prefix) for label in labels if label.startswith(prefix)}

    assert joins(True) == {"view", "edit", "admin"} - ({"view"} if role == "-editor" else set())
    assert joins(False) == set()


def test_the_packed_chart_has_no_byte_code(helm: Path, tmp_path: Path) -> None:
    """Tests import the programs of `helm test`. A release keeps every file of its chart in a Secret."""
    cache = CHART / "files" / "test" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "left.pyc").write_bytes(b"")
    subprocess.run([str(helm), "package", str(CHART), "--destination", str(tmp_path)], check=True, capture_output=True)
    with tarfile.open(next(tmp_path.iterdir())) as packed:
        names = packed.getnames()
    assert any(name.endswith("run_job.py") for name in names)
    assert not [name for name in names if "pycache" in name]


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The spec of each pod."""
    templates = {m["kind"]: m["spec"]["template"]["spec"] for m in manifests if "template" in m.get("spec", {})}
    return templates | {m["metadata"]["name"]: m["spec"] for m in manifests if m["kind"] == "Pod"}


def test_all_pods_are_restricted_and_have_read_only_roots(objects: Objects) -> None:
    """The API server checks the same with its own rules in the controlplane tier."""
    found = pods(objects())
    assert len(found) == 3
    for pod in found.values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True


def test_the_page_has_no_rights_and_no_token(objects: Objects) -> None:
    made = objects({"ui.enabled": True})
    name = f"{RELEASE}-ui"
    bound = [
        subject["name"]
        for manifest in made
        if manifest["kind"] in ("RoleBinding", "ClusterRoleBinding")
        for subject in manifest["subjects"]
    ]
    assert name not in bound
    assert pick(made, "ServiceAccount", "-ui")["automountServiceAccountToken"] is False
    pod = at(pick(made, "Deployment", "-ui"), "spec template spec")
    assert pod["serviceAccountName"] == name
    assert pod["automountServiceAccountToken"] is False
    assert not any("projected" in volume for volume in pod["volumes"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    [container] = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_page_is_found_by_no_selector_of_the_operator(objects: Objects) -> None:
    made = objects({"ui.enabled": True, "commonLabels": {"app.kubernetes.io/name": "finetune-operator"}})
    labels = at(pick(made, "Deployment", "-ui"), "spec template metadata labels")
    assert labels["app.kubernetes.io/name"] == "finetune-operator-ui"
    assert "finetune-operator.io/leader-election" not in labels


def test_two_operators_spread_over_nodes_and_zones_and_one_does_not(objects: Objects) -> None:
    spread = at(pick(objects(), "Deployment"), "spec template spec topologySpreadConstraints")
    assert [entry["topologyKey"] for entry in spread] == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    assert {entry["whenUnsatisfiable"] for entry in spread} == {"ScheduleAnyway"}
    alone = pick(objects({"replicas": 1}), "Deployment")["spec"]["template"]["spec"]
    assert "topologySpreadConstraints" not in alone


def test_probes_name_the_port_and_no_address(objects: Objects) -> None:
    """So the kubelet asks at the pod's own address, of IPv4 or IPv6. The operator listens on both."""
    [container] = at(pick(objects(), "Deployment"), "spec template spec containers")
    assert container["ports"] == [{"name": "health", "containerPort": 8080}]
    for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert container[probe]["httpGet"] == {"path": path, "port": "health"}


def test_a_slow_start_is_no_reason_to_start_again(objects: Objects) -> None:
    """On a node without idle CPU the imports alone take a minute."""
    [container] = at(pick(objects(), "Deployment"), "spec template spec containers")
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 300


def test_a_training_policy_is_rendered_for_each_namespace(objects: Objects) -> None:
    made = objects({"networkPolicy.training.namespaces": ["a", "b"], "networkPolicy.training.egress": []})
    policies = [m for m in made if m["kind"] == "NetworkPolicy"]
    assert [policy["metadata"]["namespace"] for policy in policies] == ["a", "b"]
    own = {"podSelector": {"matchLabels": {"finetune-operator.io/managed": "true"}}}
    for policy in policies:
        assert policy["spec"]["ingress"] == [{"from": [own]}]
        assert policy["spec"]["egress"][0] == {"to": [own]}
        assert [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"][1:]] == [
            [443, 6443],
            [53, 53],
        ]


def test_helm_test_runs_in_order_and_removes_everything(objects: Objects) -> None:
    hooks = [m for m in objects() if "helm.sh/hook" in m["metadata"].get("annotations", {})]
    assert {m["kind"] for m in hooks} == {
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ConfigMap",
        "PersistentVolumeClaim",
        "Pod",
    }
    weights = {}
    for hook in hooks:
        annotations = hook["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "test"
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
        weights[hook["metadata"]["name"].removeprefix(RELEASE), hook["kind"]] = int(annotations["helm.sh/hook-weight"])
    assert weights.pop(("-test-job", "Pod")) > weights.pop(("-test-model", "Pod")) > max(weights.values())


def test_the_operators_selector_finds_no_pod_of_helm_test(objects: Objects) -> None:
    """An operator waits for pods of its installation that take no part in the election."""
    manifests = objects()
    selector = pick(manifests, "Deployment")["spec"]["selector"]["matchLabels"]
    for pod in (m for m in manifests if m["kind"] == "Pod"):
        assert not selector.items() <= pod["metadata"]["labels"].items()


def test_the_job_of_helm_test_needs_nothing_but_the_cluster(objects: Objects) -> None:
    files = pick(objects({"tests.storageClassName": "fast"}), "ConfigMap", "-test")["data"]
    job = yaml.safe_load(files["job.yaml"])
    assert job["spec"]["model"]["source"].startswith("pvc://")
    assert [data["source"] for data in job["spec"]["datasets"]] == [f"configmap://{RELEASE}-test/rows.jsonl"]
    assert job["spec"]["resources"]["gpusPerNode"] == 0
    assert job["spec"]["workspace"] == {"claim": {"size": "1Gi", "storageClassName": "fast"}, "retain": False}
    assert {"rows.jsonl", "run_job.py", "tiny_model.py"} < set(files)


def test_long_names_of_a_release_fit(helm: Path) -> None:
    command = [str(helm), "template", "r" * 53, str(CHART), "--set", "crds.enabled=false"]
    rendered = yaml.load_all(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout, yaml.CSafeLoader
    )
    for manifest in filter(None, rendered):
        if manifest["kind"] in ("Pod", "Deployment", "ServiceAccount"):
            assert len(manifest["metadata"]["name"]) <= 63


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainer.allowCpu=true", "trainer.allowCpu is true"),
        ("trainer.allowRemoteCode=true", "trainer.allowRemoteCode is true"),
        ("policy.enabled=false", "policy.enabled is false"),
        ("crds.keep=false", "crds.keep is false"),
        ("crds.enabled=false", "crds.enabled is false"),
        ("replicas=1", "replicas is 1"),
    ],
)
def test_the_notes_warn_of_unsafe_values(text: Text, notes: Path, setting: str, words: str) -> None:
    name, _, value = setting.partition("=")
    assert f"WARNING: {words}" in said(text, notes, {name: json.loads(value)})
    assert words not in said(text, notes)


def test_the_notes_say_what_to_do_next(text: Text, notes: Path) -> None:
    assert f"helm test {RELEASE} --namespace {NAMESPACE}" in said(text, notes)
    assert "WARNING" not in said(text, notes)


def test_the_notes_of_an_installation_for_some_namespaces_name_them(text: Text, notes: Path) -> None:
    told = said(text, notes, {"watchNamespaces": ["a", "b"]})
    assert "in these namespaces alone: a, b. A job in another namespace stays Pending." in told
    assert told.index("kubectl get ftj --namespace b --watch") < told.index("kubectl explain") < told.index("It serves")


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with its notes as a manifest: `helm template` shows none, and `helm install` needs a cluster."""
    chart = tmp_path_factory.mktemp("notes") / "chart"
    shutil.copytree(CHART, chart)
    template = (chart / "templates" / "NOTES.txt").read_text()
    wrapped = f'{{{{ define "notes" }}}}{template}{{{{ end }}}}notes: {{{{ include "notes" . | toJson }}}}\n'
    (chart / "templates" / "notes.yaml").write_text(wrapped)
    return chart


def said(text: Text, notes: Path, values: dict[str, Any] | None = None) -> str:
    rendered = text(values, "--show-only=templates/notes.yaml", chart=notes)
    return str(yaml.safe_load(rendered)["notes"])
