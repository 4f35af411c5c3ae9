"""Why an attempt isn't running: the most telling fact, in words that say what to do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from finetune_operator.observed import EventView, PodView
from finetune_operator.plan.startup import look, needs_events

from tests.unit.operator.make import NOW, ended, pod, running


def event(reason: str, message: str, age: int = 0) -> EventView:
    return EventView(reason, message, NOW - timedelta(seconds=age))


@pytest.mark.parametrize(
    ("seen", "events", "reason", "words"),
    [
        (pod(unschedulable="0/3 nodes: Insufficient nvidia.com/gpu"), [], "Unschedulable", "spec.resources"),
        (pod(waiting_reason="ImagePullBackOff", waiting_message="no such tag"), [], "ImagePullFailed", "no such tag"),
        (pod(waiting_reason="InvalidImageName", waiting_message="bad"), [], "ImagePullFailed", "spec.resources.image"),
        (
            pod(waiting_reason="CreateContainerConfigError", waiting_message='secret "hf" not found'),
            [],
            "ConfigMissing",
            'secret "hf" not found',
        ),
        (
            pod(waiting_reason="ContainerCreating", node="n"),
            [event("FailedMount", 'secret "x" not found')],
            "VolumeNotMounted",
            'secret "x" not found',
        ),
        (pod(waiting_reason="ContainerCreating", node="n"), [event("Pulling", "pulling")], "PullingImage", "minutes"),
        (pod(waiting_reason="ContainerCreating", node="n"), [], "Starting", "being started"),
        (
            pod(phase="Running", running=True, node="n", disruption="DeletionByTaintManager: Taint manager: deleting"),
            [],
            "NodeLost",
            "node n",
        ),
        (running(), [], "Running", "All pods run"),
        (pod(kind="prepare", unschedulable="0/3 nodes"), [], "Unschedulable", "spec.prepare"),
    ],
)
def test_one_pod(seen: PodView, events: list[EventView], reason: str, words: str) -> None:
    finding = look([seen], events, 1)
    assert finding.reason == reason
    assert words in finding.message
    assert finding.running == (reason == "Running")


def test_rejected_pods_are_told_in_the_clusters_words() -> None:
    events = [event("FailedCreate", "exceeded quota: gpus", 60), event("SuccessfulCreate", "x")]
    finding = look([], events, 1)
    assert finding.reason == "PodsRejected"
    assert "exceeded quota: gpus" in finding.message


def test_one_bad_rank_is_enough_and_is_named() -> None:
    bad = pod(rank=1, waiting_reason="ErrImagePull", waiting_message="denied")
    finding = look([running(), bad], [], 2)
    assert finding.reason == "ImagePullFailed"
    assert finding.message.startswith("Node rank 1 (pod demo-0a1b2-1-1-abcde)")


def test_a_job_that_holds_some_nodes_and_waits_for_others() -> None:
    finding = look([running(), pod(rank=1, unschedulable="0/2 nodes")], [], 2)
    assert finding.reason == "PartlyScheduled"
    assert finding.message.startswith("1 of 2 pods have a node and hold it; node rank 1 has not: 0/2 nodes")


def test_everybody_who_waits_for_a_node_is_named() -> None:
    waiting = [pod(rank=rank, unschedulable="0/9 nodes") for rank in (2, 3, 4, 7)]
    finding = look([running(rank=0), running(rank=1), running(rank=5), *waiting], [], 9)
    assert finding.reason == "PartlyScheduled"
    assert finding.message.startswith("3 of 9 pods have a node and hold it; node ranks 2-4, 6-8 have not: 0/9 nodes")


def test_a_quota_that_allows_some_of_the_pods() -> None:
    finding = look([running()], [event("FailedCreate", "exceeded quota: pods=1")], 2)
    assert finding.reason == "PodsRejected"
    assert "(1 of 2 are there; node rank 1 has none): exceeded quota: pods=1" in finding.message


def test_not_running_before_every_rank_is_there() -> None:
    assert not look([running()], [], 2).running
    assert not look([running(), ended(0, rank=1)], [], 2).running


def test_events_are_asked_for_only_when_pods_say_nothing_for_long() -> None:
    late = NOW + timedelta(seconds=20)
    assert needs_events([], 1, NOW, late)
    assert not needs_events([], 1, NOW, NOW + timedelta(seconds=5))
    assert needs_events([pod(waiting_reason="ContainerCreating")], 1, NOW, late)
    assert not needs_events([pod(unschedulable="x")], 1, NOW, late)
    assert not needs_events([running()], 1, NOW, late)
