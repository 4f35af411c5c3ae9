"""Whole runs of stage dpo: the reference, the losses and the metrics."""

import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.errors import Preempted
from finetune_trainer.run import Run
from finetune_trainer.training import reference_model

from tests.trainer.support import stages, tiny
from tests.trainer.training.test_reference import save_adapter

SMALL = {"maxSteps": 3, "learningRate": 0.01}


@pytest.fixture
def root(stage_root: Path) -> Path:
    return stage_root


def trained(root: Path, method: str = "lora", workspace: str = "work", **sections: Any) -> Run:
    training = SMALL | sections.pop("training", {})
    run = tiny.make_run(root, stages.job("dpo", method, training=training, **sections), workspace=workspace)
    stages.train(run)
    return run


FIRST = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": 25.0}


@pytest.mark.parametrize(
    ("loss", "method"), [("sigmoid", "lora"), ("sigmoid", "full"), ("hinge", "lora"), ("ipo", "full")]
)
def test_the_policy_equals_its_reference_before_the_first_step(root: Path, loss: str, method: str) -> None:
    run = trained(root, method, dpo={"loss": loss}, training={"maxSteps": 12, "learningRate": 0.003})
    losses, margins = tiny.losses(run), stages.history(run, "rewards/margins")
    assert losses[0] == pytest.approx(FIRST[loss])
    assert margins[0] == stages.history(run, "rewards/chosen")[0] == stages.history(run, "rewards/rejected")[0] == 0.0
    assert losses[-1] < losses[0]
    assert margins[-1] > 0
    assert stages.history(run, "rewards/accuracies")[-1] > 0.5
    assert all(value < 0 for value in stages.history(run, "logps/chosen"))


@pytest.mark.parametrize("loss", ["orpo", "simpo"])
def test_losses_without_a_reference_load_none(root: Path, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_model, "make", None)
    run = trained(root, dpo={"loss": loss})
    assert tiny.losses(run)[-1] < tiny.losses(run)[0]
    if loss == "orpo":
        parts = zip(stages.history(run, "sft_loss"), stages.history(run, "odds_ratio_loss"), strict=True)
        assert tiny.losses(run) == pytest.approx([sft + 0.1 * odds for sft, odds in parts])


def test_the_supervised_loss_is_over_all_chosen_tokens(root: Path) -> None:
    plain = trained(root, workspace="plain")
    whole = trained(root, workspace="whole", dpo={"sftWeight": 2.0}, training={"microBatchSize": 8})
    single = trained(root, workspace="single", dpo={"sftWeight": 2.0}, training={"microBatchSize": 1})
    assert tiny.losses(single) == pytest.approx(tiny.losses(whole), abs=1e-5)
    sft = stages.history(whole, "sft_loss")
    assert tiny.losses(whole)[0] == pytest.approx(tiny.losses(plain)[0] + 2.0 * sft[0])
    assert sft[-1] < sft[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_precomputed_reference_gives_the_same_losses(
    root: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {"dpo": {"ldAlpha": 0.5}, "evaluation": {"splitFraction": 0.2}}
    asked_each_step = trained(root, method, "each", **sections)
    sections["dpo"] |= {"precomputeReference": True}
    job = stages.job("dpo", method, training=SMALL, checkpoints={"everySteps": 1}, **sections)
    first = tiny.make_run(root, job, workspace="before")
    with pytest.raises(Preempted):
        stages.train(tiny.stopped_at(first, 1))
    assert (first.folders.job / "reference.safetensors").is_file()

    monkeypatch.setattr(reference_model, "make", None)  # a resumed run needs no second model
    second = tiny.make_run(root, job, attempt=2, workspace="before")
    stages.train(second)
    assert tiny.losses(second) == pytest.approx(tiny.losses(asked_each_step), abs=1e-6)
    for name in ("eval_loss", "eval_rewards/margins"):
        assert stages.history(second, name) == pytest.approx(stages.history(asked_each_step, name), abs=1e-6)


def test_pairs_computed_before_a_stop_are_not_computed_again(root: Path) -> None:
    job = stages.job("dpo", "full", training=SMALL, dpo={"precomputeReference": True})
    whole = tiny.make_run(root, job, workspace="whole")
    stages.train(whole)

    reported: list[str] = []
    first = tiny.make_run(
        root,
        job,
        workspace="cut",
        report_progress=lambda p: reported.append(p.summary),
        stop_requested=lambda: bool(reported[1:]),
    )
    with pytest.raises(Preempted, match="so far is saved"):
        stages.train(first)
    seen_first = reported[-1]
    reported.clear()
    second = tiny.make_run(root, job, attempt=2, workspace="cut", report_progress=lambda p: reported.append(p.summary))
    stages.train(second)
    seen = [int(summary.split()[-2].partition("/")[0]) for summary in [seen_first, *reported] if "reference" in summary]
    assert seen == sorted(set(seen))
    assert 0 < seen[0] < seen[-1] == stages.ROWS
    assert tiny.losses(second) == tiny.losses(whole)


def test_a_precomputed_reference_is_freed_before_the_first_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, left, make = [], [], reference_model.make

    def remembered(*args: Any) -> reference_model.Reference:
        second = make(*args)
        made.append(weakref.ref(second.model))
        return second

    monkeypatch.setattr(reference_model, "make", remembered)
    job = stages.job("dpo", "full", training=SMALL, dpo={"precomputeReference": True})
    run = tiny.make_run(root, job, report_progress=lambda report: left.append((report.step, made[0]() is not None)))
    stages.train(run)
    assert (0, True) in left
    assert not [step for step, there in left if there and step > 0]


def test_the_file_of_another_job_is_not_read(root: Path) -> None:
    trained(root, dpo={"precomputeReference": True})
    kept = root / "work" / "jobs" / "tiny" / "reference.safetensors"
    again = root / "again" / "jobs" / "tiny" / kept.name
    again.parent.mkdir(parents=True)
    again.write_bytes(kept.read_bytes())
    sections: dict[str, Any] = {"dpo": {"precomputeReference": True, "ldAlpha": 0.5}}
    run = trained(root, workspace="again", **sections)
    assert run.folders.job == again.parent
    assert again.read_bytes() != kept.read_bytes()


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_the_named_reference_is_used(root: Path, method: str) -> None:
    tiny.save_model(root / "data" / "other", seed=7)
    shutil.copytree(root / "models" / "model", root / "data" / "same")
    first = {
        name: stages.history(
            trained(root, method, name, dpo={"reference": {"source": f"pvc://data/{name}"}}), "rewards/chosen"
        )
        for name in ("other", "same")
    }
    assert abs(first["other"][0]) > 0.001
    assert first["same"][0] == 0.0


def test_the_named_reference_may_be_an_adapter(root: Path) -> None:
    earlier = save_adapter(root)
    config = root / "data" / "earlier" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "pvc://models/model"}))
    for mode in ("continue", "merge"):
        tuning = {"method": "lora", "adapter": {**earlier, "mode": mode}}
        run = trained(root, workspace=mode, tuning=tuning, dpo={"reference": earlier})
        assert stages.history(run, "rewards/chosen")[0] == pytest.approx(0, abs=1e-5)
    assert abs(stages.history(trained(root, dpo={"reference": earlier}), "rewards/chosen")[0]) > 0.001


