"""A pod that stays Terminating on a silent node is given up: its attempt ends, and nobody waits for it any more."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from finetune_operator.plan import Delete
from finetune_operator.views.job import JobView
from finetune_operator.views.pod import PodView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import NOW, SETTINGS, TWO_NODES, begun, child_job, running, step, wait, with_status

TIMEOUT = SETTINGS.lost_node_timeout
TAINT = "DeletionByTaintManager: Taint manager: deleting due to NoExecute taint"


def lost(rank: int = 1, grace: float = 120) -> PodView:
    """A pod that was deleted at NOW, on a node that does not answer."""
    ends_by = NOW + timedelta(seconds=grace)
    return replace(
        running(rank=rank), node="node-2", deleting=True, disruption=TAINT, asked_to_end=NOW, ends_by=ends_by
    )


def under_way() -> JobView:
    """Two nodes train."""
    view = begun(resources=TWO_NODES, backoffLimit=0)
    return with_status(view, step(view, Snapshot((child_job(),), (running(), running(rank=1)))))


def given_up(view: JobView, after: float = TIMEOUT) -> JobView:
    return with_status(view, step(view, Snapshot((child_job(),), (running(), lost())), after=after))


def test_it_is_told_and_waited_for_until_the_timeout() -> None:
    planned = step(under_way(), Snapshot((child_job(),), (running(), lost())), after=10)
    assert (planned.status.reason, planned.step) == ("NodeLost", None)
    assert "node node-2 does not answer" in (planned.status.message or "")
    assert "lostNodeTimeout" in (planned.status.message or "")
    assert wait(planned, after=10) == TIMEOUT - 10


def test_a_longer_grace_period_is_waited_for_as_well() -> None:
    """An administrator may evict pods by a taint, and then a kubelet lets them save."""
    snapshot = Snapshot((child_job(),), (running(), lost(grace=900)))
    assert step(under_way(), snapshot, after=TIMEOUT).status.reason == "NodeLost"
    assert step(under_way(), snapshot, after=910).status.reason == "Ending"


def test_then_the_attempt_ends_and_its_child_job_is_deleted_in_the_usual_way() -> None:
    view = given_up(under_way())
    [entry] = view.status["attempts"]
    assert (entry["state"], entry["cause"], entry["suspect"]) == ("Ending", "NodeLost", "node-2")
    planned = step(view, Snapshot((child_job(),), (running(), lost())), after=TIMEOUT)
    assert isinstance(planned.step, Delete), "the other pods save and end"


def test_the_other_pods_are_waited_for() -> None:
    deleting = child_job(deleting=True)
    planned = step(given_up(under_way()), Snapshot((deleting,), (running(), lost())), after=TIMEOUT + 60)
    assert planned.status.attempts is not None
    assert planned.status.attempts[0].state == "Ending"


def test_the_next_attempt_begins_beside_what_is_left_of_the_lost_one() -> None:
    """The child job stays as long as its pod does, which may be for ever."""
    left = Snapshot((child_job(deleting=True),), (lost(),))
    planned = step(given_up(under_way()), left, after=TIMEOUT + 60)
    [entry] = planned.status.attempts or []
    assert (entry.state, entry.reason, entry.failures) == ("Ended", "NodeLost", 0)
    assert "node node-2 does not answer" in (entry.message or "")
    planned = step(with_status(under_way(), planned), left, after=TIMEOUT + 100)
    assert planned.status.attempt == 2
    assert planned.status.attempts is not None
    assert planned.status.attempts[1].avoids == ["node-2"]


def test_a_node_that_comes_back_in_time_ends_the_attempt_as_a_disruption() -> None:
    view = under_way()
    view = with_status(view, step(view, Snapshot((child_job(),), (running(), lost())), after=10))
    back = replace(lost(), phase="Failed", running=False, exit_code=75)
    done = replace(running(), phase="Failed", running=False, exit_code=75)
    planned = step(view, Snapshot((child_job(failed_reason="PodFailurePolicy"),), (done, back)), after=TIMEOUT + 10)
    [entry] = planned.status.attempts or []
    assert (entry.state, entry.reason) == ("Ended", "Disrupted")


def test_three_lost_nodes_without_progress_are_enough() -> None:
    view, now = under_way(), 0.0
    for _ in range(3):
        number = view.status["attempt"]
        pods = (replace(running(number), node="a"), replace(lost(), attempt=number))
        moment = now + TIMEOUT
        shifted = tuple(
            replace(pod, asked_to_end=NOW + timedelta(seconds=now), ends_by=NOW + timedelta(seconds=now))
            if pod.disruption
            else pod
            for pod in pods
        )
        view = with_status(view, step(view, Snapshot((child_job(number),), shifted), after=moment))
        planned = step(view, Snapshot((), ()), after=moment)
        view = with_status(view, planned)
        if planned.status.phase == "Failed":
            break
        now = moment + 100
        view = with_status(view, step(view, Snapshot((), ()), after=now))
    assert (view.status["phase"], view.status["reason"]) == ("Failed", "NoProgress")
