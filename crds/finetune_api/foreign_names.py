"""The fields that other trainers' names mean: transformers' TrainingArguments, TRL, LLaMA-Factory and Axolotl.

A refusal of an unknown field says which field to use. docs/llamafactory.md explains where values differ.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from finetune_api.spec import FineTuneJobSpec

NAMES: dict[str, str] = {
    "stage": "rl",
    "model.source": "model_name_or_path base_model model_name model_path model_revision",
    "model.attention": "flash_attn attn_implementation flash_attention sdp_attention xformers_attention",
    "model.newTokens": "add_tokens",
    "model.newSpecialTokens": "add_special_tokens new_special_tokens_config resize_vocab special_tokens",
    "datasets": "dataset dataset_dir media_dir train_dataset dataset_name dataset_path",
    "datasets.source": "path file_name hf_hub_url folder cloud_file_name data_files",
    "datasets.format": "formatting ranking ds_type",
    "datasets.columns.label": "kto_tag",
    "datasets.columns.messages": "field_messages",
    "datasets.columns.text": "dataset_text_field",
    "datasets.tags.role": "role_tag message_field_role",
    "datasets.tags.content": "content_tag message_field_content",
    "datasets.tags.user": "user_tag",
    "datasets.tags.assistant": "assistant_tag",
    "datasets.tags.observation": "observation_tag",
    "datasets.tags.function": "function_tag",
    "datasets.tags.system": "system_tag",
    "datasets.maxSamples": "num_samples",
    "datasets.subset": "config_name dataset_config",
    "datasets.weight": "interleave_probs",
    "mixing": "mix_strategy",
    "template.name": "chat_template chat_template_path enable_thinking conversation",
    "template.defaultSystem": "system_prompt default_system_message",
    "template.trainOnPrompt": "train_on_inputs completion_only_loss assistant_only_loss",
    "evaluation.datasets": "eval_dataset test_datasets",
    "evaluation.splitFraction": "val_size val_set_size test_size",
    "evaluation.everySteps": "eval_strategy evaluation_strategy eval_steps evals_per_epoch",
    "evaluation.earlyStopping.patience": "early_stopping_steps early_stopping_patience",
    "evaluation.generate": "do_predict predict_with_generate",
    "evaluation.generate.maxNewTokens": "generation_max_length",
    "tuning.method": "finetuning_type load_in_4bit load_in_8bit use_peft adapter_type",
    "tuning.lora": "peft_config lora_config",
    "tuning.lora.rank": "lora_rank lora_r",
    "tuning.lora.alpha": "lora_alpha",
    "tuning.lora.dropout": "lora_dropout",
    "tuning.lora.targets": "lora_target lora_target_modules target_modules lora_target_linear",
    "tuning.lora.modulesToSave": "additional_target lora_modules_to_save",
    "tuning.lora.rsLora": "use_rslora lora_use_rslora peft_use_rslora",
    "tuning.lora.dora": "use_dora peft_use_dora lora_use_dora",
    "tuning.lora.init": "pissa_init init_lora_weights peft_init_lora_weights",
    "tuning.lora.loraPlusRatio": "loraplus_lr_ratio",
    "tuning.quantization.bits": "quantization_bit",
    "tuning.quantization.doubleQuantization": "use_bnb_nested_quant bnb_4bit_use_double_quant",
    "tuning.freeze.layers": "freeze_trainable_layers",
    "tuning.freeze.modules": "freeze_trainable_modules unfrozen_parameters",
    "tuning.freeze.extraModules": "freeze_extra_modules",
    "tuning.adapter.source": "adapter_name_or_path adapter_folder lora_model_dir",
    "tuning.adapter.mode": "create_new_adapter",
    "training.epochs": "num_train_epochs num_epochs train_epochs",
    "training.maxSteps": "max_train_steps total_steps",
    "training.learningRate": "lr base_lr",
    "training.scheduler": "lr_scheduler_type lr_scheduler",
    "training.minLearningRateRatio": "cosine_min_lr_ratio min_lr_ratio min_lr_rate min_lr",
    "training.schedulerCycles": "lr_scheduler_kwargs num_cycles",
    "training.optimizer": "optim",
    "training.warmupRatio": "warmup_steps warmup",
    "training.maxGradNorm": "gradient_clipping max_gradient_norm",
    "training.globalBatchSize": "gradient_accumulation_steps train_batch_size",
    "training.microBatchSize": "per_device_train_batch_size per_device_batch_size",
    "training.cutoffLength": "cutoff_len max_seq_length max_seq_len sequence_len max_length",
    "training.packing": "neat_packing sample_packing packing_strategy multipack",
    "training.groupByLength": "train_sampling_strategy",
    "training.neftuneNoiseAlpha": "neftune_alpha noisy_embedding_alpha",
    "training.precision": "bf16 fp16 pure_bf16 mixed_precision torch_dtype",
    "training.recompute": "disable_gradient_checkpointing gradient_checkpointing activation_checkpointing",
    "training.parallelism": (
        "deepspeed fsdp fsdp_config fsdp_transformer_layer_cls_to_wrap parallelism_config accelerator_config"
    ),
    "training.logEverySteps": "logging_steps logging_strategy",
    "training.seed": "data_seed",
    "dpo.loss": "pref_loss loss_type",
    "dpo.beta": "pref_beta dpo_beta",
    "dpo.labelSmoothing": "dpo_label_smoothing label_smoothing",
    "dpo.sftWeight": "pref_ftx rpo_alpha cpo_alpha",
    "dpo.reference": "ref_model ref_model_adapters",
    "dpo.precomputeReference": "precompute_ref_log_probs",
    "kto.beta": "kto_beta",
    "kto.desirableWeight": "kto_chosen_weight kto_desirable_weight",
    "kto.undesirableWeight": "kto_rejected_weight kto_undesirable_weight",
    "rm.centerRewards": "center_rewards_coefficient",
    "ppo.rewardModel": "reward_model_type reward_model_adapters reward_model_path",
    "ppo.epochs": "num_ppo_epochs ppo_epochs",
    "ppo.rolloutBatchSize": "ppo_buffer_size",
    "ppo.rewardNormalization": "ppo_score_norm",
    "ppo.klTarget": "ppo_target",
    "ppo.klCoefficient": "kl_coef init_kl_coef",
    "ppo.whitenRewards": "ppo_whiten_rewards",
    "ppo.maxNewTokens": "response_length max_completion_length",
    "ppo.missingEosPenalty": "missing_eos_penalty",
    "ppo.clipRange": "cliprange",
    "ppo.valueClipRange": "cliprange_value",
    "ppo.valueCoefficient": "vf_coef",
    "ppo.gaeLambda": "lam",
    "checkpoints.everySteps": "save_steps save_strategy saves_per_epoch",
    "checkpoints.keep": "save_total_limit",
    "reporting": "report_to",
    "reporting.wandb.project": "wandb_project",
    "reporting.wandb.entity": "wandb_entity",
    "reporting.tensorboard": "use_tensorboard",
    "reporting.mlflow.trackingUri": "mlflow_tracking_uri",
    "reporting.mlflow.experiment": "mlflow_experiment_name",
    "output.uri": "push_to_hub hub_model_id hub_revision export_hub_model_id",
    "output.merge": "export_dir merge_lora",
    "output.weights": "load_best_model_at_end",
    "workspace": "output_dir",
    "prepare.cpu": "preprocessing_num_workers dataset_processes dataset_num_proc",
    "secrets.huggingFace": "hf_hub_token hub_token hf_token hf_use_auth_token",
    "resources.gpusPerNode": "use_cpu num_gpus gpus n_gpu resources_per_worker",
    "resources.nodes": "num_machines num_nodes nnodes ray_num_workers ray_run_name ray_init_kwargs",
}
"""Field below spec -> the names that mean it. Names that only differ in underscores and capitals are not listed."""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_FIELDS = {_plain(name): field for field, names in NAMES.items() for name in names.split()}


def use_instead(location: Sequence[int | str]) -> str | None:
    """The path of the field to use in place of an unknown field of a FineTuneJob, None if its name means none."""
    field = field_for(str(location[-1])) if location[0] == "spec" and len(location) > 1 else None
    if field and field.startswith("datasets.") and list(location[1:3]) == ["evaluation", "datasets"]:
        field = f"evaluation.{field}"
    return f"spec.{field}" if field else None


def field_for(name: str) -> str | None:
    """The path below spec of the field that a name means: another trainer's name for it, or the only field of this name
    in another place. None if no field fits, or more than one."""
    plain = _plain(name)
    if plain in _FIELDS:
        return _FIELDS[plain]
    named = [field for field in spec_fields() if _plain(field.rsplit(".", 1)[-1]) == plain]
    return named[0] if len(named) == 1 else None


@cache
def spec_fields() -> tuple[str, ...]:
    """The paths of all fields below spec, without those of Kubernetes' own objects and of held-out data sets, which
    have the fields of data sets."""
    return tuple(_paths(FineTuneJobSpec, ""))


def _paths(model: type[BaseModel], above: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        path = above + (info.alias or name)
        yield path
        inner = model_in(info.annotation)
        if inner is not None and path not in ("resources", "evaluation.datasets"):
            yield from _paths(inner, f"{path}.")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside ``Model | None`` or ``list[Model]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := model_in(part))), None)
