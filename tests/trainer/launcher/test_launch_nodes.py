"""Several nodes: a launcher each, real ranks, a tiny model, one workspace. All nodes report the failure of one."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from finetune_trainer.workspace.fencing import Fence

from tests.trainer.support import tiny
from tests.trainer.support.attempt import Mark, Series, recorded
from tests.trainer.support.forge import Forge, send
from tests.trainer.support.nodes import UID, Nodes


def out_of_memory_on_rank_1(rank: int) -> None:
    """The third step needs more memory than the GPU of rank 1 has."""
    import torch
    from finetune_trainer.training.trainer import BaseTrainer

    step = BaseTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if rank == 1 and self.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, *args, **kwargs)

    mock.patch.object(BaseTrainer, "training_step", training_step).start()


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_nodes_train_like_one(forge: Forge, root: Path, ranks: int) -> None:
    job = tiny.job(training={"microBatchSize": 1, "maxSteps": 4})
    nodes = Nodes(forge, root, job, ranks=ranks)
    assert nodes.run() == [0, 0]
    alone = Series(forge, root, root / "alone", job)
    assert alone.run(world=2 * ranks) == 0

    assert nodes.logged("loss") == alone.logged("loss")
    assert nodes.weights == alone.weights
    assert nodes.result(0).artifact == nodes.result(1).artifact
    fence = json.loads((nodes.home / "fence.json").read_text())
    assert fence["runId"] == "pod-0"
    assert [folder.name for folder in (nodes.home / "checkpoints").iterdir()] in ([], ["1-pod-0"])


def test_all_nodes_save_when_one_is_drained(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"maxSteps": 500}))
    first, second = nodes.start(0), nodes.start(1)
    for mark in second.listen():
        if isinstance(mark, Mark) and mark.step == 3:
            os.kill(second.pid, signal.SIGTERM)
            break
    assert (first.wait(), second.wait()) == (75, 75)
    saved = next((nodes.home / "checkpoints" / "1-pod-0").glob("checkpoint-*"))
    assert (
        f"step {saved.name.rpartition('-')[2]} (jobs/tiny/checkpoints/1-pod-0/{saved.name})" in nodes.result(0).message
    )


def test_missing_ranks_are_named(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"microBatchSize": 1}), ranks=2, rendezvous_seconds=3)
    assert nodes.start(0).wait() == 70
    assert nodes.result(0).reason == "InternalError"
    assert f"Ranks 2 and 3 (node 1) did not join at 127.0.0.1:{nodes.port} within 3 s" in nodes.result(0).message
    assert nodes.start(1).wait() == 70
    assert f"(node 1) could not reach rank 0 at 127.0.0.1:{nodes.port} within 3 s" in nodes.result(1).message


def test_sigterm_ends_a_node_that_waits_for_the_others(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"microBatchSize": 1}), ranks=2, rendezvous_seconds=600)
    waiting = nodes.start(0, send_when_waiting)
    next(waiting.listen())
    os.kill(waiting.pid, signal.SIGTERM)
    assert waiting.wait() == 75
    assert "nothing to save" in nodes.result(0).message


def send_when_waiting(rank: int) -> None:
    """Send an event when this rank starts to wait."""
    from finetune_trainer.launcher import rendezvous

    wait_for_all = rendezvous._wait_for_all

    def sending(*args: Any) -> str:
        send(rank)
        return wait_for_all(*args)

    mock.patch.object(rendezvous, "_wait_for_all", sending).start()


def test_all_nodes_report_that_one_gpu_is_out_of_memory(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job())
    assert nodes.run(out_of_memory_on_rank_1) == [71, 71]
    for node in (0, 1):
        details = nodes.result(node).out_of_memory
        assert details is not None
        assert (details.phase, details.rank, details.micro_batch_size) == ("train", 1, 4)
    assert nodes.result(0).message.startswith("Rank 1 (node 1): GPU memory is used up on rank 1 in phase train")


def test_a_killed_rank_ends_the_other_node_which_names_it(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"maxSteps": 500}))
    first, second = nodes.start(0), nodes.start(1)
    for mark in second.listen():
        if isinstance(mark, Mark) and mark.step == 3:
            os.kill(mark.pid, signal.SIGKILL)
            break
    assert (first.wait(), second.wait()) == (70, 137)
    assert nodes.result(1).reason == "OutOfMemory"
    assert "Rank 1 (node 1) has disappeared without a report. See how the pod ended" in nodes.result(0).message


def test_rank_0_does_not_need_its_own_dns_name(forge: Forge, root: Path) -> None:
    """The names of a headless Service reach the cluster's DNS some time after the pods start."""
    nodes = Nodes(forge, root, tiny.job(training={"maxSteps": 1}))
    second = nodes.start(1)
    nodes.more = {"rank_0_address": ("tiny-11111-1-0.invalid", nodes.port)}
    assert (nodes.start(0).wait(), second.wait()) == (0, 0)


def test_a_later_attempt_supersedes_both_nodes(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"maxSteps": 500}))
    first, second = nodes.start(0), nodes.start(1, slow)
    for mark in second.listen():
        if isinstance(mark, Mark) and mark.step == 1:
            layout = mock.Mock(job=nodes.home)
            Fence(UID, 2, "pod-9", nodes.job.digest).write(layout)
            break
    assert (first.wait(), second.wait()) == (78, 78)


def slow(rank: int) -> None:
    """Slow steps, so that the fence is checked before training ends."""
    from finetune_trainer.training.trainer import BaseTrainer

    recorded(rank)
    step = BaseTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return step(self, *args, **kwargs)

    mock.patch.object(BaseTrainer, "training_step", training_step).start()
