"""A trainer's pod without a cluster: its files, its launcher, and its result. For the tests of the launcher."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune_api.contract import AttemptFacts, resolve
from finetune_api.job import FineTuneJob
from finetune_api.status import Reference, Result
from finetune_trainer.workspace import prepared
from finetune_trainer.workspace.folders import layout

from tests.trainer.support import fake_rank
from tests.trainer.support.fake_api import FakeApi

HERE = Path(__file__).parent
PATIENCE = 120
"""Seconds after which a launcher counts as hung."""
HURRY = 0.2
"""`Pod.waits` for tests that only wait for a time-out of the launcher."""


def manifest(name: str = "tune", **training: Any) -> dict[str, Any]:
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "stage": "sft",
            "model": {"source": "pvc://models/small"},
            "datasets": [{"source": "pvc://models/data.jsonl", "format": "openai"}],
            "training": {"maxSteps": 10, "globalBatchSize": 8, **training},
            "workspace": {"claimName": "workspace"},
            "resources": {"gpusPerNode": 2},
        },
    }


@dataclass
class Pod:
    """One attempt. ``ranks`` has the scene of each of the two ranks; see `fake_rank`."""

    folder: Path
    ranks: list[list[Any]]
    api: FakeApi | None = None
    job: dict[str, Any] = field(default_factory=manifest)
    attempt: int = 1
    uid: str = "11111111-aaaa"
    run_id: str = "run-1"
    grace: int = 120
    allow_cpu: bool = True
    user: int | None = None
    workspace: Path | None = None
    command: str = "train"
    node: int = 0
    port: int = 0
    """Port of rank 0; 0: the launcher chooses it."""
    join: bool = False
    """Whether the ranks join by the real rendezvous, which takes seconds."""
    rendezvous: float = 60.0
    hang_limits: dict[str, float] = field(default_factory=dict)
    waits: float = 1.0
    """Factor for the launcher's own time-outs."""
    kills: Literal["unknown", "steady", "growing"] = "unknown"
    """The kernel's count of processes that it killed for memory."""
    restarts: int | None = None
    """How many failures may be followed by a restart of the ranks."""
    pauses: list[float] = field(default_factory=lambda: [0.0, 0.2])
    """Seconds before each restart in a row."""
    references: list[Reference] = field(default_factory=list)
    """References to other jobs, as the operator resolves them."""
    ready: bool = True
    """Whether an earlier pod has prepared the job."""

    def __post_init__(self) -> None:
        self.workspace = self.workspace or self.folder / "workspace"
        self.workspace.mkdir(exist_ok=True)
        self.etc = self.folder / f"etc-{self.run_id}"
        self.etc.mkdir()
        self.termination = self.etc / "termination-log"
        self.termination.touch()
        parsed = FineTuneJob.model_validate(self.job)
        resolved = resolve(parsed, allow_cpu=self.allow_cpu, progress_interval_seconds=1)
        resolved = resolved.model_copy(update={"references": self.references})
        facts = AttemptFacts(
            namespace="team",
            name=resolved.name,
            uid=self.uid,
            attempt=self.attempt,
            job_name=f"{resolved.name}-11111-{self.attempt}",
            grace_period_seconds=self.grace,
            restarts=self.restarts,
        )
        (self.etc / "job.json").write_text(json.dumps(resolved.to_dict()))
        (self.etc / "attempt.json").write_text(json.dumps(facts.to_dict()))
        folders = layout(self.workspace, resolved.name, self.attempt, self.run_id, {})
        self.home, self.checkpoints = folders.job, folders.run_checkpoints
        if self.command == "train" and self.ready and prepared.read(folders, resolved) is None:
            fake_rank.make_ready(folders, resolved)

    def start(self) -> subprocess.Popen[str]:
        settings = {
            "job": str(self.etc / "job.json"),
            "workspace": str(self.workspace),
            "termination": str(self.termination),
            "ranks": self.ranks,
            "url": self.api.server.url if self.api else None,
            "credentials": str(self.api.server.credentials) if self.api else "",
            "uid": self.user,
            "command": self.command,
            "port": self.port,
            "join": self.join,
            "rendezvous": self.rendezvous,
            "hang_limits": self.hang_limits,
            "waits": self.waits,
            "kills": self.kills,
            "pauses": self.pauses,
        }
        self.log = self.etc / "log"
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, str(HERE / "fake_launch.py"), json.dumps(settings)],
                env={
                    **os.environ,
                    "FINETUNE_POD_UID": self.run_id,
                    "JOB_COMPLETION_INDEX": str(self.node),
                    "CUDA_VISIBLE_DEVICES": "",
                    "TMPDIR": str(self.etc),
                },
                stdout=log,
                stderr=log,
                text=True,
            )

    def run(self) -> int:
        return self.start().wait(PATIENCE)

    def wait_until_training(self, process: subprocess.Popen[str]) -> None:
        """Return when both ranks run their workflow."""
        end = time.monotonic() + PATIENCE
        while not all((self.checkpoints / f"pid-{rank}").exists() for rank in (0, 1)):
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    @property
    def result(self) -> Result:
        """The termination message."""
        text = self.termination.read_bytes()
        assert len(text) <= 4000
        return Result.model_validate_json(text)
