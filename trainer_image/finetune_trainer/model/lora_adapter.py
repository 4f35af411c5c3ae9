"""Methods lora and qlora: a fresh adapter on a loaded model.

Called by `build`, and by the memory estimate with a model without weights. Names in the job are checked against the
model's layers, because peft silently ignores a name that matches nothing.
"""

from collections.abc import Collection, Iterable

import torch
from finetune_api.tuning import LoraSpec
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import experts, reward_head, vocabulary

ALL_LINEAR, LM_HEAD = "all-linear", "lm_head"


def add(model: PreTrainedModel, lora: LoraSpec, seed: int, full_modules: Collection[str] = ()) -> PeftModel:
    """The model with a fresh adapter, drawn from the seed. The modules in ``full_modules`` are trained in full besides
    it: the embeddings of new tokens. So is the head of a reward model, always."""
    refuse_conflicts(lora)
    targets = check_targets(model, lora)
    is_reward = reward_head.is_reward_model(model)
    heads = {reward_head.NAME} if is_reward else set()
    saved = sorted({*check_modules_to_save(model, lora.modules_to_save or ()), *full_modules, *heads})
    tied = bool(model.config.get_text_config().tie_word_embeddings) and not is_reward
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="SEQ_CLS" if is_reward else "CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=_routers(model) if targets == ALL_LINEAR else None,
        use_rslora=lora.rs_lora,
        use_dora=lora.dora,
        modules_to_save=saved or None,
        # A tied head must get the weights that its embedding learned.
        ensure_weight_tying=tied and bool({*vocabulary.embeddings(model), LM_HEAD} & set(saved)),
        bias="none",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:  # peft does not adapt every layer of every family, as those of Mamba
        raise InvalidSpec(
            f"tuning.lora.targets: peft can't adapt these layers of a {model.config.model_type!r} model: {error}"
        ) from error


def refuse_conflicts(lora: LoraSpec) -> None:
    """Refuse settings that exclude each other."""
    if lora.dora and lora.init == "pissa":
        raise InvalidSpec(
            "tuning.lora: dora and init pissa can't be combined, because the result is not an adapter of the untouched"
            " base. Use one of them"
        )


def check_modules_to_save(model: PreTrainedModel, names: Collection[str]) -> list[str]:
    """The names in modulesToSave, if the model has each of them."""
    modules = {name.rpartition(".")[2]: module for name, module in model.named_modules() if name}
    unknown = sorted(set(names) - set(modules))
    if unknown:
        allowed = sorted(
            name for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))
        )
        raise InvalidSpec(
            f"tuning.lora.modulesToSave: this model has no {', '.join(unknown)}. It has: {', '.join(allowed)}"
        )
    return list(names)


def check_targets(model: PreTrainedModel, lora: LoraSpec) -> str | list[str]:
    """The targets as peft expects them, if each matches a linear layer."""
    heads = (model.get_output_embeddings(), getattr(model, reward_head.NAME, None))  # type: ignore[no-untyped-call]
    if lora.targets == [ALL_LINEAR]:
        return experts.linear_without_routers(model, heads) or ALL_LINEAR
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module not in heads]
    unknown = [t for t in lora.targets if not any(name == t or name.endswith(f".{t}") for name in linear)]
    if unknown:
        raise InvalidSpec(
            f"tuning.lora.targets: {', '.join(unknown)} is no linear layer of this model. It has:"
            f" {', '.join(_last_parts(linear))}. Name some of these, or use {ALL_LINEAR}"
        )
    return list(lora.targets)


def _routers(model: PreTrainedModel) -> list[str] | None:
    """Linear layers that ``all-linear`` leaves out."""
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sorted(experts.routers(model) & linear) or None


def _last_parts(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})
