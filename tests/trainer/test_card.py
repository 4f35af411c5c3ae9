"""What a model card says to do works, word for word."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.trainer import stages, tiny
from tests.trainer.forge import Forge, tell


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stages.save_volumes(tmp_path_factory.mktemp("volumes"))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stage", ["pt", "sft", "rm"])
def test_the_example_of_the_card_runs(volumes: Path, stage: str, method: str, forge: Forge, tmp_path: Path) -> None:
    job = stages.job(stage, method, training={"maxSteps": 1})
    run = tiny.make_run(volumes, job, workspace=f"{stage}-{method}")
    stages.train(run)
    child = forge.start(follow, run.folders.artifact, run.prepared.model, log=tmp_path / "log")
    assert child.wait() == 0, child.log.read_text()
    said = child.log.read_text().split()
    assert len(said) > 0
    assert child.told == (["BASE"] if method == "lora" else [])
    if stage == "rm":
        scores = (run.folders.reports / "scores.jsonl").read_text().splitlines()
        assert float(said[-1]) == pytest.approx(json.loads(scores[0])["chosen"], abs=1e-5)


def follow(artifact: Path, base: Path) -> int:
    """As somebody who has copied the artifact, and the base model that the card names."""
    card = (artifact / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    if "(BASE" in code:
        assert "BASE: a copy of pvc://models/model" in code
        tell("BASE")
    os.chdir(artifact)
    for message in (row := stages.row("rm", 0))["prompt"] + row["chosen"]:
        code = code.replace('"content": "..."', f'"content": "{message["content"]}"', 1)
    exec(compile(code, "README.md", "exec"), {"BASE": str(base)})
    return 0
