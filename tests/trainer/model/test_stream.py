"""The door of a model: what cannot take a stream is named, gets rows, and gives a stream back."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from finetune_trainer.data import collate
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.generation import batched
from finetune_trainer.model import base, documents, stream
from finetune_trainer.model.attention import FLASH, choose, documents_obstacle
from transformers import AutoConfig

from tests.trainer.model.test_documents import BATCH, LENGTHS, ROWS, SERVED, config_of, gradients, model_of
from tests.trainer.support.families import FAMILIES, GROUPED

CLOSE = 1e-5
NO_FLASH = "the image has no flash-attn package"
CONVOLUTIONS = {**GROUPED, "layer_types": ["conv", "full_attention"], "block_ff_dim": 128}
SINKS = {**GROUPED, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
PADDED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    **{name: FAMILIES[name] for name in ("gemma2", "gptj", "bloom", "falcon")},
    "lfm2": ("Lfm2Config", None, CONVOLUTIONS),
    "gpt_oss": ("GptOssConfig", None, SINKS),
}


def padded_config(family: str) -> Any:
    name, _, values = PADDED[family]
    numbers = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return getattr(transformers, name)(**{**values, **numbers})


def test_families_with_the_attention_of_transformers_need_no_padding() -> None:
    configs = [config_of(family) for family in SERVED]
    assert {str(choose("auto", config, NO_FLASH)) for config in configs} == {"documents"}


@pytest.mark.parametrize(
    ("kind", "obstacle"),
    [
        ("gemma2", r"caps the scores of its attention \(attn_logit_softcapping\)"),
        ("gpt_oss", "attention has sinks"),
        ("bloom", "the attention of models of type 'bloom' is their own"),
        ("gptj", "the attention of models of type 'gptj' is their own"),
        ("mamba2", r"layers that are no such attention \(linear_attention\)"),
        ("bamba", "linear_attention|the attention of models of type 'bamba' is their own"),
        ("qwen3_next", r"layers that are no such attention \(linear_attention\)"),
        ("recurrent_gemma", r"layers that are no such attention \(.*recurrent\)"),
        ("lfm3", r"layers that are no such attention \(conv\)"),
        ("llama4_text", r"layers that are no such attention \(chunked_attention\)"),
    ],
)
def test_a_family_that_needs_padding_is_named_with_the_reason(kind: str, obstacle: str) -> None:
    config = AutoConfig.for_model(kind)
    choice = choose("auto", config, NO_FLASH)
    assert choice.padded
    assert choice.implementation is None
    assert re.search(obstacle, str(choice)), choice


def test_code_of_a_models_own_needs_padding() -> None:
    own: Any = type("OwnConfig", (transformers.LlamaConfig,), {"model_type": "own"})
    assert documents_obstacle(own()) == "the model has code of its own"


def test_an_implementation_that_the_job_names_is_used_or_refused() -> None:
    llama, gemma = config_of("llama"), padded_config("gemma2")
    assert str(choose("sdpa", llama, None)) == "sdpa with padding, because model.attention is sdpa"
    assert (choose("eager", llama, None).implementation, choose("eager", llama, None).padded) == ("eager", True)
    assert (choose("flashAttention2", llama, None).implementation, choose("auto", gemma, None).implementation) == (
        FLASH,
        FLASH,
    )
    assert not choose("flashAttention2", gemma, None).padded
    assert choose("flashAttention2", padded_config("lfm2"), None).padded
    with pytest.raises(InvalidSpec, match="flashAttention2 is not available, because the image has no flash-attn"):
        choose("flashAttention2", llama, NO_FLASH)


@pytest.mark.parametrize("family", PADDED)
def test_a_padded_model_gives_what_each_document_gives_alone(family: str) -> None:
    """The documents are of very different length, so they are computed in several groups of rows."""
    single, ours = (model_of(padded_config(family), "eager") for _ in range(2))
    stream.open_door(ours, padded=True)
    found = ours.base_model(**stream.forward_inputs(BATCH)).last_hidden_state[0]
    alone = [
        single.base_model(input_ids=torch.tensor([row.input_ids]), use_cache=False).last_hidden_state[0] for row in ROWS
    ]
    assert torch.allclose(found, torch.cat(alone), atol=CLOSE)
    slopes = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
    for states in (found, torch.cat(alone)):
        (states * slopes).sum().backward()
    expected = gradients(single)
    for name, gradient in gradients(ours).items():
        assert torch.allclose(gradient, expected[name], atol=1e-4, rtol=1e-4), name


def test_router_logits_of_a_padded_model_are_those_of_the_tokens_alone() -> None:
    """The loss that balances experts is a mean over them."""
    outputs = []
    for attention, padded in ((documents.NAME, False), ("sdpa", True)):
        model = model_of(config_of("experts"), attention)
        stream.open_door(model, padded=padded)
        outputs.append(model.base_model(**stream.forward_inputs(BATCH), output_router_logits=True).router_logits)
    for streamed, padded_again in zip(*outputs, strict=True):
        assert streamed.shape == padded_again.shape == (sum(LENGTHS), 4)
        assert torch.allclose(streamed, padded_again, atol=CLOSE)


def test_flash_attention_gets_the_lengths_that_it_would_ask_the_gpu_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(config_of("llama"), "sdpa")
    seen: dict[str, Any] = {}
    monkeypatch.setattr(type(model.model), "forward", lambda _self, **inputs: seen.update(inputs))
    stream.open_door(model, padded=False)
    model.base_model(**stream.forward_inputs(BATCH))
    assert seen["cu_seq_lens_q"] is seen["cu_seq_lens_k"] is BATCH["bounds"]
    assert seen["max_length_q"] == seen["max_length_k"] == max(LENGTHS)
    assert seen["position_ids"] is BATCH["position_ids"]
    assert "attention_mask" not in seen


def test_a_model_that_takes_streams_answers_prompts_as_any_other(model: Path) -> None:
    prompts = [[5, 9, 30, 41], [100, 3], [7, 8, 9, 10, 11, 12]]
    answers = []
    for attention in ("auto", None):
        loaded: Any = base.load(model, "model", torch.float32, attention=attention)
        answers.append(batched.generate(loaded, prompts, max_new_tokens=8, stop_ids=[2], pad_id=0, batch_size=3))
        loaded(**stream.forward_inputs(collate.stream(ROWS)))  # takes streams again
    assert answers[0] == answers[1]
