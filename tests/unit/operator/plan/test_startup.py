"""Why an attempt does not run: the fact that explains it best, with what to do."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from finetune_operator.plan.startup import diagnose, unexplained
from finetune_operator.views.pod import EventView, PodView

from tests.unit.operator.make import NOW, child_job, ended, pod, running


def event(reason: str, message: str, age: int = 0) -> EventView:
    return EventView("uid", reason, message, NOW - timedelta(seconds=age))


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
        (
            pod(waiting_reason="ContainerCreating", node="n"),
            [event("FailedMount", 'MountVolume.SetUp failed for volume "finetune-ca" : configmap "corp" not found')],
            "VolumeNotMounted",
            "trainer.caBundle",
        ),
        (pod(waiting_reason="ContainerCreating", node="n"), [event("Pulling", "pulling")], "PullingImage", "minutes"),
        (pod(waiting_reason="ContainerCreating", node="n"), [], "Starting", "are starting"),
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
    diagnosis = diagnose(child_job(), [seen], events, 1)
    assert diagnosis.reason == reason
    assert words in diagnosis.message
    assert diagnosis.running == (reason == "Running")


@pytest.mark.parametrize("cause", ["denied", 'failed to resolve "x:1": not found'])
def test_a_pull_and_the_pause_after_it_have_one_text(cause: str) -> None:
    pull = pod(waiting_reason="ErrImagePull", waiting_message=cause)
    pause = replace(pull, waiting_reason="ImagePullBackOff")
    pause = replace(pause, waiting_message=f'Back-off pulling image "registry.example/x:1": ErrImagePull: {cause}')
    told = diagnose(child_job(), [pull], [], 1)
    assert cause in told.message
    assert diagnose(child_job(), [pause], [], 1) == told


def test_rejected_pods_are_reported_with_the_clusters_message() -> None:
    events = [event("FailedCreate", "exceeded quota: gpus", 60), event("SuccessfulCreate", "x")]
    diagnosis = diagnose(child_job(), [], events, 1)
    assert diagnosis.reason == "PodsRejected"
    assert "exceeded quota: gpus" in diagnosis.message


def test_each_try_of_a_rejected_pod_has_the_same_message() -> None:
    texts = {
        diagnose(
            child_job(), [], [event("FailedCreate", f'Error creating: pods "demo-0a1b2-1-0-{name}" is forbidden')], 1
        ).message
        for name in ("ldlx4", "tvj7f")
    }
    assert len(texts) == 1
    assert 'pods "demo-0a1b2-1-0-*" is forbidden. Check the namespace' in texts.pop()


def test_a_single_bad_rank_is_named() -> None:
    bad = pod(rank=1, waiting_reason="ErrImagePull", waiting_message="denied")
    diagnosis = diagnose(child_job(), [running(), bad], [], 2)
    assert diagnosis.reason == "ImagePullFailed"
    assert diagnosis.message.startswith("Node rank 1 (pod demo-0a1b2-1-1-abcde)")


def test_some_pods_have_a_node_and_others_wait() -> None:
    diagnosis = diagnose(child_job(), [running(), pod(rank=1, unschedulable="0/2 nodes")], [], 2)
    assert diagnosis.reason == "PartlyScheduled"
    assert diagnosis.message.startswith("1 of 2 pods have a node and hold it; node rank 1 has no node: 0/2 nodes")


def test_every_rank_that_waits_for_a_node_is_named() -> None:
    waiting = [pod(rank=rank, unschedulable="0/9 nodes") for rank in (2, 3, 4, 7)]
    diagnosis = diagnose(child_job(), [running(rank=0), running(rank=1), running(rank=5), *waiting], [], 9)
    assert diagnosis.reason == "PartlyScheduled"
    start = "3 of 9 pods have a node and hold it; node ranks 2-4, 6-8 have no node: 0/9 nodes"
    assert diagnosis.message.startswith(start)


def test_a_quota_that_allows_some_of_the_pods() -> None:
    diagnosis = diagnose(child_job(), [running()], [event("FailedCreate", "exceeded quota: pods=1")], 2)
    assert diagnosis.reason == "PodsRejected"
    assert "(1 of 2 exist; node rank 1 has none): exceeded quota: pods=1" in diagnosis.message


def test_an_attempt_does_not_run_before_every_rank_does() -> None:
    assert not diagnose(child_job(), [running()], [], 2).running
    assert not diagnose(child_job(), [running(), ended(0, rank=1)], [], 2).running


def test_events_are_needed_only_about_what_says_nothing_itself() -> None:
    """Events of the child job if it has too few pods, and of a few pods that have a node and are silent."""
    child, creating = child_job(), pod(waiting_reason="ContainerCreating", node="n")
    assert unexplained(child, [], 1) == {child.uid}
    assert unexplained(child, [creating], 1) == {creating.uid}
    assert unexplained(child, [running(), replace(creating, uid="other", rank=1)], 3) == {child.uid, "other"}
    for told in (pod(), pod(unschedulable="x"), pod(waiting_reason="ErrImagePull", node="n"), running(), ended(1)):
        assert unexplained(child, [told], 1) == set()
    many = [replace(creating, uid=str(rank), rank=rank) for rank in range(64)]
    assert unexplained(child, many[::-1], 64) == {"0", "1", "2", "3", "4"}


STEPS = [
    ("FailedAttachVolume", "VolumeNotMounted"),
    ("FailedMount", "VolumeNotMounted"),
    ("Pulling", "PullingImage"),
    ("Pulled", "Starting"),
]


@pytest.mark.parametrize("later", STEPS)
@pytest.mark.parametrize("earlier", STEPS)
def test_the_newest_event_decides(earlier: tuple[str, str], later: tuple[str, str]) -> None:
    seen = [event(later[0], "new", 5), event(earlier[0], "old", 120)]
    creating = pod(waiting_reason="ContainerCreating", node="n")
    for events in (seen, seen[::-1]):
        assert diagnose(child_job(), [creating], events, 1).reason == later[1]


def test_of_events_of_the_same_second_the_later_step_is_newer() -> None:
    creating = pod(waiting_reason="ContainerCreating", node="n")
    events = [event(reason, "x") for reason in ("Pulled", "FailedMount", "Pulling")]
    assert diagnose(child_job(), [creating], events, 1).reason == "Starting"
    assert diagnose(child_job(), [creating], events[1:], 1).reason == "PullingImage"
