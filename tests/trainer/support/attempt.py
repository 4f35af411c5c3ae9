"""Attempts at a job, like those of pods: the real launcher, real ranks, real files, forked so that each starts at once.

`Series` is a job and its attempts, one after the other in one workspace. `recorded` makes a rank send events while it
trains: the rows of every step, and the start and end of every save.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from finetune_api.contract import AttemptFacts, ResolvedJob
from finetune_api.curves import Point, unpack
from finetune_api.status import Result
from finetune_trainer.reporting.api import ApiServer
from finetune_trainer.reporting.status import read_status

from tests.trainer.support.forge import Child, Forge, fork, send

Install = Callable[[int], None]
"""Patches a rank, by its number, before it starts."""
TICK = 0.02
"""Seconds between two checks of the launcher, and of the ranks in the rendezvous: runs here are short."""


@dataclass(frozen=True)
class Rows:
    """The rows of one rank in one step: its micro-batches, each with the tokens of its rows."""

    rank: int
    step: int
    batches: list[list[list[int]]]


@dataclass(frozen=True)
class Mark:
    """An event of a rank: ``step`` or ``save`` starts, or ``saved``: the checkpoint is in place."""

    what: str
    rank: int
    step: int
    at: float
    """Monotonic time."""
    pid: int


def recorded(rank: int) -> None:
    """Make this rank send events."""
    from finetune_trainer.checkpoints.saver import Saver
    from finetune_trainer.training.trainer import STEP, BaseTrainer

    def mark(what: str, step: int) -> None:
        send(Mark(what, rank, step, time.monotonic(), os.getpid()))

    batches_of, save, place = BaseTrainer.get_batch_samples, Saver.save, Saver._place

    def get_batch_samples(self: Any, *args: Any) -> Any:
        batches, count = batches_of(self, *args)
        step = self.state.global_step + 1
        send(Rows(rank, step, [rows_of(batch) for batch in (batches[0][STEP] if batches else [])]))
        mark("step", step)
        return batches, count

    def saver_save(self: Any, facts: Any, *args: Any) -> None:
        mark("save", facts.step)
        save(self, facts, *args)

    def saver_place(self: Any, facts: Any, *args: Any) -> Any:
        placed = place(self, facts, *args)
        mark("saved", facts.step)
        return placed

    mock.patch.object(BaseTrainer, "get_batch_samples", get_batch_samples).start()
    mock.patch.object(Saver, "save", saver_save).start()
    mock.patch.object(Saver, "_place", saver_place).start()


def stopped(rank: int, *, step: int) -> None:
    """The pod gets SIGTERM while rank 0 is in this step, and rank 0 waits in it until the signal arrives."""
    received, before = [], signal.getsignal(signal.SIGTERM)
    assert callable(before)

    def note(number: int, frame: Any) -> None:
        before(number, frame)
        received.append(number)

    def stop() -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        while not received:
            time.sleep(0.01)

    signal.signal(signal.SIGTERM, note)
    if rank == 0:
        in_step(step, stop)


def killed(rank: int, *, step: int, victim: int) -> None:
    """A rank is killed in this step. The others do not wait for its report: it writes none."""
    from finetune_trainer.launcher import peers

    mock.patch.object(peers, "REPORT_WAIT", 0.0).start()
    if rank == victim:
        in_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def in_step(step: int, happens: Callable[[], None]) -> None:
    from finetune_trainer.training.trainer import BaseTrainer

    batches_of = BaseTrainer.get_batch_samples

    def get_batch_samples(self: Any, *args: Any) -> Any:
        batches = batches_of(self, *args)
        if self.state.global_step + 1 == step:
            happens()
        return batches

    mock.patch.object(BaseTrainer, "get_batch_samples", get_batch_samples).start()


def rows_of(batch: Any) -> list[list[int]]:
    """The rows of a micro-batch."""
    return [ids.tolist() for ids in batch["input_ids"][0].split(batch["lengths"])]


@dataclass
class Series:
    """A job's attempts. ``root`` has the volumes. The workspace is in ``folder``, or ``shared`` with other jobs."""

    forge: Forge
    root: Path
    folder: Path
    job: ResolvedJob
    install: Install = recorded
    attempts: int = 0
    children: list[Child] = field(default_factory=list)
    shared: InitVar[Path | None] = None
    api: ApiServer | None = None
    """Where the attempts report to."""
    workspace: Path = field(init=False)

    def __post_init__(self, shared: Path | None) -> None:
        self.folder.mkdir(exist_ok=True)
        self.workspace = shared or self.folder / "workspace"
        self.home = self.forge.seen(self.workspace) / "jobs" / self.job.name

    def start(
        self,
        *,
        world: int = 1,
        micro: int | None = None,
        tokens: int | None = None,
        end: Install | None = None,
        keep: bool = False,
    ) -> Child:
        """Start the next attempt: a pod with ``world`` ranks and a micro-batch of ``micro`` rows or so many ``tokens``.
        ``end`` is a further patch. It trains nothing with ``keep``."""
        self.attempts += 1
        etc = self.folder / f"etc-{self.attempts}"
        etc.mkdir()
        runtime = self.job.runtime.model_copy(update={"gpus_per_node": world, "allow_cpu": True})
        facts = AttemptFacts(
            namespace="team",
            name=self.job.name,
            uid="11111-uid",
            attempt=self.attempts,
            job_name=f"{self.job.name}-11111-{self.attempts}",
            micro_batch_size=micro,
            micro_batch_tokens=tokens,
        )
        (etc / "job.json").write_text(json.dumps(self.job.model_copy(update={"runtime": runtime}).to_dict()))
        (etc / "attempt.json").write_text(json.dumps(facts.to_dict()))
        (etc / "termination-log").touch()
        self.workspace.mkdir(exist_ok=True)
        child = self.forge.start(
            launch,
            etc,
            self.root,
            self.workspace,
            [self.install, *([end] if end else [])],
            self.api,
            keep,
            log=etc / "log",
            FINETUNE_POD_UID=f"run-{self.attempts}",
            TMPDIR=str(etc),
        )
        self.children.append(child)
        return child

    def run(
        self,
        *,
        world: int = 1,
        micro: int | None = None,
        tokens: int | None = None,
        end: Install | None = None,
        keep: bool = False,
    ) -> int:
        """Run the next attempt to its end; its exit code."""
        return self.start(world=world, micro=micro, tokens=tokens, end=end, keep=keep).wait()

    @property
    def result(self) -> Result:
        """The last attempt's termination message."""
        return Result.model_validate_json((self.folder / f"etc-{self.attempts}" / "termination-log").read_bytes())

    @property
    def log(self) -> str:
        """The log of the last attempt."""
        return self.children[-1].log.read_text()

    @property
    def weights(self) -> dict[str, bytes]:
        """File -> content, for the weights of the artifact."""
        return {file.name: file.read_bytes() for file in sorted((self.home / "artifact").glob("*.safetensors"))}

    def logged(self, name: str) -> list[Any]:
        """The values of a metric in trainer_log.jsonl."""
        lines = (self.home / "reports" / "trainer_log.jsonl").read_text().splitlines()
        return [entry[name] for entry in map(json.loads, lines) if name in entry]

    @property
    def curves(self) -> dict[str, list[Point]]:
        """The curves that were reported last."""
        return unpack(read_status(self.home / "reports", "11111-uid"))

    @property
    def first_steps(self) -> list[int]:
        """The first step of each attempt that reached a step."""
        firsts = ([event.step for event in child.received if isinstance(event, Rows)][:1] for child in self.children)
        return [step for first in firsts for step in first]

    def events(self, kind: type) -> list[Any]:
        """The events of one kind, from all ranks of all attempts."""
        return [event for child in self.children for event in child.received if isinstance(event, kind)]


