"""Wrong values of the chart: for every value, a message that names it, and never a template's stack."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import CHART, HelmError
from tests.chart_values.reader import Value, read
from tests.chart_values.types import type_of
from tests.helm.conftest import Text

ALL = {value.name: value for value in read(CHART / "values.yaml")}
VALUES = {name: value for name, value in ALL.items() if not value.is_section}
SECTIONS = {name: value for name, value in ALL.items() if value.is_section}


def optional(value: Value) -> bool:
    return value.default in ("", [], {})


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_refused_by_name(text: Text, name: str) -> None:
    """Helm names everything that is wrong, so that it is asked once about the n-th wrong value of each name."""
    bad = {each: type_of(value).bad for each, value in VALUES.items()}
    for number, wrong in enumerate(bad[name]):
        message = refusal(text, {each: values[number] for each, values in bad.items() if len(values) > number})
        assert f"at '/{name.replace('.', '/')}" in message, f"{name}={wrong!r}: {message or 'taken'}"


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_no_text_and_has_no_unknown_key(text: Text, name: str) -> None:
    pointer = name.replace(".", "/")
    assert f"at '/{pointer}'" in refusal(
        text, {each: "text" for each in SECTIONS if each.count(".") == name.count(".")}
    )
    message = refusal(text, {f"{each}.enabeld": True for each in SECTIONS})
    assert f"at '/{pointer}': additional properties 'enabeld' not allowed" in message


def test_an_unknown_key_is_refused(text: Text) -> None:
    assert "additional properties 'replica' not allowed" in refusal(text, {"replica": 3})


@pytest.mark.parametrize("name", [name for name, value in ALL.items() if not optional(value)])
def test_null_is_refused_by_name(text: Text, name: str) -> None:
    """Helm removes what is null, so that a template would meet nothing where it expects a section."""
    section = name.rpartition(".")[0]
    message = refusal(
        text, {each: None for each in ALL if each.rpartition(".")[0] == section and not optional(ALL[each])}
    )
    missing = re.search(
        rf"at '{re.escape('/' + section.replace('.', '/') if section else '')}': missing propert.*", message
    )
    assert missing is not None, message
    assert f"'{name.rpartition('.')[2]}'" in missing[0]


def test_null_means_the_empty_default(text: Text, default: str) -> None:
    assert text({name: None for name, value in ALL.items() if optional(value)}) == default


def test_a_release_that_lacks_a_value_is_refused_by_its_name(text: Text, tmp_path: Path) -> None:
    """`helm upgrade --reuse-values` takes the defaults of the installed chart, which lack what is new. docs/install.md
    says what to use instead."""
    older = tmp_path / "chart"
    shutil.copytree(CHART, older)
    values = yaml.safe_load((older / "values.yaml").read_text())
    del values["podDisruptionBudget"]
    (older / "values.yaml").write_text(yaml.dump(values))
    assert "missing property 'podDisruptionBudget'" in refusal(text, {}, chart=older)


def test_a_budget_that_blocks_every_drain_is_refused(text: Text) -> None:
    with pytest.raises(
        HelmError, match=r"minAvailable is 3 and replicas is 3: .* Lower minAvailable, or raise replicas"
    ):
        text({"replicas": 3, "podDisruptionBudget.minAvailable": 3})
    # A single operator has no budget, whatever the value says.
    assert "PodDisruptionBudget" not in text({"replicas": 1, "podDisruptionBudget.minAvailable": 3})


def test_an_old_kubernetes_is_refused(text: Text) -> None:
    with pytest.raises(HelmError, match=r">=1\.31"):
        text({}, "--kube-version=1.30.9")


def test_helm_needs_no_flags(text: Text) -> None:
    """A helm that was built without its version takes every cluster for Kubernetes 1.20, and refuses the chart."""
    assert "kind: Deployment" in text()


def refusal(text: Text, values: dict[str, Any], **more: Any) -> str:
    """What helm says, which comes from the schema. Empty: it takes the values."""
    try:
        text(values, **more)
    except HelmError as error:
        message = str(error)
        assert "values don't meet the specifications of the schema" in message
        for stack in ("template:", "nil pointer", "executing", "panic"):
            assert stack not in message
        return message
    return ""


def test_a_test_where_the_operator_does_not_look_is_refused(text: Text) -> None:
    with pytest.raises(HelmError, match=r"tests.namespace is c, which is not one of watchNamespaces"):
        text({"watchNamespaces": ["a", "b"], "tests.namespace": "c"})
    assert text({"watchNamespaces": ["a", "b"], "tests.namespace": "b"})
