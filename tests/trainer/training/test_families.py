"""Each family trains, up to its last position and with more rows than tokens; what is no decoder is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import base, saved_adapter, vocabulary
from finetune_trainer.model.reward_model import RewardModel
from finetune_trainer.prepare import model_check
from finetune_trainer.run import Run

from tests.trainer.support import families, stages, tiny

POSITIONS = 64


def saved(root: Path, name: str, family: str, **settings: Any) -> None:
    tokens = settings.pop("tokens", None) or tiny.tokenizer()
    settings = {"tokens": tokens, "positions": POSITIONS, "vocabulary": len(tokens), **settings}
    families.save_model(root / "models" / name, family, **settings)


def saved_config(root: Path, config: Any, auto: Any = transformers.AutoModelForCausalLM) -> Path:
    auto.from_config(config).save_pretrained(root / "model")
    tiny.tokenizer().save_pretrained(root / "model")
    return root / "model"


def trained(root: Path, stage: str, rows: list[dict[str, Any]], **sections: Any) -> Run:
    stages.save(root / "data" / f"{stage}.jsonl", rows)
    run = tiny.make_run(root, stages.job(stage, "lora", **sections))
    stages.train(run)
    return run


@pytest.mark.parametrize("family", families.FAMILIES)
def test_each_family_trains_up_to_its_last_position(tmp_path: Path, family: str) -> None:
    saved(tmp_path, "model", family)
    rows = [stages.row("sft", index) for index in range(7)]
    rows.append({"messages": [rows[0]["messages"][0], {"role": "assistant", "content": "gamma " * 99}]})
    run = trained(tmp_path, "sft", rows, training={"maxSteps": 1, "cutoffLength": POSITIONS})
    assert run.prepared.summary.truncated_rows == 1
    assert 1 < tiny.losses(run)[0] < 10


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_embeddings_that_an_adapter_trains_are_found_by_their_names(tmp_path: Path, family: str) -> None:
    """Else a job that continues the adapter would lose the new tokens."""
    saved(tmp_path, "model", family)
    model = base.load(tmp_path / "models" / "model", family, torch.float32)
    names = {f".{name}.weight" for name in vocabulary.embeddings(model)}
    assert names
    assert names <= set(saved_adapter.EMBEDDINGS)


def test_a_pack_of_short_documents_may_be_longer_than_the_positions(tmp_path: Path) -> None:
    """A full pack beside a pack of one document."""
    saved(tmp_path, "model", "gpt2")
    length = len(tiny.tokenizer()("say gamma")["input_ids"]) + 1
    rows = [{"text": "say gamma"}] * (4 * POSITIONS // length + 1)
    packed = {"packing": "bfd", "cutoffLength": 4 * POSITIONS, "globalBatchSize": 2, "microBatchSize": 2, "maxSteps": 1}
    run = trained(tmp_path, "pt", rows, training=packed)
    assert 1 < tiny.losses(run)[0] < 10


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_answers_have_no_token_that_the_reward_model_lacks(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy has spare rows, as many models do. The tokenizer pads with a token that the reward model lacks."""
    tokens = tiny.tokenizer()
    known = len(tokens)
    tokens.add_special_tokens({"pad_token": "[PAD]"})
    saved(tmp_path, "model", family, tokens=tokens, vocabulary=4 * known)
    saved(tmp_path, "reward", family, tokens=tokens, vocabulary=known, reward=True)
    seen: list[int] = []
    score = RewardModel.score

    def scored(model: RewardModel, texts: Any) -> Any:
        seen.append(max(map(max, texts)))
        return score(model, texts)

    monkeypatch.setattr(RewardModel, "score", scored)
    rows = [stages.row("ppo", index) for index in range(8)]
    run = trained(tmp_path, "ppo", rows, training={"maxSteps": 1, "cutoffLength": POSITIONS})
    assert tiny.losses(run)
    assert max(seen) < len(tokens)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Bert", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}),
        ("Bart", {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "decoder_ffn_dim": 64}),
    ],
)
def test_a_model_with_an_encoder_is_refused_by_name(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    config = getattr(transformers, f"{kind}Config")(vocab_size=320, **settings)
    folder = saved_config(tmp_path, config, transformers.AutoModelForMaskedLM)
    with pytest.raises(InvalidSpec, match=rf"is of type '{kind.lower()}' \({kind}For.* reads with an encoder"):
        base.check(folder, "pvc://models/model")


def test_layers_that_peft_does_not_adapt_are_refused_before_training(tmp_path: Path) -> None:
    folder = saved_config(tmp_path, transformers.MambaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2))
    with pytest.raises(InvalidSpec, match=r"tuning\.lora\.targets: peft can't adapt these layers of a 'mamba' model"):
        model_check.check_model(tiny.job(), folder, None)


def test_a_family_whose_scoring_model_has_another_head_is_refused_for_stage_rm(tmp_path: Path) -> None:
    folder = saved_config(tmp_path, transformers.CTRLConfig(vocab_size=320, n_embd=64, n_layer=2, n_head=4, dff=128))
    with pytest.raises(InvalidSpec, match="CTRLForSequenceClassification has no layer 'score'"):
        model_check.check_model(stages.job("rm"), folder, None)


def test_a_padding_token_beyond_the_embeddings_is_refused_if_the_family_looks_it_up(tmp_path: Path) -> None:
    """Llama does. GPT-2, whose config may say the same, does not, and trains."""
    for family, looks_up in (("llama", True), ("gpt2", False)):
        saved(tmp_path, family, family)
        file = tmp_path / "models" / family / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token_id": 9999}))
        if looks_up:
            with pytest.raises(
                InvalidSpec, match=r"has pad_token_id 9999, and .* Remove pad_token_id from config\.json"
            ):
                model_check.check_model(tiny.job(), file.parent, None)
        else:
            model_check.check_model(tiny.job(), file.parent, None)
