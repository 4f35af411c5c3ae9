"""Writes the artifact: a directory that can be copied and used, and its digest.

Workflows call this at their end, on rank 0. The directory is filled under another name and then renamed, so that
artifact/ is either absent or complete. It has no pickle. It has the adapter, or with output.merge the merged model and
the adapter in adapter/. An earlier adapter that was merged before training is in base_adapter/: without it the new
adapter fits no published model.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from finetune_api.source import HubPath, parse
from finetune_api.status import Artifact
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.artifact import model_card
from finetune_trainer.artifact.merge import SHARD_SIZE, merge, output_dtype, probe, probe_rows
from finetune_trainer.model import base as base_model
from finetune_trainer.model import derived_files, pissa, saved_adapter, sharding
from finetune_trainer.model.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_ADAPTER
from finetune_trainer.run import Run
from finetune_trainer.workspace.files import digest_folder, sync_folder
from finetune_trainer.workspace.storage import save_errors

ADAPTER = "adapter"


def write(
    run: Run,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    provenance: dict[str, Any],
    metrics: dict[str, Any],
    *,
    weights: dict[str, Any] | None = None,
    stop_ids: Collection[int] = (),
    probes: Sequence[Sequence[int]] | None = None,
    extra: Callable[[Path], None] | None = None,
) -> Artifact:
    """Write model or adapter, tokenizer, model card and provenance, and move them into place.

    ``weights`` are those of a sharded model, from `gather_weights`. ``stop_ids`` are the tokens at which an answer
    ends. ``probes`` are rows of held-out token ids on which a merge is measured. ``extra`` writes further files of the
    stage into the directory that it gets.
    """
    target = run.folders.artifact
    staging = target.with_name(f".{target.name}-{run.run_id}")
    with save_errors(staging):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            kind, facts = _save(run, model, weights, staging, tokenizer, probes)
            provenance = {**provenance, **facts}
            tokenizer.save_pretrained(staging)
            if base_model.kind_of(run.job.stage) == "causal":
                _save_generation(staging, run.prepared.model, stop_ids, tokenizer)
            if extra is not None:
                extra(staging)
            (staging / "README.md").write_text(model_card.render(run.job, kind, provenance, metrics), encoding="utf-8")
            (staging / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
            digest, size = digest_folder(staging)
            _flush(staging)
            run.check_fence()  # a later run may own the target
            _replace(staging, target, run.run_id)
        except BaseException:
            # Leave no more in a full workspace than before.
            shutil.rmtree(staging, ignore_errors=True)
            raise
    uri = f"pvc://{run.job.workspace_claim}/{target.relative_to(run.folders.workspace).as_posix()}"
    job, prepared = run.job, run.prepared
    adapter = kind == "adapter"
    return Artifact(
        uri=uri,
        kind=kind,
        digest=digest,
        size_bytes=size,
        base=job.model.source if adapter else None,
        base_adapter=adapter and (target / BASE_ADAPTER).is_dir(),
        base_digest=prepared.base_digest or None,
        tokenizer_digest=prepared.tokenizer_digest or None,
    )


def gather_weights(run: Run, model: PreTrainedModel | PeftModel) -> dict[str, Any] | None:
    """The weights of a sharded model, for `write`. All ranks call this; only rank 0 gets the weights. None for a model
    that each rank has whole."""
    if not sharding.is_sharded(model):
        return None
    if not isinstance(model, PeftModel):
        # Cast the shards: a cast of the gathered weights would need their memory twice.
        base_model.cast(model, output_dtype(run.job.output.dtype, run.prepared.model))
    return sharding.gather_state_dict(model, trained_only=isinstance(model, PeftModel))


def merge_cache(run: Run) -> Path:
    """The directory in which `model.build` caches merged base models, for all attempts and jobs."""
    return run.folders.workspace / "cache" / "merged"


def _save(
    run: Run,
    model: PreTrainedModel | PeftModel,
    weights: dict[str, Any] | None,
    staging: Path,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Sequence[int]] | None,
) -> tuple[Literal["adapter", "model"], dict[str, Any]]:
    """Save the weights. Returns the kind of the artifact, and entries for its provenance."""
    job, base, adapter = run.job, run.prepared.model, run.prepared.adapter
    if not isinstance(model, PeftModel):
        if weights is None:
            base_model.cast(model, output_dtype(job.output.dtype, base))
        model.save_pretrained(staging, state_dict=weights, max_shard_size=SHARD_SIZE)
        return "model", {}
    folder = staging / ADAPTER if job.output.merge else staging
    _save_adapter(run, model, weights, folder)
    adapters = [folder]
    if adapter is not None and saved_adapter.mode_of(job) == "merge":
        adapters = [staging / BASE_ADAPTER, folder]
        (staging / BASE_ADAPTER).mkdir()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(adapter / name, staging / BASE_ADAPTER / name)
    if not job.output.merge:
        return "adapter", {"adapters": [_adapter_facts(adapter_folder, staging) for adapter_folder in adapters]}
    quantised = job.tuning.method == "qlora"
    rows = probes or probe_rows(model.config)
    merged = merge(
        base,
        adapters,
        staging,
        job.output.dtype,
        source=job.model.source,
        tokens=len(tokenizer),
        probes=rows,
        trained=probe(model, rows) if quantised else None,
        allow_remote_code=base_model.remote_code(job),
        kind=base_model.kind_of(job.stage),
        pad_id=tokenizer.pad_token_id,
    )
    return "model", {"merge": merged.facts()}


def _save_adapter(run: Run, model: PeftModel, weights: dict[str, Any] | None, folder: Path) -> None:
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's own; the artifact has a model card
    config_file = folder / ADAPTER_CONFIG
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # peft wrote the path of the base in this pod, which is meaningless elsewhere
    config["base_model_name_or_path"], config["revision"] = _base_names(run)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if run.job.tuning.lora is not None and run.job.tuning.lora.init == "pissa":
        base = run.prepared
        initial = derived_files.pissa_file(run.job, base.model, base.adapter, merge_cache(run), base.digests)
        pissa.convert_to_lora(folder, initial)


def _base_names(run: Run) -> tuple[str, str | None]:
    """The base model's name and revision as peft's AutoPeftModel reads them: of a hub's model its repository and its
    commit. Other sources are ours alone. So is the base of an adapter that needs an earlier adapter merged first: peft
    would load it on the untouched base, without a word."""
    source = run.job.model.source
    place = parse(source)
    if not isinstance(place, HubPath) or saved_adapter.mode_of(run.job) == "merge":
        return source, None
    return place.repository, run.prepared.revisions.get(source) or place.revision


def _adapter_facts(folder: Path, artifact: Path) -> dict[str, Any]:
    """What loading an adapter needs: its directory, whether its model scores, and the rows of its own embeddings (0: it
    has none)."""
    return {
        "folder": folder.relative_to(artifact).as_posix(),
        "scores": saved_adapter.kind_of(folder) == "reward",
        "embeddings": saved_adapter.embedding_rows(folder),
    }


def _save_generation(staging: Path, base: Path, stop_ids: Collection[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the base model's generation settings, with the tokens at which the model was trained to stop."""
    file = base / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if stop_ids:
        config["eos_token_id"] = sorted(stop_ids)
    if tokenizer.pad_token_id is not None:
        config["pad_token_id"] = tokenizer.pad_token_id
    (staging / file.name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _flush(folder: Path) -> None:
    """Flush all files to disk before the artifact is announced, and make them readable for those who copy them:
    safetensors creates private files."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        file.chmod(0o644)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)


def _replace(staging: Path, target: Path, run_id: str) -> None:
    """Move ``staging`` to ``target``. An artifact that exists there is of an earlier run that ended before it saved its
    result."""
    old = target.with_name(f".{target.name}-old-{run_id}")
    if target.exists():
        os.replace(target, old)
    os.replace(staging, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
