"""Jobs that the form starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_cli import manifest
from finetune_cli.problem import Problem
from finetune_ui import form

from tests.unit.ui.form.browser import page
from tests.unit.ui.form.jobs import CHECKOUT, EXAMPLES, HEAD, STAGES

LORA = EXAMPLES["examples/sft-lora.yaml"]
FILES: dict[str, dict[str, Any]] = json.loads((CHECKOUT / "tests/golden/llamafactory-examples.json").read_text())[
    "files"
]
TOP = "apiVersion: finetune-operator.io/v1alpha1\nkind: FineTuneJob\n"


def through(job: dict[str, Any]) -> dict[str, Any]:
    return form.manifest(page(form.render(form.values(job), csrf="token")).posted)


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_job_is_valid_once_it_has_a_name(stage: str) -> None:
    job = through(form.new(stage))
    assert "metadata" not in job
    assert manifest.mistakes({**job, "metadata": {"name": "a"}}) == []
    assert job["spec"]["stage"] == stage


def test_a_new_job_of_an_unknown_stage_is_sft() -> None:
    assert form.new("<script>")["spec"]["stage"] == "sft"


@pytest.mark.parametrize("path", sorted((CHECKOUT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_loaded(path: Path) -> None:
    if path.name == "claims.yaml":
        with pytest.raises(Problem, match="2 documents"):
            form.load(path.read_text())
        return
    job = form.load(path.read_text())
    assert job == EXAMPLES[f"examples/{path.name}"]
    assert form.load(form.save(job)) == job


def bomb() -> str:
    """A few lines that mean ten billion texts."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The text is empty"),
        ("# only a comment", "The text is empty"),
        ("- a", "Write a mapping"),
        ("text", "Write a mapping"),
        ("kind: Pod\napiVersion: v1", "The text is a Pod v1: only a FineTuneJob"),
        ("spec: {}", "only a FineTuneJob"),
        (TOP + "---\n" + TOP, "The text has 2 documents"),
        (TOP + "spec: {stage: sft, stage: pt}", "the key stage is there twice"),
        (TOP + "spec: [", "This is not YAML"),
        (TOP + "spec: !!python/object/apply:os.system [ls]", "This is not YAML"),
        (TOP + "spec: !!int x", "This is not YAML"),
        (TOP + "spec: {x: 2024-01-01}", "write it in quotes"),
        (TOP + "spec: {x: 9999-99-99}", "This is not YAML"),
        (TOP + "spec: {x: .nan}", "write it in quotes"),
        (TOP + "spec: {x: " + "9" * 30 + "}", "write it in quotes"),
        (TOP + "spec: {x: " + "9" * 5000 + "}", "This is not YAML"),
        (TOP + "spec: {1: x}", "The key 1 is no text"),
        (TOP + "spec: {[a]: x}", "This is not YAML"),
        (TOP + "spec: &a {b: *a}", "levels"),
        (TOP + "spec: " + "[" * 40 + "]" * 40, "levels"),
        (TOP + "spec: " + "[" * 20_000, "levels"),
        (TOP + bomb(), "values"),
        (TOP + "x" * 70_000, "at most 65,536 are read"),
        (TOP + "spec: \x00", "This is not YAML"),
        (TOP + "spec: '\ud800'", "This is not YAML"),
    ],
)
def test_a_text_that_is_no_job_is_refused_with_a_message(text: str, message: str) -> None:
    with pytest.raises(Problem) as refused:
        form.load(text)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 1000


STORED: dict[str, Any] = {
    **HEAD,
    "metadata": {
        "name": "old",
        "namespace": "team",
        "uid": "5b0c2",
        "resourceVersion": "7",
        "generation": 2,
        "creationTimestamp": "2026-01-31T12:00:00Z",
        "managedFields": [{"manager": "kubectl"}],
        "labels": {"team": "a"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "kept"},
    },
    "spec": {**LORA["spec"], "suspend": True, "retry": 2, "stop": "keep"},
    "status": {"phase": "Failed"},
}


def test_a_clone_has_the_settings_and_nothing_of_what_happened() -> None:
    copy = form.clone(STORED)
    assert copy == {
        **HEAD,
        "metadata": {"namespace": "team", "labels": {"team": "a"}, "annotations": {"note": "kept"}},
        "spec": LORA["spec"],
    }
    assert through(copy) == copy
    assert "status" in STORED


def test_a_stored_job_is_loaded_without_its_status() -> None:
    job = form.load(form.save(STORED))
    assert job["metadata"]["name"] == "old"
    assert "status" not in job
    assert "uid" not in job["metadata"]


@pytest.mark.parametrize("job", [{"metadata": "x", "spec": [1]}, {"metadata": {"annotations": 7}}, {}])
def test_a_clone_of_a_strange_object_raises_nothing(job: dict[str, Any]) -> None:
    assert "status" not in form.clone(job)


@pytest.mark.parametrize("name", FILES)
def test_examples_of_llamafactory_are_imported_into_controls(name: str) -> None:
    imported = form.import_llamafactory(json.dumps(FILES[name]))
    assert "other" not in form.values(imported.job)
    assert through(imported.job) == imported.job


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "kind: Pod",
        "stage: sft",
        "{model_name_or_path: a/b, learning_rate: [1]}",
        "{model_name_or_path: a/b, learning_rate: fast}",
        "{model_name_or_path: a/b, lora_rank: {a: 1}}",
        "{model_name_or_path: a/b, dataset: identity, max_samples: many}",
        "{model_name_or_path: a/b, quantization_bit: four}",
        "{model_name_or_path: {a: 1}, dataset: {b: 2}, num_train_epochs: {c: 3}}",
    ],
)
def test_a_configuration_that_cannot_be_imported_is_refused_with_a_message(text: str) -> None:
    with pytest.raises(Problem) as refused:
        form.import_llamafactory(text)
    assert str(refused.value)


def test_an_import_reads_no_file_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "secret.json"}}')
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
    text = {
        "model_name_or_path": "a/b",
        "dataset": "mine",
        "dataset_dir": str(tmp_path),
        "deepspeed": str(tmp_path / "ds.json"),
    }
    assert "secret" not in str(form.import_llamafactory(json.dumps(text)))
