"""An installation for one namespace beside that for the cluster: it has rights there alone, and trains the same job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from examples.demo import cluster as demo
from examples.demo.kubectl import helm
from tests.e2e.conftest import ROWS, Scene

TEAM = "team"
ACCOUNT = f"{TEAM}-finetune-operator"


@pytest.fixture(scope="module")
def team(scene: Scene, operator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The installation, with the images of the other."""
    env, place = scene.kubectl.env, ["--namespace", operator]
    values: Path = tmp_path_factory.mktemp("team") / "values.json"
    values.write_text(helm(env, None, "get", "values", demo.RELEASE, *place, "--output=json"))
    scope = [f"--set=watchNamespaces={{{scene.namespace}}}", "--set=crds.enabled=false"]
    waits = ["--wait", "--timeout=5m"]
    helm(env, None, "install", TEAM, str(demo.CHART), *place, f"--values={values}", *scope, *waits)
    yield f"{operator}/{ACCOUNT}"
    helm(env, None, "uninstall", TEAM, *place, "--wait")


def succeeds(scene: Scene, name: str) -> None:
    scene.kubectl.apply(scene.job(name))
    status = scene.reaches(name, "Succeeded", "Failed")
    assert status["phase"] == "Succeeded", status["message"]
    assert status["artifact"]["uri"] == f"pvc://workspace/jobs/{name}/artifact"
    assert status["progress"]["step"] == status["progress"]["totalSteps"] == 20
    assert (status["attempt"], status["prepareAttempt"], status["prepared"]["rows"]) == (1, 1, ROWS)


def test_the_main_job_without_a_right_over_the_cluster(scene: Scene, operator: str, team: str) -> None:
    bound = [b for b in scene.kube.list("ClusterRoleBinding") if ACCOUNT in str(b.get("subjects"))]
    assert not bound
    succeeds(scene, "in-a-namespace")
    binding = scene.kube.get("RoleBinding", "finetune-trainer:finetune-trainer", scene.namespace)
    assert binding["roleRef"]["kind"] == "Role"
    release = f"app.kubernetes.io/instance={demo.RELEASE}"
    log = replace(scene.kubectl, namespace=operator)("logs", "-l", release, "--tail=-1")
    assert f"Namespace {scene.namespace} is left to installation {team}" in log
