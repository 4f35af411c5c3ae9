"""The page for people: mistakes are found, defaults are named, and no text of a job is anything but text."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import pytest
from finetune_cli.importing.notes import Fate, Note
from finetune_ui import form

from tests.unit.ui.form.browser import Page, page
from tests.unit.ui.form.jobs import EXAMPLES, FULL, STAGES

PPO = EXAMPLES["examples/ppo.yaml"]
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}</textarea>&amp;"


def shown(job: dict[str, Any], errors: form.Errors = form.NO_ERRORS, **options: Any) -> Page:
    return page(form.render(form.values(job), errors, "token", **options))


def test_a_message_is_at_its_field_and_in_the_summary() -> None:
    there = shown(
        PPO, form.Errors({"spec.training.seed": "is odd", "spec.datasets[0].source": "is gone"}, ("all bad",))
    )
    for path in ("spec.training.seed", "spec.datasets[0].source"):
        control = there.with_id(path)
        assert control["aria-invalid"] == "true"
        assert f"{path}|error" in control["aria-describedby"].split()
    links = [unquote(given["href"]) for tag, given in there.tags if tag == "a"]
    assert links == ["#spec.training.seed", "#spec.datasets[0].source"]
    assert "all bad" in there.text


@pytest.mark.parametrize(
    "path", ["spec.training", "spec.datasets", "spec.datasets[0]", "spec.resources.podLabels", "spec.stage", "other"]
)
def test_a_message_about_a_section_is_there_too(path: str) -> None:
    there = shown(PPO, form.Errors({path: "is odd"}, ()))
    assert [unquote(given["href"]) for tag, given in there.tags if tag == "a"] == [f"#{path}"]
    assert f"{path}|error" in there.with_id(path)["aria-describedby"].split()
    assert there.with_id(f"{path}|error")


def test_a_message_about_a_field_that_is_not_there_is_in_the_summary_without_a_link() -> None:
    there = shown(PPO, form.Errors({"spec.dpo": "section dpo needs stage dpo"}, ()))
    assert "section dpo needs stage dpo" in there.text
    assert not [tag for tag, _ in there.tags if tag == "a"]


def folded_around(there: Page, path: str) -> list[bool]:
    """Whether each `details` around a control is open."""
    around: list[bool] = []
    for tag, given in there.tree:
        if tag == "details":
            around.append("open" in given)
        elif tag == "/details":
            around.pop()
        elif given.get("id") == path:
            return around
    raise AssertionError(f"{path} is not on the page")


@pytest.mark.parametrize("path", ["spec.training.seed", "spec.secrets.s3", "spec.datasets[0].columns.prompt"])
def test_a_message_opens_what_its_field_is_folded_in(path: str) -> None:
    assert not all(folded_around(shown(PPO), path))
    assert all(folded_around(shown(PPO, form.Errors({path: "is odd"}, ())), path))


@pytest.mark.parametrize("path", ["spec.model.source", "spec.training.learningRate", "spec.workspace.claimName"])
def test_what_people_change_most_is_open(path: str) -> None:
    assert all(folded_around(shown(PPO), path))


def placeholder(stage: str, path: str, **values: str) -> str:
    given = {"spec.stage": stage, **{name.replace("_", "."): text for name, text in values.items()}}
    return page(form.render(given, csrf="token")).with_id(path)["placeholder"]


@pytest.mark.parametrize(("stage", "rate"), [("sft", "0.0001"), ("dpo", "5e-06"), ("kto", "5e-06")])
def test_placeholders_are_the_defaults_of_the_stage(stage: str, rate: str) -> None:
    assert placeholder(stage, "spec.training.learningRate") == rate


def test_placeholders_follow_other_fields() -> None:
    assert placeholder("sft", "spec.training.learningRate", spec_tuning_method="full") == "1e-05"
    assert placeholder("sft", "spec.tuning.lora.alpha", spec_tuning_lora_rank="64") == "128"
    assert placeholder("ppo", "spec.ppo.rolloutBatchSize", spec_training_globalBatchSize="32") == "32"
    # What the API refuses counts as unset.
    assert placeholder("sft", "spec.tuning.lora.alpha", spec_tuning_lora_rank="minus one") == "16"
    assert placeholder("sft", "spec.training.seed") == "42"
    assert placeholder("no such stage", "spec.training.seed") == "42"


def test_unset_choices_name_their_default() -> None:
    assert "Default: cosine" in shown(PPO).text
    pt = page(form.render({"spec.stage": "pt"}, csrf="token"))
    assert "Default: wrapped" in pt.text


def test_names_are_suggested_and_namespaces_are_chosen() -> None:
    there = shown(PPO, namespace="team", names={"namespaces": ["other", "team"], "jobs": ["first", EVIL]})
    assert ("metadata.namespace", "team") in there.posted
    assert there.with_id("spec.model.fromJob")["list"] == "names-jobs"
    assert there.with_id("names-jobs") == {"id": "names-jobs"}
    assert [given["value"] for tag, given in there.tags if tag == "option"].count("first") == 1
    assert "list" not in there.with_id("spec.workspace.claimName")


def test_a_choice_that_the_schema_does_not_have_is_shown_and_not_lost() -> None:
    posted = [("spec.stage", EVIL)]
    assert ("spec.stage", EVIL) in page(form.render(form.typed(posted), csrf="token")).posted


def everywhere(value: Any) -> Any:
    """The job with a hostile text in place of each text and key, except the stage."""
    if isinstance(value, dict):
        return {key: each if key == "stage" else everywhere(each) for key, each in value.items()} | {EVIL: EVIL}
    if isinstance(value, list):
        return [everywhere(each) for each in value]
    return EVIL if isinstance(value, str) else value


@pytest.mark.parametrize("job", FULL, ids=lambda job: job["spec"]["stage"])
def test_hostile_texts_add_no_tag_and_no_attribute(job: dict[str, Any]) -> None:
    evil = everywhere(job)
    errors = form.Errors({"spec.model.source": EVIL, EVIL: EVIL, "other": EVIL}, (EVIL,))
    there = shown(evil, errors, action=EVIL, names={"jobs": [EVIL]})
    assert form.manifest(there.posted) == {**evil, "apiVersion": evil["apiVersion"], "kind": evil["kind"]}
    plain = shown(job, form.Errors({"spec.model.source": "x", "x": "x", "other": "x"}, ("x",)), names={"jobs": ["x"]})
    assert {tag for tag, _ in there.tags} <= {tag for tag, _ in plain.tags}
    assert {name for _, given in there.tags for name in given} <= {name for _, given in plain.tags for name in given}


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_inline(stage: str) -> None:
    """The content security policy allows no inline script and no inline style."""
    html = form.render({"spec.stage": stage}, form.Errors({}, ("x",)), "token") + form.render_load("token", problem="x")
    there = page(html)
    assert not {"script", "style", "link"} & {tag for tag, _ in there.tags}
    names = {name for _, given in there.tags for name in given}
    assert not [name for name in names if name == "style" or re.match("on|hx-on", name)]


def test_enter_in_an_input_checks_nothing_and_removes_nothing() -> None:
    buttons = [given for tag, given in shown(PPO).tags if tag == "button"]
    assert buttons[0]["value"] == "preview"


def test_the_form_that_loads() -> None:
    there = page(
        form.render_load("token", text="\n" + EVIL, problem=EVIL, notes=[Note(Fate.LEFT_OUT, EVIL, "no field")])
    )
    assert there.posted == [("csrf", "token"), ("text", "\r\n" + EVIL)]
    assert "left out" in there.text
    assert {given["value"] for tag, given in there.tags if tag == "button"} == {"load", "import"}
    assert there.with_id("load-text")["aria-invalid"] == "true"
