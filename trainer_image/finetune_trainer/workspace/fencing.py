"""The fence and the result of a job: which run may write to jobs/<name>, and whether the job is done.

The launcher calls this before the ranks start and after they end. Two files hold the truth. Both are written
atomically:

``fence.json``   {uid, attempt, runId, digest}: the run that may write here, and the job whose results these are. Ranks
that start again in the same pods are a run of their own: its id has the number of the restart.
Written before any other file of the job, so no checkpoint or artifact exists without it. ``RESULT.json``  {digest,
result}: the job is done, and how. Written after all other files of the job.

A crash between two writes leaves one of three states: no fence and an empty directory (the next run starts from the
beginning), a fence without a result (the next run takes over and resumes from the newest checkpoint), or a result (the
next run reports it).
"""

import shutil
from dataclasses import dataclass, replace

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.status import Result
from pydantic import ValidationError

from finetune_trainer.errors import Superseded, WorkspaceOccupied
from finetune_trainer.workspace.files import damaged, digest_folder, read_json, sync_folder, write_json
from finetune_trainer.workspace.folders import Folders

FENCE = "fence.json"
RESULT = "RESULT.json"


@dataclass(frozen=True)
class Fence:
    """The run that may write to jobs/<name>."""

    uid: str
    attempt: int
    run_id: str
    digest: str

    @staticmethod
    def read(folders: Folders) -> "Fence | None":
        content = read_json(folders.job / FENCE)
        if content is None:
            return None
        try:
            return Fence(str(content["uid"]), int(content["attempt"]), str(content["runId"]), str(content["digest"]))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(folders.job / FENCE, error) from error

    def write(self, folders: Folders) -> None:
        content = {"uid": self.uid, "attempt": self.attempt, "runId": self.run_id, "digest": self.digest}
        write_json(folders.job / FENCE, content)


def earlier_result(folders: Folders, job: ResolvedJob) -> Result | None:
    """The result of an earlier run of the same job, after every byte of its artifact was verified. None when there is
    work to do. Changes nothing, because this run does not hold the fence yet.

    Raises WorkspaceOccupied when the result belongs to another job, or when the artifact was changed.
    """
    content = read_json(folders.job / RESULT)
    if content is None:
        return None
    if content.get("digest") != job.digest:
        raise _occupied(folders, job, "the result", str(content.get("digest")), RESULT)
    try:
        result = Result.model_validate(content.get("result"))
    except ValidationError as error:
        raise damaged(folders.job / RESULT, error) from error
    if result.artifact is None or not folders.artifact.exists():
        return None
    if digest_folder(folders.artifact)[0] != result.artifact.digest:
        raise WorkspaceOccupied(
            f"jobs/{job.name}/artifact in the workspace ({job.workspace_claim}) was changed after the training that"
            f" {RESULT} describes. It is neither reported nor overwritten. To train again move it away, or use another"
            " metadata.name"
        )
    return result


def check_vacant(folders: Folders, job: ResolvedJob) -> Fence | None:
    """The fence of the job's directory, if any, after a check that no other job has trained there. Changes nothing, so
    every run calls this before its first write.

    Raises WorkspaceOccupied when checkpoints or an artifact belong to another job, or when nobody knows whose they are.
    """
    fence = Fence.read(folders)
    trained = _trained(folders)
    if not trained:  # else a job that was corrected after an early failure could not keep its name
        return fence
    if fence is None:
        raise WorkspaceOccupied(
            f"jobs/{job.name} in the workspace ({job.workspace_claim}) has {trained} but no {FENCE}, so their job is"
            f" unknown. Nothing is overwritten. Use another metadata.name, or remove jobs/{job.name} if nobody needs it"
        )
    if fence.digest != job.digest:
        raise _occupied(folders, job, trained, fence.digest, FENCE)
    return fence


