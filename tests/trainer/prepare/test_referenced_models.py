"""Preparation fetches the reference and reward models of a stage, and rejects models that do not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import ResolvedJob
from finetune_api.status import Artifact, Reference
from finetune_trainer.errors import InvalidData, InvalidSpec, TrainerError
from finetune_trainer.fetch import FetchContext, fetch, reference_digests
from finetune_trainer.run import Run
from finetune_trainer.workspace import prepared
from finetune_trainer.workspace.files import digest_folder

from tests.trainer.support import stages, tiny

REWARD = "pvc://models/reward"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and data; models/rm is the artifact of a job of stage rm."""
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
    change(root / "models" / "rm" / "adapter_config.json", base_model_name_or_path="/home/me/other")


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
        (REWARD, other_tokenizer, "ppo.rewardModel: .* 2 tokens differ, such as 'A', 'B'"),
        (REWARD, other_splits, "has the same tokens, but splits text differently"),
        ("pvc://models/rm", no_source, "names the base model '/home/me/other', which is no source"),
        ("pvc://models/rm", speaks, "is an adapter of a language model. Name an adapter of a reward model"),
    ],
)
def test_reward_models_that_do_not_fit_are_rejected(root: Path, source: str, damage: Any, message: str) -> None:
    damage(root)
    with pytest.raises(TrainerError, match=message):
        tiny.make_run(root, ppo(source))


def test_a_reference_model_need_not_have_the_tokens_that_the_job_adds(root: Path) -> None:
    new = {"source": "pvc://models/model", "newTokens": ["<new>"]}
    reference = {"source": "pvc://models/model"}
    run = tiny.make_run(root, stages.job("dpo", "lora", model=new, dpo={"reference": reference}))
    assert run.prepared.reference == root / "models" / "model"


def test_a_reward_model_is_rejected_as_reference(root: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"ppo\.reference: .*ForSequenceClassification, which scores texts"):
        tiny.make_run(root, ppo(reference={"source": REWARD}))


def chained(root: Path, **changes: str) -> Run:
    """A ppo job that names the job of stage rm, as the operator resolves it."""
    folder = root / "models" / "rm"
    places = FetchContext(root / "cache", {"models": root / "models"}, root, "run")
    base = fetch("pvc://models/model", "model", places).digest_without_code
    facts = {"digest": digest_folder(folder)[0], "base_digest": base, "base": "pvc://models/model"} | changes
    artifact = Artifact(uri="pvc://models/rm", kind="adapter", size_bytes=1, **facts)  # type: ignore[arg-type]
    one = Reference(use="rewardModel", job="judge", uid="1", stage="rm", artifact=artifact)
    return tiny.make_run(root, ppo().model_copy(update={"references": [one]}))


def test_the_artifact_of_another_job_must_not_have_changed(root: Path) -> None:
    run = chained(root)
    assert (run.prepared.reward, run.prepared.reward_base) == (root / "models" / "rm", root / "models" / "model")
    for field, message in (
        ("digest", "the artifact of FineTuneJob judge, has changed since this job was accepted"),
        ("base_digest", "the base model of the artifact of FineTuneJob judge, has changed since that job was trained"),
    ):
        shutil.rmtree(root / "work")
        with pytest.raises(InvalidData, match=message):
            chained(root, **{field: "sha256:other"})


def test_the_digest_for_comparison_does_not_depend_on_the_models_code(root: Path) -> None:
    """As on a hub: only jobs that may run the code fetch it."""
    (root / "models" / "model" / "modeling_own.py").write_text("")
    with_code = chained(root).prepared
    assert with_code.base_digest != with_code.digests["pvc://models/model"]
    (root / "models" / "model" / "modeling_own.py").unlink()
    shutil.rmtree(root / "work")
    assert chained(root, base_digest=with_code.base_digest).prepared.base_digest == with_code.base_digest


def test_the_artifact_of_another_job_is_checked_again_before_training(root: Path) -> None:
    run = chained(root)
    places = FetchContext(root / "cache", {"models": root / "models"}, root, "run")
    reference_digests.recheck_mounted(run.job, run.prepared.digests, places, lambda: None)
    (root / "models" / "rm" / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidData, match="the artifact of FineTuneJob judge, has changed since this job was accepted"):
        reference_digests.recheck_mounted(run.job, run.prepared.digests, places, lambda: None)
