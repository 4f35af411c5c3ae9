"""The artifact: a folder that can be copied out and used, and its digest.

Called by workflows at their end, on rank 0. It is filled beside its place and renamed, so that artifact/ is either
absent or whole. Nothing in it is a pickle. An adapter lies in it as it is, or merged and beside it in adapter/; an
earlier adapter that was merged before training is in base_adapter/, as without it the new one fits no published model.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from finetune_api.status import Artifact
from peft import PeftModel

from finetune_trainer.checkpoints import fence
from finetune_trainer.checkpoints.storage import guard
from finetune_trainer.model import base as base_model
from finetune_trainer.model import build, pissa, sharding
from finetune_trainer.model.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_ADAPTER
from finetune_trainer.model.merge import SHARD_SIZE, merge, output_dtype, probe, probe_rows
from finetune_trainer.reporting import model_card
from finetune_trainer.run import Run
from finetune_trainer.workspace import digest_folder, sync_folder

ADAPTER = "adapter"


def write(
    run: Run,
    model: Any,
    tokenizer: Any,
    provenance: dict[str, Any],
    metrics: dict[str, Any],
    *,
    weights: dict[str, Any] | None = None,
    stop_ids: Collection[int] = (),
    probes: Sequence[Sequence[int]] | None = None,
    extra: Callable[[Path], None] | None = None,
) -> Artifact:
    """Model or adapter, tokenizer, model card and provenance, in place.

    ``weights`` are the model's, where it holds a share of them alone (`gather`). ``stop_ids`` are the tokens at which
    an answer ends, ``probes`` rows of held-out token ids that a merge is measured on. ``extra`` writes what else the
    stage has for it into the folder it is given.
    """
    place = run.folders.artifact
    staging = place.with_name(f".{place.name}-{run.run_id}")
    with guard(staging):
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
            fence.check(run)  # what is in place may be a later run's
            _replace(staging, place, run.run_id)
        except BaseException:
            # A full workspace stays no fuller than it was.
            shutil.rmtree(staging, ignore_errors=True)
            raise
    uri = f"pvc://{run.job.workspace_claim}/{place.relative_to(run.folders.workspace).as_posix()}"
    job, prepared = run.job, run.prepared
    adapter = kind == "adapter"
    return Artifact(
        uri=uri,
        kind=kind,
        digest=digest,
        size_bytes=size,
        base=job.model.source if adapter else None,
        base_adapter=adapter and (place / BASE_ADAPTER).is_dir(),
        base_digest=prepared.base_digest or None,
        tokenizer_digest=prepared.tokenizer_digest or None,
    )


def gather(run: Run, model: Any) -> dict[str, Any] | None:
    """What `write` needs of a model that ranks hold shares of: called by all of them, something on rank 0. None of one
    that each rank holds whole."""
    if not sharding.is_sharded(model):
        return None
    adapter = isinstance(model, PeftModel)
    if not adapter:
        # As shares: whole, the model would be there twice.
        build.cast(model, output_dtype(run.job.output.dtype, run.prepared.model))
    return sharding.gather(model, trained_only=adapter)


def scratch(run: Run) -> Path:
    """Where `build` keeps what outlives an attempt and is shared by jobs."""
    return run.folders.workspace / "cache" / "merged"


def _save(
    run: Run,
    model: Any,
    weights: dict[str, Any] | None,
    staging: Path,
    tokenizer: Any,
    probes: Sequence[Sequence[int]] | None,
) -> tuple[Literal["adapter", "model"], dict[str, Any]]:
    """The weights; what was made, and what a merge was measured at."""
    job, base, adapter = run.job, run.prepared.model, run.prepared.adapter
    if not isinstance(model, PeftModel):
        if weights is None:
            build.cast(model, output_dtype(job.output.dtype, base))
        model.save_pretrained(staging, state_dict=weights, max_shard_size=SHARD_SIZE)
        return "model", {}
    folder = staging / ADAPTER if job.output.merge else staging
    _save_adapter(run, model, weights, folder)
    adapters = [folder]
    if adapter is not None and build.tuning_adapter(job) == "merge":
        adapters = [staging / BASE_ADAPTER, folder]
        (staging / BASE_ADAPTER).mkdir()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(adapter / name, staging / BASE_ADAPTER / name)
    if not job.output.merge:
        return "adapter", {"adapters": [_adapter_facts(one, staging) for one in adapters]}
    quantised = job.tuning.method == "qlora"
    rows = probes or probe_rows(model.config)
    made = merge(
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
    return "model", {"merge": made.facts()}


def _save_adapter(run: Run, model: Any, weights: dict[str, Any] | None, folder: Path) -> None:
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's; ours is the artifact's
    config_file = folder / ADAPTER_CONFIG
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # peft wrote where the base lay in this pod, which means nothing anywhere else
    config["base_model_name_or_path"] = run.job.model.source
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if run.job.tuning.lora is not None and run.job.tuning.lora.init == "pissa":
        made_of = run.prepared
        first = build.pissa_file(run.job, made_of.model, made_of.adapter, scratch(run), made_of.digests)
        pissa.ordinary(folder, first)


def _adapter_facts(folder: Path, artifact: Path) -> dict[str, Any]:
    """What has to be known of an adapter to put it on its base: its folder, whether its model scores, and how many rows
    its own embeddings have (0: it has none)."""
    return {
        "folder": folder.relative_to(artifact).as_posix(),
        "scores": build.kind_of(folder) == "reward",
        "embeddings": build.rows(folder),
    }


def _save_generation(staging: Path, base: Path, stop_ids: Collection[int], tokenizer: Any) -> None:
    """The base's settings, with the tokens that the model was taught to stop at."""
    file = base / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if stop_ids:
        config["eos_token_id"] = sorted(stop_ids)
    if tokenizer.pad_token_id is not None:
        config["pad_token_id"] = tokenizer.pad_token_id
    (staging / file.name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _flush(folder: Path) -> None:
    """Onto the disk, before anything says that it is there; and readable for who copies it (safetensors makes its files
    private)."""
    for file in (path for path in folder.rglob("*") if path.is_file()):
        file.chmod(0o644)
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)


def _replace(staging: Path, place: Path, run_id: str) -> None:
    """An artifact that is there already is of an earlier run that ended before its result was recorded."""
    old = place.with_name(f".{place.name}-old-{run_id}")
    if place.exists():
        os.replace(place, old)
    os.replace(staging, place)
    sync_folder(place.parent)
    shutil.rmtree(old, ignore_errors=True)
