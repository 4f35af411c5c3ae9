"""Several nodes: a launcher each, real ranks, a tiny model, one workspace. What one of them meets, all of them tell."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from finetune_trainer.workspace import Fence

from tests.trainer import tiny
from tests.trainer.attempt import Mark, Series, recorded
from tests.trainer.forge import Forge, tell
from tests.trainer.nodes import UID, Nodes


def no_room_on_rank_1(rank: int) -> None:
    """The third step needs more than the GPU of rank 1 has."""
    import torch
    from finetune_trainer.stages.engine import Engine

    step = Engine.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if rank == 1 and self.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, *args, **kwargs)

    mock.patch.object(Engine, "training_step", training_step).start()


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_nodes_train_as_one_does(forge: Forge, root: Path, ranks: int) -> None:
    job = tiny.job(training={"microBatchSize": 1, "maxSteps": 4})
    nodes = Nodes(forge, root, job, ranks=ranks)
    assert nodes.run() == [0, 0]
    alone = Series(forge, root, root / "alone", job)
    assert alone.run(world=2 * ranks) == 0

    assert nodes.logged("loss") == alone.logged("loss")
    weights = {file.name: file.read_bytes() for file in (nodes.home / "artifact").glob("*.safetensors")}
    assert weights == alone.weights
    assert nodes.said(0).artifact == nodes.said(1).artifact
    fence = json.loads((nodes.home / "fence.json").read_text())
    assert fence["runId"] == "pod-0"
    assert [folder.name for folder in (nodes.home / "checkpoints").iterdir()] in ([], ["1-pod-0"])


def test_a_node_that_is_drained_has_all_of_them_save(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"maxSteps": 500}))
    first, second = nodes.start(0), nodes.start(1)
    for mark in second.listen():
        if isinstance(mark, Mark) and mark.step == 3:
            os.kill(second.pid, signal.SIGTERM)
            break
    assert (first.wait(), second.wait()) == (75, 75)
    saved = next((nodes.home / "checkpoints" / "1-pod-0").glob("checkpoint-*"))
    assert f"step {saved.name.rpartition('-')[2]} (jobs/tiny/checkpoints/1-pod-0/{saved.name})" in nodes.said(0).message


def test_who_does_not_come_is_named(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"microBatchSize": 1}), ranks=2, rendezvous_seconds=3)
    assert nodes.start(0).wait() == 70
    assert nodes.said(0).reason == "InternalError"
    assert f"Ranks 2 and 3 (node 1) did not come to 127.0.0.1:{nodes.port} within 3 s" in nodes.said(0).message
    assert nodes.start(1).wait() == 70
    assert f"(node 1) could not reach rank 0 at 127.0.0.1:{nodes.port} within 3 s" in nodes.said(1).message


def test_a_node_told_to_stop_while_it_waits_takes_the_other_with_it(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"microBatchSize": 1}), ranks=2, rendezvous_seconds=600)
    waiting = nodes.start(0, lonely)
    next(waiting.listen())
    os.kill(waiting.pid, signal.SIGTERM)
    assert waiting.wait() == 75
    assert "nothing to save" in nodes.said(0).message


def lonely(rank: int) -> None:
    """Tells when it begins to wait."""
    from finetune_trainer import rendezvous

    meet = rendezvous._meet

    def told(*args: Any) -> str:
        tell(rank)
        return meet(*args)

    mock.patch.object(rendezvous, "_meet", told).start()


def test_memory_used_up_on_one_gpu_is_told_by_all_nodes(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job())
    assert nodes.run(no_room_on_rank_1) == [71, 71]
    for node in (0, 1):
        told = nodes.said(node).out_of_memory
        assert told is not None
        assert (told.phase, told.rank, told.micro_batch_size) == ("train", 1, 4)
    assert nodes.said(0).message.startswith("Rank 1 (node 1): GPU memory is used up on rank 1 in phase train")


def test_a_rank_that_is_killed_ends_the_other_node_soon_and_by_name(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"maxSteps": 500}))
    first, second = nodes.start(0), nodes.start(1)
    for mark in second.listen():
        if isinstance(mark, Mark) and mark.step == 3:
            os.kill(mark.pid, signal.SIGKILL)
            break
    assert (first.wait(), second.wait()) == (70, 137)
    assert nodes.said(1).reason == "OutOfMemory"
    assert "Rank 1 (node 1) is gone without a word: see how the pod ended" in nodes.said(0).message


def test_rank_0_needs_no_name_of_its_own(forge: Forge, root: Path) -> None:
    """A headless Service's names reach the cluster's DNS some time after the pods start."""
    nodes = Nodes(forge, root, tiny.job(training={"maxSteps": 1}))
    second = nodes.start(1)
    nodes.more = {"meet_at": ("tiny-11111-1-0.invalid", nodes.port)}
    assert (nodes.start(0).wait(), second.wait()) == (0, 0)


def test_both_nodes_give_way_to_a_later_attempt(forge: Forge, root: Path) -> None:
    nodes = Nodes(forge, root, tiny.job(training={"maxSteps": 500}))
    first, second = nodes.start(0), nodes.start(1, slow)
    for mark in second.listen():
        if isinstance(mark, Mark) and mark.step == 1:
            layout = mock.Mock(job=nodes.home)
            Fence(UID, 2, "pod-9", nodes.job.digest).write(layout)
            break
    assert (first.wait(), second.wait()) == (78, 78)


def slow(rank: int) -> None:
    """So that no training is done before its fence is looked at."""
    from finetune_trainer.stages.engine import Engine

    recorded(rank)
    step = Engine.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return step(self, *args, **kwargs)

    mock.patch.object(Engine, "training_step", training_step).start()
