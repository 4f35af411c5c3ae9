"""The time to look again is the earliest of all deadlines that the decisions report."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from finetune_api.status import FineTuneJobStatus
from finetune_operator.plan import Need, Plan
from finetune_operator.plan.decision import SHORTEST_WAIT_SECONDS, missing
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator.make import NOW, child_job, ended, kept, pod, prepared, proxy, running, step, wait, with_status


def begun(**spec: Any) -> JobView:
    view = prepared(startDeadlineSeconds=60, **spec)
    return with_status(view, step(view))


@pytest.mark.parametrize(
    ("deadlines", "seconds"),
    [((), None), ((7,), 7), ((30, 7, 12), 7), ((0,), SHORTEST_WAIT_SECONDS), ((-5, 7), SHORTEST_WAIT_SECONDS)],
)
def test_the_earliest_deadline_counts(deadlines: tuple[float, ...], seconds: float | None) -> None:
    moments = tuple(NOW + timedelta(seconds=after) for after in deadlines)
    assert Plan(FineTuneJobStatus(), deadlines=moments).look_again(NOW) == seconds


WAITING = {
    "no node": (pod(unschedulable="0/3 nodes"),),
    "no scheduler": (pod(),),
    "no image": (pod(waiting_reason="ImagePullBackOff", node="n"),),
    "no word": (pod(waiting_reason="ContainerCreating", node="n"),),
    "no pod": (),
}
"""Why an attempt does not start -> its pods."""


@pytest.mark.parametrize("why", WAITING)
@pytest.mark.parametrize("after", [15, 40, 59.5])
def test_an_attempt_that_waits_looks_again_only_at_its_deadline(why: str, after: float) -> None:
    """Whatever it waits for, nothing is done at intervals."""
    assert wait(step(begun(), Snapshot((child_job(),), WAITING[why]), after=after), after=after) == 60 - after


@pytest.mark.parametrize(("why", "about"), [("no word", {pod().uid}), ("no pod", {child_job().uid})])
def test_events_are_needed_where_nothing_else_tells_why_for_long(why: str, about: set[str]) -> None:
    snapshot = Snapshot((child_job(),), WAITING[why])
    early, late = (step(begun(), snapshot, after=after) for after in (5, 15))
    assert (early.events_about, wait(early, after=5)) == (frozenset(), 10)
    assert late.events_about == about


@pytest.mark.parametrize("why", ["no node", "no scheduler", "no image"])
def test_no_event_is_needed_for_what_pods_say_themselves(why: str) -> None:
    assert not step(begun(), Snapshot((child_job(),), WAITING[why]), after=40).events_about


@pytest.mark.parametrize(("after", "seconds"), [(0, 5), (58, 2)])
def test_a_refused_create_is_tried_again_and_given_up_at_the_deadline(after: float, seconds: float) -> None:
    planned = step(begun(), Snapshot(refusal="exceeded quota"), after=after)
    assert wait(planned, after=after) == seconds


def test_a_start_deadline_that_does_not_apply_any_more_is_no_deadline() -> None:
    """The attempt has run, and its node does not answer for hours."""
    view = begun()
    view = with_status(view, step(view, Snapshot((child_job(),), (running(),))))
    lost = replace(running(), status_reason="NodeLost")
    assert wait(step(view, Snapshot((child_job(),), (lost,)), after=5000), after=5000) is None


def test_what_only_an_event_changes_has_no_deadline() -> None:
    view = begun()
    assert wait(step(view, Snapshot((child_job(suspended=True),)))) is None
    assert wait(step(view, Snapshot((child_job(failed_reason="x"),), (running(),)))) is None


def test_the_backoff_is_a_deadline_when_it_begins_and_whenever_the_plan_looks_again() -> None:
    view = begun()
    finished = Snapshot((child_job(failed_reason="x"),), (ended(70),))
    planned = step(view, finished, after=5)
    assert wait(planned, after=5) == 10
    assert wait(step(with_status(view, planned), finished, after=12), after=12) == 3


def test_a_read_is_missing_until_it_is_done() -> None:
    need = missing(Snapshot(), Read.PODS, "train", None)
    assert need is not None
    assert need == Need(frozenset({Read.PODS}), "train")
    assert missing(Snapshot(reads=need.reads), Read.PODS) is None


LOST = replace(running(), disruption="DeletionByTaintManager: Taint manager: deleting", deleting=True)
PODS = {
    "none": (),
    "no node": (pod(unschedulable="0/3 nodes"),),
    "creating": (pod(waiting_reason="ContainerCreating"),),
    "no image": (pod(waiting_reason="ImagePullBackOff"),),
    "running": (running(),),
    "lost": (LOST,),
    "ending": (replace(running(), deleting=True),),
    "ended": (ended(70),),
    "kept by another container": (kept(0),),
    "failed and kept": (kept(70),),
    "an init container": (pod(node="n", others=(proxy(kind="init container"),)),),
    "evicted": (ended(137, disruption="TerminationByKubelet: The node was low on resource: memory."),),
}
CHILDREN = {
    "none": (),
    "active": (child_job(),),
    "suspended": (child_job(suspended=True),),
    "deleting": (child_job(deleting=True),),
    "failed": (child_job(failed_reason="PodFailurePolicy"),),
}


@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("refusal", ["", "403: exceeded quota"])
@pytest.mark.parametrize("pods", PODS)
@pytest.mark.parametrize("children", CHILDREN)
@pytest.mark.parametrize("hours", [0, 1, 100])
def test_no_state_of_the_cluster_makes_the_operator_spin(
    children: str, pods: str, refusal: str, has_run: bool, hours: int
) -> None:
    """Whatever stays as it is, at whatever time: once the status is written, nothing is due within 5 s."""
    view, after = begun(), hours * 3600 + 1.0
    if has_run:
        view = with_status(view, step(view, Snapshot((child_job(),), (running(),))))
    snapshot = Snapshot(CHILDREN[children], PODS[pods], refusal=refusal)
    for _ in range(10):
        planned = step(view, snapshot, after=after)
        if planned.status.to_dict() == view.status:
            break
        view = with_status(view, planned)
    assert planned.status.to_dict() == view.status
    due = wait(planned, after=after)
    assert planned.step is not None or due is None or due >= 5
