"""Every value of the chart: what it changes, and where."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart import CHART, NAMESPACE, RELEASE
from tests.chart_values.reader import Value, read
from tests.chart_values.types import type_of
from tests.helm.conftest import Objects, Text, at, pick

VALUES = {value.name: value for value in read(CHART / "values.yaml") if not value.is_section}
SHOWN_WITH: dict[str, dict[str, Any]] = {
    "networkPolicy.training.egress": {"networkPolicy.training.namespaces": ["team"]},
    "podDisruptionBudget.minAvailable": {"replicas": 3},
    "argocd.namespace": {"argocd.enabled": True},
    "trainer.caBundle.key": {"trainer.caBundle.configMap": "corporate"},
    "ui.allowFrom": {"networkPolicy.enabled": True},
}
"""Values that are seen only together with others, besides those of a section that is not enabled."""

DIGEST = "sha256:" + "a" * 64
POD = "spec template spec"
ENV = f"{POD} containers operator env"
LABELS = {"app.kubernetes.io/name": "finetune-operator", "app.kubernetes.io/instance": RELEASE}
PAGE_LABELS = {"app.kubernetes.io/name": "finetune-operator-ui", "app.kubernetes.io/instance": RELEASE}
SPREAD = {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
AFFINITY = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "rack"}]}}
PEER = {"namespaceSelector": {"matchLabels": {"team": "metrics"}}}
RULE = {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 443, "protocol": "TCP"}]}
TOLERATION = {"key": "system", "operator": "Exists"}
TRAINING = {"networkPolicy.training.namespaces": ["team"]}
MONITOR = {"metrics.podMonitor.enabled": True}
ALERTS = {"alerts.enabled": True}
DASHBOARDS = {"dashboards.enabled": True}
PAGE = {"ui.enabled": True}
OPERATOR_POLICY = {"networkPolicy.enabled": True}

Case = tuple[dict[str, Any], str, str, Any]
CASES: list[Case] = [
    # values, kind and name of the object, where in it, what is there
    ({"fullnameOverride": "tuner"}, "Deployment tuner", "metadata name", "tuner"),
    ({"fullnameOverride": "tuner"}, "ServiceAccount tuner", "metadata namespace", NAMESPACE),
    ({"fullnameOverride": "tuner"}, "Deployment tuner", f"{POD} serviceAccountName", "tuner"),
    ({"fullnameOverride": "tuner"}, "Deployment tuner", f"{ENV} FINETUNE_LEASE_NAME value", "tuner"),
    ({"fullnameOverride": "tuner"}, "Role tuner-leader-election", "rules 0 resourceNames", ["tuner"]),
    ({"fullnameOverride": "tuner"}, "Pod tuner-test-job", "spec serviceAccountName", "tuner-test"),
    ({"replicas": 4}, "Deployment", "spec replicas", 4),
    ({"image.repository": "r:5000/op"}, "Deployment", f"{POD} containers operator image", "r:5000/op:0.1.0"),
    ({"image.tag": "v2"}, "Deployment", f"{POD} containers operator image", "finetune-operator:v2"),
    ({"image.tag": "v2"}, "Pod -test-job", "spec containers job image", "finetune-operator:v2"),
    (
        {"image.digest": DIGEST, "image.tag": "v2"},
        "Deployment",
        f"{POD} containers operator image",
        f"finetune-operator@{DIGEST}",
    ),
    ({"image.pullPolicy": "Always"}, "Deployment", f"{POD} containers operator imagePullPolicy", "Always"),
    ({"image.pullPolicy": "Always"}, "Pod -test-job", "spec containers job imagePullPolicy", "Always"),
    ({"trainer.image.repository": "r/t"}, "Deployment", f"{ENV} FINETUNE_TRAINER_IMAGE value", "r/t:0.1.0"),
    ({"trainer.image.tag": "v2"}, "Deployment", f"{ENV} FINETUNE_TRAINER_IMAGE value", "finetune-trainer:v2"),
    ({"trainer.image.tag": "v2"}, "Pod -test-model", "spec containers model image", "finetune-trainer:v2"),
    (
        {"trainer.image.digest": DIGEST},
        "Deployment",
        f"{ENV} FINETUNE_TRAINER_IMAGE value",
        f"finetune-trainer@{DIGEST}",
    ),
    (
        {"trainer.image.pullPolicy": "Never"},
        "Deployment",
        f"{ENV} FINETUNE_TRAINER_IMAGE_PULL_POLICY value",
        "Never",
    ),
    ({"trainer.image.pullPolicy": "Never"}, "Pod -test-model", "spec containers model imagePullPolicy", "Never"),
    ({"trainer.allowCpu": True}, "Deployment", f"{ENV} FINETUNE_ALLOW_CPU value", "true"),
    ({"trainer.allowRemoteCode": True}, "Deployment", f"{ENV} FINETUNE_ALLOW_REMOTE_CODE value", "true"),
    ({"trainer.readNodeLabels": True}, "Deployment", f"{ENV} FINETUNE_READ_NODE_LABELS value", "true"),
    ({"trainer.hubEndpoint": "https://h"}, "Deployment", f"{ENV} FINETUNE_HUB_ENDPOINT value", "https://h"),
    ({"trainer.s3Endpoint": "http://s:9000"}, "Deployment", f"{ENV} FINETUNE_S3_ENDPOINT value", "http://s:9000"),
    ({"trainer.temporaryStorage": "1Ti"}, "Deployment", f"{ENV} FINETUNE_TEMPORARY_STORAGE value", "1Ti"),
    (
        {"trainer.progressIntervalSeconds": 60},
        "Deployment",
        f"{ENV} FINETUNE_PROGRESS_INTERVAL_SECONDS value",
        "60",
    ),
    ({"imagePullSecrets": [{"name": "r"}]}, "Deployment", f"{POD} imagePullSecrets", [{"name": "r"}]),
    ({"imagePullSecrets": [{"name": "r"}]}, "Pod -test-model", "spec imagePullSecrets", [{"name": "r"}]),
    (
        {"imagePullSecrets": [{"name": "r"}, {"name": "s"}]},
        "Deployment",
        f"{ENV} FINETUNE_TRAINER_PULL_SECRETS value",
        "r,s",
    ),
    # Templates write large numbers as 2.592e+06.
    (
        {"ttlSecondsAfterFinished": 2592000},
        "Deployment",
        f"{ENV} FINETUNE_TTL_SECONDS_AFTER_FINISHED value",
        "2592000",
    ),
    ({"ttlSecondsAfterFinished": -1}, "Deployment", f"{ENV} FINETUNE_TTL_SECONDS_AFTER_FINISHED value", "-1"),
    ({"resyncSeconds": 86400}, "Deployment", f"{ENV} FINETUNE_RESYNC_SECONDS value", "86400"),
    ({"workers": 3}, "Deployment", f"{ENV} FINETUNE_WORKERS value", "3"),
    ({"logLevel": "debug"}, "Deployment", f"{ENV} FINETUNE_LOG_LEVEL value", "debug"),
    ({"logFormat": "json"}, "Deployment", f"{ENV} FINETUNE_LOG_FORMAT value", "json"),
    ({"metrics.perJob": "none"}, "Deployment", f"{ENV} FINETUNE_METRICS_PER_JOB value", "none"),
    ({"metrics.perJob": "pods"}, "Deployment", f"{ENV} FINETUNE_METRICS_PER_JOB value", "pods"),
    ({**MONITOR, "metrics.perJob": "pods"}, "PodMonitor -training", "spec podMetricsEndpoints 0 port", "metrics"),
    ({**TRAINING, "metrics.perJob": "pods"}, "NetworkPolicy -training", "spec ingress 1 ports 0 port", 9464),
    (MONITOR, "PodMonitor", "spec selector matchLabels", LABELS),
    (MONITOR, "PodMonitor", "spec podMetricsEndpoints 0 honorLabels", True),
    ({**MONITOR, "metrics.podMonitor.interval": "1m"}, "PodMonitor", "spec podMetricsEndpoints 0 interval", "1m"),
    ({**MONITOR, "metrics.podMonitor.labels": {"release": "p"}}, "PodMonitor", "metadata labels release", "p"),
    ({**ALERTS, "alerts.labels": {"release": "p"}}, "PrometheusRule", "metadata labels release", "p"),
    (
        {**ALERTS, "alerts.runbooks": "https://d.example/r.html"},
        "PrometheusRule",
        "spec groups finetune-operator rules 1 annotations runbook_url",
        "https://d.example/r.html#finetunenoleader",
    ),
    (DASHBOARDS, "ConfigMap -dashboard-platform", "metadata labels grafana_dashboard", "1"),
    ({**DASHBOARDS, "dashboards.labels": {"show": "it"}}, "ConfigMap -dashboard-job", "metadata labels show", "it"),
    (
        {**DASHBOARDS, "dashboards.annotations": {"a/b": "c"}},
        "ConfigMap -dashboard-job",
        "metadata annotations",
        {"a/b": "c"},
    ),
    ({"podDisruptionBudget.minAvailable": 2, "replicas": 3}, "PodDisruptionBudget", "spec minAvailable", 2),
    (OPERATOR_POLICY, "NetworkPolicy", "spec podSelector matchLabels", LABELS),
    (OPERATOR_POLICY, "NetworkPolicy", "spec policyTypes", ["Ingress", "Egress"]),
    (OPERATOR_POLICY, "NetworkPolicy", "spec ingress", [{"ports": [{"port": "health", "protocol": "TCP"}]}]),
    (
        {**OPERATOR_POLICY, "networkPolicy.apiServerPorts": [8443]},
        "NetworkPolicy",
        "spec egress 0",
        {"ports": [{"port": 8443, "protocol": "TCP"}]},
    ),
    (
        {**OPERATOR_POLICY, "networkPolicy.apiServerAddresses": ["10.0.0.1/32", "fd00::1/128"]},
        "NetworkPolicy",
        "spec egress 0 to",
        [{"ipBlock": {"cidr": "10.0.0.1/32"}}, {"ipBlock": {"cidr": "fd00::1/128"}}],
    ),
    ({**OPERATOR_POLICY, "networkPolicy.metricsFrom": [PEER]}, "NetworkPolicy", "spec ingress 0 from", [PEER]),
    (TRAINING, "NetworkPolicy -training", "metadata namespace", "team"),
    (
        TRAINING,
        "NetworkPolicy -training",
        "spec podSelector matchLabels",
        {"finetune-operator.io/managed": "true"},
    ),
    (
        {**TRAINING, "networkPolicy.apiServerAddresses": ["10.0.0.1/32"]},
        "NetworkPolicy -training",
        "spec egress 1 to",
        [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
    ),
    ({**TRAINING, "networkPolicy.training.egress": [RULE]}, "NetworkPolicy -training", "spec egress 3", RULE),
    (PAGE, "Service -ui", "spec selector", PAGE_LABELS),
    (PAGE, "Deployment -ui", f"{POD} containers ui image", "finetune-ui:0.1.0"),
    (PAGE, "Deployment -ui", f"{POD} volumes ca configMap name", "kube-root-ca.crt"),
    ({**PAGE, "ui.image.digest": DIGEST}, "Deployment -ui", f"{POD} containers ui image", f"finetune-ui@{DIGEST}"),
    ({**PAGE, "ui.image.pullPolicy": "Always"}, "Deployment -ui", f"{POD} containers ui imagePullPolicy", "Always"),
    (
        {**PAGE, "ui.tokenHeader": "Authorization"},
        "Deployment -ui",
        f"{POD} containers ui env FINETUNE_UI_TOKEN_HEADER value",
        "Authorization",
    ),
    (
        {**PAGE, "ui.namespaces": ["a", "b"]},
        "Deployment -ui",
        f"{POD} containers ui env FINETUNE_UI_NAMESPACES value",
        "a,b",
    ),
    (
        {**PAGE, "watchNamespaces": ["c"]},
        "Deployment -ui",
        f"{POD} containers ui env FINETUNE_UI_NAMESPACES value",
        "c",
    ),
    (
        {**PAGE, "trainer.image.repository": "mine/trainer", "trainer.image.tag": "2"},
        "Deployment -ui",
        f"{POD} containers ui env FINETUNE_UI_TRAINER_IMAGE value",
        "mine/trainer:2",
    ),
    ({**PAGE, "ui.cookieKeySecret": "keys"}, "Deployment -ui", f"{POD} volumes cookie secret secretName", "keys"),
    (
        {**PAGE, "ui.cookieKeySecret": "keys"},
        "Deployment -ui",
        f"{POD} containers ui env FINETUNE_UI_COOKIE_KEY_FILE value",
        "/etc/finetune-ui/cookie/key",
    ),
    ({**PAGE, **OPERATOR_POLICY, "ui.allowFrom": [PEER]}, "NetworkPolicy -ui", "spec ingress 0 from", [PEER]),
    ({**PAGE, **OPERATOR_POLICY}, "NetworkPolicy -ui", "spec podSelector matchLabels", PAGE_LABELS),
    ({"tests.namespace": "team"}, "Pod -test-job", "metadata namespace", "team"),
    ({"tests.namespace": "team"}, "Role -test", "metadata namespace", "team"),
    ({"tests.namespace": "team"}, "RoleBinding -test", "subjects 0 namespace", "team"),
    ({"tests.storageClassName": "fast"}, "PersistentVolumeClaim -test", "spec storageClassName", "fast"),
    ({"serviceAccount.annotations": {"a/b": "c"}}, "ServiceAccount", "metadata annotations", {"a/b": "c"}),
    ({"commonLabels": {"team": "ml"}}, "Deployment", "metadata labels team", "ml"),
    ({"commonLabels": {"team": "ml"}}, "Deployment", "spec template metadata labels team", "ml"),
    ({"commonLabels": {"team": "ml"}}, "Deployment", "spec selector matchLabels", LABELS),
    ({"commonLabels": {"team": "ml"}}, "ValidatingAdmissionPolicy -status", "metadata labels team", "ml"),
    ({"podLabels": {"team": "ml"}}, "Deployment", "spec template metadata labels team", "ml"),
    ({"podAnnotations": {"a/b": "c"}}, "Deployment", "spec template metadata annotations", {"a/b": "c"}),
    (
        {"resources.limits.memory": "1Gi"},
        "Deployment",
        f"{POD} containers operator resources limits",
        {"memory": "1Gi", "ephemeral-storage": "1Gi"},
    ),
    ({"priorityClassName": "high"}, "Deployment", f"{POD} priorityClassName", "high"),
    ({"nodeSelector": {"pool": "system"}}, "Deployment", f"{POD} nodeSelector", {"pool": "system"}),
    ({"nodeSelector": {"pool": "system"}}, "Pod -test-job", "spec nodeSelector", {"pool": "system"}),
    ({"tolerations": [TOLERATION]}, "Deployment", f"{POD} tolerations", [TOLERATION]),
    ({"tolerations": [TOLERATION]}, "Pod -test-model", "spec tolerations", [TOLERATION]),
    ({"affinity": AFFINITY}, "Deployment", f"{POD} affinity", AFFINITY),
    (
        {"topologySpreadConstraints": [SPREAD]},
        "Deployment",
        f"{POD} topologySpreadConstraints",
        [{**SPREAD, "labelSelector": {"matchLabels": LABELS}, "matchLabelKeys": ["pod-template-hash"]}],
    ),
]


@pytest.mark.parametrize(
    ("values", "target", "where", "expected"), CASES, ids=[" ".join(map(str, c[0])) for c in CASES]
)
def test_a_value_reaches_its_place(
    objects: Objects, values: dict[str, Any], target: str, where: str, expected: Any
) -> None:
    kind, _, name = target.partition(" ")
    assert at(pick(objects(values), kind, name), where) == expected


@pytest.mark.parametrize("name", VALUES)
def test_every_value_changes_what_is_rendered(text: Text, name: str) -> None:
    """A value that no template uses would be one that helm takes and nobody obeys."""
    value = VALUES[name]
    base = enabled(value) | SHOWN_WITH.get(name, {})
    for other in type_of(value).good:
        if other != value.default:
            assert text(base | {name: other}) != text(base), f"{name}={other!r} changes nothing"


def enabled(value: Value) -> dict[str, Any]:
    """Enable the sections around the value that are off by default."""
    outer = (".".join(value.path[:depth]) + ".enabled" for depth in range(1, len(value.path)))
    return {switch: True for switch in outer if switch in VALUES and switch != value.name}


def test_labels_of_the_chart_cannot_be_overridden(objects: Objects) -> None:
    """The Deployment's selector, its budget and its predecessors depend on them."""
    wrong = {"app.kubernetes.io/name": "mine", "finetune-operator.io/leader-election": "no"}
    deployment = pick(objects({"commonLabels": wrong, "podLabels": wrong}), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "finetune-operator"
    assert labels["finetune-operator.io/leader-election"] == "true"
