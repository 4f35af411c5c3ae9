"""Attempts at a job as pods make them: the real launcher, real ranks, real files; forked, so that each starts at once.

`Series` is a job and its attempts, one after the other in one workspace. `recorded` is what a rank tells while it
trains: the rows of every step, and when it begins and ends a save.
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
from finetune_api.status import Result

from tests.trainer.forge import Child, Forge, fork, tell

Install = Callable[[int], None]
"""What a rank, by number, does before it begins."""
LOOK = 0.02
"""Seconds between two looks of the launcher at its ranks, and of ranks at each other: runs here are short."""


@dataclass(frozen=True)
class Rows:
    """What one rank trains on in one step: its micro-batches, each the tokens of its rows."""

    rank: int
    step: int
    batches: list[list[list[int]]]


@dataclass(frozen=True)
class Mark:
    """Where a rank is: ``step`` begins, ``save`` begins, or ``saved``: from now on the checkpoint counts."""

    what: str
    rank: int
    step: int
    at: float
    """Monotonic time."""
    pid: int


def recorded(rank: int) -> None:
    """Make this rank tell what it does."""
    from finetune_trainer.checkpoints.saver import Saver
    from finetune_trainer.stages.engine import Engine

    def mark(what: str, step: int) -> None:
        tell(Mark(what, rank, step, time.monotonic(), os.getpid()))

    batches_of, save, place = Engine.get_batch_samples, Saver.save, Saver._place

    def get_batch_samples(self: Any, *args: Any) -> Any:
        batches, count = batches_of(self, *args)
        step = self.state.global_step + 1
        tell(Rows(rank, step, [[stripped(row) for row in batch["input_ids"].tolist()] for batch in batches]))
        mark("step", step)
        return batches, count

    def saver_save(self: Any, facts: Any, *args: Any) -> None:
        mark("save", facts.step)
        save(self, facts, *args)

    def saver_place(self: Any, facts: Any, *args: Any) -> Any:
        placed = place(self, facts, *args)
        mark("saved", facts.step)
        return placed

    mock.patch.object(Engine, "get_batch_samples", get_batch_samples).start()
    mock.patch.object(Saver, "save", saver_save).start()
    mock.patch.object(Saver, "_place", saver_place).start()


def stopped(rank: int, *, step: int) -> None:
    """The pod is told to stop while rank 0 is in this step, and rank 0 does not get further before it heard of it."""
    heard, before = [], signal.getsignal(signal.SIGTERM)
    assert callable(before)

    def note(number: int, frame: Any) -> None:
        before(number, frame)
        heard.append(number)

    def stop() -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        while not heard:
            time.sleep(0.01)

    signal.signal(signal.SIGTERM, note)
    if rank == 0:
        in_step(step, stop)


def killed(rank: int, *, step: int, victim: int) -> None:
    """A rank is killed in this step. The others don't wait for its last words: it has none."""
    from finetune_trainer import peers

    mock.patch.object(peers, "HEARSAY", 0.0).start()
    if rank == victim:
        in_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))


def in_step(step: int, happens: Callable[[], None]) -> None:
    from finetune_trainer.stages.engine import Engine

    batches_of = Engine.get_batch_samples

    def get_batch_samples(self: Any, *args: Any) -> Any:
        batches = batches_of(self, *args)
        if self.state.global_step + 1 == step:
            happens()
        return batches

    mock.patch.object(Engine, "get_batch_samples", get_batch_samples).start()


def stripped(row: list[int]) -> list[int]:
    """Without the padding, which is 0 in the tiny model's vocabulary."""
    end = len(row)
    while end and row[end - 1] == 0:
        end -= 1
    return row[:end]


@dataclass
class Series:
    """A job's attempts. ``root`` has the volumes; the workspace is made below ``folder``, or is the one
    ``shared`` with other jobs."""

    forge: Forge
    root: Path
    folder: Path
    job: ResolvedJob
    install: Install = recorded
    attempts: int = 0
    children: list[Child] = field(default_factory=list)
    shared: InitVar[Path | None] = None
    workspace: Path = field(init=False)

    def __post_init__(self, shared: Path | None) -> None:
        self.folder.mkdir(exist_ok=True)
        self.workspace = shared or self.folder / "workspace"
        self.home = self.forge.seen(self.workspace) / "jobs" / self.job.name

    def start(self, *, world: int = 1, micro: int | None = None, end: Install | None = None) -> Child:
        """The next attempt: a pod with so many ranks and such a micro-batch. ``end`` is installed besides."""
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
            log=etc / "log",
            FINETUNE_POD_UID=f"run-{self.attempts}",
            TMPDIR=str(etc),
        )
        self.children.append(child)
        return child

    def run(self, *, world: int = 1, micro: int | None = None, end: Install | None = None) -> int:
        """The next attempt, to its end."""
        return self.start(world=world, micro=micro, end=end).wait()

    @property
    def said(self) -> Result:
        """The last attempt's termination message."""
        return Result.model_validate_json((self.folder / f"etc-{self.attempts}" / "termination-log").read_bytes())

    @property
    def log(self) -> str:
        """Of the last attempt."""
        return self.children[-1].log.read_text()

    @property
    def weights(self) -> dict[str, bytes]:
        """The artifact's, by file."""
        return {file.name: file.read_bytes() for file in sorted((self.home / "artifact").glob("*.safetensors"))}

    def logged(self, name: str) -> list[Any]:
        """What trainer_log.jsonl says of a metric, line by line."""
        lines = (self.home / "reports" / "trainer_log.jsonl").read_text().splitlines()
        return [entry[name] for entry in map(json.loads, lines) if name in entry]

    @property
    def first_steps(self) -> list[int]:
        """Of each attempt that got that far."""
        firsts = ([one.step for one in child.told if isinstance(one, Rows)][:1] for child in self.children)
        return [step for first in firsts for step in first]

    def told(self, kind: type) -> list[Any]:
        """All that ranks of all attempts have told, of one kind."""
        return [one for child in self.children for one in child.told if isinstance(one, kind)]


def launch(etc: Path, root: Path, workspace: Path, install: list[Install]) -> int:
    """In a child of the forge: the launcher of a pod, whose ranks are forked, too."""
    from finetune_trainer import launch as launcher
    from finetune_trainer import watch
    from finetune_trainer.stopping import Stop

    stop = Stop().listen(signal.SIGTERM, signal.SIGINT)
    mock.patch.object(subprocess, "Popen", partial(Rank, install)).start()
    mock.patch.object(watch, "TICK", LOOK).start()
    options = launcher.Options(
        job_file=etc / "job.json",
        workspace=workspace,
        volumes={"data": root / "data", "models": root / "models"},
        api=lambda: None,
        termination_message=etc / "termination-log",
    )
    return launcher.main(options, stop)


class Rank:
    """A rank that is forked where Popen would start an interpreter; as much of Popen as the launcher asks for."""

    def __init__(self, install: list[Install], command: list[str], *, env: dict[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        self.pid = fork(partial(work, install, Path(command[-2]), int(command[-1]), env))

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def work(install: list[Install], folder: Path, rank: int, environment: dict[str, str]) -> int:
    """What ``python -m finetune_trainer.worker`` does."""
    import logging

    from finetune_trainer import rendezvous, worker
    from finetune_trainer.stopping import Stop

    stop = Stop().listen(signal.SIGTERM)
    mock.patch.object(rendezvous, "POLL", LOOK).start()
    os.environ.clear()
    os.environ.update(environment)
    logging.root.handlers.clear()
    for one in install:
        one(rank)
    worker.main(folder, rank, stop)
