"""Preparing finds what a stage needs besides its model, and refuses what would score or compare nonsense."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import ResolvedJob
from finetune_api.status import Artifact, Reference
from finetune_trainer import prepared
from finetune_trainer.errors import InvalidData, InvalidSpec, TrainerError
from finetune_trainer.fetch import Places, fetch, pins
from finetune_trainer.run import Run
from finetune_trainer.workspace import digest_folder

from tests.trainer import stages, tiny

REWARD = "pvc://models/reward"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, and as models/rm what a job of stage rm made."""
    root = stages.save_volumes(tmp_path_factory.mktemp("volumes"))
    run = tiny.make_run(root, stages.job("rm", "lora", training={"maxSteps": 1}))
    stages.train(run)
    shutil.copytree(run.folders.artifact, root / "models" / "rm")
    return root


@pytest.fixture
def root(tmp_path: Path, volumes: Path) -> Path:
    for name in ("models", "data"):
        shutil.copytree(volumes / name, tmp_path / name)
    return tmp_path


def ppo(source: str = REWARD, **more: Any) -> ResolvedJob:
    return stages.job("ppo", "lora", ppo={"rewardModel": {"source": source}, **more})


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_reward_model_and_a_reference_are_prepared(root: Path) -> None:
    job = ppo("pvc://models/rm", reference={"source": "pvc://models/model"})
    run = tiny.make_run(root, job)
    ready = run.prepared
    assert (ready.reward, ready.reward_base) == (root / "models" / "rm", root / "models" / "model")
    assert (ready.reference, ready.reference_base) == (root / "models" / "model", None)
    assert set(ready.digests) == {"pvc://models/model", "pvc://models/rm", "pvc://data/ppo.jsonl"}
    assert prepared.read(run.folders, job) == ready
    shutil.rmtree(root / "models" / "rm")
    assert prepared.read(run.folders, job) is None


def other_tokenizer(root: Path) -> None:
    file = root / "models" / "reward" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    file.write_text(json.dumps(content))


def other_splits(root: Path) -> None:
    file = root / "models" / "reward" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = []
    file.write_text(json.dumps(content))


def no_source(root: Path) -> None:
    change(root / "models" / "rm" / "adapter_config.json", base_model_name_or_path="/home/me/model")


def speaks(root: Path) -> None:
    change(root / "models" / "rm" / "adapter_config.json", task_type="CAUSAL_LM")


def two_labels(root: Path) -> None:
    change(root / "models" / "reward" / "config.json", id2label={"0": "bad", "1": "good"})


def nothing(_root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("source", "damage", "message"),
    [
        ("pvc://models/model", nothing, "ppo.rewardModel: .*/model is a LlamaForCausalLM, which gives no scores"),
        (REWARD, two_labels, "ppo.rewardModel: .*/reward is a classifier of 2 labels"),
        (REWARD, other_tokenizer, "ppo.rewardModel: .* 2 tokens are not the same in both, as 'A', 'B'"),
        (REWARD, other_splits, "knows the same tokens, and splits text into others"),
        ("pvc://models/rm", no_source, "says that it goes on '/home/me/model', which is no source"),
        ("pvc://models/rm", speaks, "is an adapter of a language model: name one of a reward model"),
    ],
)
def test_what_scores_nothing_or_nonsense_is_refused(root: Path, source: str, damage: Any, message: str) -> None:
    damage(root)
    with pytest.raises(TrainerError, match=message):
        tiny.make_run(root, ppo(source))


def test_a_reference_may_not_know_the_tokens_that_the_job_adds(root: Path) -> None:
    new = {"source": "pvc://models/model", "newTokens": ["<new>"]}
    reference = {"source": "pvc://models/model"}
    run = tiny.make_run(root, stages.job("dpo", "lora", model=new, dpo={"reference": reference}))
    assert run.prepared.reference == root / "models" / "model"


def test_a_reward_model_is_no_reference(root: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"ppo\.reference: .*ForSequenceClassification, which scores texts"):
        tiny.make_run(root, ppo(reference={"source": REWARD}))


def chained(root: Path, **changes: str) -> Run:
    """A ppo job that names the job of stage rm, as the operator resolves it."""
    folder = root / "models" / "rm"
    places = Places(root / "cache", {"models": root / "models"}, root, "run")
    base = fetch("pvc://models/model", "model", places).digest_without_code
    facts = {"digest": digest_folder(folder)[0], "base_digest": base, "base": "pvc://models/model"} | changes
    artifact = Artifact(uri="pvc://models/rm", kind="adapter", size_bytes=1, **facts)  # type: ignore[arg-type]
    one = Reference(use="rewardModel", job="judge", uid="1", stage="rm", artifact=artifact)
    return tiny.make_run(root, ppo().model_copy(update={"references": [one]}))


def test_another_jobs_artifact_is_what_it_was(root: Path) -> None:
    run = chained(root)
    assert (run.prepared.reward, run.prepared.reward_base) == (root / "models" / "rm", root / "models" / "model")
    for field, message in (
        ("digest", "the artifact of FineTuneJob judge, is no longer what it was"),
        ("base_digest", "which the artifact of FineTuneJob judge goes on, is no longer what that job was trained on"),
    ):
        shutil.rmtree(root / "work")
        with pytest.raises(InvalidData, match=message):
            chained(root, **{field: "sha256:other"})


def test_a_model_is_the_same_whether_or_not_its_code_came_with_it(root: Path) -> None:
    """As from a hub, where jobs that may run it fetch it."""
    (root / "models" / "model" / "modeling_own.py").write_text("")
    with_code = chained(root).prepared
    assert with_code.base_digest != with_code.digests["pvc://models/model"]
    (root / "models" / "model" / "modeling_own.py").unlink()
    shutil.rmtree(root / "work")
    assert chained(root, base_digest=with_code.base_digest).prepared.base_digest == with_code.base_digest


def test_another_jobs_artifact_is_still_that_when_it_is_trained_with(root: Path) -> None:
    run = chained(root)
    places = Places(root / "cache", {"models": root / "models"}, root, "run")
    pins.check_again(run.job, run.prepared.digests, places, lambda: None)
    (root / "models" / "rm" / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidData, match="the artifact of FineTuneJob judge, is no longer what it was"):
        pins.check_again(run.job, run.prepared.digests, places, lambda: None)
