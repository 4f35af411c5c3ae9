"""Evaluation: when it runs, its metrics, and where they are reported."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer.data.splits import open_split
from finetune_trainer.errors import Preempted
from finetune_trainer.run import Run
from finetune_trainer.stages.sft import workflow
from finetune_trainer.stages.sft.trainer import token_metrics
from finetune_trainer.training.evaluation import metrics_of_splits

from tests.trainer.support import tiny

CLOSE = 1e-5


def make_run(root: Path, *, workspace: str = "work", attempt: int = 1, datasets: int = 1, **training: object) -> Run:
    names = [f"held-{number}.jsonl" for number in range(datasets)]
    for number, name in enumerate(names):
        tiny.save_rows(root / "data" / name, rows=5 + number)
    evaluation = {"datasets": [{"source": f"pvc://data/{name}", "format": "openai"} for name in names], "everySteps": 2}
    job = tiny.job(evaluation=evaluation, training={"maxSteps": 5, **training})
    return tiny.make_run(root, job, workspace=workspace, attempt=attempt)


def measured_by_hand(run: Run) -> float:
    """The loss by transformers, of the artifact, row by row."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(run.prepared.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(run.folders.artifact)).eval()
    total = tokens = 0.0
    for row in open_split(run.prepared.data, "eval"):
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        total, tokens = total + float(loss) * row.trained_tokens, tokens + row.trained_tokens
    return total / tokens


def test_embedding_noise_is_for_training_only(root: Path) -> None:
    noisy = make_run(root, workspace="noisy", neftuneNoiseAlpha=100, maxSteps=1)
    still = make_run(root, workspace="still", maxSteps=1)
    for run in (noisy, still):
        workflow.run(run)
    assert abs(tiny.losses(noisy)[0] - tiny.losses(still)[0]) > 1e-3
    results = json.loads((noisy.folders.reports / "eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(measured_by_hand(noisy), abs=CLOSE)


@pytest.mark.usefixtures("drawn")
def test_evaluations_run_every_so_many_steps_and_at_the_end(root: Path) -> None:
    run = make_run(root)
    outcome = workflow.run(run)
    lines = [json.loads(line) for line in (run.folders.reports / "trainer_log.jsonl").read_text().splitlines()]
    assert [line["current_steps"] for line in lines if "eval_loss" in line] == [2, 4, 5]

    results = json.loads((run.folders.reports / "eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(measured_by_hand(run), abs=CLOSE)
    assert results["eval_perplexity"] == pytest.approx(math.exp(results["eval_loss"]))
    assert results["eval_samples"] == 5
    everything = json.loads((run.folders.reports / "all_results.json").read_text())
    training = json.loads((run.folders.reports / "train_results.json").read_text())
    assert everything == training | results
    assert outcome.metrics["evalLoss"] == f"{results['eval_loss']:.6g}"
    assert float(outcome.metrics["evalPerplexity"]) > 1
    assert (run.folders.reports / "training_eval_loss.png").read_bytes().startswith(b"\x89PNG")
    assert "evaluation loss" in (run.folders.artifact / "README.md").read_text()


def test_an_evaluation_does_not_change_training(root: Path) -> None:
    run = make_run(root)
    workflow.run(run)
    plain = tiny.make_run(root, tiny.job(training={"maxSteps": 5}), workspace="plain")
    workflow.run(plain)
    assert tiny.losses(run) == tiny.losses(plain)


def test_metrics_do_not_depend_on_the_micro_batch(root: Path) -> None:
    whole, single = make_run(root, microBatchSize=8), make_run(root, workspace="single", microBatchSize=1)
    for run in (whole, single):
        workflow.run(run)
    assert tiny.logged(whole, "eval_loss") == pytest.approx(tiny.logged(single, "eval_loss"), abs=CLOSE)


def test_a_resumed_run_does_the_evaluation_that_the_stop_skipped(root: Path) -> None:
    straight = make_run(root, workspace="straight")
    workflow.run(straight)
    with pytest.raises(Preempted):
        workflow.run(tiny.stopped_at(make_run(root, workspace="again"), 1))  # saved after step 2, when one was due
    second = make_run(root, workspace="again", attempt=2)
    workflow.run(second)
    assert tiny.logged(second, "eval_loss") == tiny.logged(straight, "eval_loss")
    assert tiny.losses(second) == tiny.losses(straight)


def test_each_of_several_datasets_has_its_metrics(root: Path) -> None:
    run = make_run(root, datasets=2)
    workflow.run(run)
    results = json.loads((run.folders.reports / "eval_results.json").read_text())
    assert {"eval_loss", "eval_1_loss", "eval_2_loss", "eval_2_perplexity"} <= set(results)
    assert results["eval_samples"] == 5 + 6


def test_every_token_has_the_same_weight_in_the_loss_of_all_splits() -> None:
    one = {"loss": np.array([4.0, 6.0]), "tokens": np.array([4.0, 6.0]), "correct": np.array([1.0, 1.0])}
    other = {"loss": np.array([90.0]), "tokens": np.array([30.0]), "correct": np.array([6.0])}
    found = metrics_of_splits(token_metrics, {"eval-1": one, "eval-2": other})
    assert found["eval_loss"] == 2.5
    assert (found["eval_1_loss"], found["eval_2_loss"]) == (1.0, 3.0)
    assert (found["eval_accuracy"], found["eval_2_accuracy"]) == (0.2, 0.2)
    far = {"loss": np.array([1e6]), "tokens": np.array([1.0]), "correct": np.array([0.0])}
    assert metrics_of_splits(token_metrics, {"eval": far})["eval_perplexity"] == math.exp(700)
