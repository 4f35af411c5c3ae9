"""The artifact of a job as one whole model, whatever the job wrote.

Called by ``python -m finetune_trainer export``, on a machine with room for the model in fp32. The artifact itself stays
as it is, as its digest is the job's result.
"""

import os
import shutil
from pathlib import Path

from finetune_api.contract import ResolvedJob

from finetune_trainer.errors import InvalidSpec, NotFound
from finetune_trainer.model import base as base_model
from finetune_trainer.model import folder as model_folder
from finetune_trainer.model import tokenizer
from finetune_trainer.model.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from finetune_trainer.model.merge import Merged, OutputType, merge
from finetune_trainer.run import Folders

WEIGHTS = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "README.md", "provenance.json"}
"""What of an adapter's artifact the merged model doesn't have."""


def export(job: ResolvedJob, folders: Folders, out: Path, dtype: OutputType = "auto") -> Merged:
    """Merge the artifact's adapter into its base, as files in the new folder ``out``; what it was measured at."""
    artifact = folders.artifact
    if not artifact.is_dir():
        raise NotFound(f"{job.name} has no artifact yet: {artifact} is not there")
    if not (artifact / ADAPTER_CONFIG).is_file():
        raise InvalidSpec(f"the artifact of {job.name} is a whole model already: copy {artifact}")
    if out.exists():
        raise InvalidSpec(f"{out} is there already: name a folder that isn't")
    staging = out.with_name(f".{out.name}-{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        earlier = [artifact / model_folder.BASE_ADAPTER] if (artifact / model_folder.BASE_ADAPTER).is_dir() else []
        tokens = tokenizer.load(artifact)
        made = merge(
            model_folder.of_job(job, folders),
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
            if file.is_file() and file.name not in WEIGHTS:
                shutil.copyfile(file, staging / file.name)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return made
