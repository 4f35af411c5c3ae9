"""TRL's own trainers on raw rows: what the losses of stages sft, rm, dpo and kto are held to.

TRL tokenizes, masks, packs, pads, counts and computes by itself. What it gets is the model as our stage builds it, or
in `adapted_sft` the untouched loss, and the rows in the order of `data.order`, which it takes them in: its sampler is
sequential and shuffles nothing. World 1, accumulation 1, fp32, no dropout.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_trainer.data import order

EPOCHS = 4
"""More than any test trains."""


def in_our_order(rows: Sequence[Any], global_batch: int, seed: int) -> list[Any]:
    """The rows as our sampler takes them, epoch after epoch. (Within a step it sorts them by length, which is no other
    sum.)"""
    return [rows[at] for epoch in range(EPOCHS) for at in order.epoch_order(len(rows), global_batch, seed, epoch)]


def settings(folder: Path, steps: int, batch: int, learning_rate: float) -> dict[str, Any]:
    """Arguments of each of TRL's trainers, as `tiny.job` has them."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
        "disable_tqdm": True,
    }


def sft(model: Any, tokens: Any, rows: list[dict[str, Any]], arguments: dict[str, Any], **more: Any) -> list[float]:
    """One batch a step, each row by itself."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    return losses(SFTTrainer, SFTConfig(**arguments, shuffle_dataset=False, **more), model, tokens, prompts(rows))


def adapted_sft(
    base: Any, tokens: Any, rows: list[dict[str, Any]], arguments: dict[str, Any], ours: dict[str, Any], **lora: Any
) -> list[float]:
    """With an adapter that TRL puts on the untouched base. Its random half is taken from ``ours``, the weights that we
    train, by name; it is asserted that TRL trains the same."""
    import torch
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    config, adapter = SFTConfig(**arguments, shuffle_dataset=False), LoraConfig(task_type="CAUSAL_LM", **lora)
    trainer: Any = SFTTrainer(
        base, args=config, train_dataset=data(prompts(rows)), processing_class=tokens, peft_config=adapter
    )
    theirs = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert set(theirs) == set(ours)
    with torch.no_grad():
        for name, weight in theirs.items():
            if ".lora_A." in name:
                weight.copy_(ours[name])
    return trained(trainer)


def chats_sft(model: Any, tokens: Any, rows: list[dict[str, Any]], arguments: dict[str, Any]) -> list[float]:
    """Whole conversations, of which TRL trains what the template of ``tokens`` marks."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    config = SFTConfig(**arguments, shuffle_dataset=False, assistant_only_loss=True)
    return losses(SFTTrainer, config, model, tokens, rows)


def packed_sft(
    model: Any, tokens: Any, rows: list[dict[str, Any]], arguments: dict[str, Any], cutoff: int, ours: list[set[str]]
) -> list[float]:
    """TRL packs the rows; its packs are taken in the order that ours have: ``ours`` are the texts in each, step by
    step. A pack that TRL has made otherwise is an error."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    config = SFTConfig(**arguments, shuffle_dataset=False, packing=True, packing_strategy="bfd", max_length=cutoff)
    trainer: Any = SFTTrainer(model, args=config, train_dataset=data(prompts(rows)), processing_class=tokens)
    places = {frozenset(texts(tokens, pack)): at for at, pack in enumerate(trainer.train_dataset)}
    trainer.train_dataset = trainer.train_dataset.select([places[frozenset(pack)] for pack in ours])
    return trained(trainer)


def texts(tokens: Any, pack: dict[str, Any]) -> list[str]:
    """The documents of one of TRL's packs."""
    found, start = [], 0
    for length in pack["seq_lengths"]:
        found.append(tokens.decode(pack["input_ids"][start : start + length]))
        start += length
    return found


def rm(model: Any, tokens: Any, rows: list[dict[str, Any]], arguments: dict[str, Any], **more: Any) -> list[float]:
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    return losses(RewardTrainer, RewardConfig(**arguments, **more), model, tokens, rows)


def dpo(model: Any, tokens: Any, rows: list[dict[str, Any]], arguments: dict[str, Any], **more: Any) -> list[float]:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    return losses(DPOTrainer, DPOConfig(**arguments, **more), model, tokens, rows)


def kto(model: Any, tokens: Any, rows: list[dict[str, Any]], arguments: dict[str, Any], **more: Any) -> list[float]:
    """TRL pairs each prompt with the answer before it in its batch, the first with the last: where its batch is the
    global batch, in the order that ours has before it sorts, these are our pairs."""
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    return losses(KTOTrainer, KTOConfig(**arguments, **more), model, tokens, rows)


def prompts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Conversations as TRL trains the last answer of."""
    return [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]


def data(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def losses(kind: Any, config: Any, model: Any, tokens: Any, rows: list[dict[str, Any]]) -> list[float]:
    """The loss that a trainer logs at each step."""
    return trained(kind(model, args=config, train_dataset=data(rows), processing_class=tokens))


def trained(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
