"""The base model: which number type it is loaded in, and the checks that loading itself leaves out."""

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
    PreTrainedModel,
)

from finetune_trainer import heartbeat
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import folder as model_folder
from finetune_trainer.model import score
from finetune_trainer.model.attention import Attention, implementation

Precision = Literal["bf16", "pureBf16", "fp32"]
Kind = Literal["causal", "reward"]
"""A language model, or one that scores texts."""
AUTO: dict[Kind, Any] = {"causal": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
SCORING = "ForSequenceClassification"


def precision(training: TrainingSpec) -> Precision:
    """``auto`` is bf16 on GPUs and fp32 on CPUs, where bf16 is the slower one."""
    if training.precision != "auto":
        return training.precision
    return "bf16" if torch.cuda.is_available() else "fp32"


def kind_of(stage: str) -> Kind:
    """What a stage trains."""
    return "reward" if stage == "rm" else "causal"


def check(
    folder: Path,
    source: str,
    *,
    allow_remote_code: bool = False,
    kind: Kind = "causal",
    field: str = "model.source",
) -> Any:
    """The model's config, if this trainer can load the model as what is asked for. Costs no time: weights are not
    read."""
    raw = model_folder.check(folder, source, field)
    _refuse_quantised(raw, source, field)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=allow_remote_code)
    except Exception as error:
        hint = "" if allow_remote_code else model_folder.code_hint(folder)
        raise InvalidSpec(
            f"{field}: {source} is of type {raw.get('model_type')!r}, which can't be loaded.{hint} ({error})"
        ) from error
    auto = AUTO[kind]
    own_code = allow_remote_code and auto.__name__ in raw.get("auto_map", {})
    if type(config) not in auto._model_mapping and not own_code:
        what = "which is no causal language model" if kind == "causal" else "of which transformers has no reward model"
        raise InvalidSpec(f"{field}: {source} is of type {raw.get('model_type')!r}, {what}")
    made_as = next(iter(raw.get("architectures") or []), "")
    if kind == "causal" and made_as.endswith(SCORING):
        raise InvalidSpec(f"{field}: {source} is a {made_as}, which scores texts and can't write any")
    if kind == "reward" and made_as.endswith(SCORING) and config.num_labels != 1:
        raise InvalidSpec(
            f"{field}: {source} is a classifier of {config.num_labels} labels; a reward model has 1: name a language"
            " model, which gets a fresh head, or a reward model"
        )
    return config


def _refuse_quantised(raw: Mapping[str, Any], source: str, field: str) -> None:
    """Weights that come quantised can't be trained whole, can't take an adapter in without being rounded again, and
    most kinds need a library of their own."""
    parts = (raw, raw.get("text_config") or {})
    said = [part[name] for part in parts for name in ("quantization_config", "compression_config") if part.get(name)]
    if said:
        how = said[0].get("quant_method") or "in a way that its config.json doesn't name"
        raise InvalidSpec(
            f"{field}: {source} comes quantised ({how}), and only models that aren't are trained or compared with: name"
            " the one that it was made of; tuning.method qlora quantises it when it is loaded"
        )


remote_code = model_folder.may_run_code


def check_rows(config: Any, longest: int, highest_id: int) -> None:
    """Rows fit the model. Without this, a tokenizer of another model ends in an index error deep inside a kernel."""
    text = config.get_text_config()
    if highest_id >= text.vocab_size:
        raise InvalidSpec(
            f"model.source: its tokenizer makes token {highest_id}, but the model knows {text.vocab_size} tokens:"
            " tokenizer and weights are of different models"
        )
    positions = getattr(text, "max_position_embeddings", None)
    if positions and longest > positions:
        raise InvalidSpec(
            f"training.cutoffLength: rows are up to {longest} tokens long, but the model is made for {positions}:"
            f" set it to at most {positions}"
        )


def load(
    folder: Path,
    source: str,
    dtype: torch.dtype,
    *,
    attention: Attention = "auto",
    quantization: QuantizationSpec | None = None,
    allow_remote_code: bool = False,
    kind: Kind = "causal",
    seed: int = 0,
    field: str = "model.source",
) -> PreTrainedModel:
    """The weights, all of them from safetensors; a reward model's head is drawn from ``seed`` where they have none.
    Raises InvalidSpec when the files don't hold the whole model."""
    options: dict[str, Any] = {"attn_implementation": implementation(attention, dtype)}
    if quantization is not None:
        options |= {"quantization_config": bits_and_bytes(quantization, dtype, kind), "device_map": {"": _device()}}
    if kind == "reward":
        options |= {"num_labels": 1}
    try:
        loading: Any = AUTO[kind].from_pretrained
        model, loaded = loading(
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
    fresh = score.may_be_missing(kind) & set(loaded["missing_keys"])
    missing = sorted(set(loaded["missing_keys"]) - fresh)
    if missing:  # transformers would go on with random numbers in their place
        raise InvalidSpec(
            f"{field}: {len(missing)} weights are missing in the safetensors of {source}, as {missing[0]!r}:"
            " the copy is not complete"
        )
    heartbeat.alive()  # a job may load three, each of which takes its time
    _keep_packing(model)
    if kind == "reward":
        score.exact(model)
    if fresh:
        score.draw(model, seed)
    return model  # type: ignore[no-any-return]


def _keep_packing(model: PreTrainedModel) -> None:
    """On CPUs with bf16 instructions bitsandbytes repacks 4 bit weights in place at the first evaluation, for shapes
    that it can, and a training step after that would read them wrongly."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def bits_and_bytes(spec: QuantizationSpec, compute: torch.dtype, kind: Kind = "causal") -> BitsAndBytesConfig:
    """The job's settings in transformers' words. The head of a language model it leaves alone by itself."""
    whole = [score.HEAD] if kind == "reward" else None
    if spec.bits == 8:
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=True, llm_int8_skip_modules=whole
        )
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        llm_int8_skip_modules=whole,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=spec.double_quantization,
        bnb_4bit_compute_dtype=compute,
    )


def _device() -> torch.device:
    """Quantised weights are made where they stay: on this rank's GPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
