"""The artifact: a folder that can be copied out and used, and its digest.

Called by workflows at their end, on rank 0. It is filled beside its place and renamed, so that artifact/ is either
absent or whole. Nothing in it is a pickle.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from finetune_api.status import Artifact
from peft import PeftModel

from finetune_trainer.checkpoints.storage import guard
from finetune_trainer.reporting import model_card
from finetune_trainer.run import Run
from finetune_trainer.workspace import digest_folder, sync_folder

SHARD_SIZE = "5GB"


def write(run: Run, model: Any, tokenizer: Any, provenance: dict[str, Any], metrics: dict[str, Any]) -> Artifact:
    """Model or adapter, tokenizer, model card and provenance, in place."""
    place = run.folders.artifact
    staging = place.with_name(f".{place.name}-{run.run_id}")
    with guard(staging):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            kind = _save_model(run, model, staging)
            tokenizer.save_pretrained(staging)
            (staging / "README.md").write_text(model_card.render(run.job, kind, provenance, metrics), encoding="utf-8")
            (staging / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
            digest, size = digest_folder(staging)
            _flush(staging)
            _replace(staging, place, run.run_id)
        except BaseException:
            # A full workspace stays no fuller than it was.
            shutil.rmtree(staging, ignore_errors=True)
            raise
    uri = f"pvc://{run.job.workspace_claim}/{place.relative_to(run.folders.workspace).as_posix()}"
    return Artifact(uri=uri, kind=kind, digest=digest, size_bytes=size)


def _save_model(run: Run, model: Any, staging: Path) -> Literal["adapter", "model"]:
    if not isinstance(model, PeftModel):
        model.save_pretrained(staging, max_shard_size=SHARD_SIZE)
        return "model"
    model.save_pretrained(str(staging), save_embedding_layers=False)
    config_file = staging / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    # peft wrote where the base lay in this pod, which means nothing anywhere else
    config["base_model_name_or_path"] = run.job.model.source
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return "adapter"


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
