"""The model of a job, ready to be trained: loaded, grown, adapted, with the right weights marked.

Called by workflows on every rank. What is kept in scratch is named by the digests of what it was made from, so jobs on
the same base share it; rank 0 makes it, and the others wait.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from finetune_api.contract import ResolvedJob
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import distributed
from transformers import PreTrainedModel

from finetune_trainer import heartbeat
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.fetch import prune
from finetune_trainer.model import adapters, base, pissa, score, vocabulary
from finetune_trainer.model import folder as model_folder
from finetune_trainer.model.attention import Attention
from finetune_trainer.model.base import Precision
from finetune_trainer.rendezvous import COLLECTIVE_TIMEOUT
from finetune_trainer.stages import agree
from finetune_trainer.workspace import sync_folder, write_json

NO_DIGESTS: Mapping[str, str] = MappingProxyType({})


def build(
    job: ResolvedJob,
    prepared_model: Path,
    adapter: Path | None,
    tokenizer: object,
    precision: Precision,
    scratch: Path,
    digests: Mapping[str, str] = NO_DIGESTS,
) -> PreTrainedModel | PeftModel:
    """The job's model. ``scratch`` is a folder of the workspace that outlives attempts, ``digests`` those that
    preparing took of the sources."""
    tuning, spec, kind = job.tuning, tuning_adapter(job), base.kind_of(job.stage)
    merged_first = adapter is not None and spec == "merge"
    dtype = adapters.load_dtype(tuning.method, precision)
    origin = prepared_model
    if adapter is not None:
        check_fits(prepared_model, adapter, job)
    if merged_first and tuning.method == "qlora":
        assert adapter is not None
        # Quantised weights can't take an adapter in without being rounded again: the merged base is quantised instead.
        origin = merged_base(prepared_model, adapter, job, scratch, digests)

    size = len(tokenizer)  # type: ignore[arg-type]
    continued = adapter is not None and spec == "continue"
    settings: dict[str, Any] = {
        "attention": job.model.attention,
        "allow_remote_code": base.remote_code(job),
        "seed": job.training.seed,
    }
    if merged_first and adapter is not None and tuning.method != "qlora":
        model = merged(prepared_model, [adapter], job.model.source, kind, dtype=dtype, **settings)
    else:
        quantization = tuning.quantization if tuning.method == "qlora" else None
        model = base.load(origin, job.model.source, dtype, quantization=quantization, kind=kind, **settings)
    model.config.use_cache = False
    if kind == "reward":  # by which it finds the end of a text
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # type: ignore[attr-defined]
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
        file = pissa_file(job, prepared_model, adapter, scratch, digests)
        by_rank_0(lambda: pissa.find(made, file, job.training.seed))
        pissa.start(made, file)
    return made


def kind_of(adapter: Path) -> base.Kind:
    """What an adapter goes on."""
    config = json.loads((adapter / model_folder.ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return "reward" if model_folder.scores(config) else "causal"


def tuning_adapter(job: ResolvedJob) -> str | None:
    """What happens to the earlier adapter: continue or merge."""
    return job.tuning.adapter.mode if job.tuning.adapter else None


def pissa_file(
    job: ResolvedJob, base_folder: Path, adapter: Path | None, scratch: Path, digests: Mapping[str, str] = NO_DIGESTS
) -> Path:
    """Where the first state of this job's PiSSA adapter is kept."""
    assert job.tuning.lora is not None
    made_of = _made_of(job, base_folder, adapter, digests)
    return pissa.initial_file(scratch, made_of, job.tuning.lora, job.training.seed)


def _made_of(job: ResolvedJob, base_folder: Path, adapter: Path | None, digests: Mapping[str, str]) -> str:
    """What tells the base, and the adapter merged into it, from all others: two that differ in one layer differ."""
    parts = [digests.get(job.model.source) or model_folder.digest(base_folder)]
    if adapter is not None:
        assert job.tuning.adapter is not None
        parts.append(digests.get(job.tuning.adapter.source) or model_folder.digest(adapter))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def by_rank_0(make: Callable[[], None]) -> None:
    """Let one rank make what is kept in the workspace, which all of them see, and the others wait for it. It may take
    long, so they wait in a line of their own, which keeps no GPU busy."""
    line = agree.own_group(COLLECTIVE_TIMEOUT)
    if line is None or distributed.get_rank() == 0:
        make()
    if line is not None:
        distributed.barrier(line)
        distributed.destroy_process_group(line)
    heartbeat.alive()  # it may have taken most of what loading may


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
    if (adapter / model_folder.BASE_ADAPTER).is_dir():
        raise InvalidSpec(
            f"tuning.adapter.source: {source} goes on a model that the adapter in its {model_folder.BASE_ADAPTER}/ was"
            " merged into: let the job that made it set output.merge, and name what it makes as model.source"
        )
    if config.get("use_dora") and job.tuning.quantization is not None and job.tuning.quantization.bits == 8:
        raise InvalidSpec(f"tuning.adapter.source: {source} is a DoRA adapter, which needs quantization.bits 4")
    if model_folder.scores(config) and job.stage != "rm":
        raise InvalidSpec(
            f"tuning.adapter.source: {source} is a reward model's adapter, and stage {job.stage} trains a language"
            " model: name an adapter of one"
        )
    if job.stage == "rm" and job.tuning.adapter.mode == "continue" and not model_folder.scores(config):
        raise InvalidSpec(
            f"tuning.adapter.mode: {source} is a language model's adapter, which has no scores to continue with: use"
            " mode merge"
        )
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


