"""Whole runs of stage rm: the model learns which answer is better, and transformers and peft load it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.artifact.export import export
from finetune_trainer.data.datasets import Pairs
from finetune_trainer.data.splits import open_split
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.generation.command import generate
from finetune_trainer.run import Run, WorkflowResult
from finetune_trainer.stages.rm.trainer import losses
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.trainer.checkpoints.test_exact import Sharded, sharded
from tests.trainer.support import stages, tiny
from tests.trainer.support.attempt import Install, Series, recorded
from tests.trainer.support.forge import Forge

STATISTICS, SCORES = "artifact/reward_statistics.json", "reports/scores.jsonl"
HELD_OUT: dict[str, Any] = {"evaluation": {"datasets": [stages.dataset("rm")]}}


@pytest.fixture
def root(stage_root: Path) -> Path:
    return stage_root


def train(root: Path, method: str = "lora", steps: int = 3, workspace: str = "work", **sections: Any) -> Run:
    return ended(root, method, steps, workspace, **sections)[0]


def ended(root: Path, method: str, steps: int, workspace: str = "work", **sections: Any) -> tuple[Run, WorkflowResult]:
    training = {"maxSteps": steps, "learningRate": 0.01, **sections.pop("training", {})}
    run = tiny.make_run(root, stages.job("rm", method, training=training, **sections), workspace=workspace)
    return run, stages.train(run)


def plain(run: Run, method: str) -> Any:
    """The artifact, loaded by transformers and peft alone."""
    folder = run.folders.artifact
    if method in ("full", "freeze"):
        return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    from peft import PeftModel

    source = run.folders.volumes["models"] / "model"
    base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    base.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    return PeftModel.from_pretrained(base, str(folder)).eval()


@pytest.mark.parametrize("method", ["lora", "full", "freeze"])
def test_a_reward_model_learns_and_libraries_load_it(root: Path, method: str) -> None:
    steps, rate = (24, 0.01) if method == "lora" else (48, 0.002)
    run, outcome = ended(root, method, steps, training={"learningRate": rate}, **HELD_OUT)
    curve = tiny.losses(run)
    scores = [json.loads(line) for line in (run.folders.reports / "scores.jsonl").read_text().splitlines()]
    evaluated = json.loads((run.folders.reports / "all_results.json").read_text())
    chosen, rejected = (np.array([one[side] for one in scores]) for side in ("chosen", "rejected"))

    assert curve[0] == pytest.approx(np.log(2), abs=0.3)
    assert curve[-1] < curve[0] - 0.2
    assert [one["row"] for one in scores] == list(range(stages.ROWS))
    assert evaluated["eval_accuracy"] == pytest.approx((chosen > rejected).mean())
    assert evaluated["eval_accuracy"] > 0.8
    assert evaluated["eval_margin"] == pytest.approx((chosen - rejected).mean(), abs=1e-5)
    assert evaluated["eval_loss"] == pytest.approx(np.log1p(np.exp(rejected - chosen)).mean(), abs=1e-5)
    for name in ("accuracy", "margin", "mean_reward"):
        assert len(tiny.logged(run, name)) == steps

    statistics = json.loads((run.folders.artifact / "reward_statistics.json").read_text())
    assert statistics == {
        "mean": pytest.approx(np.concatenate([chosen, rejected]).mean(), abs=1e-5),
        "std": pytest.approx(np.concatenate([chosen, rejected]).std(), abs=1e-5),
        "rows": 2 * stages.ROWS,
        "heldOut": True,
    }
    assert outcome.artifact.kind == ("adapter" if method == "lora" else "model")
    assert outcome.artifact.base == ("pvc://models/model" if method == "lora" else None)
    assert outcome.artifact.base_digest == run.prepared.digests["pvc://models/model"]
    assert outcome.artifact.tokenizer_digest == run.prepared.tokenizer_digest != ""
    files = {file.name for file in run.folders.artifact.iterdir()}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert "generation_config.json" not in files

    pairs = Pairs(open_split(run.prepared.data, "eval"))
    model = plain(run, method)
    rows = [pairs.pair(pair)[side].input_ids for side in (0, 1) for pair in range(len(pairs))]
    with torch.inference_mode():
        logits = [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in rows]
    assert logits == pytest.approx(np.concatenate([chosen, rejected]), abs=1e-5)


def test_without_held_out_pairs_trained_pairs_are_scored(root: Path) -> None:
    run = train(root)
    lines = (run.folders.reports / "scores.jsonl").read_text().splitlines()
    assert {json.loads(line)["split"] for line in lines} == {"train"}
    statistics = json.loads((run.folders.artifact / "reward_statistics.json").read_text())
    assert (statistics["rows"], statistics["heldOut"]) == (2 * stages.ROWS, False)


def test_pairs_that_are_too_long_are_cut_and_kept(root: Path) -> None:
    rows = [stages.row("rm", index) for index in range(8)]
    for row in rows:
        row["chosen"][0]["content"] += " and so on" * 20
    stages.save(root / "data" / "rm.jsonl", rows)
    run = train(root, training={"cutoffLength": 40})
    pairs = Pairs(open_split(run.prepared.data, "train"))
    assert len(pairs) == 8
    assert pairs.lengths.max() == 40
    assert run.prepared.summary.truncated_rows == 8


def test_scores_are_kept_around_zero(root: Path) -> None:
    free = train(root, steps=6, workspace="free", **HELD_OUT)
    held = train(root, steps=6, workspace="held", rm={"centerRewards": 1.0}, **HELD_OUT)
    means = [
        abs(json.loads((run.folders.artifact / "reward_statistics.json").read_text())["mean"]) for run in (free, held)
    ]
    assert means[1] < means[0]


def test_the_loss_is_the_formula_of_the_papers() -> None:
    chosen, rejected = torch.tensor([1.0, -0.5]), torch.tensor([0.0, 0.5])
    assert losses(chosen, rejected).tolist() == pytest.approx([0.3132617, 1.3132617])
    assert losses(chosen, rejected, 0.1).tolist() == pytest.approx([0.4132617, 1.3132617])


def test_an_adapter_can_be_merged_into_one_model(root: Path) -> None:
    run = train(root, output={"merge": True}, **HELD_OUT)
    lines = [json.loads(line) for line in (run.folders.reports / "scores.jsonl").read_text().splitlines()]
    pairs = Pairs(open_split(run.prepared.data, "eval"))
    model = plain(run, "full")
    rows = [pairs.pair(pair)[side].input_ids for side in (0, 1) for pair in range(len(pairs))]
    with torch.inference_mode():
        logits = [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in rows]
    assert logits[: len(pairs)] == pytest.approx([line["chosen"] for line in lines], abs=1e-4)
    facts = json.loads((run.folders.artifact / "provenance.json").read_text())["merge"]
    assert facts["difference"] < 1e-4
    assert facts["rounding"]["score"] < 1e-6 < facts["rounding"]["spread"]
    with pytest.raises(InvalidSpec, match="scores answers and can't write any"):
        generate(run.job, run.folders, "say alpha", False, 4)


def test_an_adapter_is_exported_as_one_model(root: Path, tmp_path: Path) -> None:
    run = train(root, steps=6)
    made = export(run.job, run.folders, tmp_path / "whole")
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.allclose(whole(input_ids=ids).logits, plain(run, "lora")(input_ids=ids).logits, atol=1e-5)
    assert made.difference < 1e-4


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_sharded_reward_model_scores_like_a_whole_one(root: Path, forge: Forge, tmp_path: Path, method: str) -> None:
    def ranks_of_two(parallelism: str, install: Install) -> Series:
        training = {"maxSteps": 3, "parallelism": parallelism, "microBatchSize": 2}
        made = Series(forge, root, tmp_path / parallelism, stages.job("rm", method, training=training), install)
        assert made.run(world=2) == 0, made.log
        return made

    whole, shared = ranks_of_two("ddp", recorded), ranks_of_two("fsdp", sharded)
    assert set(shared.events(Sharded)) == {Sharded(True)}
    for name in ("loss", "accuracy", "margin", "mean_reward"):
        assert shared.logged(name) == pytest.approx(whole.logged(name), abs=1e-5)
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    expected, found = (load_file(one.home / "artifact" / file) for one in (whole, shared))
    assert set(found) == set(expected)
    assert any(name.endswith("score.weight") for name in found)
    assert max(float((found[name] - weight).abs().max()) for name, weight in expected.items()) < 1e-5
    statistics, lines = ([one.home / place for one in (whole, shared)] for place in (STATISTICS, SCORES))
    assert json.loads(statistics[0].read_text()) == pytest.approx(json.loads(statistics[1].read_text()), abs=1e-5)
    assert len(lines[1].read_text().splitlines()) == stages.ROWS
