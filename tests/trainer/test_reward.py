"""A reward model scores as what was trained did, and plain transformers and peft load it and find the same scores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.contract import ResolvedJob
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import adapters, build, reward
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.trainer import tiny
from tests.trainer.test_adapters import Place, run_of, save

TEXTS = [[5, 9, 30, 41, 77, 8, 11, 60], [100, 3, 2, 4, 250], [7]]
PAIRS = [{"source": "pvc://data/pairs.jsonl", "format": "preference"}]
SFT = {"method": "lora", "lora": {"rank": 4}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("models")
    folder = tiny.save_model(root / "models" / "model", num_hidden_layers=3)
    return Place(root, folder, AutoTokenizer.from_pretrained(folder))


def batch(pad_id: int, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask)."""
    width = max(map(len, TEXTS))
    padding = [[pad_id] * (width - len(text)) for text in TEXTS]
    rows = [text + pad if side == "right" else pad + text for text, pad in zip(TEXTS, padding, strict=True)]
    ones = [[1] * len(text) for text in TEXTS]
    zeros = [[0] * len(pad) for pad in padding]
    masks = [one + zero if side == "right" else zero + one for one, zero in zip(ones, zeros, strict=True)]
    return torch.tensor(rows), torch.tensor(masks)


def scores(model: Any, pad_id: int) -> torch.Tensor:
    model.eval()
    ids, mask = batch(pad_id)
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=ids, attention_mask=mask).logits[:, 0])


def disturb(model: Any) -> None:
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn(weight.shape, generator=generator)


def trained(place: Place, tuning: dict[str, Any], adapter: Path | None = None) -> tuple[ResolvedJob, Any]:
    of = tiny.job(stage="rm", tuning=tuning, datasets=PAIRS)
    model = build.build(of, place.model, adapter, place.tokens, "fp32", place.scratch)
    adapters.cast_trainable(model, "fp32")
    disturb(model)
    return of, model


def loaded(place: Place, of: ResolvedJob, folder: Path, name: str) -> reward.RewardModel:
    run = run_of(place, of, name)
    base = place.model if (folder / "adapter_config.json").is_file() else None
    return reward.load(replace(run, prepared=replace(run.prepared, reward=folder, reward_base=base)))


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_a_reward_model_scores_as_it_did_when_it_was_trained(place: Place, method: str) -> None:
    of, model = trained(place, {"method": method})
    names = {name.split(".")[-2] for name, weight in model.named_parameters() if weight.requires_grad}
    pad_id = place.tokens.pad_token_id
    expected = scores(model, pad_id)
    folder = save(place, of, model, f"rm-{method}")

    judge = loaded(place, of, folder, f"ppo-{method}")
    there = {side: judge.score(*batch(pad_id, side)) for side in ("right", "left")}
    other_padding = judge.score(*batch(9))

    assert ("default" in names) if method == "lora" else ("score" in names)
    assert not any(weight.requires_grad for weight in judge.model.parameters())
    assert len(set(expected.tolist())) == len(TEXTS)
    assert torch.allclose(there["right"], expected, atol=1e-5)
    assert torch.allclose(there["left"], expected, atol=1e-5)
    assert torch.allclose(other_padding, expected, atol=1e-5)
    assert (judge.mean, judge.std) == (None, None)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_transformers_and_peft_load_it_alone(place: Place, method: str) -> None:
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


def test_one_that_began_with_a_merged_adapter_takes_it_in_first(place: Place) -> None:
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
    assert torch.allclose(judge.score(*batch(place.tokens.pad_token_id)), expected, atol=1e-5)


def test_in_bf16_it_scores_as_it_was_trained_in_bf16(place: Place) -> None:
    of = tiny.job(
        stage="rm",
        tuning={"method": "lora", "lora": {"rank": 4, "modulesToSave": ["embed_tokens"]}},
        training={"precision": "bf16"},
        datasets=PAIRS,
    )
    model = build.build(of, place.model, None, place.tokens, "bf16", place.scratch)
    adapters.cast_trainable(model, "bf16")
    disturb(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = scores(model, place.tokens.pad_token_id)
    folder = save(place, of, model, "rm-bf16")
    found = loaded(place, of, folder, "ppo-bf16").score(*batch(place.tokens.pad_token_id))
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)


def test_adapters_of_the_other_kind_are_refused(place: Place) -> None:
    of, model = trained(place, SFT)
    scoring = save(place, of, model, "scoring")
    of = tiny.job(tuning=SFT)
    speaking = save(place, of, build.build(of, place.model, None, place.tokens, "fp32", place.scratch), "speaking")
    continued = {"method": "lora", "adapter": {"source": "pvc://models/x", "mode": "continue"}}
    with pytest.raises(InvalidSpec, match="has no scores to continue with: use mode merge"):
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
def test_a_job_of_stage_rm_goes_on_from_another_ones_scores(place: Place, mode: str) -> None:
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
    assert torch.allclose(judge.score(*batch(place.tokens.pad_token_id)), expected, atol=1e-5)


def test_the_end_is_found_where_padding_is_the_end_token(place: Place) -> None:
    tokens: Any = AutoTokenizer.from_pretrained(place.model)
    tokens.pad_token = tokens.eos_token
    there = Place(place.root, place.model, tokens)
    of, model = trained(there, {"method": "full"})
    assert model.config.pad_token_id == tokens.eos_token_id
    texts = torch.tensor([[5, 9, 30, tokens.eos_token_id], [7, 8, tokens.eos_token_id, tokens.eos_token_id]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.inference_mode():
        expected = model(input_ids=texts, attention_mask=mask).logits[:, 0]
    folder = save(there, of, model, "rm-eos")
    judge = loaded(there, of, folder, "ppo-eos")
    assert torch.allclose(judge.score(texts, mask), expected, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True])
def test_a_quantised_reward_model_keeps_its_head_whole(tmp_path: Path, merged: bool) -> None:
    folder = tiny.save_model(tmp_path / "models" / "model", hidden_size=64, intermediate_size=128)
    there = Place(tmp_path, folder, AutoTokenizer.from_pretrained(folder))
    adapter = None
    tuning: dict[str, Any] = {"method": "qlora", "lora": {"rank": 4}}
    if merged:
        policy = tiny.job(tuning=SFT)
        made = build.build(policy, folder, None, there.tokens, "fp32", there.scratch)
        adapter = save(there, policy, made, "sft")
        tuning["adapter"] = {"source": "pvc://models/sft", "mode": "merge"}
    of, model = trained(there, tuning, adapter)
    heads = {name: weight for name, weight in model.named_parameters() if ".score." in name}
    assert all(weight.is_floating_point() for weight in heads.values())
    assert [weight.requires_grad for name, weight in heads.items() if "default" in name] == [True]
    assert any(not weight.is_floating_point() for weight in model.parameters())
    assert model.peft_config["default"].task_type == "SEQ_CLS"
    found = scores(model, there.tokens.pad_token_id)
    artifact = save(there, of, model, "rm", adapter=adapter)
    judge = loaded(there, of, artifact, "ppo").score(*batch(there.tokens.pad_token_id))
    assert torch.allclose(judge, found, atol=0.5)  # of the unquantised base
