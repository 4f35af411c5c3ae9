"""What a view knows about a FineTuneJob without parsing its spec."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.chaining import from_jobs
from finetune_api.contract import claim_name
from finetune_operator.plan.acceptance import parse_spec
from finetune_operator.views.job import job_view

from tests.unit.operator.make import SETTINGS, job, preparing_progress

FROM_SFT: dict[str, Any] = {"model": {"fromJob": "sft"}}
PPO: dict[str, Any] = {
    "stage": "ppo",
    **FROM_SFT,
    "ppo": {"rewardModel": {"fromJob": "rm"}, "reference": {"fromJob": "sft"}},
}


@pytest.mark.parametrize("spec", [{}, FROM_SFT, PPO, {"workspace": {"claim": {"size": "1Gi"}}}])
def test_a_view_reads_claim_and_dependencies_like_the_api(spec: dict[str, Any]) -> None:
    view = job(**spec)
    parsed = parse_spec(view, SETTINGS).job
    assert view.claim == claim_name("demo", parsed.spec)
    assert view.dependencies == set(from_jobs(parsed.spec).values())


def test_a_view_has_no_curves_and_knows_that_there_are_some() -> None:
    """500 running jobs would have 8 MiB of them in the memory of the operator."""
    raw: dict[str, Any] = {"metadata": {"namespace": "n", "name": "a", "uid": "u", "resourceVersion": "1"}}
    without = {"attempt": 1, "summary": "3/9"}
    progress = {**without, "curves": {"loss": "1;1;2"}}
    view = job_view({**raw, "status": {"progress": progress}})
    assert (view.status["progress"], view.has_curves) == (without, True)
    assert not job_view({**raw, "status": {"progress": without}}).has_curves
    assert "curves" in progress, "the object of the watch stays as it is"


def test_the_operator_acts_on_a_new_activity_and_not_on_a_step() -> None:
    view = job({"progress": preparing_progress("Validating")})
    assert view.same_for_operator(job({"progress": preparing_progress("Validating", 2)}))
    assert not view.same_for_operator(job({"progress": preparing_progress("Tokenizing")}))


@pytest.mark.parametrize(
    ("reason", "field", "acts"),
    [
        ("Running", "attempt", True),
        ("Running", "kind", True),
        ("Running", "startStep", True),
        ("Running", "lastUpdateTime", False),
        ("NotReporting", "lastUpdateTime", True),
    ],
)
def test_the_operator_acts_on_what_it_repeats_of_a_report(reason: str, field: str, acts: bool) -> None:
    view = job({"reason": reason, "progress": preparing_progress("Tokenizing")})
    changed = job({"reason": reason, "progress": {**preparing_progress("Tokenizing"), field: "new"}})
    assert view.same_for_operator(changed) == (not acts)


def test_the_operator_acts_only_on_changes_outside_the_trainers_fields() -> None:
    before = job({"phase": "Running", "attempt": 1})
    progress = replace(before, resource_version=2, status={**before.status, "progress": {"step": 5}})
    phase = replace(before, resource_version=2, status={"phase": "Failed", "attempt": 1})
    assert progress.same_for_operator(before)
    assert not phase.same_for_operator(before)
    assert not replace(before, deleting=True).same_for_operator(before)
    assert not before.same_for_operator(None)
