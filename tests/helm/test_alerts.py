"""The alerts and the dashboards of the chart: they are valid, they fire when they should, and every query asks for what
the operator exposes. `promtool` is that of Debian's package prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_operator import health
from finetune_operator.job_metrics import job_samples
from finetune_operator.metrics import FAMILIES, Metrics

from tests.chart import CHART, CHECKOUT
from tests.cluster import prometheus
from tests.helm.conftest import Objects, pick
from tests.kube import Object, until
from tests.monitoring.server import serving
from tests.unit.operator import make

CASES = Path(__file__).with_name("alerts.yaml")
RUNBOOKS = "docs/runbooks.md"
DASHBOARDS = sorted((CHART / "files" / "dashboards").glob("*.json"))
SERIES = {name: {*family.labels, "le"} for family in FAMILIES for name in family.series}
FOREIGN = {
    name: {"namespace", "persistentvolumeclaim", "node"}
    for name in ("kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes")
}
"""Metrics of others: the kubelet's, which every Prometheus of Kubernetes has."""
TARGET = {"job", "pod", "instance", "namespace"}
"""Labels that Prometheus adds. Where a metric has the label namespace itself, that is kept."""
METRIC = re.compile(r"\b((?:finetune|kubelet)_[a-z_]+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\b(?:by|on|group_left) ?\(([^)]*)\)")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


@pytest.fixture(scope="module")
def rules(objects: Objects, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules as the chart installs them."""
    file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    file.write_text(yaml.safe_dump(pick(objects({"alerts.enabled": True}), "PrometheusRule")["spec"]))
    return file


def alerts(rules: Path) -> list[Object]:
    return [rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str, cwd: Path, text: str = "") -> str:
    """What it prints. It must not find a mistake."""
    command = [str(prometheus.program("promtool")), *arguments]
    done = subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_valid(rules: Path) -> None:
    assert "SUCCESS: 10 rules found" in promtool("check", "rules", rules.name, cwd=rules.parent)


def test_each_alert_fires_when_it_should_and_only_then(rules: Path) -> None:
    cases = yaml.safe_load(CASES.read_text())
    file = rules.with_name("cases.yaml")
    file.write_text(yaml.safe_dump({**cases, "rule_files": [rules.name]}))
    assert "SUCCESS" in promtool("test", "rules", file.name, cwd=rules.parent)
    checks = [check for case in cases["tests"] for check in case["alert_rule_test"]]
    fires = {check["alertname"] for check in checks if check["exp_alerts"]}
    rests = {check["alertname"] for check in checks if not check["exp_alerts"]}
    assert fires == rests == {alert["alert"] for alert in alerts(rules)}


def test_each_alert_has_a_runbook(rules: Path) -> None:
    """A section with its name that says the cause, what to check and what to do."""
    sections = re.split(r"^## ", (CHECKOUT / RUNBOOKS).read_text(), flags=re.MULTILINE)
    texts = {section.split("\n", 1)[0]: section for section in sections}
    for alert in alerts(rules):
        name = alert["alert"]
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert {"summary", "description"} <= set(alert["annotations"])
        assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS}#{name.lower()}"
        assert all(f"**{part}**" in texts[name] for part in ("Cause", "Check", "Do")), f"{RUNBOOKS}: {name}"


def queries(dashboard: Object) -> list[str]:
    """Of its panels and of its variables."""
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return panels + [v["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]


def unknown(query: str) -> set[str]:
    """Metrics, and labels of metrics, that nobody exposes."""
    known = SERIES | FOREIGN
    found = METRIC.findall(query)
    if variable := re.fullmatch(r"label_values\((.*), (\w+)\)", query):
        found.append((METRIC.findall(variable[1])[0][0], f'{variable[2]}="'))
    wrong = {name for name, _ in found if name not in known}
    for name, selector in found:
        wrong |= {f"{name}{{{label}}}" for label in set(MATCHER.findall(selector)) - known.get(name, set()) - TARGET}
    grouped = {label.strip() for labels in GROUPED.findall(query) for label in labels.split(",")} - {""}
    return wrong | (grouped - set().union(*(known.get(name, set()) for name, _ in found)) - TARGET)


def test_every_alert_asks_for_what_is_exposed(rules: Path) -> None:
    assert {alert["alert"]: found for alert in alerts(rules) if (found := unknown(alert["expr"]))} == {}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_every_panel_asks_for_what_is_exposed(file: Path) -> None:
    asked = queries(json.loads(file.read_text()))
    assert len(asked) > 15
    assert {query: found for query in asked if (found := unknown(query))} == {}


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("sum(finetune_job_lost)", {"finetune_job_lost"}),
        ('finetune_job_loss{phase="Running"}', {"finetune_job_loss{phase}"}),
        ("sum by (node) (finetune_job_loss)", {"node"}),
        ("label_values(finetune_jobs, name)", {"finetune_jobs{name}"}),
        ("rate(finetune_recovery_seconds[1h])", {"finetune_recovery_seconds"}),
    ],
)
def test_a_query_for_something_else_is_found(query: str, wrong: set[str]) -> None:
    assert unknown(query) == wrong


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_the_chart_installs_the_dashboard_as_it_is(objects: Objects, file: Path) -> None:
    data: dict[str, Any] = pick(objects({"dashboards.enabled": True}), "ConfigMap", f"-dashboard-{file.stem}")["data"]
    assert json.loads(data[f"finetune-{file.name}"]) == json.loads(file.read_text())


async def test_prometheus_reads_what_the_operator_exposes(tmp_path: Path) -> None:
    """As OpenMetrics, which it asks for; and promtool finds no mistake in the text format."""
    metrics = Metrics(leading=lambda: True, jobs=lambda: job_samples([make.job({"phase": "Queued"})], make.NOW))
    metrics.first_step.observe(42)
    checked = await asyncio.to_thread(promtool, "check", "metrics", cwd=tmp_path, text=metrics.render())
    assert checked == ""
    runner = await health.serve(0, list, list, metrics)

    def read() -> list[Any]:
        with serving(tmp_path, [f"127.0.0.1:{runner.addresses[0][1]}"]) as server:
            until("it has read", lambda: server.at_once("finetune_jobs", time.time()), timeout=60)
            return server.at_once("finetune_jobs or finetune_time_to_first_step_seconds_sum", time.time())

    try:
        found = {one["metric"]["__name__"]: (one["metric"], one["value"][1]) for one in await asyncio.to_thread(read)}
    finally:
        await runner.cleanup()
    labels, value = found["finetune_jobs"]
    assert (labels["namespace"], labels["phase"], value) == ("team", "Queued", "1")
    assert found["finetune_time_to_first_step_seconds_sum"][1] == "42"
