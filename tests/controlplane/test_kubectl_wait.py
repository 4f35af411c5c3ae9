"""The recipes of docs/gitops.md with the real kubectl: each returns when the job is there, also after an edit."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster import Cluster
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import FTJ, Scene, claim, result

DOCS = Path(__file__).resolve().parents[2] / "docs" / "gitops.md"
RECIPES = re.findall(r"^kubectl .* ftj/NAME .*$", DOCS.read_text(), re.MULTILINE)


class Kubectl:
    """The recipes of the page, for a job named `job`."""

    def __init__(self, plane: Cluster, namespace: str) -> None:
        self._env, self._namespace = plane.env, namespace

    def start(self, part: str) -> subprocess.Popen[str]:
        """Start the only recipe with these words."""
        [recipe] = [line for line in RECIPES if part in line]
        command = f"{recipe.replace('NAME', 'job')} --namespace {self._namespace}"
        return subprocess.Popen(command, shell=True, env=self._env, stdout=subprocess.PIPE, text=True)

    def run(self, part: str) -> str:
        """What it prints. It may take as long as the page says, unless the test takes too long."""
        process = self.start(part)
        said, _ = process.communicate()
        assert process.returncode == 0
        return said


@pytest.fixture
def kubectl(control_plane: Cluster, scene: Scene) -> Kubectl:
    scene.kube.create(claim(), scene.namespace)
    return Kubectl(control_plane, scene.namespace)


@pytest.mark.parametrize("code", [0, 65])
def test_the_end_is_waited_for_whatever_it_is(
    scene: Scene, operator: OperatorProcess, kubectl: Kubectl, code: int
) -> None:
    scene.submit()
    pod = scene.running()
    assert "condition met" in kubectl.run("condition=Running")
    waits = kubectl.start("completionTime")
    scene.kubelet.finish(pod, code, json.dumps(result(code)))
    assert waits.wait() == 0
    assert kubectl.run("status.phase") == ("Failed" if code else "Succeeded")


def test_an_edit_of_a_job_that_has_ended_keeps_nobody_waiting(
    scene: Scene, operator: OperatorProcess, kubectl: Kubectl
) -> None:
    """kubectl does not take a condition of an older generation for true."""
    scene.submit()
    scene.kubelet.finish(scene.running(), 0, json.dumps(result(0)))
    scene.reaches("Succeeded")
    scene.kube.patch(FTJ, "job", {"spec": {"backoffLimit": 7}}, scene.namespace)
    assert "condition met" in kubectl.run("condition=Succeeded")


def test_a_suspension_is_waited_for(scene: Scene, operator: OperatorProcess, kubectl: Kubectl) -> None:
    scene.submit(suspend=True)
    assert "condition met" in kubectl.run("condition=Suspended")
