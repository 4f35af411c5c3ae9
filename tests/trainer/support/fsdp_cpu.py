"""FSDP2 without a GPU, and ranks that train with it.

accelerate would train with DDP instead, without a word, so whoever uses this asserts that weights are DTensors. The
shards, collectives and checkpoints are torch's own, over gloo.
"""

import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from finetune_api.contract import ResolvedJob
from finetune_api.micro_batch import MicroBatch
from finetune_api.status import Progress

from tests.trainer.support import tiny
from tests.trainer.support.attempt import rows_of
from tests.trainer.support.forge import Forge, send


@dataclass(frozen=True)
class Rank:
    """What one rank tells of its training when it ends."""

    rank: int
    steps: dict[int, list[tuple[int, ...]]]
    """Step -> the rows that this rank trained."""
    sharded: bool
    """Every weight is a share."""
    dtypes: set[str]
    """Number types of the trained weights."""


def install() -> None:
    """Called in each rank's process before anything else."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        # As accelerate does it for each kind of accelerator; CPUs alone are left out there.
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


def train(forge: Forge, root: Path, job: ResolvedJob, world: int, workspace: str, **settings: Any) -> list[Rank]:
    """All ranks of one attempt, to its end; see `_rank` for the settings."""
    tiny.make_run(root, job, workspace=workspace)  # prepared before ranks start
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    children = []
    for rank in range(world):
        identity = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port} if world > 1 else {}
        environment = meeting | identity if world > 1 else {}
        log = root / f"{workspace}-{world}-{rank}.log"
        children.append(forge.start(_rank, root, job, rank, world, workspace, settings, log=log, **environment))
    for child in children:
        assert child.wait() == 0, child.log.read_text()
    told: list[Rank] = sorted((one for child in children for one in child.received), key=lambda one: one.rank)
    return told


def refused(root: Path, job: ResolvedJob) -> int:
    """One rank without `install`: tells why it doesn't train."""
    from finetune_trainer.errors import InvalidSpec
    from finetune_trainer.stages.sft import workflow

    try:
        workflow.run(tiny.make_run(root, job))
    except InvalidSpec as error:
        send(str(error))
        return int(error.exit_code)
    return 0


def _rank(root: Path, job: ResolvedJob, rank: int, world: int, workspace: str, settings: dict[str, Any]) -> int:
    """One rank, told to stop while it does the step after ``stop_after``."""
    from finetune_trainer.errors import Preempted
    from finetune_trainer.stages.sft import workflow
    from finetune_trainer.training import recipe
    from finetune_trainer.training.loop import Training
    from finetune_trainer.training.trainer import STEP, BaseTrainer
    from torch.distributed.tensor import DTensor

    install()
    stop_after, stop = settings.get("stop_after"), False
    steps: dict[int, list[tuple[int, ...]]] = {}
    batches_of, train_all = BaseTrainer.get_batch_samples, recipe.train

    def get_batch_samples(self: Any, *args: Any) -> Any:
        batches, count = batches_of(self, *args)
        if batches:  # after the last step the list is empty
            steps[self.state.global_step + 1] = [tuple(row) for batch in batches[0][STEP] for row in rows_of(batch)]
        return batches, count

    def train(run: Any, made: Training) -> None:
        try:
            train_all(run, made)
        finally:
            weights = list(made.trainer.model.parameters())
            dtypes = {str(weight.dtype) for weight in weights if weight.requires_grad}
            send(Rank(rank, steps, all(isinstance(weight, DTensor) for weight in weights), dtypes))

    def progress(report: Progress) -> None:
        nonlocal stop
        stop = stop_after is not None and report.step >= stop_after

    mock.patch.object(BaseTrainer, "get_batch_samples", get_batch_samples).start()
    mock.patch.object(recipe, "train", train).start()
    run = tiny.make_run(root, job, attempt=settings.get("attempt", 1), rank=rank, world_size=world, workspace=workspace)
    run = replace(run, stop_requested=lambda: stop, report_progress=progress)
    if "micro_batch" in settings:
        run = replace(run, micro_batch=MicroBatch(settings["micro_batch"]))
    try:
        workflow.run(run)
    except Preempted:
        return 0 if stop_after is not None else 75
    return 0
