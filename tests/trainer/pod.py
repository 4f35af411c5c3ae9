"""A trainer's pod without a cluster: its files, its launcher, and how that ended. For the launcher's tests."""

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
from finetune_trainer import prepared
from finetune_trainer.workspace import layout

from tests.trainer import fake_rank
from tests.trainer.fake_api import FakeApi

HERE = Path(__file__).parent
PATIENCE = 120
"""Seconds after which a launcher counts as hung; no grace period in the tests is as short as what they wait for."""
HURRY = 0.2
"""`Pod.waits` of tests that have nothing to wait for but one of the launcher's time-outs."""


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
    """One attempt. `ranks` is what each of the two ranks does; see fake_rank."""

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
    """Where ranks meet; 0: where they do by themselves."""
    meet: bool = False
    """Whether the ranks really meet, which takes seconds."""
    rendezvous: float = 60.0
    bounds: dict[str, float] = field(default_factory=dict)
    waits: float = 1.0
    """What the launcher's own time-outs are multiplied by."""
    kills: Literal["unknown", "steady", "growing"] = "unknown"
    """How many processes the kernel ended for want of memory, as it counts them."""
    references: list[Reference] = field(default_factory=list)
    """What other jobs made, as the operator resolves it."""
    ready: bool = True
    """Whether a pod before it has prepared the job."""

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
            "meet": self.meet,
            "rendezvous": self.rendezvous,
            "bounds": self.bounds,
            "waits": self.waits,
            "kills": self.kills,
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
        """Return when both ranks are in their workflow."""
        end = time.monotonic() + PATIENCE
        while not all((self.checkpoints / f"pid-{rank}").exists() for rank in (0, 1)):
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    @property
    def said(self) -> Result:
        """The termination message."""
        text = self.termination.read_bytes()
        assert len(text) <= 4000
        return Result.model_validate_json(text)
