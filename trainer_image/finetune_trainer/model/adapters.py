"""Which weights are trained: a method of spec.tuning applied to a loaded model.

Called by `build` and `memory`, and by the engine. Trained weights are fp32 unless the job says pureBf16: small updates
are lost in bf16.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from finetune_api.tuning import FreezeSpec, LoraSpec, TuningSpec
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import freeze, score, vocabulary
from finetune_trainer.model.base import Precision
from finetune_trainer.model.scalar import Scalar

ALL_LINEAR, HEAD = "all-linear", "lm_head"


def load_dtype(method: str, precision: Precision) -> torch.dtype:
    """What the base is loaded in: trained weights in fp32, frozen ones as small as the job's precision allows.

    Method freeze trains some of what is loaded: `build` shrinks the rest.
    """
    if precision == "fp32" or (precision == "bf16" and method in ("full", "freeze")):
        return torch.float32
    return torch.bfloat16


def apply(model: PreTrainedModel, tuning: TuningSpec, seed: int) -> PreTrainedModel | PeftModel:
    """The model with its trainable weights marked, fresh ones drawn from the seed."""
    if tuning.method == "full":
        model.requires_grad_(True)
        return model
    if tuning.method == "freeze":
        freeze.mark(model, tuning.freeze or FreezeSpec())
        if score.is_there(model):
            model.get_submodule(score.HEAD).requires_grad_(True)
        return model
    return add(model, tuning.lora or LoraSpec(), seed)


def add(model: PreTrainedModel, lora: LoraSpec, seed: int, whole: Collection[str] = ()) -> PeftModel:
    """A fresh adapter; the modules in ``whole`` are trained besides it, as new tokens ask for, and a reward model's
    head always."""
    refuse_pairs(lora)
    targets = check_targets(model, lora)
    scores = score.is_there(model)
    heads = {score.HEAD} if scores else set()
    saved = sorted({*check_modules(model, lora.modules_to_save or ()), *whole, *heads})
    tied = bool(model.config.get_text_config().tie_word_embeddings) and not scores
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rs_lora,
        use_dora=lora.dora,
        modules_to_save=saved or None,
        # A tied head has to see what its embedding has learnt.
        ensure_weight_tying=tied and bool({*vocabulary.embeddings(model), HEAD} & set(saved)),
        bias="none",
    )
    return get_peft_model(model, config)


def refuse_pairs(lora: LoraSpec) -> None:
    """Settings that exclude each other."""
    if lora.dora and lora.init == "pissa":
        raise InvalidSpec(
            "tuning.lora: dora and init pissa can't be combined, as the result is no adapter of the untouched base:"
            " use one of them"
        )


def check_modules(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """modulesToSave, if each is there; peft itself ignores one that isn't."""
    there = {name.rpartition(".")[2]: module for name, module in model.named_modules() if name}
    wrong = sorted(set(names) - set(there))
    if wrong:
        whole = sorted(name for name, module in there.items() if any(True for _ in module.parameters(recurse=False)))
        raise InvalidSpec(
            f"tuning.lora.modulesToSave: this model has no {', '.join(wrong)}; it has: {', '.join(whole)}"
        )
    return list(names)


def check_targets(model: PreTrainedModel, lora: LoraSpec) -> str | list[str]:
    """targets as peft wants them, if each matches something; peft itself ignores one that doesn't."""
    if lora.targets == [ALL_LINEAR]:
        return ALL_LINEAR
    heads = (model.get_output_embeddings(), getattr(model, score.HEAD, None))  # type: ignore[no-untyped-call]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module not in heads]
    wrong = [t for t in lora.targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if wrong:
        raise InvalidSpec(
            f"tuning.lora.targets: {', '.join(wrong)} is no linear layer of this model; it has:"
            f" {', '.join(_last_names(linear))}; or use {ALL_LINEAR}"
        )
    return list(lora.targets)


def _last_names(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def cast_trainable(model: nn.Module, precision: Precision) -> None:
    """Give every trained weight its number type, whatever TRL, peft or a resume made of it."""
    dtype = torch.bfloat16 if precision == "pureBf16" else torch.float32
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype != dtype:
            weight.data = weight.data.to(dtype)


def linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """By name: all but a language model's head, whose weights are read without calling it, and layers that say one
    number, which compute in fp32."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and not isinstance(module, Scalar):
            yield name, module


def rounded_weights(model: Any) -> Iterator[nn.Parameter]:
    """Those that autocast computes with in bf16, whatever they are kept in."""
    for _, layer in linear_layers(model):
        yield from layer.parameters(recurse=False)


def count(model: nn.Module) -> tuple[int, int]:
    """(trained, all) weights. A 4 bit weight is packed, two to a byte; its own state knows its shape."""
    sizes = [
        (math.prod(state.shape) if (state := getattr(weight, "quant_state", None)) else weight.numel(), weight)
        for weight in model.parameters()
    ]
    return sum(size for size, weight in sizes if weight.requires_grad), sum(size for size, _ in sizes)
