"""Mixtures of experts under adapters: ``all-linear`` leaves routers out, and the report says what is adapted."""

from typing import Any

import pytest
from finetune_api.tuning import LoraSpec, TuningSpec
from finetune_trainer.model import experts
from finetune_trainer.prepare import report
from finetune_trainer.prepare.model_without_weights import base_without_weights, tuned_without_weights
from transformers import (
    DeepseekV3Config,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}
OF_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "q_lora_rank": None,
}
FAMILIES: dict[str, tuple[PretrainedConfig, set[str], bool]] = {
    "mixtral": (MixtralConfig(**TINY, num_local_experts=4), {"gate"}, True),
    "qwen2_moe": (
        Qwen2MoeConfig(**TINY, **OF_EXPERTS, shared_expert_intermediate_size=32),
        {"gate", "shared_expert_gate"},
        False,
    ),
    "qwen3_moe": (Qwen3MoeConfig(**{**TINY, **OF_EXPERTS, "head_dim": 16}), {"gate"}, True),
    "olmoe": (OlmoeConfig(**TINY, num_experts=4, num_experts_per_tok=2), {"gate"}, True),
    "deepseek_v3": (
        DeepseekV3Config(
            **TINY,
            **LATENT,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
        ),
        {"gate"},
        True,
    ),
    "gpt_oss": (GptOssConfig(**TINY, head_dim=16, num_local_experts=4, num_experts_per_tok=2), {"router"}, False),
    "granitemoe": (GraniteMoeConfig(**TINY, num_local_experts=4, num_experts_per_tok=2), {"router"}, False),
}
"""Family -> config, its routers, and whether peft adapts its experts."""


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_never_takes_a_router(family: str) -> None:
    config, routers, adapts_experts = FAMILIES[family]
    assert experts.routers(base_without_weights(config)) == routers
    tuned = tuned_without_weights(config, TuningSpec(method="lora", lora=LoraSpec(rank=4)), "bf16")
    adapted = {name.partition(".lora_A.")[0] for name, _ in tuned.named_parameters() if ".lora_A." in name}
    assert [name for name in adapted if name.rpartition(".")[2] in routers] == []
    assert any(name.endswith(".self_attn.o_proj") for name in adapted)
    assert any(".experts" in name for name in adapted) == adapts_experts


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_that_are_left_out_are_reported(family: str) -> None:
    config, _, adapts_experts = FAMILIES[family]
    tuned = tuned_without_weights(config, TuningSpec(method="lora", lora=LoraSpec(rank=4)), "bf16")
    share = experts.adapted_weights(tuned)
    assert share.experts == (pytest.approx(1) if adapts_experts else 0)
    assert 0 < share.share < 1
    warning = report.experts_left_out(share)
    assert (warning is None) == adapts_experts
    assert warning is None or f"{100 * share.share:.1f} %" in warning


def test_a_dense_model_has_no_experts() -> None:
    tuned = tuned_without_weights(LlamaConfig(**TINY), TuningSpec(method="lora", lora=LoraSpec(rank=4)), "bf16")
    share = experts.adapted_weights(tuned)
    assert share.experts is None
    embeddings = 2 * 512 * 64 + 5 * 64
    assert share.share == pytest.approx(1 - embeddings / (embeddings + 2 * (4 * 64 * 64 + 3 * 64 * 128)))
    assert report.experts_left_out(share) is None
