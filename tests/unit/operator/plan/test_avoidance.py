"""A node that smells of broken hardware is avoided by the next attempts: for a time, and only if there are others."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.manifests.placement import REQUIRED, avoiding
from finetune_operator.plan import Create, Delete
from finetune_operator.plan.avoidance import AVOIDED_SECONDS, NODES_MAX, PLACE_SECONDS
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator.make import (
    TWO_NODES,
    begun,
    child_job,
    ended,
    pod,
    reporting,
    result,
    retried,
    running,
    step,
    wait,
    with_status,
)

NOT_NODE_2 = {"key": "metadata.name", "operator": "NotIn", "values": ["node-2"]}


def broken(view: JobView, *, node: str = "node-2", after: float = 0, **fields: Any) -> JobView:
    """An attempt on two nodes ends: the trainer blames the hardware of node rank 1, or another cause."""
    number = view.status["attempt"]
    cause = {"reason": "HardwareError", "faultyNode": 1, **fields}
    told = result(70, number, "Xid 79: GPU has fallen off the bus", **cause).to_dict()
    pods = (ended(70, number), ended(70, number, 1, node=node, terminated_message=json.dumps(told)))
    snapshot = Snapshot((child_job(number, failed_reason="PodFailurePolicy"),), pods)
    return with_status(view, step(view, snapshot, after=after))


def failed(**spec: Any) -> JobView:
    return broken(begun(**{"resources": TWO_NODES, "backoffLimit": 6, **spec}))


def again(view: JobView, after: float) -> JobView:
    number = view.status["attempt"]
    return retried(view, Snapshot((child_job(number, failed_reason="x"),)), after=after)


def test_the_next_attempt_avoids_the_node_and_says_so() -> None:
    view = failed()
    [entry] = view.status["attempts"]
    assert (entry["reason"], entry["suspect"], entry["failures"]) == ("HardwareError", "node-2", 1)
    assert "avoids node node-2, whose hardware may be faulty" in view.status["message"]
    view = again(view, 10)
    assert view.status["attempts"][1]["avoids"] == ["node-2"]
    planned = step(view, Snapshot(), after=10)
    assert isinstance(planned.step, Create)
    affinity = planned.step.manifests[-1]["spec"]["template"]["spec"]["affinity"]
    assert affinity["nodeAffinity"][REQUIRED] == {"nodeSelectorTerms": [{"matchFields": [NOT_NODE_2]}]}


def test_the_affinity_of_the_job_stays() -> None:
    own = {
        "podAntiAffinity": {"x": 1},
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [1],
            REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": ["a"]}, {"matchExpressions": ["b"]}]},
        },
    }
    made = avoiding(own, ["node-2"])
    assert made["podAntiAffinity"] == {"x": 1}
    assert made["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == [1]
    terms = made["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert [term["matchExpressions"] for term in terms] == [["a"], ["b"]]
    assert all(term["matchFields"] == [NOT_NODE_2] for term in terms), "terms are alternatives"
    assert "matchFields" not in json.dumps(own), "the spec is not changed"


def test_an_error_of_the_program_blames_no_node() -> None:
    view = begun(resources=TWO_NODES)
    view = broken(view, reason="InternalError", faultyNode=None)
    assert "suspect" not in view.status["attempts"][0]


def test_a_straggler_at_the_end_is_a_suspect() -> None:
    slowest = {"rank": 1, "nodeRank": 1, "ratio": "1.40", "sinceStep": 30}
    view = reporting(begun(resources=TWO_NODES), slowestRank=slowest)
    view = broken(view, reason="InternalError", faultyNode=None)
    assert view.status["attempts"][0]["suspect"] == "node-2"


def test_it_is_no_ban() -> None:
    view = again(failed(), AVOIDED_SECONDS + 60)
    assert "avoids" not in view.status["attempts"][1]


def test_a_few_nodes_are_avoided_at_most() -> None:
    view, now = begun(resources=TWO_NODES, backoffLimit=50), 0.0
    for number in range(NODES_MAX + 2):
        view = broken(view, node=f"bad-{number}", after=now)
        now += 600
        view = again(view, now)
    assert view.status["attempts"][-1]["avoids"] == ["bad-4", "bad-3", "bad-2"], "the newest"


def nowhere_for(number: int) -> Snapshot:
    """The pods of this attempt find no node."""
    why = "2 node(s) didn't match Pod's node affinity"
    return Snapshot((child_job(number),), tuple(pod(number, rank, unschedulable=why) for rank in (0, 1)))


def test_without_another_place_it_takes_the_node_after_all() -> None:
    view = again(failed(), 10)
    nowhere = nowhere_for(view.status["attempt"])
    planned = step(view, nowhere, after=11)
    assert "It avoids node node-2" in (planned.status.message or "")
    assert wait(planned, after=11) == PLACE_SECONDS - 1
    now = 10.0 + PLACE_SECONDS
    view = with_status(view, step(view, nowhere, after=now))
    assert view.status["attempts"][1]["cause"] == "Unschedulable"
    assert isinstance(step(view, nowhere, after=now).step, Delete)
    view = with_status(view, step(view, Snapshot(), after=now))
    entry = view.status["attempts"][1]
    assert (entry["reason"], entry["failures"]) == ("Unschedulable", 1), "it does not count"
    assert "no place without node node-2" in entry["message"]
    view = with_status(view, step(view, Snapshot(), after=now))
    assert view.status["attempt"] == 3, "at once"
    assert "avoids" not in view.status["attempts"][2]


def without_place(view: JobView, after: float) -> tuple[JobView, float]:
    """The pods of the last attempt find no place until it gives up, and the next attempt begins; when."""
    nowhere = nowhere_for(view.status["attempt"])
    gone = Snapshot()
    for snapshot, seconds in ((nowhere, 0), (nowhere, PLACE_SECONDS), (gone, PLACE_SECONDS), (gone, PLACE_SECONDS)):
        view = with_status(view, step(view, snapshot, after=after + seconds))
    return view, after + PLACE_SECONDS


def test_it_does_not_wait_twice_for_a_place_that_there_is_not() -> None:
    view, now = without_place(again(failed(), 10), 10)
    view = again(broken(view, after=now), now + 60)
    assert view.status["attempts"][2]["suspect"] == "node-2"
    assert "avoids" not in view.status["attempts"][3], "there was no place without node-2"
    assert "avoids" not in view.status["message"]


def test_a_new_suspect_is_avoided_where_another_could_not_be() -> None:
    view, now = without_place(again(failed(), 10), 10)
    view = again(broken(view, node="node-5", after=now), now + 60)
    assert view.status["attempts"][3]["avoids"] == ["node-5"]


def test_whether_there_is_a_place_is_tried_again_after_hours() -> None:
    view, now = without_place(again(failed(), 10), 10)
    view = again(broken(view, after=now + AVOIDED_SECONDS), now + AVOIDED_SECONDS + 60)
    assert view.status["attempts"][3]["avoids"] == ["node-2"]


@pytest.mark.parametrize("after", [PLACE_SECONDS + 20, 3 * PLACE_SECONDS])
def test_pods_that_start_slowly_have_their_place(after: int) -> None:
    view = again(failed(), 10)
    pods = tuple(pod(2, rank, node="node-3", waiting_reason="ContainerCreating") for rank in (0, 1))
    planned = step(view, Snapshot((child_job(2),), pods), after=after)
    assert planned.status.attempts is not None
    assert planned.status.attempts[1].state == "Starting"


def test_a_straggler_is_named_with_its_node_until_it_recovers() -> None:
    view = begun(resources=TWO_NODES)
    pods = (running(), replace(running(rank=1), node="node-2"))
    snapshot = Snapshot((child_job(),), pods)
    slowest = {"rank": 3, "nodeRank": 1, "ratio": "1.31", "sinceStep": 30}
    planned = step(reporting(view, slowestRank=slowest), snapshot)
    assert (planned.status.phase, planned.status.reason) == ("Running", "Straggler")
    assert "Rank 3 (node node-2, pod" in (planned.status.message or "")
    assert "since step 30" in (planned.status.message or "")
    view = with_status(view, planned)
    assert view.status["attempts"][0]["suspect"] == "node-2", "its pods may be gone when it ends"
    even = {"rank": 0, "nodeRank": 0, "ratio": "1.02"}
    recovered = step(reporting(view, slowestRank=even), snapshot).status
    assert recovered.reason == "Running"
    assert recovered.attempts is not None
    assert recovered.attempts[0].suspect is None


def test_a_job_that_is_suspended_because_of_a_straggler_leaves_its_node() -> None:
    slowest = {"rank": 3, "nodeRank": 1, "ratio": "1.31", "sinceStep": 30}
    view = reporting(begun(resources=TWO_NODES), slowestRank=slowest)
    pods = (running(), replace(running(rank=1), node="node-2"))
    view = with_status(view, step(view, Snapshot((child_job(),), pods)))
    view = replace(view, generation=2, spec={**view.spec, "suspend": True})
    for left in (Snapshot((child_job(),), pods), Snapshot(), Snapshot()):
        view = with_status(view, step(view, left, after=5))
    assert view.status["phase"] == "Suspended"
    view = replace(view, generation=3, spec={**view.spec, "suspend": False})
    for _ in range(2):
        view = with_status(view, step(view, after=10))
    assert view.status["attempts"][1]["avoids"] == ["node-2"]
