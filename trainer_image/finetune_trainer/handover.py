"""What ``launch`` hands to its ranks and gets back: a folder in /tmp, one per run.

``run.json`` goes in before the ranks start, ``deadline`` when they are told to stop; ``beat-<rank>`` comes back all the
time (`heartbeat`), ``end-<rank>.json`` at the end.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune_api.contract import AttemptFacts, ResolvedJob

from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.run import Folders
from finetune_trainer.workspace import layout, write_json

if TYPE_CHECKING:
    from finetune_trainer.fetch import Places

RUN = "run.json"
DEADLINE = "deadline"
KILL_MARGIN = 15.0
"""Seconds of the grace period that are kept for saying how it ended; half of it where it is short."""
RENDEZVOUS_SECONDS = 1800.0
"""How long ranks wait for each other. Not less than the operator's default for pods that don't start: it knows why."""


@dataclass(frozen=True)
class Handover:
    """All that a rank needs to know besides its number."""

    job: ResolvedJob
    facts: AttemptFacts
    run_id: str
    workspace: Path
    volumes: dict[str, Path]
    config_maps: Path
    """Folder with <name>/<key>."""
    ranks_on_node: int
    world_size: int
    api: ApiServer | None
    """None: nobody to report to."""
    task: Literal["train", "prepare", "publish"] = "train"
    """What the ranks are for. Preparing and publishing are the work of one process alone."""
    node: int = 0
    """Of the nodes that train together, which one this is."""
    host: str = "127.0.0.1"
    port: int = 0
    """Where rank 0 is met."""
    rendezvous_seconds: float = RENDEZVOUS_SECONDS

    @property
    def ranks(self) -> range:
        """This node's."""
        return range(self.node * self.ranks_on_node, (self.node + 1) * self.ranks_on_node)

    @property
    def together(self) -> bool:
        """Whether there is anybody to meet."""
        return self.world_size > 1

    @property
    def saving_seconds(self) -> float:
        """How much of the grace period is the ranks'."""
        grace = self.facts.grace_period_seconds
        return grace - min(KILL_MARGIN, grace / 2)

    @property
    def folders(self) -> Folders:
        return layout(self.workspace, self.job.name, self.facts.attempt, self.run_id, self.volumes)

    @property
    def places(self) -> "Places":
        """Where sources are found and fetched to."""
        from finetune_trainer.fetch import Places  # ranks that train don't fetch

        # Without an operator two runs of a job may well be alive at once.
        attempt = (f"{self.facts.kind} {self.facts.uid}", self.facts.attempt) if self.api else None
        return Places(self.workspace / "cache", self.volumes, self.config_maps, self.run_id, attempt)

    @property
    def micro_batch_size(self) -> int:
        """Of this attempt, else of the job."""
        size = self.facts.micro_batch_size or self.job.training.micro_batch_size
        assert size is not None, "resolving a job fills it in"
        return size

    def write(self, folder: Path) -> None:
        content = {
            "job": self.job.to_dict(),
            "facts": self.facts.to_dict(),
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
        }
        write_json(folder / RUN, content)

    @staticmethod
    def read(folder: Path) -> "Handover":
        content = json.loads((folder / RUN).read_bytes())
        api = content["api"]
        return Handover(
            job=ResolvedJob.model_validate(content["job"]),
            facts=AttemptFacts.model_validate(content["facts"]),
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
        )


def end_file(folder: Path, rank: int) -> Path:
    """Where a rank says how it ended."""
    return folder / f"end-{rank}.json"


def write_deadline(folder: Path, deadline: float) -> None:
    """Monotonic time at which ranks are ended by force; all processes of a machine share that clock."""
    write_json(folder / DEADLINE, deadline)


def read_deadline(folder: Path) -> float | None:
    """None as long as nobody set one."""
    try:
        return float(json.loads((folder / DEADLINE).read_bytes()))
    except (OSError, ValueError):
        return None
