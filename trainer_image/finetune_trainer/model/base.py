"""The base model: its number type, the checks that loading itself leaves out, and loading."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from finetune_api.training import TrainingSpec
from finetune_api.tuning import QuantizationSpec
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import model_files, reward_head, stream
from finetune_trainer.model.attention import Attention, Choice, choose, flash_obstacle
from finetune_trainer.runtime import heartbeat

Precision = Literal["bf16", "pureBf16", "fp16", "fp32"]
MIXED: tuple[Precision, ...] = ("bf16", "fp16")
"""Trained weights are fp32, and are computed with in 16 bit."""
COMPUTED_IN: dict[Precision, torch.dtype] = {
    "bf16": torch.bfloat16,
    "pureBf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}
AMPERE = (8, 0)
"""The lowest compute capability of a GPU that computes in bf16; older GPUs emulate it."""
Kind = Literal["causal", "reward"]
"""A language model, or a reward model, which scores texts."""
AUTO: dict[Kind, Any] = {"causal": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
SCORING = "ForSequenceClassification"


def precision(training: TrainingSpec) -> Precision:
    """The number type of a job on this machine. Raises InvalidSpec."""
    if training.precision == "fp16" and not torch.cuda.is_available():
        raise InvalidSpec("training.precision: fp16 needs a GPU, and none is visible here. Use auto, bf16 or fp32")
    return best_precision() if training.precision == "auto" else training.precision


def best_precision() -> Precision:
    """The number type that is fastest on this machine. CPUs are slower in 16 bit."""
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability() >= AMPERE else "fp16"


def kind_of(stage: str) -> Kind:
    """The kind of model that a stage trains."""
    return "reward" if stage == "rm" else "causal"


def check(
    folder: Path,
    source: str,
    *,
    allow_remote_code: bool = False,
    kind: Kind = "causal",
    field: str = "model.source",
) -> PretrainedConfig:
    """The model's config, after checking that the model loads as ``kind``. This is quick: weights are not read. Raises
    InvalidSpec, and the errors of `model_files.check_model`."""
    raw = model_files.check_model(folder, source, field)
    _refuse_quantised(raw, source, field)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=allow_remote_code
        )
    except Exception as error:
        hint = "" if allow_remote_code else model_files.remote_code_hint(folder)
        raise InvalidSpec(
            f"{field}: {source} is of type {raw.get('model_type')!r}, which can't be loaded.{hint} ({error})"
        ) from error
    auto = AUTO[kind]
    own_code = allow_remote_code and auto.__name__ in raw.get("auto_map", {})
    if type(config) not in auto._model_mapping and not own_code:
        what = "which is no causal language model" if kind == "causal" else "of which transformers has no reward model"
        raise InvalidSpec(f"{field}: {source} is of type {raw.get('model_type')!r}, {what}. Name another model")
    architecture = next(iter(raw.get("architectures") or []), "")
    masked = architecture.endswith(("ForMaskedLM", "ForPreTraining")) and not getattr(config, "is_decoder", False)
    if config.is_encoder_decoder or masked:  # transformers would load BART's decoder, or BERT as a decoder
        raise InvalidSpec(
            f"{field}: {source} is of type {raw.get('model_type')!r} ({architecture}), which reads with an encoder: it"
            " sees a text from both ends and doesn't continue it. Name a model that only decodes, as Llama or Qwen"
        )
    if kind == "causal" and architecture.endswith(SCORING):
        raise InvalidSpec(f"{field}: {source} is a {architecture}, which scores texts and has no language model head")
    if kind == "reward" and architecture.endswith(SCORING) and config.num_labels != 1:
        raise InvalidSpec(
            f"{field}: {source} is a classifier of {config.num_labels} labels, but a reward model has 1. Name a reward"
            " model, or a language model, which gets a fresh head"
        )
    return config


def _refuse_quantised(raw: Mapping[str, Any], source: str, field: str) -> None:
    """Refuse weights that are stored quantised: they can't be trained whole, an adapter can't be merged into them
    without rounding them again, and most formats need a library of their own."""
    parts = (raw, raw.get("text_config") or {})
    configs = [part[name] for part in parts for name in ("quantization_config", "compression_config") if part.get(name)]
    if configs:
        how = configs[0].get("quant_method") or "in a way that its config.json does not name"
        raise InvalidSpec(
            f"{field}: {source} comes quantised ({how}), and quantised models are not supported. Name the original"
            " model; tuning.method qlora quantises it when it is loaded"
        )


remote_code = model_files.remote_code


def load(
    folder: Path,
    source: str,
    dtype: torch.dtype,
    *,
    attention: Attention | None = None,
    quantization: QuantizationSpec | None = None,
    allow_remote_code: bool = False,
    kind: Kind = "causal",
    seed: int = 0,
    field: str = "model.source",
) -> PreTrainedModel:
    """The model with all its weights, from safetensors. If the files of a reward model have no head, a fresh head is
    drawn from ``seed``. ``attention``: the job's, for a model that gets streams (`model.stream`); None: the model gets
    rows. Raises InvalidSpec when the files do not hold the whole model."""
    choice = _attention(folder, attention, dtype, allow_remote_code=allow_remote_code)
    options: dict[str, Any] = {"attn_implementation": choice.implementation}
    if quantization is not None:
        options |= {"quantization_config": bits_and_bytes(quantization, dtype, kind), "device_map": {"": _device()}}
    if kind == "reward":
        options |= {"num_labels": 1}
    try:
        from_pretrained: Any = AUTO[kind].from_pretrained
        model, info = from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=allow_remote_code,
            output_loading_info=True,
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InvalidSpec(f"{field}: the weights of {source} can't be loaded: {error}") from error
    fresh = reward_head.optional_weights(kind) & set(info["missing_keys"])
    missing = sorted(set(info["missing_keys"]) - fresh)
    if missing:  # transformers would continue with random numbers
        raise InvalidSpec(
            f"{field}: {len(missing)} weights are missing in the safetensors of {source}, as {missing[0]!r}. The copy"
            " is not complete: copy it again"
        )
    heartbeat.refresh()  # a job may load three models, and each takes its time
    _keep_packing(model)
    stream.open_door(model, padded=choice.padded)
    if kind == "reward":
        reward_head.install(model)
    if fresh:
        reward_head.initialize(model, seed)
        reward_head.read_value_head(model, folder)
    return model  # type: ignore[no-any-return]


def _attention(folder: Path, requested: Attention | None, dtype: torch.dtype, *, allow_remote_code: bool) -> Choice:
    if requested is None:
        return Choice(None, padded=True)
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=allow_remote_code
    )
    return choose(requested, config, flash_obstacle(dtype))


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with all weights in this number type, also according to its config."""
    to: Any = model.to
    to(dtype)
    model.config.dtype = dtype
    return model


def _keep_packing(model: PreTrainedModel) -> None:
    """Disable repacking: on CPUs with bf16 instructions, bitsandbytes repacks some 4 bit weights in place at the first
    evaluation, and a training step after that would read them wrongly."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def bits_and_bytes(spec: QuantizationSpec, compute: torch.dtype, kind: Kind = "causal") -> BitsAndBytesConfig:
    """The job's quantization as transformers expects it. transformers itself skips the head of a language model."""
    skipped = [reward_head.NAME] if kind == "reward" else None
    if spec.bits == 8:
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=True, llm_int8_skip_modules=skipped
        )
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        llm_int8_skip_modules=skipped,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=spec.double_quantization,
        bnb_4bit_compute_dtype=compute,
    )


def _device() -> torch.device:
    """Quantised weights are created on the device where they stay: this rank's GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
