"""Ranks that fail are started again by their launcher, in the same pod, and train as if nothing had happened."""

import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from finetune_trainer.launcher.hang_detection import HangLimits
from finetune_trainer.runtime import silence

from tests.trainer.support import tiny
from tests.trainer.support.attempt import Install, Rows, Series, in_step, recorded
from tests.trainer.support.forge import Forge
from tests.trainer.support.nodes import Nodes

SAVED = {"everySteps": 2}


def struck_before() -> bool:
    """Whether this was asked before in this pod. Its launcher and all of its ranks share a directory in /tmp."""
    file = Path(os.environ["TMPDIR"]) / "struck"
    struck = file.exists()
    file.touch()
    return struck


def killed_once(rank: int) -> None:
    """Rank 1 is killed in step 4, the first time that it gets there."""
    recorded(rank)
    if rank == 1:
        in_step(4, lambda: None if struck_before() else os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.sweep), 2])
def test_a_killed_rank_costs_neither_the_pods_nor_a_bit_of_the_result(forge: Forge, root: Path, nodes: int) -> None:
    job = tiny.job(
        training={"microBatchSize": 2}, checkpoints=SAVED, tuning={"method": "lora", "lora": {"dropout": 0.1}}
    )
    pods = Nodes(forge, root, job, nodes=nodes, ranks=2 // nodes, restarts=3, oom_kills=0)
    assert pods.run(killed_once) == [0] * nodes
    alone = Series(forge, root, root / "alone", job)
    assert alone.run(world=2) == 0

    assert pods.weights == alone.weights
    assert pods.logged("loss") == alone.logged("loss")
    assert pods.logged("current_steps") == [1, 2, 3, 4, 5, 6]
    for node in range(nodes):
        restart = pods.result(node).restart
        assert restart is not None
        assert (restart.number, restart.failures, restart.reason, restart.exit_code) == (1, 1, "Killed", 137)
        assert restart.message.startswith("Rank 1 was killed from outside")
    uses = pods.result(0).uses
    assert uses is not None
    assert uses.redone_steps in (1, 3), "step 3 was done, and the newest checkpoint is of step 2 if it had landed"
    assert {"load", "stalled", "redone", "train"} <= set(uses.milliseconds)
    assert pods.result(nodes - 1).uses is None or nodes == 1, "node 0 reports for all"
    runs = {path.name for path in (pods.home / "checkpoints").iterdir()}
    assert runs == {"1-pod-0", "1-pod-0-r1"}, "restarts have directories of their own"


def memory_for_two_rows(rank: int) -> None:
    """A GPU on which a micro-batch of more than two rows does not fit."""
    import torch
    from finetune_trainer.training.trainer import BaseTrainer

    recorded(rank)
    step = BaseTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if rank == 1 and self.run.micro_batch.size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, *args, **kwargs)

    mock.patch.object(BaseTrainer, "training_step", training_step).start()


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.sweep), 2])
def test_a_gpu_out_of_memory_halves_the_micro_batch_of_all_and_costs_no_failure(
    forge: Forge, root: Path, nodes: int
) -> None:
    job = tiny.job(training={"microBatchSize": 4, "maxSteps": 3})
    pods = Nodes(forge, root, job, nodes=nodes, ranks=2 // nodes, restarts=0)
    started = [pods.start(node, memory_for_two_rows) for node in range(nodes)]
    assert [child.wait() for child in started] == [0] * nodes
    restart = pods.result(0).restart
    assert restart is not None
    assert (restart.number, restart.failures, restart.reason, restart.micro_batch_size) == (1, 0, "GPUOutOfMemory", 2)
    rows = [event for child in started for event in child.received if isinstance(event, Rows)]
    last = {event.rank: {len(batch) for batch in event.batches} for event in rows}
    assert last == {0: {2}, 1: {2}}


def stuck_once(rank: int) -> None:
    """Rank 1 never returns from step 3, the first time that it gets there."""
    recorded(rank)
    if rank == 1:
        in_step(3, lambda: None if struck_before() else time.sleep(1000))


def test_ranks_that_hang_are_started_again(forge: Forge, root: Path) -> None:
    limits = HangLimits(first=8, least=8)
    pod = Nodes(forge, root, tiny.job(checkpoints=SAVED), nodes=1, ranks=2, restarts=1, hang_limits=limits)
    assert pod.run(stuck_once) == [0]
    restart = pod.result(0).restart
    assert restart is not None
    assert (restart.number, restart.reason, restart.exit_code) == (1, "Hung", 76)
    assert "The stacks of rank 1:" in (pod.etc(0) / "log").read_text()


def frozen_once(rank: int) -> None:
    """The process of rank 1 is stopped in step 4, the first time that it gets there. Its connections stay open."""
    recorded(rank)
    if rank == 1:
        in_step(4, lambda: None if struck_before() else os.kill(os.getpid(), signal.SIGSTOP))


def stuck_in_step_4(rank: int) -> None:
    """Rank 1 does not return from step 4, the first time that it gets there. Its other threads work."""
    recorded(rank)
    if rank == 1:
        in_step(4, lambda: None if struck_before() else time.sleep(1000))


SOON, NEVER = HangLimits(first=8, least=8), HangLimits(first=1000, least=1000)


@pytest.mark.parametrize(
    ("hangs", "limits", "told"),
    [
        pytest.param(frozen_once, [SOON, SOON], [0, 1], id="both nodes notice"),
        pytest.param(frozen_once, [NEVER, SOON], [1], id="its own node notices", marks=pytest.mark.sweep),
        pytest.param(stuck_in_step_4, [SOON, NEVER], [0], id="the other node notices", marks=pytest.mark.sweep),
    ],
)
def test_a_rank_of_one_node_that_hangs_costs_neither_the_pods_nor_a_bit_of_the_result(
    forge: Forge, root: Path, hangs: Install, limits: list[HangLimits], told: list[int]
) -> None:
    """The launcher of node 0 sees only that rank 0 waits. So it names the hung rank only if node 1 tells of it, too."""
    job = tiny.job(checkpoints=SAVED, tuning={"method": "lora", "lora": {"dropout": 0.1}})
    pods = Nodes(forge, root, job, restarts=3)
    started = []
    for node in (0, 1):
        pods.more = {"hang_limits": limits[node]}
        started.append(pods.start(node, hangs))
    assert [child.wait() for child in started] == [0, 0]
    alone = Series(forge, root, root / "alone", job)
    assert alone.run(world=2) == 0

    assert pods.weights == alone.weights
    assert pods.logged("loss") == alone.logged("loss")
    assert pods.logged("current_steps") == [1, 2, 3, 4, 5, 6]
    restart = pods.result(0).restart
    assert restart is not None
    assert restart == pods.result(1).restart, "both launchers agree"
    assert (restart.number, restart.failures, restart.reason, restart.exit_code) == (1, 1, "Hung", 76)
    ranks, nodes = (silence.named(what, told) for what in ("rank", "node"))
    where = f" ({nodes})" if 1 in told else ""
    assert restart.message.startswith(f"The run hangs: {ranks}{where} in phase train after step 3, for ")
    uses = pods.result(0).uses
    assert uses is not None
    assert uses.redone_steps == 1, "step 3: the newest checkpoint is of step 2"
