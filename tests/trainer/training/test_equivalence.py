"""Losses of stage sft do not depend on the number of ranks or attempts. More tests of this kind, and for all
stages, are in `test_invariance` and `test_exact_stages`."""

import os
import socket
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from finetune_api.status import Checkpoint
from finetune_trainer.errors import Preempted, TrainerError
from finetune_trainer.stages.sft import workflow
from finetune_trainer.training.loop import StepCallback

from tests.trainer.support import tiny
from tests.trainer.support.forge import Forge

CLOSE = 1e-5


def trained(root: Path, workspace: str, **training: object) -> list[float]:
    run = tiny.make_run(root, tiny.job(training=training), workspace=workspace)
    workflow.run(run)
    return tiny.losses(run)


def rank_of_two(root: Path) -> int:
    """With torchrun's environment, in a child of the forge. Rank 1 alone has to stop, at the end of its fourth
    step."""
    rank = int(os.environ["RANK"])
    job = tiny.job(training={"microBatchSize": 4})
    run = tiny.make_run(root, job, rank=rank, world_size=int(os.environ["WORLD_SIZE"]), workspace="two")
    steps, stop, original = count(), False, StepCallback.on_step_end

    def step_end(self: StepCallback, *args: Any, **kwargs: Any) -> None:
        nonlocal stop
        stop = rank == 1 and next(steps) == 3
        original(self, *args, **kwargs)

    mock.patch.object(StepCallback, "on_step_end", step_end).start()
    try:
        workflow.run(replace(run, stop_requested=lambda: stop))
    except TrainerError as error:
        print(f"rank {rank}: {error}")
        return int(error.exit_code)
    return 0


def test_two_ranks_train_as_one_and_stop_together(forge: Forge, root: Path) -> None:
    tiny.save_rows(root / "data" / "rows.jsonl", rows=21)
    alone = trained(root, "alone", microBatchSize=8)
    tiny.make_run(root, tiny.job(training={"microBatchSize": 4}), workspace="two")  # prepared before ranks start
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        forge.start(rank_of_two, root, log=root / f"{rank}.log", **torchrun, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    codes, said = [rank.wait() for rank in ranks], [rank.log.read_text() for rank in ranks]
    assert codes == [75, 75], "\n".join(said)
    assert all("resumes from step 4" in log for log in said)

    run = tiny.make_run(root, tiny.job(training={"microBatchSize": 8}), attempt=2, workspace="two")
    assert tiny.losses(run) == pytest.approx(alone[:4], abs=CLOSE)
    workflow.run(run)  # one rank resumes where two stopped
    assert tiny.losses(run) == pytest.approx(alone, abs=CLOSE)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_run(root: Path, method: str) -> None:
    tuning = {"method": "lora", "lora": {"dropout": 0.2}} if method == "lora" else {"method": "full"}
    job = tiny.job(training={"maxSteps": 8}, tuning=tuning)
    straight = tiny.make_run(root, job, workspace="straight")
    expected = workflow.run(straight)

    saved: list[Checkpoint] = []
    first = tiny.stopped_at(tiny.make_run(root, job, workspace="resumed"), 4, report_checkpoint=saved.append)
    with pytest.raises(Preempted, match=r"resumes from step 5 \(jobs/tiny/checkpoints/1-run1/checkpoint-5\)"):
        workflow.run(first)
    assert [(c.step, c.path) for c in saved] == [(5, "jobs/tiny/checkpoints/1-run1/checkpoint-5")]
    assert len(tiny.losses(first)) == 5
    assert not first.folders.artifact.exists()

    second = tiny.make_run(root, job, attempt=2, workspace="resumed")
    outcome = workflow.run(second)
    assert tiny.losses(second) == tiny.losses(straight)
    assert outcome.metrics["tokens"] == expected.metrics["tokens"]
    weights = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    assert (second.folders.artifact / weights).read_bytes() == (straight.folders.artifact / weights).read_bytes()
