"""The head of a reward model: a scalar for each position. The scalar at the last token is the score of the text.

The model is transformers' own for sequence classification with one label, so transformers and peft alone can load what
stage rm trains. The reward models of LLaMA-Factory are read too: a language model or its adapter, with the head in a
file of its own.
"""

import functools
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import model_files
from finetune_trainer.model.documents import Documents
from finetune_trainer.model.scalar_head import ScalarHead

NAME = "score"
"""The head's attribute in transformers' models."""
VALUE_HEAD_WEIGHT, VALUE_HEAD_BIAS = "v_head.summary.weight", "v_head.summary.bias"


def optional_weights(kind: str) -> set[str]:
    """Weights that a model's files may lack: a language model becomes a reward model with a fresh head."""
    return {f"{NAME}.weight"} if kind == "reward" else set()


def is_reward_model(model: nn.Module) -> bool:
    return isinstance(getattr(model, NAME, None), ScalarHead)


def install(model: PreTrainedModel) -> None:
    """Replace the model's head by one that computes in fp32, with the same weights. Raises InvalidSpec when the model
    has no such head."""
    head = getattr(model, NAME, None)
    if not isinstance(head, nn.Linear):
        raise InvalidSpec(
            f"model.source: {type(model).__name__} has no layer {NAME!r}, so it is not usable as a reward model. Name a"
            " model of another architecture"
        )
    model.add_module(NAME, ScalarHead.from_linear(head))
    _score_documents(model)


def _score_documents(model: PreTrainedModel) -> None:
    """Let ``model(..., documents=...)`` score each document of a stream, by transformers' rule for rows: at its last
    token that is not the padding token. Only those positions reach the head. All other calls go to transformers."""
    method: Any = model.forward
    present = method.__func__

    @functools.wraps(type(model).forward)
    def forward(module: Any, *args: Any, documents: Documents | None = None, **kwargs: Any) -> Any:
        if documents is None:
            return present(module, *args, **kwargs)
        ids = kwargs["input_ids"][0]
        inputs = {name: value for name, value in kwargs.items() if value is not None}  # peft names all it knows
        states = module.base_model(documents=documents, **inputs).last_hidden_state[0]
        scored = _last_tokens(ids, documents.bounds, module.config.get_text_config().pad_token_id)
        return SequenceClassifierOutputWithPast(logits=getattr(module, NAME)(states[scored]))

    setattr(model, "forward", MethodType(forward, model))  # noqa: B010


def _last_tokens(ids: torch.Tensor, bounds: torch.Tensor, pad_id: int | None) -> torch.Tensor:
    """[documents]: place of each document's last token that is not padding, or of its first."""
    starts, ends = bounds[:-1].long(), bounds[1:].long()
    if pad_id is None:
        return ends - 1
    places = torch.arange(len(ids), device=ids.device)
    document = torch.bucketize(places, ends, right=True)
    places = torch.where(ids == pad_id, 0, places)
    return starts.scatter_reduce(0, document, places, "amax")


def initialize(model: nn.Module, seed: int) -> None:
    """Draw the head's weights from the seed, with the spread that transformers uses."""
    weight: torch.Tensor = getattr(model, NAME).weight
    config: Any = model.config
    spread = getattr(config.get_text_config(), "initializer_range", None) or 0.02
    drawn = torch.empty(weight.shape).normal_(0.0, spread, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight.copy_(drawn)


def read_value_head(model: nn.Module, folder: Path, *, frozen: bool = False) -> None:
    """Give the model's head the weights in the folder's file for it, if there is such a file.

    The head in the file has a bias, a constant in every score. A ``frozen`` model keeps it, and its head is in fp32. A
    model in training does not: the loss compares scores, and the artifact has no place for a bias.
    """
    if not model_files.has_value_head(folder):
        return
    saved = load_file(folder / model_files.VALUE_HEAD)
    for head in (module for module in model.modules() if isinstance(module, ScalarHead)):
        weight = saved[VALUE_HEAD_WEIGHT].to(head.weight.device, torch.float32 if frozen else head.weight.dtype)
        head.weight.data = weight
        if frozen and VALUE_HEAD_BIAS in saved:
            head.bias = nn.Parameter(saved[VALUE_HEAD_BIAS].to(weight), requires_grad=False)


def from_causal(causal: PreTrainedModel, seed: int, *, allow_remote_code: bool = False) -> PreTrainedModel:
    """A reward model with the backbone of a language model and a fresh head. It is how stage rm starts from a language
    model into which an adapter was merged."""
    config = causal.config
    config.num_labels = 1
    with torch.device("meta"):
        from_config: Any = AutoModelForSequenceClassification.from_config
        model: PreTrainedModel = from_config(config, dtype=causal.dtype, trust_remote_code=allow_remote_code)
    backbone: Any = causal.base_model
    if type(model.base_model) is not type(backbone):
        raise InvalidSpec(
            f"model.source: the reward model of {type(causal).__name__} has another backbone than the language model."
            " Name a model of another architecture"
        )
    model.config = config
    model.add_module(model.base_model_prefix, backbone)
    install(model)
    head: Any = getattr(model, NAME)
    head.weight = nn.Parameter(torch.empty_like(head.weight, dtype=causal.dtype, device=causal.device))
    initialize(model, seed)
    return model
