"""A saved reward model gives the same scores as in training, also when plain transformers and peft load it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.contract import ResolvedJob
from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import build, reward_model, stream, trainable
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.trainer.model.test_adapters import Place, run_of, save
from tests.trainer.support import tiny

TEXTS = [[5, 9, 30, 41, 77, 8, 11, 60], [100, 3, 2, 4, 250], [7]]
PAIRS = [{"source": "pvc://data/pairs.jsonl", "format": "preference"}]
SFT = {"method": "lora", "lora": {"rank": 4}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("models")
    folder = tiny.save_model(root / "models" / "model", num_hidden_layers=3)
    return Place(root, folder, AutoTokenizer.from_pretrained(folder))


def scores(model: Any, pad_id: int, texts: list[list[int]] = TEXTS) -> torch.Tensor:
    """The scores of rows padded on the right, as plain transformers computes them."""
    model.eval()
    width = max(map(len, texts))
    ids = torch.tensor([text + [pad_id] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    with torch.inference_mode(), stream.in_rows(model):
        return torch.as_tensor(model(input_ids=ids, attention_mask=mask).logits[:, 0])


def disturb(model: Any) -> None:
    """Change all trained weights, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)


def trained(place: Place, tuning: dict[str, Any], adapter: Path | None = None) -> tuple[ResolvedJob, Any]:
    of = tiny.job(stage="rm", tuning=tuning, datasets=PAIRS)
    model = build.build(of, place.model, adapter, place.tokens, "fp32", place.scratch)
    trainable.cast_trainable(model, "fp32")
    disturb(model)
    return of, model


def loaded(place: Place, of: ResolvedJob, folder: Path, name: str) -> reward_model.RewardModel:
    run = run_of(place, of, name)
    base = place.model if (folder / "adapter_config.json").is_file() else None
    return reward_model.load(replace(run, prepared=replace(run.prepared, reward=folder, reward_base=base)))


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_a_reward_model_scores_as_in_training(place: Place, method: str) -> None:
    of, model = trained(place, {"method": method})
    names = {name.split(".")[-2] for name, weight in model.named_parameters() if weight.requires_grad}
    pad_id = place.tokens.pad_token_id
    expected = scores(model, pad_id)
    folder = save(place, of, model, f"rm-{method}")

    judge = loaded(place, of, folder, f"ppo-{method}")
    found = judge.score(TEXTS)

    assert ("default" in names) if method == "lora" else ("score" in names)
    assert not any(weight.requires_grad for weight in judge.model.parameters())
    assert len(set(expected.tolist())) == len(TEXTS)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (judge.mean, judge.std) == (None, None)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_plain_transformers_and_peft_load_it(place: Place, method: str) -> None:
    of, model = trained(place, {"method": method})
    pad_id = place.tokens.pad_token_id
    expected = scores(model, pad_id)
    folder = save(place, of, model, f"plain-{method}")
    if method == "lora":
        from peft import PeftModel

        base = AutoModelForSequenceClassification.from_pretrained(place.model, num_labels=1, dtype=torch.float32)
        plain: Any = PeftModel.from_pretrained(base, str(folder))
    else:
        plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert torch.allclose(scores(plain, pad_id), expected, atol=1e-5)


def test_an_earlier_adapter_is_merged_first_when_it_is_loaded(place: Place) -> None:
    of = tiny.job(tuning=SFT)
    policy = build.build(of, place.model, None, place.tokens, "fp32", place.scratch)
    disturb(policy)
    earlier = save(place, of, policy, "sft")
    merge = {**SFT, "adapter": {"source": "pvc://models/sft", "mode": "merge"}}
    of, model = trained(place, merge, earlier)
    expected = scores(model, place.tokens.pad_token_id)
    folder = save(place, of, model, "rm-on-sft", adapter=earlier)

    judge = loaded(place, of, folder, "ppo-on-sft")

    assert (folder / "base_adapter" / "adapter_config.json").is_file()
    assert torch.allclose(judge.score(TEXTS), expected, atol=1e-5)


