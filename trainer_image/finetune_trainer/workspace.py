"""The workspace: where everything of a job lies, whose it is at the moment, and whether the job is done already.

Called by ``launch`` before the ranks start and after they end. Two files are the truth, both written whole or not at
all:

``fence.json``   {uid, attempt, runId, digest}: the run that may write here, and the job whose results these are.
                 Written before anything else of the job, so no checkpoint or artifact is ever without it.
``RESULT.json``  {digest, result}: the job is done, and how. Written after everything else of the job.

A crash between two writes leaves either no fence and an empty folder (the next run starts afresh), a fence without a
result (the next run takes over and goes on from the newest checkpoint), or a result (the next run reports it).
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.status import Result
from pydantic import ValidationError

from finetune_trainer.errors import NoSpace, Superseded, TrainerError, WorkspaceOccupied, WorkspaceUnusable
from finetune_trainer.run import Folders

FENCE = "fence.json"
RESULT = "RESULT.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
CHUNK = 1 << 20


def layout(workspace: Path, job: str, attempt: int, run_id: str, volumes: dict[str, Path]) -> Folders:
    """Where things are; makes nothing."""
    home = workspace / "jobs" / job
    return Folders(
        workspace=workspace,
        job=home,
        checkpoints=home / "checkpoints",
        run_checkpoints=home / "checkpoints" / f"{attempt}-{run_id}",
        artifact=home / "artifact",
        reports=home / "reports",
        volumes=volumes,
    )


def write_json(file: Path, content: Any) -> None:
    """Whole or not at all, and on disk when this returns."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as out:
            json.dump(content, out, ensure_ascii=False, indent=1)
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(file: Path) -> dict[str, Any] | None:
    """None when it isn't there. Raises WorkspaceUnusable when it isn't ours."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(file, error) from error
    if not isinstance(content, dict):
        raise _damaged(file, "not an object")
    return content


def _damaged(file: Path, why: object) -> WorkspaceUnusable:
    return WorkspaceUnusable(f"{file} is damaged ({why}): remove {file.parent}, or use another metadata.name")


@contextmanager
def usable(workspace: Path) -> Iterator[None]:
    """Around work on the workspace: an error of the file system as what it means for the job. One that may go away by
    itself stays what it is, and another attempt is made."""
    try:
        yield
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        raise _unusable(error, workspace) from error


def _unusable(error: OSError, workspace: Path) -> TrainerError:
    if error.errno in NO_SPACE:
        return NoSpace(f"The workspace {workspace} is full ({error}): give its claim room, or remove old jobs/ from it")
    return WorkspaceUnusable(
        f"The workspace {workspace} can't be used by uid {os.getuid()}, gid {os.getgid()}: {error}. Its mount must not"
        " be read-only, and either its StorageClass supports fsGroup or the volume is writable for that user"
    )


def digest_folder(folder: Path) -> tuple[str, int]:
    """sha256 over names and contents of all files below, in the order of their names, as `fetch` finds it of what
    another job reads; and the sum of their sizes."""
    total = hashlib.sha256()
    size = 0
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    for name in names:
        file = folder / name
        one = hashlib.sha256()
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                one.update(chunk)
                size += len(chunk)
        total.update(f"{name}\0{one.hexdigest()}\n".encode())
    return "sha256:" + total.hexdigest(), size


@dataclass(frozen=True)
class Fence:
    """Who may write into jobs/<name>."""

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
            raise _damaged(folders.job / FENCE, error) from error

    def write(self, folders: Folders) -> None:
        content = {"uid": self.uid, "attempt": self.attempt, "runId": self.run_id, "digest": self.digest}
        write_json(folders.job / FENCE, content)


def earlier_result(folders: Folders, job: ResolvedJob) -> Result | None:
    """What an earlier run of the same job made, its artifact checked byte for byte; None when there is work to do.
    Changes nothing: the folder isn't this run's yet.

    Raises WorkspaceOccupied when the result is another job's, or the artifact isn't what the result says.
    """
    content = read_json(folders.job / RESULT)
    if content is None:
        return None
    _same_job(job, str(content.get("digest")), RESULT)
    try:
        result = Result.model_validate(content.get("result"))
    except ValidationError as error:
        raise _damaged(folders.job / RESULT, error) from error
    if result.artifact is None or not folders.artifact.exists():
        return None
    if digest_folder(folders.artifact)[0] != result.artifact.digest:
        raise WorkspaceOccupied(
            f"jobs/{job.name}/artifact in the workspace ({job.workspace_claim}) was changed after the training that"
            f" {RESULT} tells of: move it away and this job trains anew, or use another metadata.name"
        )
    return result


def claim(folders: Folders, job: ResolvedJob, facts: AttemptFacts, run_id: str) -> Fence:
    """Make the job's folders and take the fence for this run.

    Raises WorkspaceOccupied (another job's results lie here), Superseded (a higher attempt of this CR has been here).
    A run of another uid with the same digest is the same job, deleted and made again: it goes on where that ended.
    """
    fence = Fence(facts.uid, facts.attempt, run_id, job.digest)
    folders.job.mkdir(parents=True, exist_ok=True)
    for parent in (folders.job.parent, folders.workspace):
        sync_folder(parent)
    before = Fence.read(folders)
    artifact = folders.artifact.is_dir() and any(folders.artifact.iterdir())
    trained = artifact or any(folders.checkpoints.glob("*/checkpoint-*"))
    if before is not None:
        if trained:  # else a job that was corrected after it failed early could not keep its name
            _same_job(job, before.digest, FENCE)
        if before.uid == facts.uid and before.attempt > facts.attempt:
            raise Superseded(f"Attempt {before.attempt} of this job has started already; this is {facts.attempt}")
    elif trained:
        raise WorkspaceOccupied(
            f"{folders.job} holds checkpoints or an artifact but no {FENCE}, so nobody knows of which job:"
            f" remove it, or use another metadata.name than {job.name!r}"
        )
    fence.write(folders)
    for folder in (folders.run_checkpoints, folders.reports):
        folder.mkdir(parents=True, exist_ok=True)
    return fence


def clear_leftovers(folders: Folders, mine: Fence) -> None:
    """After the fence was taken: remove what earlier runs of this job began to write or to delete when they ended, and
    a result whose artifact is gone."""
    if not folders.artifact.exists():
        (folders.job / RESULT).unlink(missing_ok=True)
        sync_folder(folders.job)
    staged = (path for path in folders.job.glob(".artifact-*") if path.name != f".artifact-{mine.run_id}")
    runs = folders.checkpoints
    begun = (path for pattern in (".staging-*", ".deleting-*") for path in runs.glob(f"*/{pattern}"))
    for path in (*staged, *(path for path in begun if path.parent != folders.run_checkpoints)):
        shutil.rmtree(path, ignore_errors=True)


def check_fence(folders: Folders, mine: Fence) -> None:
    """Raises Superseded when a later run has taken the fence.

    A lower attempt of the same CR that took it can only be a straggler which looked before this run wrote: the fence is
    taken back, and the straggler finds out by this very check.
    """
    now = Fence.read(folders)
    if now is None or now.run_id == mine.run_id:
        return
    if now.uid == mine.uid and now.attempt < mine.attempt:
        mine.write(folders)
        return
    raise Superseded(f"Run {now.run_id} (attempt {now.attempt}, job uid {now.uid}) has taken over {folders.job}")


def keep_result(folders: Folders, fence: Fence, result: Result) -> None:
    """The job's last write: from here on it is done."""
    check_fence(folders, fence)
    write_json(folders.job / RESULT, {"digest": fence.digest, "result": result.to_dict()})


def next_local_attempt(folders: Folders, uid: str) -> int:
    """Number of a run without an operator: one more than the last, so that it supersedes a run still alive."""
    before = Fence.read(folders)
    return min(999, before.attempt + 1) if before is not None and before.uid == uid else 1


def _same_job(job: ResolvedJob, digest: str, file: str) -> None:
    if digest != job.digest:
        raise WorkspaceOccupied(
            f"jobs/{job.name} in the workspace ({job.workspace_claim}) holds another training: its {file} says"
            f" {digest[:19]}, this job is {job.digest[:19]} (model, data, tuning or training settings differ). Use"
            f" another metadata.name, or remove jobs/{job.name} if nobody needs what is in it"
        )
