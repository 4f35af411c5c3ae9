"""The files that --job accepts, and the errors for all others."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.contract import CONTRACT, CONTRACTS_ACCEPTED, ResolvedJob, resolve
from finetune_api.job import FineTuneJob
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.launcher import jobfile


def manifest() -> dict[str, Any]:
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tune"},
        "spec": {
            "stage": "sft",
            "model": {"source": "pvc://models/small"},
            "datasets": [{"source": "pvc://models/data.jsonl", "format": "openai"}],
            "training": {"maxSteps": 10},
            "workspace": {"claimName": "work"},
        },
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    document = manifest()
    *parents, last = path.split(".")
    place: Any = document
    for part in parents:
        place = place[int(part)] if part.isdecimal() else place.setdefault(part, {})
    place[last] = value
    return document


def refused(file: Path, document: Any) -> str:
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(InvalidSpec) as error:
        jobfile.read_job(file, file.parent)
    return str(error.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.stage", "sfft", "spec.stage: Unknown stage 'sfft': the stages are pt, sft, rm, dpo, ppo, kto"),
        ("spec.tuning.lora", {"rank": -3}, "spec.tuning.lora.rank: -3 given; must be greater than or equal to 1"),
        ("spec.training.epoch", 2, "spec.training.epoch: unknown field; did you mean 'epochs'?"),
        (
            "spec.training.learning_rate",
            1,
            "spec.training.learning_rate: unknown field; use spec.training.learningRate",
        ),
        ("spec.num_train_epochs", 3, "spec.num_train_epochs: unknown field; use spec.training.epochs"),
        ("spec.training.lora_rank", 8, "spec.training.lora_rank: unknown field; use spec.tuning.lora.rank"),
        ("spec.epochs", 3, "spec.epochs: unknown field; known: "),  # training or ppo
        ("spec.cutoffLength", 3, "spec.cutoffLength: unknown field; use spec.training.cutoffLength"),
        ("spec.datasets.0.kto_tag", "x", "datasets[0].kto_tag: unknown field; use spec.datasets.columns.label"),
        ("spec.evaluation", {"datasets": [{"user_tag": "x"}]}, "use spec.evaluation.datasets.tags.user"),
        ("spec.datasets.0.format", "alpca", "spec.datasets[0].format: \"alpca\" given; allowed: 'alpaca', 'sharegpt'"),
        (
            "spec.training.epochs",
            2,
            "spec.training: set exactly one of epochs and maxSteps, which say how long to train",
        ),
        ("spec.model", {}, "spec.model: set exactly one of source and fromJob"),
        ("spec.datasets.0.source", None, "spec.datasets[0].source: null given"),
        ("metadata.name", "7b", 'metadata.name: "7b" given; must match'),
        (
            "spec.training.microBatchSize",
            3,
            "spec.training: microBatchSize must divide globalBatchSize: change either; microBatchSize is 3",
        ),
        ("spec.resources.gpusPerNode", 3, "spec.training.globalBatchSize is 16, which 3 GPUs cannot share evenly"),
    ],
)
def test_an_error_names_field_value_and_what_is_allowed(file: Path, path: str, value: Any, message: str) -> None:
    assert message in refused(file, changed(path, value))


def test_all_errors_are_reported_at_once(file: Path) -> None:
    document = changed("spec.training.seed", -1)
    document["spec"]["stage"] = "x"
    text = refused(file, document)
    assert "spec.training.seed" in text
    assert "spec.stage" in text


def test_a_manifest_may_have_other_objects(file: Path) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "work"}}
    file.write_text(yaml.safe_dump_all([claim, manifest()]))
    assert jobfile.read_job(file, file.parent) == resolve(FineTuneJob.model_validate(manifest()))


@pytest.mark.parametrize(("documents", "found"), [(0, "PersistentVolumeClaim"), (2, "FineTuneJob, FineTuneJob")])
def test_a_file_without_exactly_one_job_is_refused(file: Path, documents: int, found: str) -> None:
    objects = [manifest()] * documents or [{"kind": "PersistentVolumeClaim"}]
    file.write_text(yaml.safe_dump_all(objects))
    with pytest.raises(InvalidSpec, match=rf"{documents} FineTuneJobs \(found: {found}\)"):
        jobfile.read_job(file, file.parent)


@pytest.mark.parametrize("text", ["{", "[1]", "a: b: c", ""])
def test_a_file_without_a_job_is_refused(tmp_path: Path, text: str) -> None:
    for name in ("job.yaml", "job.json"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidSpec, match=name):
            jobfile.read_job(tmp_path / name, tmp_path)


LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen3-4B-Instruct-2507
stage: sft
do_train: true
finetuning_type: lora
dataset: identity
template: qwen3_nothink
num_train_epochs: 3.0
"""
AXOLOTL = "base_model: NousResearch/Llama-3.2-1B\ndatasets: [{path: tatsu-lab/alpaca}]\nsequence_len: 2048\n"
TRL = "model_name_or_path: Qwen/Qwen3-0.6B\ndataset_name: trl-lib/Capybara\nlearning_rate: 2.0e-4\nuse_peft: true\n"
SPEC_ONLY = "stage: sft\nmodel: {source: pvc://models/small}\ntraining: {epochs: 1}\n"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            LLAMA_FACTORY,
            [
                "this is a configuration of LLaMA-Factory, and not a FineTuneJob",
                "docs/llamafactory.md",
                "model_name_or_path: spec.model.source",
                "num_train_epochs: spec.training.epochs",
            ],
        ),
        (AXOLOTL, ["a configuration of Axolotl", "sequence_len: spec.training.cutoffLength"]),
        (TRL, ["a configuration of TRL", "dataset_name: spec.datasets", "learning_rate: spec.training.learningRate"]),
        (SPEC_ONLY, ["has the fields of a spec only", "put these fields below spec"]),
        ("metadata: {name: a}\nspec: {}\n", ["has no kind; a FineTuneJob has apiVersion: finetune-operator.io/"]),
        ("surprise: 1\n", ["has no kind", "(found: surprise)"]),
    ],
)
def test_a_configuration_of_another_trainer_is_named_with_its_fields(
    file: Path, text: str, messages: list[str]
) -> None:
    file.write_text(text)
    with pytest.raises(InvalidSpec) as error:
        jobfile.read_job(file, file.parent)
    assert not [message for message in messages if message not in str(error.value)], str(error.value)


