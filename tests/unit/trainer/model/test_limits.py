"""A model's limits, read from configs that name them in their own ways."""

from typing import Any

import pytest
import transformers
from finetune_trainer.model import limits

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 50}
LONGROPE = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}


def config(kind: str, **settings: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(**settings)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *((kind, "n_positions") for kind in ("GPT2", "GPTBigCode", "GPTJ", "CodeGen", "CTRL", "OpenAIGPT")),
        *((kind, "max_position_embeddings") for kind in ("Llama", "Qwen3", "Gemma2", "Phi", "OPT", "BioGpt", "GPTNeo")),
        *((kind, "max_seq_len") for kind in ("Mpt", "Dbrx")),
    ],
)
def test_positions_are_found_by_the_name_of_the_family(kind: str, field: str) -> None:
    assert limits.positions(config(kind, **{field: 77})) == (77, field)


def test_a_nested_text_model_has_the_limits() -> None:
    nested = config("Gemma3", text_config={"max_position_embeddings": 77, "vocab_size": 99})
    assert limits.positions(nested) == (77, "max_position_embeddings")
    assert limits.tokens(nested) == (99, "vocab_size")


@pytest.mark.parametrize(
    "unlimited", [("Bloom", {}), ("Falcon", {"alibi": True}), ("Mamba", {}), ("XLNet", {})], ids=lambda case: case[0]
)
def test_models_without_positions_have_no_limit(unlimited: tuple[str, dict[str, Any]]) -> None:
    assert limits.positions(config(unlimited[0], **unlimited[1])) is None


def test_a_sliding_window_is_no_limit() -> None:
    assert limits.positions(config("Mistral", max_position_embeddings=77, sliding_window=8)) == (77, limits.NAMES[0])


@pytest.mark.parametrize(
    ("kind", "scaling", "expected"),
    [
        ("Qwen2", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}, 400),
        ("DeepseekV3", {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 50}, 100),
        ("Llama", {"rope_type": "linear", "factor": 4.0}, 400),
        ("Llama", {"rope_type": "dynamic", "factor": 2.0}, 200),
        ("Llama", {"rope_type": "llama3", **LLAMA3}, 100),
        ("Phi3", {"rope_type": "longrope", **LONGROPE, "original_max_position_embeddings": 50}, 100),
    ],
)
def test_rope_scaling_counts_once(kind: str, scaling: dict[str, Any], expected: int) -> None:
    """Some configs say how many positions there are before stretching, and others after it."""
    found = limits.positions(config(kind, max_position_embeddings=100, rope_parameters={"rope_theta": 1e4, **scaling}))
    assert found is not None
    assert (found.value, "RoPE" in found.name) == (expected, expected != 100)
