"""The tutorial's commands for a laptop on a tiny model with the real one's name. Only the folders differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from examples.demo import volume
from tests.docsite import recording
from tests.trainer.support import tiny


@pytest.mark.timeout(900)
def test_a_job_is_checked_trained_and_asked(tmp_path: Path) -> None:
    models = tmp_path / "models"
    tiny.save_model(models / volume.MODEL)
    shutil.copytree(volume.DATA, models / "data")

    def adapted(command: str) -> str:
        return command.replace("build/tutorial", f"{tmp_path}/tutorial").replace(".cluster/demo-models", str(models))

    steps = list(recording.play(recording.LAPTOP, {}, adapted))
    assert [(step.command, step.code) for step in steps if step.code != step.expected] == [], steps
    checked, trained, left, asked = (step.output for step in steps)
    assert "What is trained is in [[ ]]." in checked
    assert "80/80" in trained
    assert {"README.md", "adapter_model.safetensors", "prepare.md"} <= set(left.split())
    assert asked.strip()
