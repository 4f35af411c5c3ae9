"""Whole runs of stage kto: the reference point is that of the global batch, for any micro-batch."""

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import Preempted
from finetune_trainer.run import Run
from finetune_trainer.stages.kto.trainer import KtoTrainer

from tests.trainer.support import stages, tiny

SMALL = {"maxSteps": 4, "learningRate": 0.01}


@pytest.fixture
def root(stage_root: Path) -> Path:
    return stage_root


def trained(root: Path, method: str = "lora", workspace: str = "work", **sections: Any) -> Run:
    training = SMALL | sections.pop("training", {})
    run = tiny.make_run(root, stages.job("kto", method, training=training, **sections), workspace=workspace)
    stages.train(run)
    return run


def test_each_row_borrows_the_answer_of_the_row_before_it_in_its_batch() -> None:
    keys = KtoTrainer.indices(None, [4, 9, 2])  # type: ignore[arg-type]
    assert keys == [(4, 2), (9, 4), (2, 9)]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_kto_starts_at_the_reference_and_separates_desirable_answers(root: Path, method: str) -> None:
    weights = {"desirableWeight": 1.0, "undesirableWeight": 1.5}
    run = trained(root, method, kto=weights, training={"maxSteps": 12})
    assert stages.history(run, "kl")[0] == stages.history(run, "rewards/margins")[0] == 0.0
    assert 0.5 * 1.0 <= tiny.losses(run)[0] <= 0.5 * 1.5
    assert stages.history(run, "rewards/margins")[-1] > 0.01
    assert all(kl >= 0 for kl in stages.history(run, "kl"))


def test_results_do_not_depend_on_the_micro_batch(root: Path) -> None:
    runs = [
        trained(
            root,
            workspace=f"by-{micro}",
            kto={"sftWeight": 0.5, "undesirableWeight": 1.3},
            training={"microBatchSize": micro, "learningRate": 0.03},
            evaluation={"splitFraction": 0.25},
        )
        for micro in (8, 2, 1)
    ]
    whole, *others = runs
    assert max(stages.history(whole, "kl")) > 0.01
    for name in ("loss", "kl", "sft_loss", "rewards/margins", "rewards/chosen", "rewards/accuracies"):
        for run in others:
            assert stages.history(run, name) == pytest.approx(stages.history(whole, name), abs=1e-5)
            eval_results = [json.loads((one.folders.reports / "eval_results.json").read_text()) for one in (run, whole)]
            assert eval_results[0][f"eval_{name}"] == pytest.approx(eval_results[1][f"eval_{name}"], abs=1e-5)


def test_a_resumed_run_is_bit_equal(root: Path) -> None:
    job = stages.job("kto", "lora", training=SMALL, tuning={"method": "lora", "lora": {"rank": 4, "dropout": 0.2}})
    whole, cut = (tiny.make_run(root, job, workspace=name) for name in ("whole", "cut"))
    stages.train(whole)
    with pytest.raises(Preempted):
        stages.train(tiny.stopped_at(cut, 2))
    again = tiny.make_run(root, job, attempt=2, workspace="cut")
    stages.train(again)
    assert tiny.losses(again) == tiny.losses(whole)
    name = "adapter_model.safetensors"
    assert (again.folders.artifact / name).read_bytes() == (whole.folders.artifact / name).read_bytes()
