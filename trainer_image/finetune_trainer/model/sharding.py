"""``training.parallelism: fsdp``: every rank holds shards of weights, gradients and optimizer (accelerate's FSDP2).

Called by the training recipe. Gradients are averaged over ranks, as with DDP, so losses and counts are the same as
there. Checkpoints contain shards, which any number of ranks can load. A whole model is gathered once, at the end.
"""

import os
from typing import Any

import torch
from torch import distributed, nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import freeze
from finetune_trainer.model.base import COMPUTED_IN, MIXED, Precision


def init_single_process_group(backend: str) -> None:
    """A single process with FSDP needs a process group too: then its checkpoints have the same format as those of many
    ranks. Libraries read LOCAL_RANK."""
    if distributed.is_initialized():
        return
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def training_arguments(model: nn.Module) -> dict[str, Any]:
    """The settings of transformers' TrainingArguments for FSDP."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": layer_classes(model),
            "reshard_after_forward": True,
            "state_dict_type": "SHARDED_STATE_DICT",
            "cpu_ram_efficient_loading": False,
            # The model recomputes its activations itself: accelerate would draw another dropout mask the second time.
            "activation_checkpointing": False,
        },
        # Otherwise each rank would hold the gradients of the whole model until the last micro-batch of a step.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def set_precision(args: Any, precision: Precision) -> None:
    """With bf16 and fp16, shards keep the number type in which they were loaded. Weights are gathered and used in 16
    bit, and gradients are summed in fp32. accelerate's default sums them in 16 bit, and rounds each token's loss."""
    if precision in MIXED:
        policy = MixedPrecisionPolicy(param_dtype=COMPUTED_IN[precision], reduce_dtype=torch.float32)
        args.fsdp_plugin_args["mixed_precision_policy"] = policy


def check_enabled(trainer: Any) -> None:
    """Raises InvalidSpec without an accelerator: accelerate would silently fall back to DDP."""
    if not trainer.is_fsdp_enabled:
        raise InvalidSpec("training.parallelism: fsdp needs GPUs, and none is visible here. Use ddp")


def layer_classes(model: nn.Module) -> list[str]:
    """The classes of the model's layers. Each layer is gathered and freed as a unit."""
    present = {type(module).__name__ for module in model.modules()}
    named = sorted(present & set(getattr(model, "_no_split_modules", None) or ()))
    return named or sorted({type(layer).__name__ for layer in freeze.find_layers(model)[1]})


def unshard_head_after_backbone(model: Any) -> None:
    """Gather the head's weights before the fused loss reads them. The loss reads them without calling the head, so no
    FSDP hook gathers them, and the gradient of one rank's shard would never be summed over ranks."""

    def unshard(_module: nn.Module, _args: Any, output: Any) -> Any:
        head: Any = model.get_output_embeddings()
        if is_sharded(head) and isinstance(head.weight, DTensor):
            head.unshard()
        return output

    model.base_model.register_forward_hook(unshard)


def is_sharded(model: Any) -> bool:
    """Whether this rank holds only a shard of each weight."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Free the gathered weights of root and head, which stay gathered after a forward pass without a backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather_state_dict(model: Any, *, trained_only: bool) -> dict[str, torch.Tensor]:
    """The full weights on rank 0's CPU. Other ranks take part and get an empty dictionary. A GPU holds one full weight
    at a time, and tied weights stay tied."""
    is_main = distributed.get_rank() == 0
    state: dict[str, torch.Tensor] = {}
    by_id: dict[int, torch.Tensor] = {}
    # keep_vars: copies of a tied weight would have different ids.
    shards: dict[str, Any] = model.state_dict(keep_vars=True)
    for name, shard in shards.items():
        if trained_only and not shard.requires_grad:
            continue
        if id(shard) not in by_id:
            full: torch.Tensor = shard.full_tensor() if isinstance(shard, DTensor) else shard
            by_id[id(shard)] = full.detach().cpu() if is_main else torch.empty(0)
        if is_main:
            state[name] = by_id[id(shard)]
    return state
