"""Whole runs of stage sft: they learn, their artifact works, their reports are right."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_api.status import Progress
from finetune_trainer.artifact import model_card
from finetune_trainer.errors import InvalidSpec, NoSpace, Preempted
from finetune_trainer.generation.command import generate
from finetune_trainer.run import Run, WorkflowResult
from finetune_trainer.stages.sft import workflow
from finetune_trainer.workspace.files import digest_folder
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests.trainer.support import tiny

TRAINING = {"learningRate": 0.01, "globalBatchSize": 8, "microBatchSize": 8}


def train(root: Path, tuning: dict[str, object], steps: int = 40) -> tuple[Run, WorkflowResult, list[Progress]]:
    seen: list[Progress] = []
    job = tiny.job(training=TRAINING | {"maxSteps": steps}, tuning=tuning)
    run = replace(tiny.make_run(root, job), report_progress=seen.append)
    return run, workflow.run(run), seen


@pytest.mark.parametrize(("method", "kind", "steps"), [("lora", "adapter", 40), ("full", "model", 80)])
def test_a_run_learns_and_leaves_a_usable_artifact(root: Path, method: str, kind: str, steps: int) -> None:
    run, outcome, progress = train(root, {"method": method}, steps)

    losses = tiny.losses(run)
    assert len(losses) == steps
    assert losses[-1] < losses[0] - (0.3 if method == "lora" else 4.0)

    artifact = run.folders.artifact
    assert outcome.artifact.kind == kind
    assert outcome.artifact.uri == "pvc://kept/jobs/tiny/artifact"
    assert (outcome.artifact.digest, outcome.artifact.size_bytes) == digest_folder(artifact)
    files = {file.name for file in artifact.iterdir()}
    assert files >= {"tokenizer.json", "chat_template.jinja", "README.md", "provenance.json"}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert not list(artifact.parent.glob(".artifact*"))

    answers = [generate(run.job, run.folders, "say alpha 1", base, 16) for base in (True, False)]
    assert answers[0] != answers[1]
    if method == "full":
        assert answers[1] == "alpha"

    assert progress[0].summary == f"0/{steps} (0%)"
    assert progress[-1].summary == f"{steps}/{steps} (100%)"
    assert progress[-1].loss == f"{losses[-1]:.4f}"
    assert progress[-1].eta == "0s"


@pytest.mark.usefixtures("drawn")
def test_reports_describe_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_IMAGE", "registry.example/trainer:1.2")
    run, outcome, _ = train(root, {"method": "lora"})
    reports = run.folders.reports

    line = json.loads((reports / "trainer_log.jsonl").read_text().splitlines()[-1])
    keys = "current_steps total_steps loss lr epoch percentage elapsed_time remaining_time throughput total_tokens"
    assert set(line) == {*keys.split(), "grad_norm"}
    assert (line["current_steps"], line["percentage"]) == (40, 100.0)
    assert (reports / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((reports / "trainer_state.json").read_text())["global_step"] == 40

    results = json.loads((reports / "train_results.json").read_text())
    assert results == json.loads((reports / "all_results.json").read_text())
    assert results["train_loss"] == pytest.approx(sum(tiny.losses(run)) / 40)
    # 13 epochs and a bit of 24 rows: each row is seen as often as the next, and padding isn't counted
    assert outcome.metrics["steps"] == "40"
    assert int(outcome.metrics["tokens"]) == line["total_tokens"] < 40 * 8 * 21

    facts = json.loads((run.folders.artifact / "provenance.json").read_text())
    assert facts["job"] == run.job.to_dict()
    assert facts["image"] == "registry.example/trainer:1.2"
    assert facts["versions"]["trl"]
    assert facts["model"]["digest"].startswith("sha256:")
    assert facts["data"][0]["source"] == "pvc://data/rows.jsonl"
    assert facts["data"][0]["digest"].startswith("sha256:")
    assert facts["prepared"] == run.prepared.summary.digest
    card = (run.folders.artifact / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card
    assert "pvc://models/model" in card


def test_an_artifact_that_cannot_be_written_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of an artifact would keep a full workspace full."""

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_card, "render", full)
    run = tiny.make_run(root, tiny.job(training=TRAINING | {"maxSteps": 1}, tuning={"method": "lora"}))
    with pytest.raises(NoSpace):
        workflow.run(run)
    assert not list(run.folders.job.glob("*artifact*"))


def test_an_adapter_names_the_source_of_its_base_not_a_directory_of_the_pod(root: Path) -> None:
    run, _, _ = train(root, {"method": "lora", "lora": {"rank": 4, "targets": ["q_proj", "v_proj"]}})
    config = json.loads((run.folders.artifact / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "pvc://models/model"
    with safe_open(run.folders.artifact / "adapter_model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype.__str__() for name in names} == {"torch.float32"}
    assert len(names) == 2 * 2 * 2  # layers x targets x (A, B)
    assert all("q_proj" in name or "v_proj" in name for name in names)


def test_the_base_of_an_adapter_is_unchanged(root: Path) -> None:
    before = digest_folder(root / "models" / "model")
    train(root, {"method": "lora"})
    assert digest_folder(root / "models" / "model") == before


@pytest.mark.parametrize("precision", ["bf16", "pureBf16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_small_number_types_and_recomputation_train_and_resume(root: Path, precision: str, method: str) -> None:
    training = {"precision": precision, "recompute": "all", "maxSteps": 4}
    job = tiny.job(training=training, tuning={"method": method}, checkpoints={"everySteps": 2})
    whole = tiny.make_run(root, job, workspace="whole")
    workflow.run(whole)

    first = tiny.stopped_at(tiny.make_run(root, job, workspace="again"), 1)
    with pytest.raises(Preempted):
        workflow.run(first)
    second = tiny.make_run(root, job, attempt=2, workspace="again")
    workflow.run(second)
    assert tiny.losses(second) == pytest.approx(tiny.losses(whole), abs=1e-6)
    weights = next(second.folders.artifact.glob("*.safetensors"))
    with safe_open(weights, "pt") as tensors:
        dtypes = {str(tensors.get_tensor(name).dtype) for name in tensors.keys()}  # noqa: SIM118
    # A whole model is stored as its base was, by output.dtype auto.
    assert dtypes == {"torch.bfloat16" if (precision, method) == ("pureBf16", "lora") else "torch.float32"}


def test_an_adapter_of_the_output_head_is_refused(root: Path) -> None:
    """The loss reads the weights of the head without its adapter, so the adapter would never be trained."""
    base: Any = AutoModelForCausalLM.from_pretrained(root / "models" / "model")
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"])
    get_peft_model(base, config).save_pretrained(str(root / "data" / "head"))
    tuning: dict[str, object] = {"method": "lora", "adapter": {"source": "pvc://data/head", "mode": "continue"}}
    with pytest.raises(InvalidSpec, match=r"adapts the output head \(lm_head\).* Set the mode of that adapter"):
        train(root, tuning, steps=1)
