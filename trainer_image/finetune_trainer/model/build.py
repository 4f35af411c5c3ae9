"""The model of a job, ready to be trained: loaded, grown, adapted, with the right weights marked.

Called by workflows on every rank. What is kept in scratch is named by the `identity` of what it was made from, so two
jobs on the same base share it, and a rank that comes second finds it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from finetune_api.contract import ResolvedJob
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import adapters, base, pissa, vocabulary
from finetune_trainer.model import folder as model_folder
from finetune_trainer.model.base import Precision


def build(
    job: ResolvedJob, prepared_model: Path, adapter: Path | None, tokenizer: object, precision: Precision, scratch: Path
) -> PreTrainedModel | PeftModel:
    """The job's model. ``scratch`` is a folder of the workspace that outlives attempts."""
    tuning, spec = job.tuning, tuning_adapter(job)
    merged_first = adapter is not None and spec == "merge"
    dtype = adapters.load_dtype(tuning.method, precision)
    origin = prepared_model
    if adapter is not None:
        check_fits(prepared_model, adapter, job)
    if merged_first and tuning.method == "qlora":
        assert adapter is not None
        # Quantised weights can't take an adapter in without being rounded again: the merged base is quantised instead.
        origin = merged_base(prepared_model, adapter, job, scratch)

    model = base.load(
        origin,
        job.model.source,
        torch.float32 if merged_first and tuning.method != "qlora" else dtype,
        attention=job.model.attention,
        quantization=tuning.quantization if tuning.method == "qlora" else None,
        allow_remote_code=base.remote_code(job),
    )
    model.config.use_cache = False
    size = len(tokenizer)  # type: ignore[arg-type]
    continued = adapter is not None and spec == "continue"
    if merged_first and tuning.method != "qlora":
        assert adapter is not None
        model = cast(merge_in_memory(model, adapter), dtype)
    vocabulary.grow(model, max(size, rows(adapter)) if continued and adapter else size)

    if continued:
        assert adapter is not None
        return _continue(model, adapter, job)
    new = list(vocabulary.embeddings(model)) if vocabulary.adds_tokens(job.model) else []
    if tuning.method not in ("lora", "qlora"):
        tuned = adapters.apply(model, tuning, job.training.seed)
        for layer in vocabulary.embeddings(model).values() if new else ():
            layer.requires_grad_(True)
        if precision == "bf16":
            _shrink_frozen(model)
        return tuned
    assert tuning.lora is not None  # filled in by finetune_api.contract.fill_in
    made = adapters.add(model, tuning.lora, job.training.seed, new)
    if tuning.lora.init == "pissa":
        pissa.start(made, pissa_file(job, prepared_model, adapter, scratch), job.training.seed)
    return made


def tuning_adapter(job: ResolvedJob) -> str | None:
    """What happens to the earlier adapter: continue or merge."""
    return job.tuning.adapter.mode if job.tuning.adapter else None


def pissa_file(job: ResolvedJob, base_folder: Path, adapter: Path | None, scratch: Path) -> Path:
    """Where the first state of this job's PiSSA adapter is kept."""
    assert job.tuning.lora is not None
    origin = identity(base_folder) + (identity(adapter) if adapter else "")
    return pissa.initial_file(scratch, origin, job.tuning.lora, job.training.seed)


def identity(folder: Path) -> str:
    """What tells one model folder from another without reading gigabytes: names, sizes, and the heads of safetensors,
    besides the small files whole."""
    total = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(1 << 20)
            stream.seek(max(0, size - (1 << 20)))
            total.update(f"{file.name}\0{size}\0".encode() + head + stream.read())
    return total.hexdigest()


