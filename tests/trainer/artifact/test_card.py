"""The code of a model card runs as it is."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.generation.command import generate
from finetune_trainer.run import Run

from tests.trainer.support import stages, tiny
from tests.trainer.support.forge import Child, Forge, send

SPECIAL = r"<\|[a-z_]+\|>"
MERGED_FIRST = {"method": "lora", "lora": {"rank": 4}, "adapter": {"source": "pvc://models/sft", "mode": "merge"}}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data, and models/sft: a trained adapter."""
    root = stages.save_volumes(tmp_path_factory.mktemp("volumes"))
    run = train(root, "earlier", "sft", training={"maxSteps": 12, "learningRate": 0.02})
    shutil.copytree(run.folders.artifact, root / "models" / "sft")
    return root


def train(volumes: Path, workspace: str, stage: str, method: str = "lora", **sections: Any) -> Run:
    job = stages.job(stage, method, **{"training": {"maxSteps": 1}, **sections})
    run = tiny.make_run(volumes, job, workspace=workspace)
    stages.train(run)
    return run


def follow_card(forge: Forge, run: Run, tmp_path: Path) -> Child:
    child = forge.start(run_card, run.folders.artifact, run.prepared.model, log=tmp_path / "log")
    assert child.wait() == 0, child.log.read_text()
    assert child.log.read_text().split()
    return child


def check_score(child: Child, run: Run) -> None:
    scores = (run.folders.reports / "scores.jsonl").read_text().splitlines()
    assert float(child.log.read_text().split()[-1]) == pytest.approx(json.loads(scores[0])["chosen"], abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stage", ["pt", "sft", "rm"])
def test_the_example_of_the_card_runs(volumes: Path, stage: str, method: str, forge: Forge, tmp_path: Path) -> None:
    run = train(volumes, f"{stage}-{method}", stage, method)
    child = follow_card(forge, run, tmp_path)
    assert child.received == (["BASE"] if method == "lora" else [])
    if stage == "rm":
        check_score(child, run)


def test_a_reward_model_scores_on_a_merged_adapter(volumes: Path, forge: Forge, tmp_path: Path) -> None:
    """As after sft in a chain: the adapter of a causal model was merged first."""
    run = train(volumes, "rm-on-sft", "rm", tuning=MERGED_FIRST)
    check_score(follow_card(forge, run, tmp_path), run)


def test_a_reward_model_scores_on_an_earlier_reward_model(volumes: Path, forge: Forge, tmp_path: Path) -> None:
    earlier = train(volumes, "rm-earlier", "rm", training={"maxSteps": 4, "learningRate": 0.02})
    shutil.copytree(earlier.folders.artifact, volumes / "models" / "rm")
    tuning = {**MERGED_FIRST, "adapter": {"source": "pvc://models/rm", "mode": "merge"}}
    run = train(volumes, "rm-on-rm", "rm", tuning=tuning)
    check_score(follow_card(forge, run, tmp_path), run)


def test_an_adapter_answers_on_a_merged_adapter(volumes: Path, forge: Forge, tmp_path: Path) -> None:
    words = {"source": "pvc://models/model", "newTokens": ["<new>"]}
    training = {"maxSteps": 1, "learningRate": 1e-5}
    run = train(volumes, "sft-on-sft", "sft", model=words, tuning=MERGED_FIRST, training=training)
    output = re.sub(SPECIAL, "", follow_card(forge, run, tmp_path).log.read_text())
    question = stages.row("rm", 0)["prompt"][0]["content"]
    answer, without = (generate(run.job, run.folders, question, base, 200) for base in (False, True))
    assert answer
    assert output.rpartition("assistant\n")[2].strip() == answer
    assert answer != without


def test_the_card_shows_the_reward_normalization(volumes: Path) -> None:
    run = train(volumes, "ppo", "ppo")
    card = (run.folders.artifact / "README.md").read_text()
    assert "| ppo.rewardNormalization | running (the job says model) |" in card


def run_card(artifact: Path, base: Path) -> int:
    """Run the card's code as a user who has copied the artifact and its base model."""
    card = (artifact / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    if "(BASE" in code:
        assert "BASE: a copy of pvc://models/model" in code
        send("BASE")
    os.chdir(artifact)
    for message in (row := stages.row("rm", 0))["prompt"] + row["chosen"]:
        code = code.replace('"content": "..."', f'"content": "{message["content"]}"', 1)
    exec(compile(code, "README.md", "exec"), {"BASE": str(base)})
    return 0
