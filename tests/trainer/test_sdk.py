"""The SDK's scenario on this machine, by the real trainer. tests/e2e/test_sdk.py plays the same in a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune import TrainerClient

from tests import sdk_scenario


@pytest.mark.timeout(900)
def test_a_notebook_trains_on_this_machine(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    client = TrainerClient(
        "local", workspace=root / "workspace", volumes={"models": root / "models", "data": root / "data"}
    )
    sdk_scenario.play(client, "pvc://models/model", "pvc://data/rows.jsonl=openai", timeout=300)
    assert (root / "workspace" / "jobs" / sdk_scenario.NAME / "artifact" / "README.md").exists(), "results stay"
