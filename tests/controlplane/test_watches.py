"""Watches that end, lose events or fall silent; and an operator that has nothing to do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.controlplane.lane import Lane, lane
from tests.controlplane.scene import ARTIFACT, FTJ, METRICS, Scene, result
from tests.kube import Kube, Object, until

FINISHED, IDLE_SECONDS, RESYNC_SECONDS = 200, 60, 5


@pytest.fixture(scope="module")
def idle(
    kube: Kube, deployed: dict[str, str], example: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Lane, float]]:
    """An operator for 200 finished jobs, and when it was started. It idles while the module's other tests run."""
    made = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "finished-"}})
    namespace, manifest = made["metadata"]["name"], yaml.safe_load(example.read_text())
    for number in range(FINISHED):
        job = kube.create({**manifest, "metadata": {"name": f"job-{number}"}}, namespace)
        kube.apply({**_head(job), "status": _finished(job, failed=number % 2 == 0)}, part="status")
    with lane(kube, deployed, tmp_path_factory.mktemp("idle"), namespace, resync_seconds=RESYNC_SECONDS) as own:
        own.operator.start()
        yield own, time.monotonic()
        print(own.operator.said())
    kube.delete("Namespace", namespace)


def _head(job: Object) -> Object:
    meta = job["metadata"]
    return {
        "apiVersion": job["apiVersion"],
        "kind": FTJ,
        "metadata": {key: meta[key] for key in ("name", "namespace", "uid")},
    }


def _finished(job: Object, *, failed: bool) -> Object:
    """As the operator leaves it."""
    moment, name = "2026-01-31T12:00:00Z", f"{job['metadata']['name']}-{job['metadata']['uid'][:5]}-1"
    phase, reason = ("Failed", "InvalidData") if failed else ("Succeeded", "Completed")
    said = {"observedGeneration": 1, "lastTransitionTime": moment, "message": "as it was"}
    return {
        "observedGeneration": 1,
        "phase": phase,
        "reason": reason,
        "message": "as it was",
        "conditions": [
            {"type": "Accepted", "status": "True", "reason": "Accepted", **said},
            {"type": "Running", "status": "False", "reason": reason, **said},
            {"type": phase, "status": "True", "reason": reason, **said},
        ],
        "attempt": 1,
        "attempts": [
            {"number": 1, "job": name, "state": "Ended", "startTime": moment, "endTime": moment, "reason": reason}
        ],
        "resolved": {"image": "trainer:old", "contract": 1, "digest": "sha256:0"},
        "startTime": moment,
        "completionTime": moment,
        "childrenDeletedTime": moment,
        **({} if failed else {"artifact": ARTIFACT, "metrics": METRICS}),
    }


@pytest.mark.usefixtures("idle")
def test_watches_that_are_closed_are_opened_again(scene: Scene, own: Lane) -> None:
    """As by an API server that restarts; what was missed in between is seen."""
    own.operator.start()
    scene.submit()
    pod = scene.running()
    assert until("four watches", lambda: own.proxy.watches >= 4)
    own.proxy.cut_watches()
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    scene.reaches("Succeeded")


@pytest.mark.usefixtures("idle")
def test_watches_whose_version_is_gone_begin_again(scene: Scene, own: Lane) -> None:
    """410 Gone, as after a compaction of etcd. What happens until the watches have listed again is not lost."""
    own.operator.start(resync_seconds=600)
    scene.submit()
    pod = scene.running()
    assert until("four watches", lambda: own.proxy.watches >= 4)
    own.proxy.expire_watches()
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    assert own.operator.alive
    assert own.proxy.effects(scene.namespace)["create jobs"] == 2


