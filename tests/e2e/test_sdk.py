"""The SDK's scenario in a real cluster. tests/trainer/test_sdk.py plays the same on this machine."""

from __future__ import annotations

from finetune import TrainerClient

from tests import sdk_scenario
from tests.e2e.conftest import POD_MINUTES, RESOURCES, Scene


def test_a_notebook_trains_in_a_cluster(scene: Scene) -> None:
    client = TrainerClient(kubeconfig=str(scene.kube.kubeconfig), namespace=scene.namespace)
    small = {"prepare.cpu": "100m", "prepare.memory": "2Gi", "resources": RESOURCES}
    sdk_scenario.play(client, "pvc://models/tiny", "pvc://models/data/rows.jsonl=openai", POD_MINUTES, **small)
    assert scene.kube.find("FineTuneJob", sdk_scenario.NAME, scene.namespace) is None, "it was deleted in the cluster"