def claim(folders: Folders, job: ResolvedJob, facts: AttemptFacts, run_id: str) -> Fence:
    """Create the job's directories and take the fence for this run.

    Raises WorkspaceOccupied (the directory has results of another job), Superseded (a higher attempt of this job has
    taken the fence before). A run of another uid with the same digest is the same job, deleted and created again: it
    continues from the checkpoints of the deleted job.
    """
    fence = Fence(facts.uid, facts.attempt, run_id, job.digest)
    current = check_vacant(folders, job)
    if current is not None and current.uid == facts.uid and current.attempt > facts.attempt:
        raise Superseded(
            f"Attempt {current.attempt} of this job has started already. This is attempt {facts.attempt}, which ends"
        )
    folders.job.mkdir(parents=True, exist_ok=True)
    for parent in (folders.job.parent, folders.workspace):
        sync_folder(parent)
    return _take(folders, fence)


def renew(folders: Folders, fence: Fence, run_id: str) -> Fence:
    """Take the fence for ranks that start again in the same pods, under a run id of their own: whatever is left of the
    ranks before them may no longer delete or replace anything. Raises Superseded when a later run has ``fence``."""
    check_fence(folders, fence)
    renewed = _take(folders, replace(fence, run_id=run_id))
    clear_leftovers(folders, renewed)
    return renewed


def _take(folders: Folders, fence: Fence) -> Fence:
    """Write the fence, and create the directories of its run."""
    fence.write(folders)
    for folder in (folders.run_checkpoints, folders.reports):
        folder.mkdir(parents=True, exist_ok=True)
    return fence


def clear_leftovers(folders: Folders, fence: Fence) -> None:
    """Remove what earlier runs of this job left behind: unfinished writes and deletions, and a result whose artifact is
    gone. The caller holds ``fence``."""
    if not folders.artifact.exists():
        (folders.job / RESULT).unlink(missing_ok=True)
        sync_folder(folders.job)
    staged = (path for path in folders.job.glob(".artifact-*") if path.name != f".artifact-{fence.run_id}")
    patterns = (".staging-*", ".deleting-*")
    unfinished = (path for pattern in patterns for path in folders.checkpoints.glob(f"*/{pattern}"))
    for path in (*staged, *(path for path in unfinished if path.parent != folders.run_checkpoints)):
        shutil.rmtree(path, ignore_errors=True)


def check_fence(folders: Folders, fence: Fence) -> None:
    """Raises Superseded when a later run has taken the fence from ``fence``.

    A lower attempt of the same job may take it, too, when it looked before this run wrote. Then this run takes the
    fence back, and the lower attempt ends by this same check.
    """
    current = Fence.read(folders)
    if current is None or current.run_id == fence.run_id:
        return
    if current.uid == fence.uid and current.attempt < fence.attempt:
        fence.write(folders)
        return
    raise Superseded(
        f"Run {current.run_id} (attempt {current.attempt}, job uid {current.uid}) has taken over {folders.job}. This"
        " run ends"
    )


def save_result(folders: Folders, fence: Fence, result: Result) -> None:
    """Write RESULT.json: the job is done. Raises Superseded."""
    check_fence(folders, fence)
    write_json(folders.job / RESULT, {"digest": fence.digest, "result": result.to_dict()})


def next_local_attempt(folders: Folders, uid: str) -> int:
    """The attempt of a run without an operator: the last attempt plus 1, so that it supersedes a run that is still
    running."""
    last = Fence.read(folders)
    return min(999, last.attempt + 1) if last is not None and last.uid == uid else 1


def _trained(folders: Folders) -> str:
    """What a training has left in the job's directory, in words. Empty: nothing."""
    if folders.artifact.is_dir() and any(folders.artifact.iterdir()):
        return "an artifact"
    return "checkpoints" if any(folders.checkpoints.glob("*/checkpoint-*")) else ""


def _occupied(folders: Folders, job: ResolvedJob, what: str, digest: str, file: str) -> WorkspaceOccupied:
    """The error when ``what`` belongs to another job, by the digest in ``file``. Names that job's last run."""
    fence = Fence.read(folders)
    run = f" (uid {fence.uid}, attempt {fence.attempt})" if fence is not None and fence.digest == digest else ""
    return WorkspaceOccupied(
        f"jobs/{job.name} in the workspace ({job.workspace_claim}) has {what} of another FineTuneJob of this name{run}:"
        f" digest {digest[:19]} in {file}, {job.digest[:19]} for this job. Model, data, tuning or training settings"
        f" differ, so nothing is overwritten. Use another metadata.name, or remove jobs/{job.name} if nobody needs it"
    )
