"""Which implementation of attention a model is loaded with, and whether it takes streams of documents or padded rows.

Called by `base.load`, and by `prepare` for its report: `choose` needs a config, but no weights and no GPU. A job that
names an implementation gets it or is refused; it is never replaced silently.
"""

import importlib.util
import inspect
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import documents
from finetune_trainer.model.documents import AMPERE

Attention = Literal["auto", "eager", "sdpa", "flashAttention2"]
FLASH = "flash_attention_2"
LAYER_TYPES = ("layer_types", "layers_block_type", "block_types")
"""Fields of configs with a type for each layer."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Choice:
    """How a model computes attention."""

    implementation: str | None
    """The implementation's name in transformers. None: transformers chooses between sdpa and eager."""
    padded: bool
    """Whether documents are padded to rows before the model, as its own attention needs."""
    reason: str = ""
    """Why it is not `documents`."""

    def __str__(self) -> str:
        name = self.implementation or "the model's own"
        padding = " with padding" if self.padded else ""
        return f"{name}{padding}{f', because {self.reason}' if self.reason else ''}"


def choose(requested: Attention, config: PretrainedConfig, no_flash: str | None) -> Choice:
    """The implementation for a model of this config. ``no_flash``: the `flash_obstacle`. Raises InvalidSpec if a job
    names flash attention and it is not available."""
    if requested in ("eager", "sdpa"):
        return Choice(requested, padded=True, reason=f"model.attention is {requested}")
    obstacle = documents_obstacle(config)
    if requested == "auto" and obstacle is None:
        return Choice(documents.NAME, padded=False)
    if no_flash is None:
        reason = obstacle if requested == "auto" and obstacle else f"model.attention is {requested}"
        return Choice(FLASH, padded=stream_obstacle(config) is not None, reason=reason)
    if requested == "flashAttention2":
        raise InvalidSpec(f"model.attention: flashAttention2 is not available, because {no_flash}. Use auto or sdpa")
    return Choice(None, padded=True, reason=obstacle or "")


def documents_obstacle(config: PretrainedConfig) -> str | None:
    """Why `documents` attention cannot compute what a model of this config computes. None if it can."""
    obstacle = stream_obstacle(config)
    if obstacle is not None:
        return obstacle
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        return "the model caps the scores of its attention (attn_logit_softcapping)"
    if "s_aux=" in _source(_model_class(config)):
        return "the model's attention has sinks"
    return None


def stream_obstacle(config: PretrainedConfig) -> str | None:
    """Why a model of this config would not keep the documents of a stream apart, whatever its implementation of
    attention. None if it would."""
    model = _model_class(config)
    if model is None:
        return "the model has code of its own"
    text = config.get_text_config()
    types = {kind for field in LAYER_TYPES for kind in getattr(text, field, None) or ()}
    others = sorted(map(str, types - ATTENTION_LAYERS))
    if others:
        return f"the model has layers that are no such attention ({', '.join(others)})"
    if not (model._supports_attention_backend and model._supports_flash_attn):
        return f"the attention of models of type {config.model_type!r} is their own"
    return None


def _model_class(config: PretrainedConfig) -> Any:
    """transformers' class for models of this config. None if it has none."""
    for auto in (AutoModel, AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            found = auto._model_mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    return None


def _source(model: Any) -> str:
    return inspect.getsource(sys.modules[model.__module__])


def flash_obstacle(dtype: torch.dtype) -> str | None:
    """Why flash attention is not available here. None when it is."""
    if not torch.cuda.is_available():
        return "no GPU is visible"
    if torch.cuda.get_device_capability() < AMPERE:
        return f"{torch.cuda.get_device_name()} is older than Ampere"
    if importlib.util.find_spec("flash_attn") is None:
        return "the image has no flash-attn package"
    if dtype == torch.float32:
        return "it computes in 16 bit only and this job in fp32"
    return None
