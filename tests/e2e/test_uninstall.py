"""Uninstalling the chart. Last of all by its name: afterwards there is no operator."""

from __future__ import annotations

import json

from examples.demo import cluster as demo
from examples.demo.kubectl import helm
from tests.e2e.conftest import Scene


def uids(scene: Scene) -> set[str]:
    return {job["metadata"]["uid"] for job in scene.kube.list("FineTuneJob", scene.namespace)}


def test_uninstalling_leaves_the_jobs_and_their_definition(scene: Scene, operator: str) -> None:
    before = uids(scene)
    assert before
    values = helm(scene.kubectl.env, None, "get", "values", demo.RELEASE, "--namespace", operator, "--output=json")
    assert json.loads(values)["trainer"]["allowCpu"] is True
    helm(scene.kubectl.env, None, "uninstall", demo.RELEASE, "--namespace", operator, "--wait")
    assert uids(scene) == before
    leftovers = scene.kubectl(
        "get",
        "deployments,serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings,"
        "validatingadmissionpolicies,validatingadmissionpolicybindings",
        "--all-namespaces",
        f"--selector=app.kubernetes.io/instance={demo.RELEASE}",
        "--output=name",
    )
    assert leftovers.strip() == ""
