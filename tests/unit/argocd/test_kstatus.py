"""Tools that know no FineTuneJob see by kstatus what Argo CD sees by health.lua: Flux, Helm 4, `kubectl wait`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_api.crd import schema

from tests.unit.argocd import states
from tests.unit.argocd.states import Manifest
from tests.unit.argocd.test_customization import HEALTH
from tests.unit.operator.make import condition, job, observed, over, step, with_status
from tests.unit.operator.plan.test_reopening import exhausted, retry
from tests.unit.operator.plan.test_suspension import at_rest, set_suspend

AS_KSTATUS = {"Progressing": "InProgress", "Suspended": "InProgress", "Healthy": "Current", "Degraded": "Failed"}


def kstatus(obj: Manifest) -> str:
    """The rules of sigs.k8s.io/cli-utils/pkg/kstatus for a kind that it does not know, in their order."""
    status = obj.get("status", {})
    if "deletionTimestamp" in obj["metadata"]:
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != obj["metadata"]["generation"]:
        return "InProgress"
    for found in status.get("conditions", []):
        if (found["type"], found["status"]) == ("Reconciling", "True"):
            return "InProgress"
        if (found["type"], found["status"]) == ("Stalled", "True"):
            return "Failed"
    return "Current"


@pytest.mark.parametrize("state", HEALTH)
def test_kstatus_is_the_health(state: str) -> None:
    view = states.states()[state]
    assert kstatus(states.manifest(view)) == AS_KSTATUS[HEALTH[state]]
    assert kstatus(states.manifest(states.stale(view))) == "InProgress"
    assert kstatus(states.deleted(states.manifest(view))) == "Terminating"


def test_a_new_job_is_in_progress_before_the_operator_has_seen_it() -> None:
    """An object without observedGeneration and without conditions would be ready at once."""
    fields = schema()["properties"]["status"]
    assert fields["default"] == {}
    given = {name: field["default"] for name, field in fields["properties"].items() if "default" in field}
    new = states.manifest(replace(job(), status=given))
    assert kstatus(new) == "InProgress"
    assert replace(job(), status=given).is_new


def test_a_stalled_job_says_why() -> None:
    status = step(exhausted()).status
    stalled = next(found for found in status.conditions or [] if found.type == "Stalled")
    assert (stalled.reason, stalled.message) == (status.reason, status.message)


def test_a_job_that_continues_is_no_longer_stalled() -> None:
    view = retry(exhausted())
    view = with_status(view, planned := step(view))
    assert condition(planned.status, "Stalled") == ("False", view.status["phase"])
    assert condition(planned.status, "Reconciling")[0] == "True"


def test_a_success_of_an_earlier_release_is_not_written_again() -> None:
    """It is Current without the conditions, and clusters have many of them."""
    view = job({**over("Succeeded"), "observedGeneration": 1})
    assert step(view).status.to_dict() == view.status


def test_the_conditions_alone_are_never_written() -> None:
    """Once they are there, an edit that changes nothing else changes them neither."""
    for view in (set_suspend(at_rest()), exhausted()):
        settled = with_status(view, step(view))
        later = replace(settled, generation=9)
        kinds = ("Reconciling", "Stalled")
        before, after = (
            [found for found in observed(made.to_dict(), 9)["conditions"] if found["type"] in kinds]
            for made in (step(settled).status, step(later).status)
        )
        assert before == after
