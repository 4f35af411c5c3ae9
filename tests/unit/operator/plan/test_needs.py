"""Each situation needs exactly the live reads that it cannot be decided without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import Resolved
from finetune_operator.plan import Create
from finetune_operator.views.child_job import AcceptedTerms
from finetune_operator.views.job import JobView
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator.make import (
    SETTINGS,
    among,
    child_job,
    ended,
    job,
    needs,
    other,
    over,
    pod,
    prepared,
    running,
    step,
    succeeded,
    with_status,
)

TWO_NODES: dict[str, Any] = {"resources": {"nodes": 2}}
FROM_SFT: dict[str, Any] = {"model": {"fromJob": "sft"}}
CONFIRM = [Read.JOB, Read.CHILD_JOB, Read.PODS]
CREATE = [Read.JOB]
"""The name of a child job is unique: its creation finds one that exists."""
UNDER_WAY = Snapshot((child_job(),), (running(),))
UNREADABLE = other("sft", status={"phase": "Running", "attempts": "none"})


def begun(view: JobView) -> JobView:
    """The job once its next attempt is in the status, before its child job exists."""
    return with_status(view, step(view))


def is_running(**spec: Any) -> JobView:
    view = begun(prepared(**spec))
    return with_status(view, step(view, UNDER_WAY))


@pytest.mark.parametrize(
    ("spec", "reads"),
    [
        ({}, [Read.PRESETS]),
        (TWO_NODES, [Read.PRESETS, Read.WORKSPACE]),
        ({"workspace": {"claim": {"size": "1Gi"}}}, [Read.PRESETS, Read.WORKSPACE]),
        (FROM_SFT, [Read.PRESETS, Read.DEPENDENCIES]),
        ({"training": {"epochs": 1, "globalBatchSize": 6}, "resources": {"gpusPerNode": 4}}, []),
    ],
    ids=["one node", "two nodes", "a claim of the operator", "another job's artifact", "an invalid spec"],
)
def test_a_new_job(spec: dict[str, Any], reads: list[Read]) -> None:
    assert needs(job(**spec), among(succeeded("sft")))[0] == reads


@pytest.mark.parametrize(
    ("first", "later", "reads"),
    [
        ([], [], []),
        ([other("sft")], [other("sft")], []),
        ([], [other("sft")], [Read.DEPENDENCIES]),
        ([other("sft")], [], [Read.DEPENDENCIES]),
        ([other("sft")], [other("sft", status={"phase": "Running", "reason": "Running"})], [Read.DEPENDENCIES]),
        ([other("sft")], [replace(other("sft"), deleting=True)], [Read.DEPENDENCIES]),
        ([other("sft")], [succeeded("sft")], [Read.DEPENDENCIES, Read.PRESETS]),
        ([UNREADABLE], [UNREADABLE], []),
        ([other("sft")], [UNREADABLE], [Read.DEPENDENCIES]),
    ],
    ids=["missing", "pending", "created", "deleted", "starts", "is being deleted", "ends", "unreadable", "spoiled"],
)
def test_a_job_that_waits_reads_only_what_is_new(first: list[JobView], later: list[JobView], reads: list[Read]) -> None:
    view = job(**FROM_SFT)
    view = with_status(view, step(view, among(*first)))
    assert needs(view, among(*later))[0] == reads


def test_of_two_jobs_that_are_waited_for_each_is_looked_at() -> None:
    """Also a job that has ended, which the message does not name any more."""
    ppo = job(stage="ppo", model={"fromJob": "sft"}, ppo={"rewardModel": {"fromJob": "rm"}})
    waits = with_status(ppo, step(ppo, among(succeeded("sft"), other("rm", "rm"))))
    assert needs(waits, among(succeeded("sft"), other("rm", "rm")))[0] == []
    for later in (among(other("sft"), other("rm", "rm")), among(other("rm", "rm"))):
        assert needs(waits, later)[0] == [Read.DEPENDENCIES]
    assert needs(waits, among(succeeded("sft"), succeeded("rm", "rm")))[0] == [Read.DEPENDENCIES, Read.PRESETS]


def test_references_are_not_read_again_once_they_are_fixed() -> None:
    view = with_status(job(**FROM_SFT), step(job(**FROM_SFT), among(succeeded("sft"))))
    assert needs(view)[0] == CREATE


@pytest.mark.parametrize(("spec", "reads"), [({}, CREATE), (TWO_NODES, [*CREATE, Read.WORKSPACE])])
def test_before_a_child_job_is_created(spec: dict[str, Any], reads: list[Read]) -> None:
    order, planned = needs(begun(prepared(**spec)))
    assert order == reads
    assert isinstance(planned.step, Create)


@pytest.mark.parametrize(
    ("resources", "allowed", "reads"),
    [
        ({}, True, [Read.PRESETS, Read.GPU_MEMORY]),
        ({}, False, [Read.PRESETS]),
        ({"gpuMemory": "80Gi"}, True, [Read.PRESETS]),
        ({"gpusPerNode": 0}, True, [Read.PRESETS]),
    ],
)
def test_the_nodes_gpu_memory_is_read_once_at_acceptance_of_a_job_that_is_prepared(
    resources: dict[str, Any], allowed: bool, reads: list[Read]
) -> None:
    settings = SETTINGS.model_copy(update={"read_node_labels": allowed})
    order, accepted = needs(job(resources=resources), settings=settings)
    assert order == reads
    assert needs(with_status(job(resources=resources), accepted), settings=settings)[0] == CREATE
    assert needs(prepared(resources=resources), settings=settings)[0] == [Read.PRESETS]


@pytest.mark.parametrize(
    ("snapshot", "after", "reads"),
    [
        (UNDER_WAY, 1000, []),
        (Snapshot((child_job(),), (pod(unschedulable="0/3 nodes"),)), 1000, []),
        (Snapshot((child_job(),)), 5, []),
        (Snapshot((child_job(),)), 20, []),
        (Snapshot((child_job(failed_reason="x"),), (ended(70),)), 20, [Read.JOB, Read.PODS]),
    ],
    ids=["running", "unschedulable", "no pods yet", "no pods for long", "finished"],
)
def test_an_attempt_under_way(snapshot: Snapshot, after: float, reads: list[Read]) -> None:
    for view in (begun(prepared()), is_running()):
        assert needs(view, snapshot, after=after)[0] == reads


def test_a_child_job_that_is_gone_is_confirmed() -> None:
    assert needs(is_running(), Snapshot(), after=20)[0] == CONFIRM


def test_the_backoff_needs_nothing() -> None:
    view = begun(prepared())
    view = with_status(view, step(view, Snapshot((child_job(failed_reason="x"),), (ended(70),))))
    assert view.status["reason"] == "RetryBackoff"
    assert needs(view, Snapshot((child_job(failed_reason="x"),)), after=5)[0] == []


def test_an_attempt_that_the_operator_ends_needs_nothing_until_its_child_job_is_gone() -> None:
    view = begun(prepared(startDeadlineSeconds=60))
    view = with_status(view, step(view, Snapshot((child_job(),)), after=61))
    assert view.status["attempts"][-1]["state"] == "Ending"
    assert needs(view, Snapshot((child_job(),)), after=62)[0] == []
    assert needs(view, Snapshot(), after=63)[0] == CONFIRM


@pytest.mark.parametrize("outcome", ["Succeeded", "Failed"])
def test_a_job_that_has_ended_is_read_only_before_something_of_it_is_deleted(outcome: str) -> None:
    assert needs(job(over(outcome), **FROM_SFT), Snapshot())[0] == []
    assert needs(job(over(outcome), **FROM_SFT), Snapshot((child_job(),)))[0] == [Read.JOB]


def test_a_wiped_status_is_recovered_before_other_jobs_are_read() -> None:
    wiped, left = job(**FROM_SFT), Snapshot((child_job(kind="prepare"),))
    assert needs(wiped, left)[0] == [Read.ACCEPTED_TERMS, Read.PRESETS, Read.DEPENDENCIES]
    references = step(wiped, among(succeeded("sft"))).status.references or []
    terms = AcceptedTerms(references, Resolved(image="i", contract=3, digest="sha256:1"))
    assert needs(wiped, replace(left, accepted_terms=terms))[0] == [Read.ACCEPTED_TERMS]
