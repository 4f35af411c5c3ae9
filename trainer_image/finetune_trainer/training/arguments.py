"""The job's settings as arguments of transformers' Trainer.

Every argument whose default would change a result or a file is set here, even if the default is the value that we want
today.
"""

import math
from typing import Any

import torch
from finetune_api.training import DECAY_RATIO, TrainingSpec

from finetune_trainer.collectives import COLLECTIVE_TIMEOUT
from finetune_trainer.model import recomputation
from finetune_trainer.model.base import Precision
from finetune_trainer.run import Run


def common(run: Run, total_steps: int, precision: Precision, *, recompute: bool) -> dict[str, Any]:
    """Arguments of the trainer, for all stages. ``recompute``: whether any layer runs again in the backward pass."""
    training = run.job.training
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(run.folders.run_checkpoints),
        # steps and optimizer
        "max_steps": total_steps,
        # A step is one batch of transformers: see `BaseTrainer.get_batch_samples`.
        "per_device_train_batch_size": training.global_batch_size // run.world_size,
        "gradient_accumulation_steps": 1,
        "average_tokens_across_devices": True,
        "learning_rate": training.learning_rate,
        **schedule(training, total_steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": training.optimizer,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "seed": training.seed,
        "data_seed": training.seed,
        "full_determinism": False,
        # number types and memory
        "use_cpu": not on_gpu,
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "activation_checkpointing": recompute,
        "activation_checkpointing_kwargs": recomputation.KWARGS,
        "use_liger_kernel": False,
        "torch_empty_cache_steps": None,
        "auto_find_batch_size": False,
        # ranks
        "ddp_backend": None if run.world_size == 1 else "nccl" if on_gpu else "gloo",
        # Without it, DDP rebuilds its buckets after the first step of every start. That changes the order in which
        # more than two ranks sum, so a resumed run would differ in the last bits. Off on GPUs: its cost is not
        # measured there.
        # Buffers are constants. Otherwise every forward pass would begin with waiting for rank 0 (`own_time`).
        "ddp_broadcast_buffers": False,
        "ddp_find_unused_parameters": not on_gpu and run.world_size > 2,
        "ddp_timeout": int(COLLECTIVE_TIMEOUT.total_seconds()),  # unused: `launcher.worker` made the group
        # data: see `BaseTrainer`
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu,
        "dataloader_drop_last": False,
        # reports and checkpoints: see `loop`
        "logging_strategy": "steps",
        "logging_steps": training.log_every_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "warning",
        "log_level_replica": "error",
        "eval_strategy": "no",
        "save_strategy": "no",
        "save_only_model": False,
        "load_best_model_at_end": False,
        "restore_callback_states_from_checkpoint": False,
        "push_to_hub": False,
    }


def schedule(training: TrainingSpec, total_steps: int) -> dict[str, Any]:
    """The learning-rate schedule. At least one step has the full rate, even if the warm-up is rounded up to the whole
    run."""
    warmup = min(math.ceil(training.warmup_ratio * total_steps), total_steps - 1)
    floor = training.min_learning_rate_ratio
    name: str = training.scheduler
    settings: dict[str, Any] = {}
    match name:
        case "constant":  # transformers' own has no warm-up
            name = "constant_with_warmup"
        case "cosine_with_restarts":
            settings = {"num_cycles": training.scheduler_cycles}
        case "cosine_with_min_lr":
            settings = {"min_lr_rate": 0.1 if floor is None else floor}
        case "polynomial":  # transformers ends at a fixed rate by default, which is above some learning rates
            assert training.learning_rate is not None  # filled in by finetune_api.contract.fill_in
            settings = {"lr_end": (floor or 0.0) * training.learning_rate}
        case "warmup_stable_decay":
            decay = min(math.ceil((training.decay_ratio or DECAY_RATIO) * total_steps), total_steps - warmup)
            settings = {"num_decay_steps": decay, "min_lr_ratio": floor or 0.0}
    return {"lr_scheduler_type": name, "lr_scheduler_kwargs": settings, "warmup_steps": warmup}
