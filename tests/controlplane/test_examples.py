"""The examples, and the claims that they need, as `kubectl apply` sees them: the API server takes each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.kube import Kube

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))
PATHS = {
    "FineTuneJob": "apis/finetune-operator.io/v1alpha1/namespaces/{}/finetunejobs",
    "PersistentVolumeClaim": "api/v1/namespaces/{}/persistentvolumeclaims",
    "Pod": "api/v1/namespaces/{}/pods",
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(EXAMPLES).as_posix())
def test_the_api_server_takes_every_example_as_it_stands(file: Path, kube: Kube, namespace: str) -> None:
    for manifest in yaml.safe_load_all(file.read_text()):
        path = PATHS[manifest["kind"]].format(namespace)
        taken = kube.call("POST", path, manifest, dryRun="All", fieldValidation="Strict")
        assert taken["metadata"]["name"] == manifest["metadata"]["name"]
