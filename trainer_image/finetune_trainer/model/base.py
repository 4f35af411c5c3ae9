"""The base model: which number type it is loaded in, and the checks that loading itself leaves out."""

from pathlib import Path
from typing import Any, Literal

import torch
from finetune_api.training import TrainingSpec
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import folder as model_folder

Precision = Literal["bf16", "pureBf16", "fp32"]


def precision(training: TrainingSpec) -> Precision:
    """``auto`` is bf16 on GPUs and fp32 on CPUs, where bf16 is the slower one."""
    if training.precision != "auto":
        return training.precision
    return "bf16" if torch.cuda.is_available() else "fp32"


def check(folder: Path, source: str) -> Any:
    """The model's config, if this trainer can load the model. Costs no time: weights are not read."""
    raw = model_folder.check(folder, source)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        hint = " It brings its own code, which is not run." if "auto_map" in raw else ""
        raise InvalidSpec(
            f"model.source: {source} is of type {raw.get('model_type')!r}, which can't be loaded.{hint} ({error})"
        ) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise InvalidSpec(
            f"model.source: {source} is of type {raw.get('model_type')!r}, which is no causal language model"
        )
    return config


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


def load(folder: Path, source: str, dtype: torch.dtype) -> PreTrainedModel:
    """The weights, all of them from safetensors. Raises InvalidSpec when the files don't hold the whole model."""
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained
        model, loaded = loading(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise InvalidSpec(f"model.source: the weights of {source} can't be loaded: {error}") from error
    missing = sorted(loaded["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise InvalidSpec(
            f"model.source: {len(missing)} weights are missing in the safetensors of {source}, as {missing[0]!r}:"
            " the copy is not complete"
        )
    return model  # type: ignore[no-any-return]
