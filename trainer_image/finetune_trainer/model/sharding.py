"""``training.parallelism: fsdp``: every rank holds a share of weights, gradients and optimizer (accelerate's FSDP2).

Called by `playbook`. Gradients are averaged over ranks, as with DDP, so the loss and its count are the same in both.
What is saved while training are shards, which any number of ranks can load; a whole model is put together once, at the
end.
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
from finetune_trainer.model.base import Precision


def join_alone(backend: str) -> None:
    """One rank that shards is a group of one: its checkpoints are then those of many. Libraries look at LOCAL_RANK."""
    if distributed.is_initialized():
        return
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def arguments(model: nn.Module) -> dict[str, Any]:
    """In the words of transformers."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": layer_classes(model),
            "reshard_after_forward": True,
            "state_dict_type": "SHARDED_STATE_DICT",
            "cpu_ram_efficient_loading": False,
            # The model recomputes its activations itself: accelerate's way draws another dropout the second time.
            "activation_checkpointing": False,
        },
        # Else each rank would hold the gradients of the whole model until the last micro-batch of a step.
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def set_precision(args: Any, precision: Precision) -> None:
    """With bf16, shares are kept as they are loaded, gathered and computed with in bf16, and gradients summed in fp32
    (accelerate's own choice sums them in bf16 and rounds each token's loss to it)."""
    if precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        args.fsdp_plugin_args["mixed_precision_policy"] = policy


def check(trainer: Any) -> None:
    """accelerate falls back to DDP without a word where it finds no accelerator."""
    if not trainer.is_fsdp_enabled:
        raise InvalidSpec("training.parallelism: fsdp needs GPUs, and none is visible here: use ddp")


def layer_classes(model: nn.Module) -> list[str]:
    """What is gathered and freed as one: the classes of the model's layers."""
    there = {type(module).__name__ for module in model.modules()}
    named = sorted(there & set(getattr(model, "_no_split_modules", None) or ()))
    return named or sorted({type(layer).__name__ for layer in freeze.find_layers(model)[1]})


def gather_head(model: Any) -> None:
    """Let the output head be whole when the fused loss reads its weights. It reads them without calling the head, so
    nothing else gathers them, and a gradient of a share alone would never be summed over ranks."""

    def gather(_module: nn.Module, _args: Any, output: Any) -> Any:
        head: Any = model.get_output_embeddings()
        if is_sharded(head) and isinstance(head.weight, DTensor):
            head.unshard()
        return output

    model.base_model.register_forward_hook(gather)


def is_sharded(model: Any) -> bool:
    """Whether this rank holds a share of the model alone."""
    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Give up the weights that a forward pass without a backward one has left whole: root and head."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gather(model: Any, *, trained_only: bool) -> dict[str, torch.Tensor]:
    """The weights, whole, on rank 0's CPU; other ranks take part and get nothing. One weight at a time is whole on a
    GPU, and what is tied stays so."""
    is_main = distributed.get_rank() == 0
    found: dict[str, torch.Tensor] = {}
    made: dict[int, torch.Tensor] = {}
    # Kept as they are: copies of a tied weight would no longer be known as one.
    shares: dict[str, Any] = model.state_dict(keep_vars=True)
    for name, share in shares.items():
        if trained_only and not share.requires_grad:
            continue
        if id(share) not in made:
            whole: torch.Tensor = share.full_tensor() if isinstance(share, DTensor) else share
            made[id(share)] = whole.detach().cpu() if is_main else torch.empty(0)
        if is_main:
            found[name] = made[id(share)]
    return found
