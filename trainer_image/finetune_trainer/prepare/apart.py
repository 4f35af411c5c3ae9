"""Whether a model keeps documents apart that share a row.

Called by ``prepare.run`` where the job packs. Attention is kept apart by position_ids that begin again at 0
(``data.collate``); models with other ways to see what came before (states, convolutions, alibi) see the neighbours,
too, and say nothing. So it is tried, on a small model with random weights that is made by the model's own config.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from finetune_api.contract import ResolvedJob
from transformers import AutoModelForCausalLM

from finetune_trainer.data import collate
from finetune_trainer.data.row import Row
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import base
from finetune_trainer.reporting.quiet import quiet

CLOSE = 1e-4
"""Of the largest logit: what fp32 leaves between two orders of adding is a hundredth of that."""
LARGEST = 150_000_000
"""Weights that may be made for this. More of them would take longer than a mistake costs."""
VOCABULARY, LAYERS, HEADS = 64, 8, 4
SIZES = {
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
"""Smaller ones than the model's, wherever its config has them."""
DOCUMENTS = [Row([9, 8, 7, 6, 5], []), Row([11], []), Row([20, 21, 22], []), Row([31, 32, 33, 34], [])]

log = logging.getLogger(__name__)


def check(job: ResolvedJob, folder: Path) -> None:
    """Raises InvalidSpec where packed documents would be learnt as the continuation of their neighbours."""
    quiet()
    code = base.remote_code(job)
    config = base.check(folder, job.model.source, allow_remote_code=code)
    attention = "eager" if job.model.attention == "eager" else None
    error: Exception | None = None
    # With few layers of small width, or with few layers alone; the whole model, or its text.
    text = config.get_text_config()
    ways = [(part, narrow) for part in ((config,) if text is config else (config, text)) for narrow in (True, False)]
    for part, narrow in ways:
        try:
            apart = _keeps_apart(_shrunk(part, narrow), attention, code)
        except Exception as reason:  # not a config that can be made smaller like this
            error = reason
            continue
        if not apart:
            raise InvalidSpec(
                f"training.packing: models of type {config.model_type!r} cannot keep packed documents apart: each would"
                " be trained as if the ones before it in the row were its beginning; use none"
            )
        return
    log.warning("training.packing: whether the model keeps packed documents apart can't be tried: %s", error)


def _keeps_apart(config: Any, attention: str | None, code: bool) -> bool:
    """Raises whatever a model raises that can't be made or run."""
    making: Any = AutoModelForCausalLM.from_config
    options = {"attn_implementation": attention, "dtype": torch.float32, "trust_remote_code": code}
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in making(config, **options).parameters())
    if weights > LARGEST:
        raise ValueError(f"even a part of it has {weights} weights")
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(1)
        model = making(config, **options).eval()
        alone = [model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0] for row in DOCUMENTS]
        batch = collate.packed([DOCUMENTS], 0)
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
    expected = torch.cat(alone)
    return bool((packed - expected).abs().max() <= CLOSE * expected.abs().max())


def _shrunk(config: Any, narrow: bool) -> Any:
    """The config with few layers, and with ``narrow`` of small width. Raises what it raises when it can't be so."""
    content = config.to_dict()
    text = config.get_text_config()
    part = (
        content if text is config else next(content[key] for key in config.sub_configs if getattr(config, key) is text)
    )
    for other in config.sub_configs:
        if isinstance(content.get(other), dict) and content[other] is not part:
            content[other] |= {key: 1 for key in ("num_hidden_layers", "depth") if key in content[other]}
    names: dict[str, str] = text.attribute_map
    _put(part, names, vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    layers = _layers(text)
    for key, value in part.items():
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            part[key] = [value[layer] for layer in layers]
    _put(part, names, num_hidden_layers=len(layers))
    heads = getattr(text, "num_attention_heads", None)
    if narrow and heads and heads > HEADS:
        # Heads stay as wide as they are: what turns with the position is made to measure for them.
        width = HEADS * (text.hidden_size // heads)
        _put(part, names, num_attention_heads=HEADS, hidden_size=width, intermediate_size=2 * width)
        grouped = getattr(text, "num_key_value_heads", None) or heads
        inner = width * (getattr(text, "mamba_expand", None) or 1)
        _put(part, names, mamba_n_heads=HEADS, mamba_d_head=inner // HEADS, mamba_n_groups=1)
        _put(part, names, num_key_value_heads=HEADS if grouped == heads else min(grouped, 2))
    state = getattr(text, "expand", None)
    if narrow and not heads and state:
        width = HEADS * (getattr(text, "head_dim", None) or 16)
        _put(part, names, num_heads=HEADS * state, hidden_size=width, intermediate_size=state * width)
    if narrow:
        _put(part, names, **{key: min(size, part.get(key) or size) for key, size in SIZES.items()})
    return type(config).from_dict(content)


def _layers(text: Any) -> list[int]:
    """The first of each kind, where the config tells kinds."""
    kinds = getattr(text, "layer_types", None)
    if not kinds:
        return list(range(min(LAYERS, text.num_hidden_layers)))
    return sorted({kind: layer for layer, kind in reversed(list(enumerate(kinds)))}.values())


def _put(content: dict[str, Any], names: dict[str, str], **values: int) -> None:
    """Where the config has such a value, under the name that it has there."""
    for name, value in values.items():
        key = names.get(name, name)
        if content.get(key) is not None:
            content[key] = value
