"""Adapters merged into their base before training: in memory, or as a cached model directory.

Called by `build`, and wherever a model is loaded with the adapters that belong to it. Merging is done in fp32.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from finetune_api.contract import ResolvedJob
from transformers import PreTrainedModel

from finetune_trainer.fetch import prune
from finetune_trainer.model import base, model_files, reward_head, saved_adapter, vocabulary
from finetune_trainer.model.attention import Attention
from finetune_trainer.model.derived_files import NO_DIGESTS, input_digest, make_on_rank_0
from finetune_trainer.workspace.files import sync_folder, write_json


def merge(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The fp32 base with the adapter merged into it: a plain model."""
    vocabulary.grow(model, saved_adapter.embedding_rows(adapter))
    merged: PreTrainedModel = saved_adapter.attach(model, adapter, adapter.name).merge_and_unload(safe_merge=True)
    return merged


def load_merged(
    base_folder: Path,
    adapters: Sequence[Path],
    source: str,
    kind: base.Kind,
    *,
    dtype: torch.dtype = torch.float32,
    attention: Attention | None = None,
    allow_remote_code: bool = False,
    seed: int = 0,
    field: str = "model.source",
) -> PreTrainedModel:
    """The model in ``base_folder`` with the adapters merged into it, in their order. A reward model gets a fresh head,
    drawn from ``seed``, unless the files bring one."""
    load_as = saved_adapter.kind_of(adapters[0]) if adapters else kind
    model = base.load(
        base_folder,
        source,
        torch.float32 if adapters else dtype,
        attention=attention,
        allow_remote_code=allow_remote_code,
        kind=load_as,
        seed=seed,
        field=field,
    )
    for adapter in adapters:
        model = merge(model, adapter)
    if kind == "reward" and not reward_head.is_reward_model(model):
        model = reward_head.from_causal(model, seed, allow_remote_code=allow_remote_code)
    return base.cast(model, dtype) if adapters else model


def merged_base(
    base_folder: Path, adapter: Path, job: ResolvedJob, scratch: Path, digests: Mapping[str, str] = NO_DIGESTS
) -> Path:
    """A model directory with the adapter merged into the base. It is written once and cached in ``scratch``."""
    target = scratch / f"base-{input_digest(job, base_folder, adapter, digests)[:32]}"
    make_on_rank_0(lambda: _write_merged(base_folder, adapter, job, target))
    return target


def _write_merged(base_folder: Path, adapter: Path, job: ResolvedJob, target: Path) -> None:
    """Complete or absent: the directory is renamed to ``target`` after all of it is on disk."""
    if target.is_dir():
        return prune.mark_used(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=".base-"))
    try:
        model = base.load(
            base_folder,
            job.model.source,
            torch.float32,
            allow_remote_code=base.remote_code(job),
            kind=saved_adapter.kind_of(adapter),
        )
        stored = model_files.stored_dtype(base_folder)
        base.cast(merge(model, adapter), stored).save_pretrained(staging)
        for file in base_folder.iterdir():
            if file.is_file() and not (staging / file.name).exists() and ".safetensors" not in file.name:
                shutil.copyfile(file, staging / file.name)
        for file in staging.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        write_json(staging / prune.MANIFEST, {})  # its modification time is the time of the last use
        os.replace(staging, target)
        sync_folder(target.parent)
    except OSError:
        if not target.is_dir():  # otherwise another job was faster
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