def test_in_bf16_it_scores_as_in_bf16_training(place: Place) -> None:
    of = tiny.job(
        stage="rm",
        tuning={"method": "lora", "lora": {"rank": 4, "modulesToSave": ["embed_tokens"]}},
        training={"precision": "bf16"},
        datasets=PAIRS,
    )
    model = build.build(of, place.model, None, place.tokens, "bf16", place.scratch)
    trainable.cast_trainable(model, "bf16")
    disturb(model)
    rows = collate.stream([Row(text, []) for text in TEXTS])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = model.eval()(**stream.forward_inputs(rows)).logits[:, 0]
    folder = save(place, of, model, "rm-bf16")
    actual = loaded(place, of, folder, "ppo-bf16").score(TEXTS)
    assert actual.dtype == expected.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_adapters_of_the_other_kind_are_refused(place: Place) -> None:
    of, model = trained(place, SFT)
    scoring = save(place, of, model, "scoring")
    of = tiny.job(tuning=SFT)
    speaking = save(place, of, build.build(of, place.model, None, place.tokens, "fp32", place.scratch), "speaking")
    continued = {"method": "lora", "adapter": {"source": "pvc://models/x", "mode": "continue"}}
    with pytest.raises(InvalidSpec, match=r"has no scores to continue with\. Use mode merge"):
        trained(place, continued, speaking)
    with pytest.raises(InvalidSpec, match="stage sft trains a language model"):
        build.build(tiny.job(tuning=continued), place.model, scoring, place.tokens, "fp32", place.scratch)


def test_a_fresh_head_is_drawn_from_the_seed(place: Place) -> None:
    heads = []
    for seed in (1, 1, 2):
        of = tiny.job(stage="rm", tuning={"method": "full"}, training={"seed": seed}, datasets=PAIRS)
        model: Any = build.build(of, place.model, None, place.tokens, "fp32", place.scratch)
        heads.append(model.score.weight.detach().clone())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].std() == pytest.approx(0.02, rel=0.5)


@pytest.mark.parametrize("mode", ["continue", "merge"])
def test_a_job_of_stage_rm_continues_from_another_jobs_scores(place: Place, mode: str) -> None:
    of, model = trained(place, SFT)
    expected = scores(model, place.tokens.pad_token_id)
    first = save(place, of, model, f"first-{mode}")
    lora = {} if mode == "continue" else {"lora": {"rank": 2}}
    tuning = {"method": "lora", "adapter": {"source": "pvc://models/first", "mode": mode}, **lora}
    of = tiny.job(stage="rm", tuning=tuning, datasets=PAIRS)
    again: Any = build.build(of, place.model, first, place.tokens, "fp32", place.scratch)
    assert torch.allclose(scores(again, place.tokens.pad_token_id), expected, atol=1e-5)

    disturb(again)
    expected = scores(again, place.tokens.pad_token_id)
    second = save(place, of, again, f"second-{mode}", adapter=first)
    judge = loaded(place, of, second, f"ppo-{mode}")
    assert torch.allclose(judge.score(TEXTS), expected, atol=1e-5)


def test_the_end_of_a_text_is_found_if_padding_is_the_end_token(place: Place) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(place.model)
    tokens.pad_token = tokens.eos_token
    other_place = Place(place.root, place.model, tokens)
    of, model = trained(other_place, {"method": "full"})
    assert model.config.pad_token_id == tokens.eos_token_id
    texts = [[5, 9, 30, tokens.eos_token_id], [7, 8, tokens.eos_token_id], [tokens.eos_token_id]]
    expected = scores(model, tokens.pad_token_id, texts)
    folder = save(other_place, of, model, "rm-eos")
    judge = loaded(other_place, of, folder, "ppo-eos")
    assert torch.allclose(judge.score(texts), expected, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
def test_the_head_of_a_quantised_reward_model_is_not_quantised(tmp_path: Path, merged: bool) -> None:
    folder = tiny.save_model(tmp_path / "models" / "model", hidden_size=64, intermediate_size=128)
    other_place = Place(tmp_path, folder, AutoTokenizer.from_pretrained(folder))
    adapter = None
    tuning: dict[str, Any] = {"method": "qlora", "lora": {"rank": 4}}
    if merged:
        policy = tiny.job(tuning=SFT)
        language_model = build.build(policy, folder, None, other_place.tokens, "fp32", other_place.scratch)
        adapter = save(other_place, policy, language_model, "sft")
        tuning["adapter"] = {"source": "pvc://models/sft", "mode": "merge"}
    of, model = trained(other_place, tuning, adapter)
    heads = {name: weight for name, weight in model.named_parameters() if ".score." in name}
    assert all(weight.is_floating_point() for weight in heads.values())
    assert [weight.requires_grad for name, weight in heads.items() if "default" in name] == [True]
    assert any(not weight.is_floating_point() for weight in model.parameters())
    assert model.peft_config["default"].task_type == "SEQ_CLS"
    expected = scores(model, other_place.tokens.pad_token_id)
    artifact = save(other_place, of, model, "rm", adapter=adapter)
    judge = loaded(other_place, of, artifact, "ppo").score(TEXTS)
    assert torch.allclose(judge, expected, atol=0.5)  # of the unquantised base
