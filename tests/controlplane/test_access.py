"""What pods need to report is restored while attempts run, for a bounded number of reads."""

from __future__ import annotations

import json
import time

from finetune_operator.access import LOOK_SECONDS

from tests.controlplane.lane import Lane
from tests.controlplane.scene import Scene, result
from tests.kube import until

OFTEN = 2
ACCESS = ("ServiceAccount", "RoleBinding")
PROGRESS = {
    "attempt": 1,
    "kind": "train",
    "step": 40,
    "totalSteps": 80,
    "percent": 50,
    "summary": "40/80 (50%)",
    "lastUpdateTime": "2026-01-31T12:00:00Z",
}


def test_what_running_attempts_need_to_report_is_restored(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=OFTEN)
    scene.submit()
    pod = scene.running()
    for kind in ACCESS:
        scene.kube.delete(kind, "finetune-trainer", scene.namespace)
    until("both are back", lambda: all(scene.kube.find(kind, "finetune-trainer", scene.namespace) for kind in ACCESS))
    scene.report(pod, {"progress": PROGRESS})
    assert scene.status()["progress"]["step"] == 40
    assert "It is restored." in own.operator.said()

    scene.kubelet.finish(pod, 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    scene.kube.delete("RoleBinding", "finetune-trainer", scene.namespace)
    own.proxy.wait_for_listings(2)
    assert scene.kube.find("RoleBinding", "finetune-trainer", scene.namespace) is None, "nobody needs it"


def test_looking_after_access_costs_a_read_for_each_namespace(scene: Scene, own: Lane) -> None:
    own.operator.start(resync_seconds=OFTEN)
    for name in ("one", "two", "three"):
        scene.submit(name)
        scene.running(name)

    def no_look_is_owed() -> bool:
        looks = own.proxy.requests[scene.namespace]["get serviceaccounts"]
        time.sleep(LOOK_SECONDS + 1)
        return own.proxy.requests[scene.namespace]["get serviceaccounts"] == looks

    until("the access of the new child jobs was looked at", no_look_is_owed)
    own.proxy.wait_for_listings(1)
    before, listings = own.proxy.requests[scene.namespace].copy(), own.proxy.listings
    own.proxy.wait_for_listings(3)
    spent, looks = own.proxy.requests[scene.namespace] - before, own.proxy.listings - listings
    assert set(spent) <= {"get rolebindings"}
    assert spent["get rolebindings"] <= looks + 1
