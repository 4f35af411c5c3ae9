"""A workspace that the pods cannot use as the spec says blocks the job until it fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.plan import Create
from finetune_operator.views.claim import ClaimView
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator.make import (
    TWO_NODES,
    UID,
    condition,
    job,
    needs,
    step,
    wait,
    with_status,
)

RWO = ClaimView(("ReadWriteOnce",))


def test_a_job_on_two_nodes_waits_until_its_workspace_can_be_shared() -> None:
    view = job(resources=TWO_NODES)
    planned = step(view, Snapshot(workspace=RWO))
    assert (planned.status.phase, planned.status.reason) == ("Pending", "WorkspaceNotShareable")
    assert condition(planned.status, "Accepted") == ("False", "WorkspaceNotShareable")
    assert "only the pods of one node can mount claim workspace (ReadWriteOnce)" in (planned.status.message or "")
    assert (planned.status.prepare_attempt, planned.step, wait(planned)) == (None, None, 30)
    view = with_status(view, planned)
    again = step(view, Snapshot(workspace=RWO), after=60)
    assert again.status == planned.status
    assert [wait(step(view, Snapshot(workspace=RWO), after=t), after=t) for t in (60, 9000)] == [
        60,
        600,
    ], "the pauses double"
    for claim in (None, ClaimView(("ReadWriteMany",))):
        planned = step(view, Snapshot(workspace=claim), after=90)
        assert condition(planned.status, "Accepted") == ("True", "Accepted")
        assert planned.status.prepare_attempt == 1
    assert step(job(), Snapshot(workspace=RWO)).status.prepare_attempt == 1


OWN = {"workspace": {"claim": {"size": "500Gi", "accessMode": "ReadWriteMany", "storageClassName": "fast"}}}
FITS = ClaimView(("ReadWriteMany",), job="demo", job_uid="earlier", sizes=("500Gi", "500Gi"), storage_class="fast")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": ("10Gi", "10Gi")}, "Its size is 10Gi; the job asks for 500Gi."),
        ({"modes": ("ReadWriteOnce",)}, "Its access mode is ReadWriteOnce; the job asks for ReadWriteMany."),
        ({"storage_class": "slow"}, "Its storage class is slow; the job asks for fast."),
        ({"storage_class": ""}, "Its storage class is not set; the job asks for fast."),
        ({"deleting": True}, "is being deleted. The job continues by itself"),
        ({"owner": "demo", "owner_uid": "earlier"}, "will be deleted with that job (workspace.retain false)"),
    ],
)
def test_a_claim_that_an_earlier_job_of_the_name_left_has_to_fit(changes: dict[str, Any], words: str) -> None:
    view = job(**OWN)
    planned = step(view, Snapshot(workspace=replace(FITS, **changes)))
    assert (planned.status.phase, planned.status.reason) == ("Pending", "WorkspaceMismatch")
    assert condition(planned.status, "Accepted") == ("False", "WorkspaceMismatch")
    message = planned.status.message or ""
    assert message.startswith("Claim demo-workspace of an earlier job demo ")
    assert words in message
    assert (planned.status.prepare_attempt, planned.step, wait(planned)) == (None, None, 30)
    for claim in (FITS, None):
        again = step(with_status(view, planned), Snapshot(workspace=claim), after=30)
        assert (again.status.phase, again.status.prepare_attempt) == ("Preparing", 1)


def test_every_difference_is_told_with_what_to_do() -> None:
    claim = replace(FITS, sizes=("10Gi",), modes=("ReadWriteOnce",), storage_class="slow")
    message = step(job(**OWN), Snapshot(workspace=claim)).status.message or ""
    for words in (
        "size is 10Gi",
        "mode is ReadWriteOnce",
        "class is slow",
        "claimName demo-workspace",
        "delete the claim",
    ):
        assert words in message
    assert "expand" not in message
    small = step(job(**OWN), Snapshot(workspace=replace(FITS, sizes=("10Gi",)))).status.message or ""
    assert "expand the claim to 500Gi" in small


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        ({"size": "100Gi"}, {}),
        ({"size": "500Gi"}, {"sizes": ("600Gi", "500Gi")}),
        ({"size": "600Gi"}, {"sizes": ("600Gi", "500Gi")}),
        ({"size": "1Gi"}, {"sizes": ("1E",)}),
        ({"size": "1Gi", "accessMode": "ReadWriteOncePod"}, {"modes": ("ReadWriteOnce",)}),
        ({"size": "1Gi", "accessMode": "ReadWriteOnce"}, {"modes": ("ReadWriteMany",)}),
        ({"size": "900Gi"}, {"job_uid": UID}),
        ({"size": "900Gi"}, {"job": ""}),
    ],
    ids=[
        "larger",
        "as large",
        "expanding",
        "unreadable",
        "more nodes",
        "all nodes",
        "its own claim",
        "not created by us",
    ],
)
def test_more_than_asked_is_fine_and_so_is_a_claim_of_its_own(asked: dict[str, Any], changes: dict[str, Any]) -> None:
    planned = step(job(workspace={"claim": asked}), Snapshot(workspace=replace(FITS, **changes)))
    assert planned.status.prepare_attempt == 1


def test_a_job_that_has_begun_keeps_its_claim() -> None:
    view = job(**OWN)
    view = with_status(view, step(view, Snapshot(workspace=FITS)))
    order, planned = needs(view, Snapshot(workspace=replace(FITS, sizes=("10Gi",))))
    assert Read.WORKSPACE not in order
    assert isinstance(planned.step, Create)
