"""The head of a reward model: one number for each position, of which the last one's is the text's score.

Called by `base`, `build`, `adapters` and `memory`. The model is transformers' own for sequence classification with one
label, so what stage rm makes is loaded by transformers and peft alone.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model.scalar import Scalar

HEAD = "score"


def may_be_missing(kind: str) -> set[str]:
    """Weights that a model's files need not have."""
    return {f"{HEAD}.weight"} if kind == "reward" else set()


def is_there(model: nn.Module) -> bool:
    """Whether it is a reward model."""
    return isinstance(getattr(model, HEAD, None), Scalar)


def exact(model: PreTrainedModel) -> None:
    """Let the head compute in fp32. Raises InvalidSpec where there is none."""
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear):
        raise InvalidSpec(f"model.source: {type(model).__name__} has no layer {HEAD!r}, so it can't be a reward model")
    model.add_module(HEAD, Scalar.of(head))


def draw(model: nn.Module, seed: int) -> None:
    """A fresh head, as transformers draws it, from the job's seed."""
    weight: torch.Tensor = getattr(model, HEAD).weight
    config: Any = model.config
    spread = getattr(config.get_text_config(), "initializer_range", None) or 0.02
    drawn = torch.empty(weight.shape).normal_(0.0, spread, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight.copy_(drawn)


def on(causal: PreTrainedModel, seed: int, *, allow_remote_code: bool = False) -> PreTrainedModel:
    """The reward model that a language model becomes with a fresh head in the place of its own: how it starts from one
    that an adapter was merged into."""
    config = causal.config
    config.num_labels = 1
    with torch.device("meta"):
        making: Any = AutoModelForSequenceClassification.from_config
        made: PreTrainedModel = making(config, dtype=causal.dtype, trust_remote_code=allow_remote_code)
    backbone: Any = causal.base_model
    if type(made.base_model) is not type(backbone):
        raise InvalidSpec(f"model.source: {type(causal).__name__} and its reward model are made of different parts")
    made.config = config
    made.add_module(made.base_model_prefix, backbone)
    exact(made)
    head: Any = getattr(made, HEAD)
    head.weight = nn.Parameter(torch.empty_like(head.weight, dtype=causal.dtype, device=causal.device))
    draw(made, seed)
    return made
