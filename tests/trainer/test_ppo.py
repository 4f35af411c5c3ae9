"""Stage ppo as a whole, on the tiny model and a tiny reward model."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.run import Run
from finetune_trainer.stages.ppo import workflow
from finetune_trainer.stages.ppo.trainer import PpoTrainer

from tests.trainer import stages, tiny

CLOSE = 1e-5
PROMPTS = 21


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data of all tests here, which only read them."""
    return stages.save_volumes(tmp_path_factory.mktemp("ppo"), rows=PROMPTS)


@pytest.fixture
def root(volumes: Path, tmp_path: Path) -> Path:
    for name in ("models", "data"):
        (tmp_path / name).symlink_to(volumes / name)
    return tmp_path


def make_run(root: Path, workspace: str = "work", method: str = "lora", **sections: Any) -> Run:
    return tiny.make_run(root, stages.job("ppo", method, **sections), workspace=workspace)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_before_the_first_step_the_policy_is_the_reference_and_what_it_was(
    root: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Divergence 0 and ratio 1, to 1e-6, in each micro-batch of the first step."""
    import torch
    from finetune_trainer.stages.ppo import heads

    ratios: list[float] = []
    compute_loss = PpoTrainer.compute_loss

    def noted(self: PpoTrainer, model: Any, inputs: Any, **rest: Any) -> torch.Tensor:
        if self.state.global_step == 0:
            with torch.no_grad():
                ratios.extend((heads.say(model, inputs).log_probs - inputs["log_probs"]).exp().tolist())
        return compute_loss(self, model, inputs, **rest)

    monkeypatch.setattr(PpoTrainer, "compute_loss", noted)
    tuning = {"method": "lora", "lora": {"dropout": 0.3}} if method == "lora" else {"method": "full"}
    run = make_run(root, training={"maxSteps": 2, "microBatchSize": 2}, tuning=tuning)
    workflow.run(run)
    assert len(ratios) > 8
    assert ratios == pytest.approx([1.0] * len(ratios), abs=1e-6)
    assert tiny.logged(run, "kl")[0] == pytest.approx(0.0, abs=1e-6)
    assert tiny.logged(run, "clip_fraction")[0] == 0


def test_what_is_logged_measured_and_written(root: Path) -> None:
    run = make_run(root, training={"maxSteps": 8}, evaluation={"splitFraction": 0.2, "everySteps": 4})
    outcome = workflow.run(run)
    for name in ("loss", "reward", "reward_normalized", "kl", "kl_coefficient", "policy_loss", "value_loss", "entropy"):
        assert len(tiny.logged(run, name)) == 8, name
    lengths, ended = tiny.logged(run, "answer_length"), tiny.logged(run, "eos_rate")
    assert all(1 <= length <= 8 for length in lengths)
    assert all(0 <= share <= 1 for share in ended)
    rewards = tiny.logged(run, "eval_reward")
    assert len(rewards) == 2
    assert tiny.logged(run, "eval_loss") == pytest.approx([-reward for reward in rewards])
    samples = [json.loads(line) for line in (run.folders.reports / "samples.jsonl").read_text().splitlines()]
    assert {line["current_steps"] for line in samples} == {4, 8}
    assert samples[0]["prompt"].endswith("<|im_start|>assistant\n")
    assert {"answer", "reward"} <= set(samples[0])
    names = {file.name for file in run.folders.artifact.iterdir()}
    assert "adapter_model.safetensors" in names
    assert outcome.artifact.kind == "adapter"
