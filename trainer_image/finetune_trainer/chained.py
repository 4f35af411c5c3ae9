"""What the jobs that a FineTuneJob names by fromJob have made, as the workspace tells it.

Called by ``jobfile`` where no operator has found out: on a laptop, where jobs that share a workspace follow each other.
What a job was made with stays what it was, as in status.references: the provenance of its own artifact goes before what
the other jobs' folders hold by now, and a job that was copied here alone can be asked and exported.
"""

from pathlib import Path
from typing import Any

from finetune_api.chaining import Use, field, from_jobs
from finetune_api.job import FineTuneJob
from finetune_api.status import Reference, Result
from pydantic import ValidationError

from finetune_trainer.errors import NotFound, WorkspaceUnusable
from finetune_trainer.workspace import RESULT, layout, read_json

PROVENANCE = "provenance.json"


def references(job: FineTuneJob, workspace: Path) -> list[Reference]:
    """One for each use of a job that is named. Raises NotFound for one that has made nothing here yet, and
    WorkspaceUnusable where what it left is damaged."""
    named = from_jobs(job.spec)
    if not named:
        return []
    own = layout(workspace, job.metadata.name, 1, "", {}).artifact
    known = _provenance(own) or {}
    try:
        pinned = [Reference.model_validate(one) for one in known.get("references", [])]
    except (TypeError, ValidationError) as error:
        raise _damaged(own, error) from error
    used = {(one.use, one.job): one for one in pinned}
    return [used.get((use, name)) or _made(job, use, name, workspace) for use, name in named.items()]


def _made(job: FineTuneJob, use: Use, name: str, workspace: Path) -> Reference:
    """By a job that has ended: RESULT.json has its artifact, and that its stage."""
    folders = layout(workspace, name, 1, "", {})
    ended, provenance = read_json(folders.job / RESULT), _provenance(folders.artifact)
    if ended is None or provenance is None:
        raise NotFound(
            f"spec.{field(job.spec, use)}: nothing that {name} has made is in {workspace}: jobs/{name} lacks"
            f" {RESULT if ended is None else f'artifact/{PROVENANCE}'}. Train {name} first, with the same --workspace,"
            f" or copy jobs/{name} there from the workspace it was trained in"
        )
    try:
        artifact = Result.model_validate(ended["result"]).artifact
        stage, uid = provenance["job"]["stage"], provenance["uid"]
        return Reference.model_validate({"use": use, "job": name, "uid": uid, "stage": stage, "artifact": artifact})
    except (KeyError, TypeError, ValidationError) as error:
        raise _damaged(folders.job, error) from error


def _provenance(artifact: Path) -> dict[str, Any] | None:
    return read_json(artifact / PROVENANCE)


def _damaged(folder: Path, why: Exception) -> WorkspaceUnusable:
    return WorkspaceUnusable(f"{folder} does not say what is in it ({why}): remove it and train that job anew")
