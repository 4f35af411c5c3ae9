"""Which implementation of attention a model is loaded with.

Called by `base.load`. A job that names one gets it or is refused; nothing is exchanged silently.
"""

import importlib.util
from typing import Literal

import torch

from finetune_trainer.errors import InvalidSpec

Attention = Literal["auto", "eager", "sdpa", "flashAttention2"]
FLASH = "flash_attention_2"
AMPERE = (8, 0)
"""The oldest compute capability that flash attention runs on."""


def implementation(wanted: Attention, dtype: torch.dtype) -> str | None:
    """In transformers' words; None: the best one that the model has besides flash attention."""
    if wanted in ("eager", "sdpa"):
        return wanted
    obstacle = flash_obstacle(dtype)
    if obstacle is None:
        return FLASH
    if wanted == "flashAttention2":
        raise InvalidSpec(f"model.attention: flashAttention2 can't be used, as {obstacle}; use auto or sdpa")
    return None


def flash_obstacle(dtype: torch.dtype) -> str | None:
    """Why flash attention can't run here."""
    if not torch.cuda.is_available():
        return "no GPU is visible"
    if torch.cuda.get_device_capability() < AMPERE:
        return f"{torch.cuda.get_device_name()} is older than Ampere"
    if importlib.util.find_spec("flash_attn") is None:
        return "the image has no flash-attn package"
    if dtype == torch.float32:
        return "it computes in 16 bit only and this job in fp32"
    return None