def test_a_key_that_is_there_twice_is_refused(file: Path) -> None:
    file.write_text(yaml.safe_dump(manifest()) + "spec:\n  stage: sft\n")
    with pytest.raises(InvalidSpec, match=r"not YAML: the key spec is there twice"):
        jobfile.read_job(file, file.parent)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"--job .*nowhere.* cannot be read"):
        jobfile.read_job(tmp_path / "nowhere", tmp_path)


def resolved() -> ResolvedJob:
    return resolve(FineTuneJob.model_validate(manifest()))


def test_a_resolved_job_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(resolved().to_dict()))
    assert jobfile.read_job(tmp_path / "job.json", tmp_path) == resolved()


@pytest.mark.parametrize("contract", [CONTRACTS_ACCEPTED[0] - 1, CONTRACT + 2])
def test_the_contract_is_checked_first(tmp_path: Path, contract: int) -> None:
    other = {**resolved().to_dict(), "contract": contract, "aFieldOfAnotherRelease": 1}
    (tmp_path / "job.json").write_text(json.dumps(other))
    with pytest.raises(
        InvalidSpec, match=f"contract {contract} given; this image accepts {CONTRACT - 1}-{CONTRACT}\\."
    ):
        jobfile.read_job(tmp_path / "job.json", tmp_path)


@pytest.mark.parametrize("contract", CONTRACTS_ACCEPTED)
def test_a_job_of_the_contract_before_is_read(tmp_path: Path, contract: int) -> None:
    (tmp_path / "job.json").write_text(json.dumps({**resolved().to_dict(), "contract": contract}))
    assert jobfile.read_job(tmp_path / "job.json", tmp_path).contract == contract


def test_an_unknown_key_in_a_resolved_job_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({**resolved().to_dict(), "surprise": 1}))
    with pytest.raises(InvalidSpec, match="surprise: unknown field"):
        jobfile.read_job(tmp_path / "job.json", tmp_path)


def test_the_attempts_facts_are_beside_the_job(tmp_path: Path) -> None:
    assert jobfile.read_attempt(tmp_path / "job.json") is None
    facts = {"namespace": "a", "name": "b", "uid": "c", "attempt": 2, "jobName": "d"}
    (tmp_path / "attempt.json").write_text(json.dumps(facts))
    read = jobfile.read_attempt(tmp_path / "job.json")
    assert read is not None
    assert (read.attempt, read.grace_period_seconds) == (2, 120)