def launch(etc: Path, root: Path, workspace: Path, install: list[Install], api: ApiServer | None, keep: bool) -> int:
    """Runs in a child of the fork server: the launcher of a pod, whose ranks are forked, too."""
    from finetune_trainer.launcher import launch as launcher
    from finetune_trainer.launcher import supervise
    from finetune_trainer.launcher.options import LaunchOptions
    from finetune_trainer.runtime.signals import Stop

    stop = Stop().listen(signal.SIGTERM, signal.SIGINT)
    mock.patch.object(subprocess, "Popen", partial(Rank, install)).start()
    mock.patch.object(supervise, "TICK", TICK).start()
    options = LaunchOptions(
        job_file=etc / "job.json",
        workspace=workspace,
        volumes={"data": root / "data", "models": root / "models"},
        api=lambda: api,
        keep=keep,
        termination_message=etc / "termination-log",
    )
    return launcher.main(options, stop)


class Rank:
    """A forked rank, in place of a Popen that starts an interpreter; has the part of Popen that the launcher uses."""

    def __init__(self, install: list[Install], command: list[str], *, env: dict[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        self.stdout = self.stderr = None
        self.pid = fork(partial(work, install, Path(command[-2]), int(command[-1]), env))

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def work(install: list[Install], folder: Path, rank: int, environment: dict[str, str]) -> int:
    """Does the same as ``python -m finetune_trainer.launcher.worker``."""
    import logging

    from finetune_trainer.launcher import rendezvous, worker
    from finetune_trainer.runtime.signals import Stop

    stop = Stop().listen(signal.SIGTERM)
    mock.patch.object(rendezvous, "POLL", TICK).start()
    os.environ.clear()
    os.environ.update(environment)
    logging.root.handlers.clear()
    for patch in install:
        patch(rank)
    worker.main(folder, rank, stop)
