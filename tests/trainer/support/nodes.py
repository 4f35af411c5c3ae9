"""The pods of one attempt on one or several nodes: real launchers, real ranks, a tiny model, one workspace.

The fork server starts the launchers. They differ in the node's index and the pod's uid.
"""

import json
import signal
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.status import Result

from tests.trainer.support.attempt import TICK, Rank, recorded
from tests.trainer.support.forge import Child, Forge

UID = "11111-uid"
Install = Callable[[int], None]


class Nodes:
    """The pods of one attempt: ``start`` each, or ``run`` all. ``restarts`` is how many failures may be followed by a
    restart, ``oom_kills`` the kernel's count of processes that it killed for memory; ``more`` are further options of
    the launcher."""

    def __init__(
        self,
        forge: Forge,
        root: Path,
        job: ResolvedJob,
        *,
        nodes: int = 2,
        ranks: int = 1,
        restarts: int | None = None,
        oom_kills: int | None = None,
        **more: Any,
    ) -> None:
        self.restarts, self.oom_kills = restarts, oom_kills
        self.forge, self.root, self.nodes, self.more = forge, root, nodes, more
        self.workspace = root / "several"
        self.workspace.mkdir()
        self.home = self.workspace / "jobs" / job.name
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.runtime = job.runtime.model_copy(update={"nodes": nodes, "gpus_per_node": ranks, "allow_cpu": True})
        self.job = job.model_copy(update={"runtime": self.runtime})

    def start(self, node: int, install: Install = recorded) -> Child:
        etc = self.etc(node)
        etc.mkdir()
        facts = AttemptFacts(
            namespace="team",
            name=self.job.name,
            uid=UID,
            attempt=1,
            job_name="tiny-11111-1",
            restarts=self.restarts,
        )
        (etc / "job.json").write_text(json.dumps(self.job.to_dict()))
        (etc / "attempt.json").write_text(json.dumps(facts.to_dict()))
        (etc / "termination-log").touch()
        return self.forge.start(
            launch_node,
            *(etc, self.root, self.workspace, install, self.oom_kills),
            {"rank_0_address": ("127.0.0.1", self.port), "rendezvous_seconds": 120.0, **self.more},
            log=etc / "log",
            JOB_COMPLETION_INDEX=str(node),
            FINETUNE_POD_UID=f"pod-{node}",
            TMPDIR=str(etc),
        )

    def run(self, install: Install = recorded) -> list[int]:
        """Run all nodes to their end; their exit codes."""
        started = [self.start(node, install) for node in range(self.nodes)]
        return [child.wait() for child in started]

    def etc(self, node: int) -> Path:
        return self.root / f"etc-{node}"

    @property
    def weights(self) -> dict[str, bytes]:
        """File -> content, for the weights of the artifact."""
        return {file.name: file.read_bytes() for file in (self.home / "artifact").glob("*.safetensors")}

    def result(self, node: int) -> Result:
        """The termination message of a node."""
        return Result.model_validate_json((self.etc(node) / "termination-log").read_bytes())

    def logged(self, name: str) -> list[Any]:
        lines = (self.home / "reports" / "trainer_log.jsonl").read_text().splitlines()
        return [entry[name] for entry in map(json.loads, lines) if name in entry]


def launch_node(
    etc: Path, root: Path, workspace: Path, install: Install, oom_kills: int | None, more: dict[str, Any]
) -> int:
    """Runs in a child of the fork server: the launcher of one node."""
    from finetune_trainer.launcher import fence_watch, launch, supervise
    from finetune_trainer.launcher.options import LaunchOptions
    from finetune_trainer.runtime import hostmemory
    from finetune_trainer.runtime.hostmemory import HostMemory
    from finetune_trainer.runtime.signals import Stop

    stop = Stop().listen(signal.SIGTERM, signal.SIGINT)
    mock.patch.object(subprocess, "Popen", partial(Rank, [install])).start()
    mock.patch.object(hostmemory, "read", return_value=HostMemory(1 << 40, None, oom_kills)).start()
    mock.patch.object(supervise, "TICK", TICK).start()
    mock.patch.object(fence_watch, "INTERVAL", 1.0).start()
    options = LaunchOptions(
        job_file=etc / "job.json",
        workspace=workspace,
        volumes={"data": root / "data", "models": root / "models"},
        api=lambda: None,
        termination_message=etc / "termination-log",
        **more,
    )
    return launch.main(options, stop)
