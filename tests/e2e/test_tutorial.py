"""The tutorial's commands for a cluster, as they stand but for the namespace, on a tiny model."""

from __future__ import annotations

import pytest
import yaml

from examples.demo import volume
from examples.demo.cluster import NAMESPACE
from tests.docsite import recording
from tests.e2e.conftest import POD_MINUTES, Scene


@pytest.fixture(scope="module")
def demonstrated(scene: Scene) -> Scene:
    """The job that `make demo` leaves."""
    job = yaml.safe_load((volume.CHECKOUT / "examples" / "sft-lora.yaml").read_text())
    job["metadata"]["namespace"] = scene.namespace
    job["spec"]["training"]["maxSteps"] = 4
    if scene.kube.find("FineTuneJob", "sft-lora", scene.namespace) is None:
        scene.kubectl.apply(job)
    assert scene.reaches("sft-lora", "Succeeded", "Failed")["phase"] == "Succeeded"
    return scene


def played(scene: Scene, section: str) -> list[recording.Step]:
    def adapted(command: str) -> str:
        return command.replace(f"-n {NAMESPACE}", f"-n {scene.namespace}")

    steps = list(recording.play(section, scene.kubectl.env, adapted))
    assert [(step.command, step.code) for step in steps if step.code != step.expected] == [], steps
    return steps


@pytest.mark.timeout(3 * POD_MINUTES)
def test_it_trains_and_explains_a_mistake(demonstrated: Scene) -> None:
    shown = {step.command.split()[1]: step.output for step in played(demonstrated, recording.CLUSTER)}
    assert "sft-lora" in shown["list"]
    assert "has succeeded" in shown["why"]
    assert "40/40" in shown["run"]
    _, why, _ = played(demonstrated, recording.MISTAKE)
    assert "InvalidData" in why.output
    assert "format" in why.output
