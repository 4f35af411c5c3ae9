"""The layout of the workspace, the same in a cluster and on a laptop, and the check that a path can be read."""

import os
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.errors import AccessDenied


@dataclass(frozen=True)
class Folders:
    """The directories of one run of a job."""

    workspace: Path
    job: Path
    """jobs/<name>: everything of this job."""
    checkpoints: Path
    """checkpoints/ of the job: one directory per run."""
    run_checkpoints: Path
    """checkpoints/<attempt>-<run id>: the checkpoints of this run. No other run writes here, and neither do the ranks
    before a restart, which had another run id."""
    artifact: Path
    reports: Path
    volumes: dict[str, Path]
    """Claim -> directory where it is mounted."""


def layout(workspace: Path, job: str, attempt: int, run_id: str, volumes: dict[str, Path]) -> Folders:
    """The directories of a run. Creates none."""
    job_folder = workspace / "jobs" / job
    return Folders(
        workspace=workspace,
        job=job_folder,
        checkpoints=job_folder / "checkpoints",
        run_checkpoints=job_folder / "checkpoints" / f"{attempt}-{run_id}",
        artifact=job_folder / "artifact",
        reports=job_folder / "reports",
        volumes=volumes,
    )


def check_readable(path: Path, uri: str) -> None:
    """Raises AccessDenied. Opens the path, because file servers decide by more than its mode. Opening a pipe
    does not wait for a writer."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except PermissionError:
        raise access_denied(path, uri) from None


def access_denied(path: Path, what: str) -> AccessDenied:
    """The error for a source that exists but that this user cannot read."""
    return AccessDenied(
        f"{what}: uid {os.getuid()}, gid {os.getgid()} may not read {path}. Make it readable for that user (chmod -R"
        " a+rX or chown), or use a volume whose StorageClass supports fsGroup"
    )