def check_fits(base_folder: Path, adapter: Path, job: ResolvedJob) -> None:
    """The adapter was made for this model. Shapes are compared by the load itself; here, what shapes can't tell."""
    assert job.tuning.adapter is not None
    source = job.tuning.adapter.source
    config = model_folder.check_adapter(adapter, source)
    if config.get("init_lora_weights") not in (True, False, "gaussian", None):
        raise InvalidSpec(
            f"tuning.adapter.source: {source} was made with init_lora_weights={config['init_lora_weights']!r}, so it is"
            " an adapter of a changed base; convert it to an ordinary one first"
        )
    if config.get("use_dora") and job.tuning.quantization is not None and job.tuning.quantization.bits == 8:
        raise InvalidSpec(f"tuning.adapter.source: {source} is a DoRA adapter, which needs quantization.bits 4")
    trains = set(config.get("modules_to_save") or ()) | set(config.get("trainable_token_indices") or ())
    if job.tuning.adapter.mode == "continue" and vocabulary.adds_tokens(job.model) and not trains:
        raise InvalidSpec(
            f"model.newTokens: the adapter {source} doesn't train embeddings, so new tokens could not be learnt: use"
            " adapter.mode merge, or leave them out"
        )
    model_type = json.loads((base_folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    made_for = (config.get("auto_mapping") or {}).get("base_model_class")
    if made_for and model_type and made_for not in model_type:
        raise InvalidSpec(f"tuning.adapter.source: {source} was made for {made_for}, but the model is {model_type[0]}")


def _continue(model: PreTrainedModel, adapter: Path, job: ResolvedJob) -> PeftModel:
    assert job.tuning.adapter is not None
    tuned = attach(model, adapter, job.tuning.adapter.source, trainable=True)
    if not any(weight.requires_grad for weight in tuned.parameters()):
        raise InvalidSpec(f"tuning.adapter.source: {job.tuning.adapter.source} has no weights to train")
    return tuned


def attach(model: PreTrainedModel, adapter: Path, source: str, *, trainable: bool = False) -> PeftModel:
    """The model with an adapter from files. Raises InvalidSpec when it is of another model."""
    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable, use_safetensors=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError) as error:
        raise InvalidSpec(f"tuning.adapter.source: {source} does not fit the model: {error}") from error


def rows(adapter: Path) -> int:
    """How many tokens the adapter's own embeddings have; 0 when it has none."""
    from safetensors import safe_open

    with safe_open(adapter / model_folder.ADAPTER_WEIGHTS, framework="pt") as weights:
        names = weights.keys()
        sizes = [
            weights.get_slice(name).get_shape()[0]
            for name in names
            if name.endswith((".embed_tokens.weight", ".lm_head.weight", ".wte.weight"))
        ]
    return max(sizes, default=0)


def merge_in_memory(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """The fp32 base with an adapter taken in; the result is a plain model."""
    vocabulary.grow(model, rows(adapter))
    merged: PreTrainedModel = attach(model, adapter, adapter.name).merge_and_unload(safe_merge=True)
    return merged


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """All of it; its config says so, too."""
    to: Any = model.to
    to(dtype)
    model.config.dtype = dtype
    return model


def merged_base(base_folder: Path, adapter: Path, job: ResolvedJob, scratch: Path) -> Path:
    """The base with an earlier adapter merged in, as files, made once. Whole or absent: it is renamed into place."""
    name = hashlib.sha256((identity(base_folder) + identity(adapter)).encode()).hexdigest()[:32]
    place = scratch / f"base-{name}"
    if place.is_dir():
        return place
    scratch.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=scratch, prefix=".base-"))
    try:
        model = base.load(
            base_folder, job.model.source, torch.float32, allow_remote_code=base.remote_code(job), attention="eager"
        )
        stored = model_folder.dtype(base_folder)
        cast(merge_in_memory(model, adapter), stored).save_pretrained(staging)
        for file in base_folder.iterdir():
            if file.is_file() and not (staging / file.name).exists() and ".safetensors" not in file.name:
                shutil.copyfile(file, staging / file.name)
        os.replace(staging, place)
    except OSError:
        if not place.is_dir():  # another rank was first
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return place


def _shrink_frozen(model: PreTrainedModel) -> None:
    """Method freeze in bf16: what is trained stays fp32, the rest takes half the room."""
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
