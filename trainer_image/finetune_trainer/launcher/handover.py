"""The files between the launcher and its ranks: a directory in /tmp for each task.

The launcher writes ``run.json`` before the ranks start and ``deadline`` after SIGTERM. Each rank writes ``beat-<rank>``
while it runs (`runtime.heartbeat`) and ``end-<rank>.json`` at its end.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.micro_batch import MicroBatch, first_micro_batch
from finetune_api.status import Restart

from finetune_trainer.fetch import FetchContext
from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.runtime.uses import Account
from finetune_trainer.workspace.files import write_json
from finetune_trainer.workspace.folders import Folders, layout

if TYPE_CHECKING:
    pass

RUN = "run.json"
DEADLINE = "deadline"
KILL_MARGIN = 15.0
"""Seconds of the grace period that the launcher keeps to report the end; half of a short grace period."""
RENDEZVOUS_SECONDS = 1800.0
"""Seconds for which ranks wait for each other. Not less than the operator's default deadline for pods that do not
start: the operator knows the cause."""


@dataclass(frozen=True)
class Handover:
    """What a rank needs besides its number."""

    job: ResolvedJob
    attempt: AttemptFacts
    run_id: str
    workspace: Path
    volumes: dict[str, Path]
    config_maps: Path
    """Directory with <name>/<key>."""
    ranks_on_node: int
    world_size: int
    api: ApiServer | None
    """None: there is no API server to report to."""
    task: Literal["train", "prepare", "publish"] = "train"
    """The ranks' task. A single rank prepares or publishes."""
    node: int = 0
    """Index of this node among those that train together."""
    host: str = "127.0.0.1"
    port: int = 0
    """Address of rank 0."""
    rendezvous_seconds: float = RENDEZVOUS_SECONDS
    restart: Restart | None = None
    """The restart that starts these ranks. None: they are the first of their pods."""
    keeps: bool = False
    """Whether nothing is trained, and the artifact is made of the newest checkpoint."""
    account: Account = field(default_factory=Account)
    """What the run has spent its time on before these ranks start."""

    @property
    def ranks(self) -> range:
        """The ranks of this node."""
        return range(self.node * self.ranks_on_node, (self.node + 1) * self.ranks_on_node)

    @property
    def distributed(self) -> bool:
        """Whether several ranks train together."""
        return self.world_size > 1

    @property
    def stop_seconds(self) -> float:
        """The ranks' part of the grace period: from SIGTERM to SIGKILL."""
        grace = self.attempt.grace_period_seconds
        return grace - min(KILL_MARGIN, grace / 2)

    @property
    def folders(self) -> Folders:
        return layout(self.workspace, self.job.name, self.attempt.attempt, self.run_id, self.volumes)

    @property
    def places(self) -> "FetchContext":
        """Where sources are read from and fetched to."""
        from finetune_trainer.fetch import FetchContext  # ranks that train don't fetch

        # Without an operator, two runs of a job may run at the same time.
        owner = (f"{self.attempt.kind} {self.attempt.uid}", self.attempt.attempt) if self.api else None
        return FetchContext(self.workspace / "cache", self.volumes, self.config_maps, self.run_id, owner)

    @property
    def micro_batch(self) -> MicroBatch:
        """The micro-batch of this attempt, else of the job."""
        micro_batch = first_micro_batch(self.attempt, self.job.training)
        assert micro_batch is not None, "a resolved job has a micro-batch"
        return micro_batch

    def write(self, folder: Path) -> None:
        content = {
            "job": self.job.to_dict(),
            "attempt": self.attempt.to_dict(),
            "runId": self.run_id,
            "workspace": str(self.workspace),
            "volumes": {claim: str(path) for claim, path in self.volumes.items()},
            "configMaps": str(self.config_maps),
            "ranksOnNode": self.ranks_on_node,
            "worldSize": self.world_size,
            "api": {"url": self.api.url, "credentials": str(self.api.credentials)} if self.api else None,
            "task": self.task,
            "node": self.node,
            "host": self.host,
            "port": self.port,
            "rendezvousSeconds": self.rendezvous_seconds,
            "restart": self.restart.to_dict() if self.restart else None,
            "keeps": self.keeps,
            "account": vars(self.account),
        }
        write_json(folder / RUN, content)

    @staticmethod
    def read(folder: Path) -> "Handover":
        content = json.loads((folder / RUN).read_bytes())
        api = content["api"]
        return Handover(
            job=ResolvedJob.model_validate(content["job"]),
            attempt=AttemptFacts.model_validate(content["attempt"]),
            run_id=content["runId"],
            workspace=Path(content["workspace"]),
            volumes={claim: Path(path) for claim, path in content["volumes"].items()},
            config_maps=Path(content["configMaps"]),
            ranks_on_node=content["ranksOnNode"],
            world_size=content["worldSize"],
            api=ApiServer(api["url"], Path(api["credentials"])) if api else None,
            task=content["task"],
            node=content["node"],
            host=content["host"],
            port=content["port"],
            rendezvous_seconds=content["rendezvousSeconds"],
            restart=Restart.model_validate(content["restart"]) if content["restart"] else None,
            keeps=content["keeps"],
            account=Account(**content["account"]),
        )


def exit_file(folder: Path, rank: int) -> Path:
    """The file of a rank's exit report."""
    return folder / f"end-{rank}.json"


def write_deadline(folder: Path, deadline: float) -> None:
    """``deadline`` is the monotonic time at which ranks are killed; all processes of a machine share that clock."""
    write_json(folder / DEADLINE, deadline)


def read_deadline(folder: Path) -> float | None:
    """None before SIGTERM."""
    try:
        return float(json.loads((folder / DEADLINE).read_bytes()))
    except (OSError, ValueError):
        return None
