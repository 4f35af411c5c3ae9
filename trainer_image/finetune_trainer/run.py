"""One run as its ranks see it: the job, the attempt's facts, the folders, and the two lines to the outside.

`Run` is made by ``worker`` and handed down; nothing below reads environment variables or fixed paths.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.status import Artifact, Checkpoint, Progress

from finetune_trainer.errors import AccessDenied
from finetune_trainer.prepared import PreparedJob


@dataclass(frozen=True)
class Folders:
    """The workspace's layout, the same in a cluster and on a laptop."""

    workspace: Path
    job: Path
    """jobs/<name>: everything of this job."""
    checkpoints: Path
    """checkpoints/ of the job: one folder per run."""
    run_checkpoints: Path
    """checkpoints/<attempt>-<run id>: what this run saves, and nobody else touches."""
    artifact: Path
    reports: Path
    volumes: dict[str, Path]
    """Claim -> folder where it is mounted."""


def check_readable(path: Path, uri: str) -> None:
    """Raises AccessDenied. By opening it: file servers decide by more than the mode."""
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        raise denied(path, uri) from None


def denied(path: Path, what: str) -> AccessDenied:
    """A source that is there, but not for this user."""
    return AccessDenied(
        f"{what}: uid {os.getuid()}, gid {os.getgid()} may not read {path}. Make it readable for that user (chmod -R"
        " a+rX or chown), or use a volume whose StorageClass supports fsGroup"
    )


def nothing(*_: object) -> None:
    """Where nobody listens: ranks other than 0, and laptops."""


@dataclass(frozen=True)
class Run:
    """What every step of a workflow may need."""

    job: ResolvedJob
    attempt: AttemptFacts
    run_id: str
    folders: Folders
    rank: int
    local_rank: int
    world_size: int
    micro_batch_size: int
    prepared: PreparedJob
    """Model and data, where `prepare` put them."""
    stop_requested: Callable[[], bool] = field(default=lambda: False)
    """True once SIGTERM came; ranks agree on it before they act."""
    seconds_left: Callable[[], float] = field(default=lambda: float("inf"))
    """Rest of the grace period after SIGTERM."""
    report_progress: Callable[[Progress], None] = nothing
    """Best effort, returns at once; only rank 0's goes anywhere."""
    report_checkpoint: Callable[[Checkpoint], None] = nothing
    """As report_progress."""

    @property
    def is_main(self) -> bool:
        """Rank 0 writes what there is one of."""
        return self.rank == 0

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step and rank."""
        return self.job.training.global_batch_size // (self.world_size * self.micro_batch_size)


@dataclass(frozen=True)
class Outcome:
    """What a workflow made."""

    artifact: Artifact
    metrics: dict[str, str]
    message: str = "Training completed"
