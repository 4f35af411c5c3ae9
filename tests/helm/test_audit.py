"""What other tools say of the chart and of the examples.

`make audit-chart` adds checkov, which brings more packages than the whole project."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chart import CHECKOUT
from tests.chart_audit.__main__ import audit
from tests.chart_audit.exceptions import EXCEPTIONS, Finding
from tests.chart_audit.tools import kubeconform
from tests.cluster import binaries


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    binaries.ensure(("helm", "kubeconform", "kube-score"))


@pytest.mark.parametrize("tool", ["kubeconform", "kube-score"])
def test_a_finding_is_fixed_or_has_a_reason(tool: str, tmp_path: Path) -> None:
    unexplained, unused = audit([tool], tmp_path)
    assert unexplained == set()
    assert unused == set()


def test_every_exception_has_a_reason() -> None:
    assert all(reason.endswith(".") for reason in EXCEPTIONS.values())


def test_the_examples_have_only_fields_that_exist(tmp_path: Path) -> None:
    files = sorted((CHECKOUT / "examples").rglob("*.yaml"))
    assert len(files) > 8
    manifests = tmp_path / "examples.yaml"
    manifests.write_text("\n---\n".join(file.read_text() for file in files))
    assert kubeconform(manifests) == set()


@pytest.mark.parametrize(
    ("manifest", "object_"),
    [
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndate: {}\n", "ConfigMap/a"),
        (
            "apiVersion: finetune-operator.io/v1alpha1\nkind: FineTuneJob\nmetadata: {name: a}\nspec: {stge: sft}\n",
            "FineTuneJob/a",
        ),
    ],
)
def test_a_wrong_field_is_a_finding(tmp_path: Path, manifest: str, object_: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(manifest)
    [found] = kubeconform(file)
    assert isinstance(found, Finding)
    assert found.object == object_
    assert "additional" in found.check
