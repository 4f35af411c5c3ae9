"""How many requests the operator makes: for each life of a job, and while jobs wait.

There is a budget for each verb and resource, with nothing to spare. A new request is a decision: a poll for each job
overloads an API server that thousands of jobs share.
"""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest

from tests.controlplane.lane import Lane
from tests.controlplane.scene import Scene, result
from tests.controlplane.sweep import live
from tests.controlplane.test_startup import MOUNT, NO_FIT, PULL, quota_holds, say
from tests.kube import until

RARELY = 3600
"""Seconds between looks at everything."""
WAITED = 60
"""Seconds that jobs wait here."""
INTERVAL = 15
"""Seconds between two reads of a namespace's Events."""

ATTEMPT = Counter(
    {
        # Begun, told what it does, and ended.
        "patch finetunejobs/status": 3,
        # Before the attempt is judged. The child job is created from what the write of the status returned.
        "get finetunejobs": 1,
        "list pods": 1,
        # Once before the first child job. Some seconds after each further child job, in one look for all of them.
        "get serviceaccounts": 1,
        "get rolebindings": 1,
        "create jobs": 1,
        # About each new phase and reason.
        "create events": 3,
    }
)
"""An attempt that runs and ends."""
ACCEPTED = Counter({"get configmaps": 1})
"""Before a job is accepted."""
FIRST = Counter({"patch serviceaccounts": 1, "patch rolebindings": 1})
"""The first attempt of a namespace."""
ONE_WRITE = Counter({"patch finetunejobs/status": 1, "create events": 1})
"""Preparing ends and training begins in the same write."""
BUDGETS: dict[str, Counter[str]] = {
    "success": ACCEPTED + FIRST + ATTEMPT + ATTEMPT - ONE_WRITE,
    "bad data": ACCEPTED + FIRST + ATTEMPT,
    "retry": ACCEPTED + FIRST + ATTEMPT + ATTEMPT + ATTEMPT + ATTEMPT - ONE_WRITE,
}
"""The requests of a job, for each of the lives of `tests.controlplane.sweep`."""


@pytest.mark.parametrize("life", BUDGETS)
def test_a_life_costs_no_more_than_its_budget(scene: Scene, own: Lane, life: str) -> None:
    own.operator.start(resync_seconds=RARELY)
    until("it leads", own.operator.leads)  # so that the job is none that is new at a start
    live(scene, life)
    made = own.proxy.requests[scene.namespace]
    print(life, sorted(made.items()))
    over = made - BUDGETS[life]
    assert not over, f"more than the budget: {over}"


def told(scene: Scene) -> set[tuple[str, str]]:
    """Jobs with the reasons that Events about them give."""
    events = scene.kube.list("Event", scene.namespace)
    return {(event["involvedObject"]["name"], event["reason"]) for event in events}


def test_jobs_that_wait_cost_one_read_of_events_for_all(scene: Scene, own: Lane) -> None:
    """Whatever they wait for: a node, a scheduler, an image, a volume, nobody knows what, a quota, another job, the
    next attempt."""
    own.operator.start(resync_seconds=RARELY, retry_seconds=RARELY, retry_seconds_max=RARELY)
    for name in ("no-node", "no-scheduler", "no-image", "no-volume", "no-word", "failed"):
        scene.submit(name)
    pods = {name: scene.kubelet.pod(name, kind="prepare") for name in ("no-node", "no-image", "no-volume", "no-word")}
    scene.kubelet.find_no_node(pods["no-node"], NO_FIT)
    scene.kubelet.hold(pods["no-image"], "ImagePullBackOff", PULL)
    scene.kubelet.hold(pods["no-word"], "ContainerCreating", "")
    scene.kubelet.hold(pods["no-volume"], "ContainerCreating", "")
    say(scene, pods["no-volume"], "FailedMount", MOUNT)
    failed = scene.preparing("failed")
    scene.kubelet.finish(failed, 70, json.dumps(result(70, kind="prepare")))
    scene.submit("chained", model={"source": None, "fromJob": "no-node"})
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    scene.kubelet.pod("no-scheduler", kind="prepare")
    scene.kube.create(quota, scene.namespace)
    until("the quota holds", lambda: quota_holds(scene.kube, scene.namespace))
    scene.submit("no-pod")
    reasons = {
        "no-node": "Unschedulable",
        "no-scheduler": "Starting",
        "no-image": "ImagePullFailed",
        "no-volume": "VolumeNotMounted",
        "no-word": "Starting",
        "failed": "RetryBackoff",
        "no-pod": "PodsRejected",
    }
    for name, reason in reasons.items():
        scene.reaches("Preparing", reason, name=name)
    scene.reaches("Pending", "WaitingForJob", name="chained")
    # An Event follows the status that it tells of.
    until("the Events tell of them", lambda: {**reasons, "chained": "WaitingForJob"}.items() <= told(scene))
    made = own.proxy.requests[scene.namespace]
    before, began = Counter(made), time.monotonic()
    until("they have waited", lambda: time.monotonic() - began > WAITED, timeout=WAITED + 10)
    spent = made - before
    print(sorted(spent.items()))
    assert set(spent) == {"list events"}
    assert spent["list events"] <= WAITED / INTERVAL + 1
    assert {name: scene.status(name)["reason"] for name in reasons} == reasons
