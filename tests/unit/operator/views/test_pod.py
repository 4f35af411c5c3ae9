"""A pod's view: the trainer's container by its name, wherever others have put theirs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from finetune_operator.views.container import OtherContainer
from finetune_operator.views.pod import PodView, pod_view

from tests.unit.operator.make import NOW

TRAINER: dict[str, Any] = {
    "name": "trainer",
    "image": "trainer:1",
    "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "16Gi"}},
}
PROXY = {"name": "proxy", "image": "proxy:1", "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}}}
OVER = {"exitCode": 71, "reason": "Error", "message": "{}", "finishedAt": "2026-01-31T12:00:00Z"}


def view(spec: dict[str, Any], status: dict[str, Any]) -> PodView:
    meta = {
        "namespace": "team",
        "name": "demo-0a1b2-1-0-x",
        "uid": "u",
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-31T11:00:00Z",
        "labels": {
            "finetune-operator.io/job": "demo",
            "finetune-operator.io/kind": "train",
            "finetune-operator.io/attempt": "1",
        },
    }
    made = pod_view(copy.deepcopy({"metadata": meta, "spec": spec, "status": status}))
    assert made is not None
    return made


@pytest.mark.parametrize("order", [1, -1], ids=["the trainer first", "the trainer last"])
def test_the_trainers_container_is_found_by_name(order: int) -> None:
    statuses = [{"name": "trainer", "state": {"terminated": OVER}}, {"name": "proxy", "state": {"running": {}}}]
    seen = view({"containers": [TRAINER, PROXY][::order]}, {"containerStatuses": statuses[::order]})
    assert (seen.memory_limit, seen.requests, seen.exit_code, seen.running) == ("16Gi", {"cpu": "4"}, 71, False)
    assert (seen.ended, seen.terminated_message) == (NOW, "{}")
    assert seen.others == (OtherContainer("proxy", "container", "proxy:1", {"cpu": "100m"}, running=True),)


def test_a_limit_that_was_resized_in_place_counts() -> None:
    resized = {"name": "trainer", "resources": {"limits": {"memory": "24Gi"}}}
    assert view({"containers": [TRAINER]}, {"containerStatuses": [resized]}).memory_limit == "24Gi"
    assert view({"containers": [TRAINER]}, {"containerStatuses": [{"name": "trainer"}]}).memory_limit == "16Gi"


def test_init_and_sidecar_containers_differ() -> None:
    spec = {
        "initContainers": [{"name": "init"}, {"name": "mesh", "restartPolicy": "Always"}],
        "containers": [TRAINER],
    }
    back_off = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    status = {
        "initContainerStatuses": [
            {"name": "mesh", "state": back_off, "lastState": {"terminated": {"exitCode": 2}}},
            {"name": "init", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
        ]
    }
    init, mesh = view(spec, status).others
    assert (init.title, init.terminated, init.exit_code) == ("init container init", True, 0)
    assert (mesh.title, mesh.terminated, mesh.exit_code) == ("sidecar container mesh", False, 2)


def test_an_init_container_of_the_trainers_name_is_not_the_trainer() -> None:
    seen = view({"initContainers": [{"name": "trainer"}], "containers": [TRAINER]}, {})
    assert [other.title for other in seen.others] == ["init container trainer"]
