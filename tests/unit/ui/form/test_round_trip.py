"""A job that is shown in the form and posted as it is, is the same job."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_cli.problem import Problem
from finetune_ui import form
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ui.form.browser import page
from tests.unit.ui.form.jobs import EXAMPLES, FULL, HEAD, SPEC, jobs, with_text_quantities

SLOW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def posted(job: dict[str, Any]) -> list[tuple[str, str]]:
    """What a browser sends if nobody touches the form."""
    return page(form.render(form.values(job), csrf="token")).posted


def through(job: dict[str, Any]) -> dict[str, Any]:
    return form.manifest(posted(job))


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_form_of_an_example_makes_the_example(name: str) -> None:
    assert through(EXAMPLES[name]) == EXAMPLES[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_controls_show_everything_of_an_example(name: str) -> None:
    assert "other" not in form.values(EXAMPLES[name])


@pytest.mark.parametrize("job", FULL, ids=lambda job: job["spec"]["stage"])
def test_a_job_with_every_field_is_the_same(job: dict[str, Any]) -> None:
    assert "other" not in form.values(job)
    assert through(job) == job


@pytest.mark.parametrize("name", EXAMPLES)
def test_types_are_those_of_the_schema(name: str) -> None:
    """True == 1 and 1 == 1.0 in Python, but not for the API server."""
    assert repr(through(EXAMPLES[name])["spec"]["training"]) == repr(
        {part: EXAMPLES[name]["spec"]["training"][part] for part in _order(EXAMPLES[name]["spec"]["training"])}
    )


def _order(section: dict[str, Any]) -> list[str]:
    return [part for part in SPEC["properties"]["training"]["properties"] if part in section]


@SLOW
@given(jobs())
def test_a_random_job_of_the_schema_is_the_same(job: dict[str, Any]) -> None:
    got = through(job)
    assert with_text_quantities(got["spec"], SPEC) == with_text_quantities(job["spec"], SPEC)
    assert {**got, "spec": {}} == {**job, "spec": {}}


def test_an_empty_choice_is_not_lost() -> None:
    volumes = [{"name": "scratch", "emptyDir": {"medium": ""}}]
    job = {**HEAD, "metadata": {"name": "a"}, "spec": {"stage": "sft", "resources": {"volumes": volumes}}}
    assert through(job) == job


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
PLACES = ("stage", "model", "datasets", "training", "resources", "tuning", "notify", "rm", "unknown")


@SLOW
@given(st.dictionaries(st.sampled_from(PLACES), ANY), ANY, ANY)
def test_a_hostile_job_is_the_same(spec: dict[str, Any], metadata: Any, more: Any) -> None:
    job = {**HEAD, "metadata": metadata, "spec": spec, "more": more}
    assert through(job) == job


def test_nothing_at_all_is_shown() -> None:
    assert through({}) == HEAD
    assert through({"spec": "text", "metadata": [1]}) == {**HEAD, "spec": "text", "metadata": [1]}


def test_an_unknown_field_is_kept_in_the_box() -> None:
    job = {**HEAD, "metadata": {"name": "a"}, "spec": {"stage": "sft", "fromTheFuture": {"x": [1]}}}
    assert form.values(job)["other"] == "spec:\n  fromTheFuture:\n    x:\n    - 1\n"
    assert through(job) == job


def test_settings_of_another_stage_are_kept_in_the_box() -> None:
    job = {**HEAD, "metadata": {"name": "a"}, "spec": {"stage": "sft", "dpo": {"beta": 0.2}}}
    assert "beta: 0.2" in form.values(job)["other"]
    assert through(job) == job


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("evaluation", {"generate": {}}),
        ("template", {"defaultSystem": ""}),
        ("prepare", {"nodeSelector": {}}),
        ("resources", {"env": [{"name": "A", "value": ""}], "volumes": [{"name": "v", "emptyDir": {}}]}),
    ],
)
def test_an_empty_field_that_means_something_has_a_control(path: str, value: dict[str, Any]) -> None:
    job = {**HEAD, "metadata": {"name": "a"}, "spec": {"stage": "sft", path: value}}
    assert "other" not in form.values(job)
    assert through(job) == job


@pytest.mark.parametrize("text", ["\n  first\n\nlast \n", " ", "a\tb", "<b>&amp;\n"])
def test_spaces_and_line_breaks_of_a_long_text_stay(text: str) -> None:
    spec = {"stage": "sft", "template": {"defaultSystem": text}, "model": {"newTokens": [" a ", "b\u00a0", "<c>"]}}
    job = {**HEAD, "metadata": {"name": "a"}, "spec": spec}
    assert through(job) == job


def test_more_rows_than_the_form_shows_are_kept_in_the_box() -> None:
    labels = {f"label-{number}": "x" for number in range(150)}
    job = {**HEAD, "metadata": {"name": "a", "labels": labels}, "spec": {"stage": "sft"}}
    assert "label-149" in form.values(job)["other"]
    assert through(job) == job


def test_a_job_that_is_too_deep_is_refused_with_a_message() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"x": deep}
    with pytest.raises(Problem, match="levels"):
        form.values({"spec": deep})
