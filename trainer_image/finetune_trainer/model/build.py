"""The model of a job, ready for training: loaded, with its new tokens and its adapter, and with the right weights
marked as trainable.

Called by workflows on every rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from finetune_api.contract import ResolvedJob
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.model import (
    base,
    derived_files,
    lora_adapter,
    merging,
    pissa,
    reward_head,
    saved_adapter,
    trainable,
    vocabulary,
)
from finetune_trainer.model.base import Precision
from finetune_trainer.model.derived_files import NO_DIGESTS


def build(
    job: ResolvedJob,
    prepared_model: Path,
    adapter: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    scratch: Path,
    digests: Mapping[str, str] = NO_DIGESTS,
) -> PreTrainedModel | PeftModel:
    """The job's model. ``adapter`` is the earlier adapter of tuning.adapter, which is merged first or trained further.
    ``scratch`` is a directory of the workspace that outlives attempts. ``digests`` are those of the prepared sources.
    """
    mode = saved_adapter.mode_of(job)
    merged_first = adapter if mode == "merge" else None
    continued = adapter if mode == "continue" else None
    if adapter is not None:
        saved_adapter.check_fits(prepared_model, adapter, job)

    model = _load(job, prepared_model, merged_first, precision, scratch, digests)
    if merged_first is not None and base.kind_of(job.stage) == "reward":
        reward_head.read_value_head(model, merged_first)
    model.config.use_cache = False
    if base.kind_of(job.stage) == "reward":  # a reward model finds the end of a text by the padding
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    rows = saved_adapter.embedding_rows(continued) if continued else 0
    vocabulary.grow(model, max(len(tokenizer), rows))

    if continued is not None:
        return saved_adapter.attach_for_training(model, continued, job)
    new_embeddings = vocabulary.embeddings(model) if vocabulary.adds_tokens(job.model) else {}
    if job.tuning.method in ("lora", "qlora"):
        file = derived_files.pissa_file(job, prepared_model, adapter, scratch, digests) if _uses_pissa(job) else None
        return _add_lora(job, model, list(new_embeddings), file)
    tuned = trainable.apply(model, job.tuning, job.training.seed)
    for layer in new_embeddings.values():
        layer.requires_grad_(True)
    if precision in base.MIXED:
        trainable.cast_frozen(model, precision)
    return tuned


def _load(
    job: ResolvedJob,
    prepared_model: Path,
    merged_first: Path | None,
    precision: Precision,
    scratch: Path,
    digests: Mapping[str, str],
) -> PreTrainedModel:
    """The base model, with the adapter ``merged_first`` merged into it."""
    tuning, kind = job.tuning, base.kind_of(job.stage)
    dtype: torch.dtype = trainable.load_dtype(tuning.method, precision)
    settings: dict[str, Any] = {
        "attention": job.model.attention,
        "allow_remote_code": base.remote_code(job),
        "seed": job.training.seed,
    }
    if tuning.method != "qlora":
        if merged_first is None:
            return base.load(prepared_model, job.model.source, dtype, kind=kind, **settings)
        return merging.load_merged(prepared_model, [merged_first], job.model.source, kind, dtype=dtype, **settings)
    folder = prepared_model
    if merged_first is not None:
        # Merging into quantised weights would round them again. So the merged base is written and then quantised.
        folder = merging.merged_base(prepared_model, merged_first, job, scratch, digests)
    return base.load(folder, job.model.source, dtype, quantization=tuning.quantization, kind=kind, **settings)


def _uses_pissa(job: ResolvedJob) -> bool:
    return job.tuning.lora is not None and job.tuning.lora.init == "pissa"


def _add_lora(
    job: ResolvedJob, model: PreTrainedModel, new_embeddings: list[str], pissa_file: Path | None
) -> PeftModel:
    """The model with a fresh adapter, whose initial state with PiSSA is in ``pissa_file``."""
    assert job.tuning.lora is not None  # finetune_api.defaults.apply_defaults sets it
    seed = job.training.seed
    tuned = lora_adapter.add(model, job.tuning.lora, seed, new_embeddings)
    if pissa_file is not None:
        derived_files.make_on_rank_0(lambda: pissa.make_initial_file(tuned, pissa_file, seed))
        pissa.initialize(tuned, pissa_file)
    return tuned
