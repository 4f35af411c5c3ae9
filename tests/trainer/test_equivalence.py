"""The same training of stage sft, however it is cut up: losses don't depend on ranks or attempts. More, and for all
stages, is in `test_invariance` and `test_exact_stages`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_api.status import Checkpoint
from finetune_trainer.errors import Preempted
from finetune_trainer.stages.sft import workflow

from tests.trainer import tiny

CLOSE = 1e-5


def trained(root: Path, workspace: str, **training: object) -> list[float]:
    run = tiny.make_run(root, tiny.job(training=training), workspace=workspace)
    workflow.run(run)
    return tiny.losses(run)


def test_two_ranks_train_as_one_and_stop_together(root: Path) -> None:
    tiny.save_rows(root / "data" / "rows.jsonl", rows=21)
    alone = trained(root, "alone", microBatchSize=8)
    tiny.make_run(root, tiny.job(training={"microBatchSize": 4}), workspace="two")  # prepared before ranks start
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torchrun = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.trainer.rank", str(root)],
            env=os.environ | torchrun | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [75, 75], "\n".join(errors)
    assert all("goes on from step 4" in error for error in errors)

    run = tiny.make_run(root, tiny.job(training={"microBatchSize": 8}), attempt=2, workspace="two")
    assert tiny.losses(run) == pytest.approx(alone[:4], abs=CLOSE)
    workflow.run(run)  # one rank goes on where two stopped
    assert tiny.losses(run) == pytest.approx(alone, abs=CLOSE)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_run_has_the_losses_of_one_that_was_never_stopped(root: Path, method: str) -> None:
    tuning = {"method": "lora", "lora": {"dropout": 0.2}} if method == "lora" else {"method": "full"}
    job = tiny.job(training={"maxSteps": 8}, tuning=tuning)
    straight = tiny.make_run(root, job, workspace="straight")
    expected = workflow.run(straight)

    saved: list[Checkpoint] = []
    first = tiny.stopped_at(tiny.make_run(root, job, workspace="resumed"), 4, report_checkpoint=saved.append)
    with pytest.raises(Preempted, match=r"goes on from step 5 \(jobs/tiny/checkpoints/1-run1/checkpoint-5\)"):
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
