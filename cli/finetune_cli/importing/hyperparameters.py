"""spec.training and spec.checkpoints from the settings of LLaMA-Factory."""

from typing import Any, get_args

from finetune_cli.importing.notes import Fate, Imported, put
from finetune_cli.importing.settings import Settings
from finetune_cli.importing.values import left_out, why

COPIED: tuple[tuple[str, str, type], ...] = (
    ("adam_beta1", "adamBeta1", float),
    ("adam_beta2", "adamBeta2", float),
    ("adam_epsilon", "adamEpsilon", float),
    ("weight_decay", "weightDecay", float),
    ("max_grad_norm", "maxGradNorm", float),
    ("seed", "seed", int),
    ("neftune_noise_alpha", "neftuneNoiseAlpha", float),
)
ZERO = {"ds_z0": "ddp", "ds_z1": "ddp", "ds_z2": "fsdp", "ds_z3": "fsdp"}


def training(out: Imported, given: Settings, stage: str, ranks: int) -> None:
    """The hyperparameters, with the defaults of LLaMA-Factory. `ranks` are all GPUs."""
    spec = out.job["spec"]
    found: dict[str, Any] = spec.setdefault("training", {})
    steps = int(given.number("max_steps", -1) or -1)
    epochs = given.number("num_train_epochs", 3.0)
    if steps > 0:
        found["maxSteps"] = steps
        if given.has("num_train_epochs"):
            out.note(Fate.NOT_NEEDED, f"num_train_epochs: {epochs:g}", "max_steps takes precedence, as there")
    else:
        found["epochs"] = epochs
    found["learningRate"] = given.number("learning_rate", 5e-5)
    _batch(out, given, found, ranks)
    _schedule(out, given, found, steps)
    found["cutoffLength"] = int(given.take("cutoff_len", 2048))
    optimizer = str(given.take("optim", "adamw_torch"))
    if optimizer in _allowed("optimizer"):
        found["optimizer"] = optimizer
    else:
        left_out(out, "optim", optimizer, f"use one of {', '.join(_allowed('optimizer'))}")
    for argument, field, kind in COPIED:
        if given.has(argument):
            found[field] = kind(given.take(argument))
    if given.has("data_seed"):
        _same_seed(out, given, found)
    _precision(out, given, found)
    _packing(out, given, found, stage)
    if given.take("disable_gradient_checkpointing", False):
        found["recompute"] = "none"
    elif given.has("disable_gradient_checkpointing") or given.take("gradient_checkpointing", False):
        found["recompute"] = "all"
    sampling = str(given.take("train_sampling_strategy", ""))
    if given.take("group_by_length", False) or sampling == "group_by_length":
        found["groupByLength"] = True
    _parallelism(out, given, found)
    _saving(out, given, found)


def _batch(out: Imported, given: Settings, found: dict[str, Any], ranks: int) -> None:
    micro = int(given.take("per_device_train_batch_size", 8))
    accumulated = int(given.take("gradient_accumulation_steps", 1))
    found["microBatchSize"] = micro
    found["globalBatchSize"] = micro * accumulated * ranks
    text = f"the global batch is {micro} x {accumulated} x {ranks} GPU{'s'[: ranks != 1]}. For another number: --gpus"
    out.note(Fate.CHANGED, "gradient_accumulation_steps", text)


def _schedule(out: Imported, given: Settings, found: dict[str, Any], steps: int) -> None:
    scheduler = str(given.take("lr_scheduler_type", "linear"))
    if scheduler in _allowed("scheduler"):
        found["scheduler"] = scheduler
    else:
        left_out(out, "lr_scheduler_type", scheduler, f"use one of {', '.join(_allowed('scheduler'))}")
    warmup = given.number("warmup_ratio", 0.0) or 0.0
    counted = given.number("warmup_steps", 0.0) or 0.0
    if counted >= 1 and steps > 0:
        warmup = counted / steps
    elif counted >= 1:
        left_out(
            out, "warmup_steps", int(counted), "divide it by the number of all steps, and set training.warmupRatio"
        )
    elif counted:
        warmup = counted  # newer versions take a share here, too
    found["warmupRatio"] = warmup
    extra = given.take("lr_scheduler_kwargs") or {}
    for key, value in extra.items() if isinstance(extra, dict) else ():
        if key == "num_cycles" and scheduler == "cosine_with_restarts":
            found["schedulerCycles"] = int(value)
        elif key in ("min_lr_rate", "min_lr_ratio") and scheduler in ("cosine_with_min_lr", "warmup_stable_decay"):
            found["minLearningRateRatio"] = float(value)
        else:
            left_out(out, f"lr_scheduler_kwargs.{key}", value, why("lr_scheduler_kwargs"))


