"""Exports the adapter of a job's artifact as a whole model, merged into its base.

Called by ``python -m finetune_trainer export``, on a machine with enough memory for the model in fp32. The artifact
itself does not change, because its digest is a part of the job's result.
"""

import os
import shutil
from pathlib import Path

from finetune_api.contract import ResolvedJob

from finetune_trainer.artifact.merge import Merged, OutputType, merge
from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.model import base as base_model
from finetune_trainer.model import model_files, tokenizer
from finetune_trainer.model.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from finetune_trainer.reporting.library_logs import silence_libraries
from finetune_trainer.workspace.folders import Folders

NOT_COPIED = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "README.md", "provenance.json"}
"""Files of an adapter's artifact that the merged model does not have."""


def export(job: ResolvedJob, folders: Folders, out: Path, dtype: OutputType = "auto") -> Merged:
    """Merge the artifact's adapter into its base and write the model into the new directory ``out``. Returns what the
    merge measured. Raises NotFound, InvalidSpec."""
    artifact = folders.artifact
    if not artifact.is_dir():
        raise NotFound(f"{job.name} has no artifact yet: {artifact} does not exist. Train the job first")
    if not (artifact / ADAPTER_CONFIG).is_file():
        raise InvalidSpec(f"The artifact of {job.name} is a whole model already. Copy {artifact} instead")
    if out.exists():
        raise InvalidSpec(f"--out {out} exists already; must be a directory that does not exist")
    silence_libraries()
    staging = out.with_name(f".{out.name}-{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        base_adapter = artifact / model_files.BASE_ADAPTER
        earlier = [base_adapter] if base_adapter.is_dir() else []
        tokens = tokenizer.load(artifact)
        merged = merge(
            model_files.locate(job, folders),
            [*earlier, artifact],
            staging,
            dtype,
            source=job.model.source,
            tokens=len(tokens),
            allow_remote_code=base_model.remote_code(job),
            kind=base_model.kind_of(job.stage),
            pad_id=tokens.pad_token_id,
        )
        for file in artifact.iterdir():
            if file.is_file() and file.name not in NOT_COPIED:
                shutil.copyfile(file, staging / file.name)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return merged
