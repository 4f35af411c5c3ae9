"""Preparation finds errors of model, adapter and tuning before it reads a row."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model.base import check
from finetune_trainer.prepare import memory_check, model_check
from finetune_trainer.prepare.model_without_weights import tuned_without_weights
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.trainer.support import tiny

ADAPTER = {"source": "pvc://models/adapter"}


def model(folder: Path, **settings: Any) -> Path:
    return tiny.save_model(folder / "model", **settings)


def adapter(folder: Path, base: Path, **settings: Any) -> Path:
    config = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["q_proj", "down_proj"], **settings})
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        ({"lora": {"targets": ["q_prj"]}}, "lora.targets: q_prj"),
        ({"lora": {"modulesToSave": ["head"]}}, "modulesToSave: this model has no head"),
        ({"lora": {"dora": True, "init": "pissa"}}, "dora and init pissa"),
        ({"method": "freeze", "freeze": {"modules": ["attention"]}}, "freeze.modules: this model has no attention"),
    ],
)
def test_settings_that_fit_no_layer_are_rejected(tmp_path: Path, tuning: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec, match=message):
        model_check.check_model(tiny.job(tuning=tuning), model(tmp_path), None)


@pytest.mark.parametrize("tied", [True, False])
def test_a_complete_model_is_accepted_and_a_model_without_a_weight_is_not(tmp_path: Path, tied: bool) -> None:
    folder = model(tmp_path, tie_word_embeddings=tied)
    model_check.check_model(tiny.job(), folder, None)
    file = folder / "model.safetensors"
    held = load_file(file)
    del held["model.layers.1.mlp.up_proj.weight"]
    save_file(held, file, metadata={"format": "pt"})
    with pytest.raises(InvalidSpec, match=r"1 weights are missing .* model\.layers\.1\.mlp\.up_proj\.weight"):
        model_check.check_model(tiny.job(), folder, None)


def test_weights_of_another_size_are_rejected(tmp_path: Path) -> None:
    folder = model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 112}))
    with pytest.raises(InvalidSpec, match=r"by config\.json it has"):
        model_check.check_model(tiny.job(), folder, None)


@pytest.mark.parametrize("mode", ["continue", "merge"])
def test_an_adapter_of_another_model_is_rejected(tmp_path: Path, mode: str) -> None:
    base = model(tmp_path)
    job = tiny.job(tuning={"adapter": {**ADAPTER, "mode": mode}})
    model_check.check_model(job, base, adapter(tmp_path, base))
    for name, settings in (("wide", {"hidden_size": 64}), ("deep", {"num_hidden_layers": 3})):
        other = model(tmp_path / name, **settings)
        with pytest.raises(InvalidSpec, match="was made for another model"):
            model_check.check_model(job, base, adapter(tmp_path / name, other))


def test_the_estimate_uses_the_rank_of_a_continued_adapter(tmp_path: Path) -> None:
    base = model(tmp_path)
    made = adapter(tmp_path, base, r=32, modules_to_save=["lm_head"], use_dora=True)
    tuning = memory_check.continued_tuning(tiny.job(tuning={"adapter": ADAPTER}), made)
    planned = tuned_without_weights(check(base, "m"), tuning, "fp32")
    real = sum(weight.numel() for weight in load_file(made / "adapter_model.safetensors").values())
    assert sum(weight.numel() for weight in planned.parameters() if weight.requires_grad) == real


@pytest.mark.parametrize(
    ("requested", "said"),
    [
        ("auto", "documents"),
        ("sdpa", "sdpa with padding, because model.attention is sdpa"),
        # There is no GPU here, but there may be one in training.
        ("flashAttention2", "flash_attention_2, because model.attention is flashAttention2"),
    ],
)
def test_the_report_says_how_attention_will_be_computed(root: Path, requested: str, said: str) -> None:
    source = {"source": "pvc://models/model", "attention": requested}
    run = tiny.make_run(root, tiny.job(model=source))
    assert json.loads((run.folders.reports / "prepare.json").read_text())["attention"] == said
    assert f"Attention: {said}.\n" in (run.folders.reports / "prepare.md").read_text()
