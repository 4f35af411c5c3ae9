"""What LLaMA-Factory trained is read: its reward models, whose head is in a file of its own, and its adapters, which
name their base model by a path.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import build, reward_model, stream
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainer.support import stages, tiny

TEXTS = [[5, 9, 30, 41, 77, 8, 11, 60], [100, 3, 2, 4, 250], [7]]
HIDDEN = 48


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/judge and models/whole: reward models with their head in a file, an adapter and a whole model."""
    root = stages.save_volumes(tmp_path_factory.mktemp("volumes"))
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_pretrained(root / "models" / "model")
    torch.manual_seed(4)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    save_head(tuned, root / "models" / "judge")
    change(root / "models" / "judge" / "adapter_config.json", base_model_name_or_path="/home/me/models/model")
    save_head(tuned.merge_and_unload(), root / "models" / "whole")
    for name in ("judge", "whole"):
        AutoTokenizer.from_pretrained(root / "models" / "model").save_pretrained(root / "models" / name)
    return root


def save_head(model: Any, folder: Path) -> None:
    """The model or adapter, and beside it a value head as TRL's models with a value head name it."""
    model.save_pretrained(folder)
    torch.manual_seed(5)
    head = {"v_head.summary.weight": torch.randn(1, HIDDEN), "v_head.summary.bias": torch.tensor([0.75])}
    save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def root(tmp_path: Path, volumes: Path) -> Path:
    for name in ("models", "data"):
        shutil.copytree(volumes / name, tmp_path / name)
    return tmp_path


def expected(root: Path) -> list[float]:
    """The scores by definition: the head at the last hidden state of each text's last token."""
    from safetensors.torch import load_file

    model: Any = AutoModelForCausalLM.from_pretrained(root / "models" / "whole", dtype=torch.float32)
    head = load_file(root / "models" / "whole" / "value_head.safetensors")
    found = []
    for text in TEXTS:
        with torch.inference_mode():
            state = model.model(input_ids=torch.tensor([text])).last_hidden_state[0, -1]
        found.append((state @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]).item())
    return found


@pytest.mark.parametrize("source", ["judge", "whole"])
def test_a_reward_model_scores_in_ppo_as_its_head_says(root: Path, source: str) -> None:
    job = stages.job("ppo", "lora", ppo={"rewardModel": {"source": f"pvc://models/{source}"}})
    judge = reward_model.load(tiny.make_run(root, job))
    scores = judge.score(TEXTS).tolist()
    assert scores == pytest.approx(expected(root), abs=1e-4)
    assert len(set(scores)) == len(TEXTS)


@pytest.mark.parametrize(
    ("model", "tuning"),
    [
        ("model", {"method": "lora", "adapter": {"source": "pvc://models/judge", "mode": "continue"}}),
        (
            "model",
            {"method": "lora", "adapter": {"source": "pvc://models/judge", "mode": "merge"}, "lora": {"rank": 2}},
        ),
        ("whole", {"method": "lora", "lora": {"rank": 2}}),
        ("whole", {"method": "full"}),
    ],
    ids=["continue", "merge", "whole-lora", "whole-full"],
)
def test_stage_rm_starts_from_its_scores_up_to_their_constant(root: Path, model: str, tuning: dict[str, Any]) -> None:
    source = {"source": f"pvc://models/{model}"}
    run = tiny.make_run(root, stages.job("rm", model=source, tuning=tuning))
    tokens = AutoTokenizer.from_pretrained(run.prepared.model)
    made: Any = build.build(run.job, run.prepared.model, run.prepared.adapter, tokens, "fp32", root / "scratch")
    made.eval()
    rows = collate.stream([Row(text, []) for text in TEXTS])
    with torch.inference_mode():
        scores = made(**stream.forward_inputs(rows)).logits[:, 0]
    assert scores.tolist() == pytest.approx([score - 0.75 for score in expected(root)], abs=1e-4)
    assert [name for name, weight in made.named_parameters() if weight.requires_grad and ".score." in f".{name}"]


def test_a_job_that_continued_is_read_as_a_reward_model(root: Path) -> None:
    adapter = {"source": "pvc://models/judge", "mode": "continue"}
    job = stages.job("rm", tuning={"method": "lora", "adapter": adapter}, training={"maxSteps": 1})
    run = tiny.make_run(root, job)
    stages.train(run)
    shutil.copytree(run.folders.artifact, root / "models" / "next")
    job = stages.job("ppo", "lora", ppo={"rewardModel": {"source": "pvc://models/next"}})
    judge = reward_model.load(tiny.make_run(root, job, workspace="ppo"))
    assert len(set(judge.score(TEXTS).tolist())) == len(TEXTS)


def no_head(root: Path) -> None:
    (root / "models" / "judge" / "value_head.safetensors").unlink()


def narrow_head(root: Path) -> None:
    save_file({"v_head.summary.weight": torch.zeros(1, 8)}, root / "models" / "judge" / "value_head.safetensors")


def other_name(root: Path) -> None:
    change(root / "models" / "judge" / "adapter_config.json", base_model_name_or_path="/home/me/llama")


def other_shapes(root: Path) -> None:
    tiny.save_model(root / "models" / "model", hidden_size=32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_head, "is an adapter of a language model. Name an adapter of a reward model"),
        (narrow_head, r"value_head.safetensors has the shape \(1, 8\), and a reward head of this model has \(1, 48\)"),
        (
            other_name,
            "which is no source that the job names, and not the job's own model: pvc://models/model has another name",
        ),
        (other_shapes, "the adapted layers have other shapes in pvc://models/model"),
    ],
)
def test_what_does_not_fit_is_refused(root: Path, damage: Any, message: str) -> None:
    damage(root)
    with pytest.raises(InvalidSpec, match=message):
        tiny.make_run(root, stages.job("ppo", "lora", ppo={"rewardModel": {"source": "pvc://models/judge"}}))


@pytest.mark.parametrize(
    "name",
    ["/home/me/models/model", "models/model", "/root/.cache/huggingface/hub/models--me--model/snapshots/0a1b"],
)
def test_an_sft_adapter_of_the_jobs_own_model_is_a_reference(root: Path, name: str) -> None:
    change(root / "models" / "judge" / "adapter_config.json", base_model_name_or_path=name)
    no_head(root)
    run = tiny.make_run(root, stages.job("dpo", "lora", dpo={"reference": {"source": "pvc://models/judge"}}))
    assert run.prepared.reference == root / "models" / "judge"
    assert run.prepared.reference_base == root / "models" / "model"