@pytest.mark.parametrize(
    ("method", "precision"),
    [("freeze", "fp32"), ("qlora", "fp32"), ("full", "bf16"), ("lora", "bf16"), ("freeze", "pureBf16")],
)
def test_a_reference_computes_like_the_policy(root: Path, method: str, precision: str) -> None:
    tuning = {"method": method, **({"freeze": {"layers": 1}} if method == "freeze" else {})}
    run = trained(root, tuning=tuning, training={"precision": precision, "recompute": "all"})
    assert stages.history(run, "rewards/chosen")[0] == stages.history(run, "rewards/rejected")[0] == 0.0
    assert stages.history(run, "rewards/chosen")[-1] != 0.0


def test_the_copy_of_an_adapter_is_rounded_like_the_adapter(root: Path) -> None:
    tuning = {"method": "lora", "adapter": save_adapter(root)}
    run = trained(root, tuning=tuning, training={"precision": "pureBf16"})
    assert stages.history(run, "rewards/chosen")[0] == 0.0


def test_held_out_pairs_are_evaluated_as_pairs(root: Path) -> None:
    evaluation = {"splitFraction": 0.25}
    metrics = []
    for micro in (4, 1):
        run = trained(root, workspace=f"by-{micro}", evaluation=evaluation, training={"microBatchSize": micro})
        metrics.append(json.loads((run.folders.reports / "eval_results.json").read_text()))
    names = ["loss", *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")), "logps/chosen"]
    for name in names:
        assert metrics[0][f"eval_{name}"] == pytest.approx(metrics[1][f"eval_{name}"], abs=1e-5)
    assert 0 <= metrics[0]["eval_rewards/accuracies"] <= 1


def test_a_continued_adapter_is_compared_with_its_first_state(root: Path) -> None:
    first = trained(root, workspace="first", training={"maxSteps": 2})
    first.folders.artifact.rename(root / "data" / "earlier")
    job = stages.job(
        "dpo", "lora", training=SMALL, tuning={"method": "lora", "adapter": {"source": "pvc://data/earlier"}}
    )
    whole, cut = (tiny.make_run(root, job, workspace=name) for name in ("whole", "cut"))
    stages.train(whole)
    assert tiny.losses(whole)[0] == pytest.approx(math.log(2))
    files = [file.name for file in whole.folders.artifact.rglob("*")]
    assert "ref" not in files
    with pytest.raises(Preempted):
        stages.train(tiny.stopped_at(cut, 1))
    again = tiny.make_run(root, job, attempt=2, workspace="cut")
    stages.train(again)
    assert tiny.losses(again) == tiny.losses(whole)
    name = "adapter_model.safetensors"
    assert (again.folders.artifact / name).read_bytes() == (whole.folders.artifact / name).read_bytes()