def _same_seed(out: Imported, given: Settings, found: dict[str, Any]) -> None:
    other = int(given.take("data_seed"))
    if other != found.get("seed", 42):
        left_out(out, "data_seed", other)


def _precision(out: Imported, given: Settings, found: dict[str, Any]) -> None:
    chosen = [
        here
        for argument, here in (("pure_bf16", "pureBf16"), ("bf16", "bf16"), ("fp16", "fp16"))
        if given.take(argument, False)
    ]
    found["precision"] = chosen[0] if chosen else "fp32"
    if not chosen:
        out.note(
            Fate.CHANGED, "bf16", "it is left out, which means fp32. For less memory, set training.precision: auto"
        )


def _packing(out: Imported, given: Settings, found: dict[str, Any], stage: str) -> None:
    packed, isolated = given.take("packing"), bool(given.take("neat_packing", False))
    if stage == "pt":
        found["packing"] = "none" if packed is False else "wrapped"
    elif stage == "sft" and (packed or isolated):
        found["packing"] = "bfd"
        if not isolated:
            out.note(Fate.CHANGED, "packing: True", why("packing"))
    elif packed or isolated:
        left_out(out, "packing", True, "packing works in stages pt and sft only")


def _parallelism(out: Imported, given: Settings, found: dict[str, Any]) -> None:
    deepspeed, fsdp = str(given.take("deepspeed", "")), given.take("fsdp", "")
    settings = given.take("fsdp_config", "")
    given.take("fsdp_transformer_layer_cls_to_wrap")
    known = next((here for name, here in ZERO.items() if name in deepspeed), None)
    if fsdp or known == "fsdp":
        found["parallelism"] = "fsdp"
    elif deepspeed and known is None:
        left_out(out, "deepspeed", deepspeed, why("deepspeed"))
    if "offload" in f"{deepspeed} {fsdp} {settings}":
        left_out(
            out,
            "deepspeed",
            deepspeed or fsdp,
            "nothing is moved to main memory: use more GPUs, or tuning.method qlora",
        )
    if found.get("parallelism") == "fsdp" and out.job["spec"]["tuning"]["method"] == "qlora":
        del found["parallelism"]
        left_out(out, "deepspeed", deepspeed or fsdp, "fsdp cannot shard quantized weights: the job uses ddp")


def _saving(out: Imported, given: Settings, found: dict[str, Any]) -> None:
    strategy = str(given.take("logging_strategy", "steps"))
    found["logEverySteps"] = max(1, int(given.number("logging_steps", 500) or 500))
    if strategy != "steps":
        left_out(out, "logging_strategy", strategy)
    strategy = str(given.take("save_strategy", "steps"))
    steps = given.number("save_steps", 500) or 500
    if strategy == "steps" and steps >= 1:
        put(out.job["spec"], "checkpoints.everySteps", int(steps))
    else:
        left_out(out, "save_strategy", strategy, "checkpoints are saved by minutes (checkpoints.everyMinutes) or steps")
    if given.has("save_total_limit"):
        put(out.job["spec"], "checkpoints.keep", int(given.take("save_total_limit")))


def _allowed(field: str) -> tuple[str, ...]:
    """The values that the API takes."""
    from finetune_api.training import TrainingSpec

    return tuple(get_args(TrainingSpec.model_fields[field].annotation))
