"""Two operators: one works, the other takes over, whatever happens to the first or to the Lease.

Most of this is waiting for a Lease of 15 s, so all scenes are played at the same time, each with two operators and a
namespace of its own; each test reports one scene.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.controlplane.election import Pair, pair
from tests.controlplane.fault_proxy import Fault, Kind
from tests.controlplane.lane import LEASES, Lane
from tests.controlplane.scene import Scene, result
from tests.kube import Kube, Object, until

OUTAGE_SECONDS = 30
LEASE_SECONDS = 15
JOBS = 4
BROKEN_CALLS: tuple[tuple[Kind, float], ...] = (
    *(("refuse", status) for status in (403, 404, 409, 422, 429, 500, 503)),
    ("drop before", 0),
    ("drop after", 0),
    ("delay", 3),
    ("silence before", 0),
    ("silence after", 0),
)
"""A single call that goes wrong."""


def hand_over(both: Pair) -> str:
    """An operator that is stopped gives the Lease back; jobs keep what they were accepted with."""
    first, second = both.lanes
    first.operator.settings["trainer_image"], second.operator.settings["trainer_image"] = "trainer:old", "trainer:new"
    first, second = both.start()
    both.scene.submit()
    pod = both.scene.running()
    before = both.scene.status()["resolved"]
    assert second.proxy.calls == second.proxy.elections == []
    first.operator.ask_to_end()
    seconds = both.takes_over(second)
    assert first.operator.ended() == 0
    both.scene.kubelet.finish(pod, 70)
    again = both.scene.running(attempt=2)
    assert again["spec"]["containers"][0]["image"] == "trainer:old"
    assert both.scene.status()["resolved"] == before
    return f"hand-over after SIGTERM: {seconds:.1f} s"


def killed(both: Pair) -> str:
    first, second = both.start()
    both.scene.submit()
    pod = both.scene.running()
    first.operator.kill()
    began = time.monotonic()
    both.scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    seconds = both.takes_over(second)
    both.scene.reaches("Succeeded")
    return f"take-over after SIGKILL: {seconds:.1f} s, job at its end after {time.monotonic() - began:.1f} s"


def paused(both: Pair) -> str:
    """It has work to do when it wakes: its watches show it what it missed."""
    first, second = both.start()
    names = both.submit(JOBS)
    for name in names:
        both.scene.preparing(name)
    first.operator.pause()
    both.takes_over(second)
    for name in names:
        pod = both.scene.kubelet.pod(name, kind="prepare")
        both.scene.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
    written = len(first.proxy.calls), len(first.proxy.elections)
    first.operator.wake()
    both.play(names)
    until("the first operator knows it", lambda: "No longer the leader" in first.operator.said())
    assert (len(first.proxy.calls), len(first.proxy.elections)) == written
    assert both.leader() is second
    assert first.operator.health() == (200, "ok\n")
    return "a leader that was paused wrote nothing when it woke"


def outage(both: Pair) -> str:
    """The API server does not answer; afterwards there is one leader, in the same processes."""
    first, second = both.start()
    names = both.submit(2)
    for own in both.lanes:
        own.proxy.refuse = lambda *_: 503
        own.proxy.silent = True
        own.proxy.cut_watches()
    end = time.monotonic() + OUTAGE_SECONDS
    until("the outage is over", lambda: time.monotonic() > end, timeout=OUTAGE_SECONDS + 5)
    assert both.leader() is None
    for own in both.lanes:
        own.proxy.refuse = lambda *_: 0
        own.proxy.silent = False
    until("there is a leader", both.leader, timeout=60)
    both.play(names)
    assert first.operator.starts == second.operator.starts == 1
    assert first.operator.alive
    assert second.operator.alive
    return "one leader after an outage"


def _has_written(own: Lane, renewals: int) -> bool:
    return len(own.proxy.elections) >= renewals


def broken_renewals(both: Pair) -> str:
    """Whatever happens to one renewal, the leader stays: it has 10 s to try again."""
    first, _ = both.start()
    names = both.submit(2)
    for kind, value in BROKEN_CALLS:
        first.proxy.arm(LEASES, Fault(kind, 1, value))
        until(f"{kind} {value:g} has hit a renewal", lambda: LEASES in first.proxy.happened)
        renewed = len(first.proxy.elections) + 2
        until("the Lease is renewed again", partial(_has_written, first, renewed))
        assert first.operator.leads(), f"{kind} {value:g}"
    both.play(names)
    assert both.leader() is first
    assert both.holder() == first.operator.identity
    assert both.check_writers() == 0
    return f"{len(BROKEN_CALLS)} renewals were refused, cut or slow, and the leader stayed"


def broken_changes(both: Pair) -> str:
    """The Lease is not given back, because the call is refused; whoever takes it does not hear that it has it."""
    first, second = both.start()
    both.scene.submit()
    pod = both.scene.running()
    second.proxy.arm(LEASES, Fault("drop after", 1))
    first.proxy.refuse = lambda method, _, resource: 503 if (method, resource) == ("PUT", "leases") else 0
    first.operator.ask_to_end()
    both.takes_over(second)
    assert first.operator.ended() == 0
    assert LEASES in second.proxy.happened
    both.scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    both.scene.reaches("Succeeded")
    return "a Lease that is not given back is taken, though the answer is lost"


def deleted(both: Pair) -> str:
    """Its holder makes it again, and nobody else takes it meanwhile."""
    first, _ = both.start()
    both.scene.kube.delete("Lease", both.lease, LEASES)
    until("the Lease is there", lambda: both.scene.kube.find("Lease", both.lease, LEASES))
    assert both.holder() == first.operator.identity
    both.play(both.submit(2))
    assert both.leader() is first
    assert both.check_writers() == 0
    return "a deleted Lease is made again by its holder"


def edited(both: Pair) -> str:
    """A name that nobody has: everybody stops, and one takes the Lease when it was not renewed for its duration."""
    first, second = both.start()
    names = both.submit(2)
    both.edit(
        {"holderIdentity": "nobody", "leaseDurationSeconds": 1_000_000, "renewTime": "2999-01-01T00:00:00.000000Z"}
    )
    until("the leader stops", lambda: not first.operator.leads())
    written = len(first.proxy.calls)
    assert not second.operator.leads()
    until("there is a leader", both.leader, timeout=90)
    assert len(first.proxy.calls) == written or both.leader() is first
    both.play(names)
    return "a Lease with a strange holder is taken after a while"


def emptied(both: Pair) -> str:
    """An empty Lease is no Lease that its holder gave back: the holder may still write."""
    both.start()
    both.edit({"holderIdentity": None, "leaseDurationSeconds": None, "renewTime": None})
    until("there is a leader", lambda: both.leader() and both.holder(), timeout=TAKE)
    both.play(both.submit(2))
    both.check_writers()
    return "an emptied Lease"


def stale(both: Pair) -> str:
    """The second operator has seen the job, and nothing of what the first did for it."""
    first, second = both.start()
    second.proxy.lose = lambda event: event["object"].get("status", {}).get("phase") not in (None, "Pending")
    both.scene.submit()
    pod = both.scene.running()
    assert first.operator.stop() == 0
    both.takes_over(second)
    both.scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    second.proxy.cut_watches()
    status = both.scene.reaches("Succeeded")
    assert (status["attempt"], len(status["attempts"])) == (1, 1)
    assert len(both.scene.batches()) == len(both.scene.batches(kind="prepare")) == 1
    return "a standby whose watch is behind"


def changes(both: Pair) -> str:
    """Leaders that are stopped, killed and paused by turns, while jobs are in flight."""
    both.start()
    submitted, began = 0, time.monotonic()
    ways: list[Callable[[Lane], object]] = [
        lambda own: own.operator.stop(),
        lambda own: own.operator.kill(),
        lambda own: own.operator.pause(),
    ]
    gone: list[tuple[float, Lane]] = []

    def keep_up() -> None:
        for ended, absent in list(gone):
            if time.monotonic() - ended > LEASE_SECONDS + 3:
                gone.remove((ended, absent))
                if absent.operator.alive:
                    absent.operator.wake()
                else:
                    absent.operator.start(wait=False)
        if ways and not gone and time.monotonic() - began > 3 and (own := both.leader_with_standby()):
            ways.pop(0)(own)
            gone.append((time.monotonic(), own))

    # Also after the last way: the next leader has something to write.
    while ways or gone:
        both.play(both.submit(JOBS, after=submitted), keep_up, patience=240)
        submitted += JOBS
    changed = both.check_writers()
    assert changed >= 3
    return f"{changed} changes of the leader, {submitted} jobs, each with one Job of each kind"


TAKE = 60.0
SCENES: tuple[Callable[[Pair], str], ...] = (
    changes,
    outage,
    edited,
    emptied,
    killed,
    paused,
    stale,
    hand_over,
    deleted,
    broken_renewals,
    broken_changes,
)


@pytest.fixture(scope="module")
def played(
    kube: Kube, deployed: dict[str, str], example: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[str]]]:
    """The outcome of each scene."""
    with ExitStack() as stack:
        pairs = [
            stack.enter_context(pair(kube, deployed, tmp_path_factory.mktemp(scene.__name__), example))
            for scene in SCENES
        ]
        with ThreadPoolExecutor(len(SCENES)) as pool:
            yield {scene.__name__: pool.submit(scene, both) for scene, both in zip(SCENES, pairs, strict=True)}


@pytest.mark.parametrize("scene", [scene.__name__ for scene in SCENES])
def test_of_two_operators_one_works(
    played: dict[str, Future[str]], scene: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = played[scene].result()
    assert said
    with capsys.disabled():
        print(f"\n{said}", end="")


def test_an_operator_without_rights_to_the_lease_says_what_to_do(scene: Scene, own: Lane) -> None:
    """It writes nothing, and is not ready, so that an upgrade keeps the operators before it."""
    own.operator.start(lease_namespace="default")
    until("it is not ready", lambda: "Install the Role" in own.operator.get("readyz")[1])
    assert own.operator.get("readyz")[0] == 503
    assert own.operator.health() == (200, "ok\n")
    for words in (f"Lease default/{own.operator.settings['lease_name']}", "403", "RoleBinding of the operator's chart"):
        assert words in own.operator.get("readyz")[1]
        assert words in own.operator.said()
    scene.submit()
    assert own.proxy.calls == []


def test_an_operator_that_is_stopped_before_it_watches_gives_the_lease_back(
    scene: Scene, own: Lane, kube: Kube
) -> None:
    """A new job makes it work before it has listed the rest, and before kopf listens to signals."""
    scene.submit()
    own.proxy.refuse = lambda _method, namespace, resource: 503 if (namespace, resource) == ("", "pods") else 0
    own.operator.start()
    until("the new job has its child Job", lambda: kube.list("Job", scene.namespace))
    assert own.operator.stop() == 0
    lease = kube.get("Lease", own.operator.settings["lease_name"], LEASES)
    assert lease["spec"]["holderIdentity"] == "", own.operator.said()


def old_release(name: str) -> Object:
    """A Deployment as the chart had it before leader election."""
    labels = {"app.kubernetes.io/name": name}
    container = {"name": "operator", "image": "operator:old"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": LEASES},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def new_release(name: str) -> Object:
    """The same Deployment of this release."""
    made = old_release(name)
    spec = made["spec"]
    spec["strategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    spec["template"]["metadata"]["labels"] = {
        **spec["template"]["metadata"]["labels"],
        "finetune-operator.io/leader-election": "true",
    }
    return made


def test_an_operator_waits_for_those_of_a_release_without_election(scene: Scene, own: Lane, kube: Kube) -> None:
    """As long as the old pod exists, and as long as its ReplicaSet would make another."""
    name = scene.namespace
    selector = f"app.kubernetes.io/name={name}"

    def pods(old: bool) -> list[Object]:
        return kube.list("Pod", LEASES, f"{selector},{'!' if old else ''}finetune-operator.io/leader-election")

    def said(words: str) -> bool:
        return words in own.operator.said()

    try:
        kube.apply(old_release(name))
        first = until("the old pod is there", lambda: pods(old=True))[0]["metadata"]["name"]
        own.operator.start(operator_selector=selector, lease_name=name)
        until("it waits", lambda: said(f"ReplicaSet {first.rpartition('-')[0]}, Pod {first}"))
        assert own.operator.get("readyz") == (200, "ok\n")
        kube.delete("Pod", first, LEASES, grace=0)
        second = until(
            "another old pod is there", lambda: [p for p in pods(old=True) if p["metadata"]["name"] != first]
        )
        until("it waits for that, too", lambda: said(f"Pod {second[0]['metadata']['name']}"))
        kube.apply(new_release(name))
        [new] = until("the new pod is there", lambda: pods(old=False))
        scene.submit()
        assert own.proxy.calls == []
        _become_ready(kube, new)
        until("the old pod is gone", lambda: not pods(old=True))
        until("it leads", own.operator.leads)
        scene.preparing()
        lease = kube.get("Lease", name, LEASES)
        assert lease["spec"]["holderIdentity"] == own.operator.identity
        [owner] = lease["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Deployment", name), "it is deleted with the Deployment"
    finally:
        kube.delete("Deployment", name, LEASES)


def _become_ready(kube: Kube, pod: Object) -> None:
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-31T12:00:00Z"}]
    status = {"status": {"phase": "Running", "conditions": conditions}}
    kube.patch("Pod", pod["metadata"]["name"], status, LEASES, part="status")
