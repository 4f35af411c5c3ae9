"""The job's settings in the words of TRL and transformers.

Called by workflows. Every default of TRL that would change a result or a file is set here, whether or not it is what we
want today.
"""

import math
from typing import Any

import torch
from finetune_api.training import DECAY_RATIO, TrainingSpec

from finetune_trainer.model.base import Precision
from finetune_trainer.rendezvous import COLLECTIVE_TIMEOUT
from finetune_trainer.run import Run


def common(run: Run, total_steps: int, precision: Precision) -> dict[str, Any]:
    """Arguments of every stage's trainer."""
    training = run.job.training
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(run.folders.run_checkpoints),
        # how long, how fast
        "max_steps": total_steps,
        "per_device_train_batch_size": run.micro_batch_size,
        "gradient_accumulation_steps": run.accumulation,
        "average_tokens_across_devices": True,
        "learning_rate": training.learning_rate,
        **schedule(training, total_steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "neftune_noise_alpha": training.neftune_noise_alpha,
        "optim": training.optimizer,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "seed": training.seed,
        "data_seed": training.seed,
        "full_determinism": False,
        # numbers and memory
        "use_cpu": not on_gpu,
        "bf16": precision == "bf16",
        "fp16": False,
        "activation_checkpointing": training.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "use_liger_kernel": False,
        "torch_empty_cache_steps": None,
        "auto_find_batch_size": False,
        # ranks
        "ddp_backend": None if run.world_size == 1 else "nccl" if on_gpu else "gloo",
        # Without it DDP lays out its buckets anew after the first step of every start, and with them the order in which
        # more than two ranks sum: a resumed run would differ in the last bits. Off on GPUs: its cost is not
        # measured there.
        "ddp_find_unused_parameters": not on_gpu and run.world_size > 2,
        "ddp_timeout": int(COLLECTIVE_TIMEOUT.total_seconds()),  # worker has made the group already
        # data: ours whole
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": on_gpu,
        "dataloader_drop_last": False,
        # reports and checkpoints: ours, by callbacks
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
    """How the learning rate moves. At least one step has all of it, also where the warm-up is rounded up to the whole
    run."""
    warmup = min(math.ceil(training.warmup_ratio * total_steps), total_steps - 1)
    floor = training.min_learning_rate_ratio
    name: str = training.scheduler
    settings: dict[str, Any] = {}
    match name:
        case "constant":  # the library's has no warm-up
            name = "constant_with_warmup"
        case "cosine_with_restarts":
            settings = {"num_cycles": training.scheduler_cycles}
        case "cosine_with_min_lr":
            settings = {"min_lr_rate": 0.1 if floor is None else floor}
        case "polynomial":  # the library's default end is a rate of its own, above some that people use
            assert training.learning_rate is not None  # filled in by finetune_api.contract.fill_in
            settings = {"lr_end": (floor or 0.0) * training.learning_rate}
        case "warmup_stable_decay":
            decay = min(math.ceil((training.decay_ratio or DECAY_RATIO) * total_steps), total_steps - warmup)
            settings = {"num_decay_steps": decay, "min_lr_ratio": floor or 0.0}
    return {"lr_scheduler_type": name, "lr_scheduler_kwargs": settings, "warmup_steps": warmup}


SFT: dict[str, Any] = {
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "packing": False,
    "padding_free": False,
    "shuffle_dataset": False,
    "completion_only_loss": False,
    "assistant_only_loss": False,
    "loss_type": "nll",
    "label_smoothing_factor": 0.0,
    "activation_offloading": False,
    "trust_remote_code": False,
}
"""What TRL's SFTConfig has besides: rows come ready, TRL prepares, packs and cuts nothing."""
