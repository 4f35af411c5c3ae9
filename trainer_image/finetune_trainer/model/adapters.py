"""Which weights are trained: a method of spec.tuning applied to a loaded model.

Called by workflows after `base.load`. Trained weights are fp32 unless the job says pureBf16: small updates are lost in
bf16.
"""

from collections.abc import Iterable

import torch
from finetune_api.tuning import LoraSpec, TuningSpec
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model.base import Precision

ALL_LINEAR = "all-linear"


def load_dtype(method: str, precision: Precision) -> torch.dtype:
    """What the base is loaded in: trained weights in fp32, frozen ones as small as the job's precision allows."""
    if precision == "fp32" or (precision == "bf16" and method == "full"):
        return torch.float32
    return torch.bfloat16


def apply(model: PreTrainedModel, tuning: TuningSpec, seed: int) -> PreTrainedModel | PeftModel:
    """The model with its trainable weights marked, fresh ones drawn from the seed."""
    if tuning.method == "full":
        model.requires_grad_(True)
        return model
    assert tuning.lora is not None  # filled in by finetune_api.contract.fill_in
    targets = check_targets(model, tuning.lora)
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.lora.rank,
        lora_alpha=tuning.lora.alpha or 2 * tuning.lora.rank,
        lora_dropout=tuning.lora.dropout,
        target_modules=targets,
        bias="none",
    )
    return get_peft_model(model, config)


def check_targets(model: PreTrainedModel, lora: LoraSpec) -> str | list[str]:
    """targets as peft wants them, if each matches something; peft itself ignores one that doesn't."""
    if lora.targets == [ALL_LINEAR]:
        return ALL_LINEAR
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
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


def count(model: nn.Module) -> tuple[int, int]:
    """(trained, all) weights."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)
