"""The same training, however it is cut up: losses don't depend on micro-batch, ranks or attempts, and are TRL's own."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from finetune_api.status import Checkpoint, Progress
from finetune_trainer.data import order
from finetune_trainer.errors import Preempted
from finetune_trainer.model import adapters
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import workflow

from tests.trainer import tiny

CLOSE = 1e-5


def trained(root: Path, workspace: str, **training: object) -> list[float]:
    run = tiny.make_run(root, tiny.job(training=training), workspace=workspace)
    workflow.run(run)
    return tiny.losses(run)


def test_the_micro_batch_does_not_change_the_losses(root: Path) -> None:
    tiny.save_rows(root / "data" / "rows.jsonl", rows=21)  # 3 steps an epoch, the last one filled up
    whole = trained(root, "whole", microBatchSize=8)
    assert trained(root, "halves", microBatchSize=4) == pytest.approx(whole, abs=CLOSE)
    assert trained(root, "single", microBatchSize=1) == pytest.approx(whole, abs=CLOSE)


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


def test_losses_are_those_of_trl_on_the_raw_rows(tmp_path: Path) -> None:
    """TRL tokenizes, masks, pads and counts by itself; it gets the rows in our order. (It would also train what the
    template puts after the stop token, so here the template puts nothing there.)"""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    tiny.save_model(tmp_path / "models" / "model", template=tiny.CHATML.replace("<|im_end|>\n", "<|im_end|>"))
    tiny.save_rows(tmp_path / "data" / "rows.jsonl")
    ours = trained(tmp_path, "ours", microBatchSize=8)

    folder = tmp_path / "models" / "model"
    rows = [tiny.conversation(i)["messages"] for epoch in range(2) for i in order.epoch_order(24, 8, 42, epoch)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = SFTTrainer(
        adapters.apply(model, tiny.job().tuning, 42),
        args=SFTConfig(
            str(tmp_path / "trl"),
            max_steps=6,
            per_device_train_batch_size=8,
            learning_rate=0.01,
            lr_scheduler_type="cosine",
            logging_steps=1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            train_sampling_strategy="sequential",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": row[:-1], "completion": row[-1:]} for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert ours == pytest.approx(theirs, abs=CLOSE)


def stopped_at(run: Run, step: int, **more: object) -> Run:
    """The run, told to stop while it does the step after ``step``."""
    stop = False

    def progress(report: Progress) -> None:
        nonlocal stop
        stop = report.step >= step

    return replace(run, stop_requested=lambda: stop, report_progress=progress, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_run_has_the_losses_of_one_that_was_never_stopped(root: Path, method: str) -> None:
    tuning = {"method": "lora", "lora": {"dropout": 0.2}} if method == "lora" else {"method": "full"}
    job = tiny.job(training={"maxSteps": 8}, tuning=tuning)
    straight = tiny.make_run(root, job, workspace="straight")
    expected = workflow.run(straight)

    saved: list[Checkpoint] = []
    first = stopped_at(tiny.make_run(root, job, workspace="resumed"), 4, report_checkpoint=saved.append)
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
