"""The options of a launch: from the command line, and with defaults that only tests change."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune_api.contract import TERMINATION_MESSAGE

from finetune_trainer.launcher.handover import RENDEZVOUS_SECONDS
from finetune_trainer.launcher.hang_detection import HangLimits
from finetune_trainer.launcher.restart_policy import PAUSES
from finetune_trainer.reporting.api import ApiServer

WORKER = (sys.executable, "-m", "finetune_trainer.launcher.worker")


@dataclass(frozen=True)
class LaunchOptions:
    """The first seven come from the command line."""

    job_file: Path
    workspace: Path | None = None
    volumes: dict[str, Path] = field(default_factory=dict)
    """Claim -> directory."""
    config_maps: dict[str, Path] = field(default_factory=dict)
    """ConfigMap -> directory."""
    command: Literal["train", "prepare"] = "train"
    keep: bool = False
    """Train nothing: make the artifact of the newest checkpoint."""
    allow_remote_code: bool = False
    worker: Sequence[str] = WORKER
    """Command of a rank. The handover directory and the rank are appended."""
    api: Callable[[], ApiServer | None] = ApiServer.of_pod
    termination_message: Path = Path(TERMINATION_MESSAGE)
    rank_0_address: tuple[str, int] | None = None
    """Host and port of rank 0, when that is not the pod of node 0."""
    rendezvous_seconds: float = RENDEZVOUS_SECONDS
    hang_limits: HangLimits = field(default_factory=HangLimits)
    restart_pauses: Sequence[float] = PAUSES