@pytest.mark.usefixtures("idle")
def test_a_restart_onto_a_listing_that_is_behind_repeats_nothing(scene: Scene, own: Lane) -> None:
    """As from a replica of the API server that lags: the job was just created, while in truth it trains."""
    scene.submit()
    own.proxy.stale = {}
    own.operator.start(resync_seconds=600)
    pod = scene.running()
    before = own.proxy.effects(scene.namespace)
    own.operator.kill()
    own.operator.start()
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    status = scene.reaches("Succeeded")
    assert (status["attempt"], status["prepareAttempt"]) == (1, 1)
    assert own.proxy.effects(scene.namespace) == before


@pytest.mark.parametrize("kind", ["Job", "Pod", FTJ])
@pytest.mark.usefixtures("idle")
def test_lost_events_are_made_up_for_by_the_resync(scene: Scene, own: Lane, kind: str) -> None:
    """All of one kind are lost from the moment that the job is running, or even submitted."""
    own.operator.start(resync_seconds=1)
    if kind != FTJ:
        scene.submit()
        pod = scene.running()
    own.proxy.lose = lambda event: event["object"].get("kind") == kind
    if kind == FTJ:
        scene.submit()
        pod = scene.running()
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    assert scene.reaches("Succeeded")["attempt"] == 1


@pytest.mark.usefixtures("idle")
def test_silent_watches_make_it_unhealthy_until_they_speak_again(scene: Scene, own: Lane) -> None:
    """Calls pass, so only what the watches should have shown tells; the kubelet's restart is the cure."""
    own.operator.start(resync_seconds=0.5, health_stuck_seconds=2)
    scene.submit()
    pod = scene.running()
    own.proxy.wait_for_listings(6)
    assert own.operator.health() == (200, "ok\n")
    own.proxy.silent = True
    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    until("/healthz fails", lambda: own.operator.health()[0] == 503)
    assert "a watch is stuck" in own.operator.health()[1]
    own.proxy.silent = False
    own.operator.kill()
    own.operator.start()
    own.proxy.wait_for_listings(6)
    assert own.operator.health() == (200, "ok\n")


def test_with_nothing_to_do_it_writes_nothing(idle: tuple[Lane, float]) -> None:
    """Not at its start with 200 finished jobs, nor in a minute of looking at all of them every 5 s; no Event either."""
    own, started = idle
    looks = IDLE_SECONDS // RESYNC_SECONDS
    until("a minute has passed", lambda: time.monotonic() - started > IDLE_SECONDS, timeout=IDLE_SECONDS + 10)
    assert own.proxy.listings >= looks - 1, "it did look"
    assert own.operator.alive
    assert own.operator.health() == (200, "ok\n")
    assert own.proxy.calls == []


def test_a_pod_of_a_stranger_that_cannot_be_read_stops_nobody(scene: Scene, own: Lane) -> None:
    """Everybody who may create pods may give them our labels."""

    def told(name: str, since: int = 0) -> bool:
        return f"Pod {scene.namespace}/{name} cannot be read" in own.operator.said(since)

    own.operator.start(resync_seconds=RESYNC_SECONDS)
    scene.submit()
    pod = scene.preparing()
    # Without the label that the Job's selector matches: the Job controller would adopt the pod, and delete it.
    labels = {name: value for name, value in pod["metadata"]["labels"].items() if "controller-uid" not in name}
    labels["batch.kubernetes.io/job-completion-index"] = "abc"
    kept = {name: value for name, value in pod["spec"].items() if name not in ("nodeName", "hostname")}
    for name in ("before", "after"):
        strange = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": kept}
        scene.kube.create(strange, scene.namespace)
        until("the status reports it", partial(told, name))
        own.operator.kill()
        restarted = own.operator.log.stat().st_size
        own.operator.start()
    until("the new operator has listed both", lambda: told("before", restarted) and told("after", restarted))
    said = own.operator.log.stat().st_size
    scene.kubelet.finish(pod, 0, json.dumps(result(0, kind="prepare")))
    scene.reaches("Starting")
    scene.running()
    time.sleep(2 * RESYNC_SECONDS)
    assert "cannot be read" not in own.operator.said(said), "each version is logged once"
