"""The artifacts of jobs that a FineTuneJob names by fromJob, resolved from the workspace.

Called by `jobfile` where no operator resolves them: on a laptop, where jobs share a workspace. As in status.references,
the artifacts that a job was trained with stay the same: they come from the provenance of its own artifact, and only for
a job without one from the directories of the other jobs. So a job that was copied here alone can generate and export.
"""

from pathlib import Path
from typing import Any

from finetune_api.chaining import Use, field_path, from_jobs
from finetune_api.job import FineTuneJob
from finetune_api.status import Reference, Result
from pydantic import ValidationError

from finetune_trainer.errors import NotFound, WorkspaceUnusable
from finetune_trainer.workspace.fencing import RESULT
from finetune_trainer.workspace.files import read_json
from finetune_trainer.workspace.folders import layout

PROVENANCE = "provenance.json"


def read_references(job: FineTuneJob, workspace: Path) -> list[Reference]:
    """A reference for each job that is named, by its use. Raises NotFound for a job without an artifact in the
    workspace, and WorkspaceUnusable when its files are damaged."""
    named = from_jobs(job.spec)
    if not named:
        return []
    own_artifact = layout(workspace, job.metadata.name, 1, "", {}).artifact
    provenance = _provenance(own_artifact) or {}
    try:
        pinned = [Reference.model_validate(entry) for entry in provenance.get("references", [])]
    except (TypeError, ValidationError) as error:
        raise _damaged(own_artifact, error) from error
    by_use = {(reference.use, reference.job): reference for reference in pinned}
    return [by_use.get((use, name)) or _resolve(job, use, name, workspace) for use, name in named.items()]


def _resolve(job: FineTuneJob, use: Use, name: str, workspace: Path) -> Reference:
    """From the files of a job that has ended: RESULT.json names its artifact, and the provenance its stage."""
    folders = layout(workspace, name, 1, "", {})
    content, provenance = read_json(folders.job / RESULT), _provenance(folders.artifact)
    if content is None or provenance is None:
        missing = RESULT if content is None else f"artifact/{PROVENANCE}"
        raise NotFound(
            f"spec.{field_path(job.spec, use)}: job {name} has no artifact in {workspace}: jobs/{name} lacks {missing}."
            f" Train {name} first, with the same --workspace, or copy jobs/{name} from the workspace in which"
            " it was trained"
        )
    try:
        artifact = Result.model_validate(content["result"]).artifact
        stage, uid = provenance["job"]["stage"], provenance["uid"]
        return Reference.model_validate({"use": use, "job": name, "uid": uid, "stage": stage, "artifact": artifact})
    except (KeyError, TypeError, ValidationError) as error:
        raise _damaged(folders.job, error) from error


def _provenance(artifact: Path) -> dict[str, Any] | None:
    return read_json(artifact / PROVENANCE)


def _damaged(folder: Path, why: Exception) -> WorkspaceUnusable:
    return WorkspaceUnusable(
        f"{folder} is damaged ({why}). Its job cannot be used as a reference. Remove it and train that job again"
    )
