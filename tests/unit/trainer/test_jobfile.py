"""What a user reads when --job is wrong, and what is accepted."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_api.contract import CONTRACT, ResolvedJob, resolve
from finetune_api.job import FineTuneJob
from finetune_trainer import jobfile
from finetune_trainer.errors import InvalidSpec


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
    ("path", "value", "said"),
    [
        ("spec.stage", "sfft", "spec.stage: Unknown stage 'sfft': the stages are pt, sft, rm, dpo, ppo, kto"),
        ("spec.tuning.lora", {"rank": -3}, "spec.tuning.lora.rank: -3 given; must be greater than or equal to 1"),
        ("spec.training.epoch", 2, "spec.training.epoch: unknown field; did you mean 'epochs'?"),
        ("spec.training.learning_rate", 1, "unknown field; did you mean 'learningRate'?"),
        ("spec.datasets.0.format", "alpca", "spec.datasets[0].format: \"alpca\" given; allowed: 'alpaca', 'sharegpt'"),
        ("spec.training.epochs", 2, "spec.training: say how long to train: set exactly one of epochs and maxSteps"),
        ("spec.model", {}, "spec.model: set exactly one of source and fromJob"),
        ("spec.datasets.0.source", None, "spec.datasets[0].source: null given"),
        ("metadata.name", "7b", 'metadata.name: "7b" given; must match'),
        ("spec.training.microBatchSize", 3, "spec.training: microBatchSize must divide globalBatchSize; 3"),
        ("spec.resources.gpusPerNode", 3, "spec.training.globalBatchSize is 16, which 3 GPUs can't share evenly"),
    ],
)
def test_what_is_wrong_is_named(file: Path, path: str, value: Any, said: str) -> None:
    assert said in refused(file, changed(path, value))


def test_all_findings_at_once(file: Path) -> None:
    document = changed("spec.training.seed", -1)
    document["spec"]["stage"] = "x"
    text = refused(file, document)
    assert "spec.training.seed" in text
    assert "spec.stage" in text


def test_a_manifest_with_other_objects_beside_the_job(file: Path) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "work"}}
    file.write_text(yaml.safe_dump_all([claim, manifest()]))
    assert jobfile.read_job(file, file.parent) == resolve(FineTuneJob.model_validate(manifest()))


@pytest.mark.parametrize(("documents", "found"), [(0, "PersistentVolumeClaim"), (2, "FineTuneJob, FineTuneJob")])
def test_not_exactly_one_job(file: Path, documents: int, found: str) -> None:
    objects = [manifest()] * documents or [{"kind": "PersistentVolumeClaim"}]
    file.write_text(yaml.safe_dump_all(objects))
    with pytest.raises(InvalidSpec, match=rf"{documents} FineTuneJobs \(found: {found}\)"):
        jobfile.read_job(file, file.parent)


@pytest.mark.parametrize("text", ["{", "[1]", "a: b: c", ""])
def test_not_a_job_at_all(tmp_path: Path, text: str) -> None:
    for name in ("job.yaml", "job.json"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidSpec, match=name):
            jobfile.read_job(tmp_path / name, tmp_path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"--job .*nowhere.* cannot be read"):
        jobfile.read_job(tmp_path / "nowhere", tmp_path)


def resolved() -> ResolvedJob:
    return resolve(FineTuneJob.model_validate(manifest()))


def test_what_the_operator_writes_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(resolved().to_dict()))
    assert jobfile.read_job(tmp_path / "job.json", tmp_path) == resolved()


def test_the_contract_is_checked_before_anything_else(tmp_path: Path) -> None:
    later = {**resolved().to_dict(), "contract": CONTRACT + 2, "aFieldOfTomorrow": 1}
    (tmp_path / "job.json").write_text(json.dumps(later))
    with pytest.raises(InvalidSpec, match=f"contract {CONTRACT + 2} asked, this image knows"):
        jobfile.read_job(tmp_path / "job.json", tmp_path)


def test_an_unknown_key_of_the_operator_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({**resolved().to_dict(), "surprise": 1}))
    with pytest.raises(InvalidSpec, match="surprise: unknown field"):
        jobfile.read_job(tmp_path / "job.json", tmp_path)


def test_the_attempts_facts_lie_beside_the_job(tmp_path: Path) -> None:
    assert jobfile.read_attempt(tmp_path / "job.json") is None
    facts = {"namespace": "a", "name": "b", "uid": "c", "attempt": 2, "jobName": "d"}
    (tmp_path / "attempt.json").write_text(json.dumps(facts))
    read = jobfile.read_attempt(tmp_path / "job.json")
    assert read is not None
    assert (read.attempt, read.grace_period_seconds) == (2, 120)