def attach(
    model: PreTrainedModel,
    adapter: Path,
    source: str,
    *,
    trainable: bool = False,
    exact: bool = False,
    field: str = "tuning.adapter.source",
) -> PeftModel:
    """The model with an adapter from files, to train it further, or with ``exact`` to compute as in training: modules
    that it brings whole are in fp32 then, which they meet others in bf16 in by autocast. Raises InvalidSpec when it is
    of another model."""
    try:
        made = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable, use_safetensors=True)
        if trainable or exact:
            _unrounded(made, adapter)
        return made
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError) as error:
        raise InvalidSpec(f"{field}: {source} does not fit the model: {error}") from error


def _unrounded(model: PeftModel, adapter: Path) -> None:
    """peft makes the modules that an adapter brings whole in the base's number type, and rounds them to it."""
    brought = [weight for name, weight in model.named_parameters() if ".modules_to_save." in name]
    if all(weight.dtype == torch.float32 for weight in brought):
        return
    for weight in brought:
        weight.data = weight.data.float()
    set_peft_model_state_dict(model, load_file(adapter / model_folder.ADAPTER_WEIGHTS))


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


def merged(
    base_folder: Path,
    earlier: Sequence[Path],
    source: str,
    kind: base.Kind,
    *,
    dtype: torch.dtype = torch.float32,
    attention: Attention = "auto",
    allow_remote_code: bool = False,
    seed: int = 0,
    field: str = "model.source",
) -> PreTrainedModel:
    """The model that a folder holds, with earlier adapters taken in: a reward model, where one is asked for, with a
    head from ``seed`` unless they bring one."""
    load_as = kind_of(earlier[0]) if earlier else kind
    model = base.load(
        base_folder,
        source,
        torch.float32 if earlier else dtype,
        attention=attention,
        allow_remote_code=allow_remote_code,
        kind=load_as,
        seed=seed,
        field=field,
    )
    for adapter in earlier:
        model = merge_in_memory(model, adapter)
    if kind == "reward" and not score.is_there(model):
        model = score.on(model, seed, allow_remote_code=allow_remote_code)
    return cast(model, dtype) if earlier else model


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """All of it; its config says so, too."""
    to: Any = model.to
    to(dtype)
    model.config.dtype = dtype
    return model


def merged_base(
    base_folder: Path, adapter: Path, job: ResolvedJob, scratch: Path, digests: Mapping[str, str] = NO_DIGESTS
) -> Path:
    """The base with an earlier adapter merged in, as files, made once."""
    place = scratch / f"base-{_made_of(job, base_folder, adapter, digests)[:32]}"
    by_rank_0(lambda: _merge_once(base_folder, adapter, job, place))
    return place


def _merge_once(base_folder: Path, adapter: Path, job: ResolvedJob, place: Path) -> None:
    """Whole or absent: it is renamed into place when all of it is on disk."""
    if place.is_dir():
        return prune.used(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=".base-"))
    try:
        model = base.load(
            base_folder,
            job.model.source,
            torch.float32,
            allow_remote_code=base.remote_code(job),
            attention="eager",
            kind=kind_of(adapter),
        )
        stored = model_folder.dtype(base_folder)
        cast(merge_in_memory(model, adapter), stored).save_pretrained(staging)
        for file in base_folder.iterdir():
            if file.is_file() and not (staging / file.name).exists() and ".safetensors" not in file.name:
                shutil.copyfile(file, staging / file.name)
        for file in staging.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        write_json(staging / prune.MANIFEST, {})  # its time is that of the last use
        os.replace(staging, place)
        sync_folder(place.parent)
    except OSError:
        if not place.is_dir():  # another job was first
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _shrink_frozen(model: PreTrainedModel) -> None:
    """Method freeze in bf16: what is trained stays fp32, the rest takes half the room."""
    for weight in model.parameters():
        if not weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
