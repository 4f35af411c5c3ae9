"""A tiny model of each family that people fine-tune: two layers, 64 wide, random weights, and the tiny tokenizer.

A family names its limits in its own way, and has its own layers. The tests of limits and of one step go through all.
"""

from pathlib import Path
from typing import Any

ROPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**ROPE, "num_key_value_heads": 2}
NARROW = {"n_embd": 64, "n_layer": 2, "n_head": 4}
POSITIONS, N_POSITIONS = "max_position_embeddings", "n_positions"

FAMILIES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "llama": ("LlamaConfig", POSITIONS, GROUPED),
    "qwen2": ("Qwen2Config", POSITIONS, GROUPED),
    "qwen3": ("Qwen3Config", POSITIONS, {**GROUPED, "head_dim": 16}),
    "gemma2": ("Gemma2Config", POSITIONS, {**GROUPED, "head_dim": 16, "sliding_window": 32}),
    "gemma3": ("Gemma3TextConfig", POSITIONS, {**GROUPED, "head_dim": 16, "sliding_window": 32}),
    "mistral": ("MistralConfig", POSITIONS, {**GROUPED, "sliding_window": 32}),
    "glm": ("GlmConfig", POSITIONS, {**GROUPED, "head_dim": 16}),
    "phi": ("PhiConfig", POSITIONS, ROPE),
    "gpt2": ("GPT2Config", N_POSITIONS, NARROW),
    "gptj": ("GPTJConfig", N_POSITIONS, {**NARROW, "rotary_dim": 8}),
    "bloom": ("BloomConfig", None, {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", POSITIONS, {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "opt": ("OPTConfig", POSITIONS, {**ROPE, "ffn_dim": 128, "word_embed_proj_dim": 64}),
}
"""Family -> its config class, the field with its positions (None: it has no limit), and its other settings."""


def save_model(
    folder: Path, family: str, *, tokens: Any, positions: int, vocabulary: int, reward: bool = False
) -> Path:
    """A model of the family with that many positions, if it counts them, and rows in its embeddings."""
    import torch
    import transformers

    name, field, settings = FAMILIES[family]
    limits = {"vocab_size": vocabulary} | ({field: positions} if field else {})
    ids = {f"{kind}_token_id": getattr(tokens, f"{kind}_token_id") for kind in ("eos", "pad", "bos")}
    known = {kind: number if number is not None and number < vocabulary else None for kind, number in ids.items()}
    config = getattr(transformers, name)(**settings, **limits, **known)
    auto: Any = transformers.AutoModelForSequenceClassification if reward else transformers.AutoModelForCausalLM
    if reward:
        config.num_labels = 1
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder
