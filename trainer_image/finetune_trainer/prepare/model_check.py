"""Whether model, adapter and tuning fit each other. No weights are loaded, and no row has been read yet.

The pipeline calls `check_model`. `limit_check` holds the rows against the model when they are known.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.contract import ResolvedJob

from finetune_trainer.errors import InvalidSpec, TrainerError
from finetune_trainer.model import model_files
from finetune_trainer.prepare import strangers

if TYPE_CHECKING:
    from finetune_trainer.model.experts import AdaptedWeights

log = logging.getLogger(__name__)


def check_model(job: ResolvedJob, model: Path, adapter: Path | None) -> "AdaptedWeights | None":
    """As `_check_model`, whatever the files hold."""
    names = [job.model.source, *([job.tuning.adapter.source] if job.tuning.adapter else [])]
    with strangers.told(f"model.source: {' with the adapter '.join(names)}"):
        return _check_model(job, model, adapter)


def _check_model(job: ResolvedJob, model: Path, adapter: Path | None) -> "AdaptedWeights | None":
    """Find errors that loading the model for training would raise, before rows are tokenized or a GPU is held:
    incomplete files, an adapter of another model, names of layers that the model does not have. Returns what a fresh
    adapter changes. Raises NotFound, InvalidSpec."""
    from finetune_trainer.model import base, experts, saved_adapter, weight_shapes  # torch
    from finetune_trainer.prepare import model_without_weights  # torch
    from finetune_trainer.reporting.library_logs import silence_libraries  # transformers

    silence_libraries()
    kind = base.kind_of(job.stage)
    shapes = weight_shapes.of_model(model, job.model.source)
    weight_shapes.check_counts(model, shapes, job.model.source)
    config = base.check(model, job.model.source, allow_remote_code=base.remote_code(job), kind=kind)
    weight_shapes.check_model(config, shapes, job.model.source, kind=kind)
    if adapter is not None:
        saved_adapter.check_fits(model, adapter, job)
    for folder, source, field in _heads(job, model, adapter):
        weight_shapes.check_value_head(config, folder, source, field)
    try:
        if adapter is not None and job.tuning.adapter is not None:
            source = job.tuning.adapter.source
            base_model = model_without_weights.base_without_weights(config, kind)
            weight_shapes.check_adapter(base_model, weight_shapes.of_adapter(adapter, source), source)
            saved_adapter.check_patterns(adapter, [name for name, _ in base_model.named_modules()], source)
        if job.tuning.adapter is None or job.tuning.adapter.mode == "merge":
            tuned = model_without_weights.tuned_without_weights(config, job.tuning, "fp32", extra_tokens(job), kind)
            return experts.adapted_weights(tuned) if job.tuning.method in ("lora", "qlora") else None
    except TrainerError:
        raise
    except Exception as error:  # a model that cannot be built without weights may still be trainable
        _check_padding(config, job.model.source, error)
        log.warning("The settings of tuning cannot be checked before training: %s: %s", type(error).__name__, error)
    return None


def attention(job: ResolvedJob, model: Path) -> str:
    """How the model will compute attention, for the report. It is known from the config, except that a GPU without
    flash attention is not: here is none."""
    from finetune_trainer.model import base  # torch
    from finetune_trainer.model.attention import choose  # transformers

    config = base.check(model, job.model.source, allow_remote_code=base.remote_code(job), kind=base.kind_of(job.stage))
    named = job.model.attention
    return str(choose(named, config, None if named == "flashAttention2" else "prepare runs without a GPU"))


def _heads(job: ResolvedJob, model: Path, adapter: Path | None) -> list[tuple[Path, str, str]]:
    """The folders that stage rm starts from and whose head is in a file of its own, with source and field."""
    folders = [(model, job.model.source, "model.source")]
    if adapter is not None and job.tuning.adapter is not None:
        folders.append((adapter, job.tuning.adapter.source, "tuning.adapter.source"))
    return [place for place in folders if job.stage == "rm" and model_files.has_value_head(place[0])]


def _check_padding(config: Any, source: str, error: Exception) -> None:
    """Name the cause if a model cannot be built, because its embeddings look up a padding token that they lack."""
    from finetune_trainer.model import limits  # transformers

    padding, tokens = getattr(config.get_text_config(), "pad_token_id", None), limits.tokens(config)
    if padding is not None and tokens is not None and padding >= tokens.value:
        raise InvalidSpec(
            f"model.source: config.json of {source} has pad_token_id {padding}, and the model has only {tokens.value}"
            f" tokens ({tokens.name}). Remove pad_token_id from config.json: the tokenizer's is used in training"
        ) from error


def extra_tokens(job: ResolvedJob) -> int:
    """Number of tokens that the job adds to the vocabulary."""
    return len(job.model.new_tokens or []) + len(job.model.new_special_tokens or [])
