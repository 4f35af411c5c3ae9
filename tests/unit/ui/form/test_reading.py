"""What people type becomes values of the types of the schema, and what they leave alone stays unset."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_ui import form

from tests.unit.ui.form.browser import page
from tests.unit.ui.form.jobs import EXAMPLES

HEAD = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
LORA = EXAMPLES["examples/sft-lora.yaml"]


def spec(*posted: tuple[str, str]) -> Any:
    return form.manifest(posted).get("spec")


@pytest.mark.parametrize("stage", ["pt", "sft", "rm", "dpo", "ppo", "kto"])
def test_an_untouched_form_sets_the_stage_only(stage: str) -> None:
    posted = page(form.render({"spec.stage": stage}, csrf="token")).posted
    assert ("csrf", "token") in posted
    assert form.manifest(posted) == {**HEAD, "spec": {"stage": stage}}


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("training.epochs", "3", 3),
        ("training.epochs", "0.5", 0.5),
        ("training.learningRate", "1e-5", 1e-5),
        ("training.learningRate", " 2E-4 ", 2e-4),
        ("training.maxSteps", "100", 100),
        ("training.groupByLength", "false", False),
        ("training.groupByLength", "true", True),
        ("tuning.quantization.bits", "8", 8),
        ("tuning.lora.targets", "q_proj\r\n\r\nv_proj\r\n", ["q_proj", "v_proj"]),
        ("resources.cpu", "1", "1"),
        ("resources.memory", " 16Gi ", "16Gi"),
        ("model.source", " hf://org/name ", "hf://org/name"),
        ("template.defaultSystem", "Be brief.\r\nBe kind.", "Be brief.\nBe kind."),
        ("resources.affinity", "nodeAffinity: {a: 1}", {"nodeAffinity": {"a": 1}}),
        ("suspend", "true", True),
        # What is no value of the type stays as it is, so that the API server can name it.
        ("training.epochs", "three", "three"),
        ("training.epochs", "0,5", "0,5"),
        ("training.epochs", "1e999", "1e999"),
        ("training.epochs", "nan", "nan"),
        ("training.maxSteps", "1.5", "1.5"),
        ("training.maxSteps", "١", "١"),
        ("training.maxSteps", "9" * 5000, "9" * 5000),
        ("training.groupByLength", "yes", "yes"),
        ("tuning.quantization.bits", "5", "5"),
    ],
)
def test_a_text_becomes_a_value_of_the_type(path: str, text: str, value: Any) -> None:
    got = spec((f"spec.{path}", text))
    for part in path.split("."):
        got = got[part]
    assert got == value
    assert type(got) is type(value)


def test_rows_and_maps() -> None:
    posted = [
        ("spec.datasets[0].source", ""),
        ("spec.datasets[0].format", ""),
        ("spec.datasets[3].source", "pvc://a/b"),
        ("spec.datasets[3].format", "openai"),
        ("spec.datasets[7].source", "pvc://a/c"),
        ("spec.resources.devices[0]|key", "rdma/hca"),
        ("spec.resources.devices[0]|value", "2"),
        ("spec.resources.podLabels[1]|key", "a.b/c"),
        ("spec.resources.podLabels[1]|value", ""),
        ("spec.resources.podLabels[2]|key", ""),
        ("spec.resources.podLabels[2]|value", ""),
        ("spec.notify.when|Failed", "on"),
    ]
    assert spec(*posted) == {
        "datasets": [{"source": "pvc://a/b", "format": "openai"}, {"source": "pvc://a/c"}],
        "resources": {"devices": {"rdma/hca": 2}, "podLabels": {"a.b/c": ""}},
        "notify": {"when": ["Failed"]},
    }


def shown_rows(posted: list[tuple[str, str]], path: str) -> list[str]:
    """The first controls of the rows of a list, when the form is shown again."""
    controls = dict(page(form.render(form.typed(posted), csrf="token")).posted)
    return [text for name, text in controls.items() if name.startswith(path) and name.endswith(("].source", "]|key"))]


def test_buttons_add_and_remove_rows_without_scripts() -> None:
    posted = page(form.render(form.values(LORA), csrf="token")).posted
    source = LORA["spec"]["datasets"][0]["source"]
    two = [*posted, ("do", "add:spec.datasets")]
    assert shown_rows(two, "spec.datasets[") == [source, ""]
    shown = page(form.render(form.typed(two), csrf="token")).posted
    filled = [(name, "pvc://a/b" if name == "spec.datasets[1].source" else text) for name, text in shown]
    assert shown_rows([*filled, ("do", "add:spec.datasets")], "spec.datasets[") == [source, "pvc://a/b", ""]
    assert shown_rows([*filled, ("do", "remove:spec.datasets[0]")], "spec.datasets[") == ["pvc://a/b"]
    assert form.manifest([*filled, ("do", "check")])["spec"]["datasets"][1] == {"source": "pvc://a/b"}
    labels = [*posted, ("do", "add:spec.resources.podLabels")]
    assert shown_rows(labels, "spec.resources.podLabels[") == [""]
    assert form.manifest(labels) == LORA


def test_a_new_form_has_one_row_for_the_data_and_a_second_can_be_added() -> None:
    posted = page(form.render({"spec.stage": "sft"}, csrf="token")).posted
    assert shown_rows(posted, "spec.datasets[") == [""]
    assert shown_rows([*posted, ("do", "add:spec.datasets")], "spec.datasets[") == ["", ""]


@pytest.mark.parametrize(
    ("do", "changes"),
    [("add:spec.datasets", True), ("remove:spec.datasets[0]", True), ("stage", True), ("check", False), ("", False)],
)
def test_the_page_knows_which_buttons_only_change_the_form(do: str, changes: bool) -> None:
    assert form.only_changes([("spec.stage", "sft"), ("do", do)]) is changes


def test_another_stage_drops_the_settings_of_the_old_stage() -> None:
    posted = page(form.render(form.values(EXAMPLES["examples/dpo.yaml"]), csrf="token")).posted
    changed = [(name, "kto" if name == "spec.stage" else text) for name, text in posted]
    assert "dpo" not in form.manifest(changed)["spec"]
    shown = page(form.render(form.typed(changed), csrf="token")).posted
    assert not [name for name, _ in shown if name.startswith("spec.dpo")]
    assert ("spec.kto.beta", "") in shown


@pytest.mark.parametrize(
    "name",
    [
        "__proto__",
        "spec",
        "spec.noSuchField",
        "spec.datasets[99999999999999999999].source",
        "spec.datasets[-1].source",
        "spec.datasets[0][1].source",
        "spec.datasets|row",
        "spec.stage.name",
        "metadata.labels|0|key",
        "spec..stage",
        "[0]",
        "\x00",
        "spec.resources.podLabels[0]|key|key",
    ],
)
def test_a_name_that_no_control_has_is_ignored(name: str) -> None:
    assert form.manifest([(name, "x"), ("spec.stage", "sft")]) == {**HEAD, "spec": {"stage": "sft"}}
    assert form.mistakes([(name, "x")]) == form.NO_ERRORS


def test_thousands_of_posted_rows_make_no_page_of_thousands_of_rows() -> None:
    posted = [(f"spec.datasets[{number}].source", "x") for number in range(9999)]
    assert len(form.manifest(posted)["spec"]["datasets"]) <= 100
    assert len(shown_rows(posted, "spec.datasets[")) <= 100


@pytest.mark.parametrize(
    "do", ["add:", "add:spec", "add:[", "remove:", "remove:spec.datasets[9]", "add:no.such", "\x00"]
)
def test_a_button_that_the_form_does_not_have_changes_nothing(do: str) -> None:
    posted = page(form.render(form.values(LORA), csrf="token")).posted
    assert form.manifest([*posted, ("do", do)]) == LORA


def test_the_box_wins_and_merges_by_field() -> None:
    other = "metadata: {finalizers: [x/y]}\nspec: {model: {attention: eager, future: 1}}"
    posted = [("spec.model.source", "s3://a/b"), ("spec.model.attention", "sdpa"), ("other", other)]
    assert form.manifest(posted) == {
        **HEAD,
        "metadata": {"finalizers": ["x/y"]},
        "spec": {"model": {"source": "s3://a/b", "attention": "eager", "future": 1}},
    }


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("other", "a: [", "This is not YAML"),
        ("other", "a: 1\na: 2", "the key a is there twice"),
        ("other", "- a", "Write a mapping"),
        ("other", "a: 2024-01-01", "2024-01-01 cannot be sent to Kubernetes: write it in quotes"),
        ("other", "1: x", "The key 1 is no text"),
        ("spec.resources.affinity", "just text", "Write a mapping"),
        ("spec.resources.affinity", "a: &b [*b]", "levels"),
    ],
)
def test_yaml_that_cannot_be_read_is_a_mistake_at_its_box(path: str, text: str, message: str) -> None:
    posted = [("spec.stage", "sft"), (path, text)]
    assert message in form.mistakes(posted).fields[path]
    assert form.manifest(posted)["spec"]["stage"] == "sft"
    assert dict(page(form.render(form.typed(posted), csrf="token")).posted)[path] == text.replace("\n", "\r\n")


def test_keys_of_maps_that_are_missing_or_there_twice_are_mistakes() -> None:
    labels = "spec.resources.podLabels"
    twice = [(f"{labels}[{at}]|{part}", text) for at in (0, 1) for part, text in (("key", "a"), ("value", str(at)))]
    assert form.mistakes(twice).fields == {labels: "The key a is there twice"}
    assert form.mistakes([(f"{labels}[0]|value", "v")]).fields == {labels: "The value v has no key"}
    assert form.mistakes([(f"{labels}[0]|key", "k")]) == form.NO_ERRORS
