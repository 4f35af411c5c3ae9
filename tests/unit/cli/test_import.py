"""`finetune import`: LLaMA-Factory's own examples by value, command lines, and TrainJobs of Kubeflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_cli import manifest
from finetune_cli.importing import command, command_line, data_sets, kubeflow, llamafactory, table
from finetune_cli.importing.notes import Fate, Imported
from finetune_cli.problem import Problem

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
EXAMPLES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "llamafactory-examples.json").read_text())["files"]
DEFAULTS: dict[str, Any] = json.loads((GOLDEN / "llamafactory-0.9.6.json").read_text())
BY_VALUE = {
    "stage": "stage",
    "learning_rate": "training.learningRate",
    "num_train_epochs": "training.epochs",
    "max_steps": "training.maxSteps",
    "per_device_train_batch_size": "training.microBatchSize",
    "lr_scheduler_type": "training.scheduler",
    "warmup_ratio": "training.warmupRatio",
    "cutoff_len": "training.cutoffLength",
    "logging_steps": "training.logEverySteps",
    "save_steps": "checkpoints.everySteps",
    "max_samples": "datasets.0.maxSamples",
    "lora_rank": "tuning.lora.rank",
    "loraplus_lr_ratio": "tuning.lora.loraPlusRatio",
    "freeze_trainable_layers": "tuning.freeze.layers",
    "quantization_bit": "tuning.quantization.bits",
    "optim": "training.optimizer",
    "seed": "training.seed",
}
"""Argument -> the field that has the same value."""
NO_LORA = ("finetuning_type: oft",)


def at(spec: dict[str, Any], path: str) -> Any:
    here: Any = spec
    for part in path.split("."):
        here = here[int(part)] if part.isdecimal() else here.get(part)
    return here


def fates(imported: Imported) -> dict[str, Fate]:
    return {note.setting.partition(":")[0]: note.fate for note in imported.notes}


@pytest.mark.parametrize("file", EXAMPLES)
def test_an_example_keeps_every_value_or_names_it(file: str) -> None:
    given = EXAMPLES[file]
    imported = llamafactory.convert(given)
    spec = imported.job["spec"]
    assert manifest.mistakes(imported.job) == []
    named = fates(imported)
    for argument, field in BY_VALUE.items():
        if argument in given and argument not in named:
            value = given[argument] if isinstance(at(spec, field), str) else float(given[argument])
            assert at(spec, field) == value, argument
    batch = given.get("per_device_train_batch_size", 8) * given.get("gradient_accumulation_steps", 1)
    assert spec["training"]["globalBatchSize"] == batch * given.get("ray_num_workers", 1)
    assert all(note.why for note in imported.notes)


def test_the_example_of_the_page_is_what_an_import_makes() -> None:
    """docs/llamafactory.md shows the job without what has its default, and with a workspace and a name of its own."""
    shown = yaml.safe_load(Path("docs/llamafactory.md").read_text().split("```yaml\n", 1)[1].split("```", 1)[0])
    made = llamafactory.convert(EXAMPLES["train_lora/qwen3_lora_dpo.yaml"]).job["spec"]
    made["datasets"][0]["columns"] = {"messages": "conversations"}
    made["training"].pop("optimizer")
    made.pop("prepare")
    assert made == shown["spec"]


def test_what_an_example_loses_is_named_with_the_reason() -> None:
    imported = llamafactory.convert(EXAMPLES["extras/galore/llama3_full_sft.yaml"])
    lost = [note for note in imported.notes if note.fate is Fate.LEFT_OUT]
    assert {note.setting.partition(":")[0] for note in lost} == {
        *("trust_remote_code", "use_galore", "galore_layerwise", "galore_target", "galore_rank", "galore_scale")
    }
    assert all("qlora" in note.why for note in lost if "galore" in note.setting)


def test_every_argument_with_its_default_is_kept_or_named() -> None:
    everything = {**DEFAULTS, "model_name_or_path": "a/b", "dataset": "alpaca_en_demo", "stage": "sft"}
    imported = llamafactory.convert(everything)
    assert manifest.mistakes(imported.job) == []
    assert not [note for note in imported.notes if "no such argument" in note.why]


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        (
            {"template": "qwen3", "enable_thinking": False},
            "template",
            {"name": "qwen3-nothink", "history": "asRendered"},
        ),
        ({"template": "qwen3_nothink"}, "template", None),
        ({"quantization_bit": 4, "use_dora": True}, "tuning.method", "qlora"),
        ({"lora_target": "q_proj,v_proj"}, "tuning.lora.targets", ["q_proj", "v_proj"]),
        ({"deepspeed": "ds_z3_config.json"}, "training.parallelism", "fsdp"),
        ({"deepspeed": "ds_z0_config.json"}, "training.parallelism", None),
        ({"neat_packing": True}, "training.packing", "bfd"),
        ({"val_size": 0.1, "eval_strategy": "steps", "eval_steps": 50}, "evaluation.everySteps", 50),
        ({"warmup_steps": 10, "max_steps": 100}, "training.warmupRatio", 0.1),
        ({"pure_bf16": True}, "training.precision", "pureBf16"),
        ({}, "training.precision", "fp32"),
        ({}, "training.scheduler", "linear"),
        ({"model_revision": "0" * 40, "trust_remote_code": True}, "model.trustRemoteCode", True),
        ({"push_to_hub": True, "hub_model_id": "me/it"}, "output.uri", "hf://me/it"),
        ({"adapter_name_or_path": "saves/a"}, "tuning.adapter", {"source": "pvc://models/saves/a", "mode": "continue"}),
        ({"dataset_dir": "REMOTE:a/b"}, "datasets.0.source", "hf://a/b/identity.json"),
    ],
)
def test_a_setting_becomes_a_field(settings: dict[str, Any], field: str, value: Any) -> None:
    imported = llamafactory.convert({"model_name_or_path": "a/b", "dataset": "identity", **settings})
    assert at(imported.job["spec"], field) == value
    assert manifest.mistakes(imported.job) == []


def test_ppo_gets_its_reward_model() -> None:
    given = {"model_name_or_path": "a/b", "dataset": "identity", "stage": "ppo", "reward_model": "saves/rm"}
    spec = llamafactory.convert(given).job["spec"]
    assert spec["ppo"]["rewardModel"] == {"source": "pvc://models/saves/rm"}
    assert (spec["ppo"]["topK"], spec["ppo"]["topP"], spec["ppo"]["temperature"]) == (50, 0.7, 0.95)


def test_data_sets_are_read_from_a_users_file() -> None:
    info = {
        "mine": {"hf_hub_url": "me/rows", "folder": "v1", "ranking": True, "columns": {"prompt": "q", "response": "r"}},
        "pictures": {"file_name": "p.json", "columns": {"images": "i"}},
        "code": {"script_url": "run.py"},
    }
    out = Imported({})
    found = [data_sets.convert(out, name, "dpo", info, "data", "data") for name in (*info, "other")]
    assert found[0] == {"source": "hf://me/rows/v1", "format": "preference", "columns": {"prompt": "q"}}
    assert found[1:3] == [None, None]
    assert found[3] == {"source": "pvc://data/other.json", "format": "preference"}
    assert "guessed" in out.notes[-1].why


@pytest.mark.parametrize(
    ("entry", "stage", "unnamed"),
    [
        ({"file_name": "a.json"}, "sft", "system and history and tools"),
        ({"file_name": "a.json", "columns": {"system": "s", "history": "h"}}, "sft", "tools"),
        ({"file_name": "a.json", "formatting": "sharegpt", "columns": {"system": "s"}}, "sft", "tools"),
        ({"file_name": "a.json", "columns": {"system": "s", "history": "h", "tools": "t"}}, "sft", ""),
        ({"file_name": "a.json", "columns": {"prompt": "text"}}, "pt", ""),
    ],
)
def test_columns_that_are_read_here_without_being_named_are_named(
    entry: dict[str, Any], stage: str, unnamed: str
) -> None:
    """Rows that have them mean another training here."""
    out = Imported({})
    data_sets.convert(out, "mine", stage, {"mine": entry}, "data", "data")
    notes = [note.why for note in out.notes if note.setting == "columns of data set mine"]
    assert [f"LLaMA-Factory reads {unnamed} of a row only where columns names them." in why for why in notes] == (
        [True] if unnamed else []
    )


SCRIPT = """#!/bin/bash
MODEL=Qwen/Qwen3-4B  # the model
export NNODES=2
NPROC_PER_NODE=4 torchrun --master_port 1 \\
    src/train.py --model_name_or_path ${MODEL} --stage sft --do_train \\
    --dataset identity --learning_rate 1e-4 --bf16 --save_only_model false
"""


def test_a_script_gives_settings_and_gpus() -> None:
    line = command_line.parse(SCRIPT)
    assert line.settings == {
        "model_name_or_path": "Qwen/Qwen3-4B",
        "stage": "sft",
        "do_train": True,
        "dataset": "identity",
        "learning_rate": 1e-4,
        "bf16": True,
        "save_only_model": False,
    }
    assert (line.gpus, line.nodes) == (4, 2)


def test_a_command_line_overrides_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"model_name_or_path": "a/b", "dataset": "identity", "learning_rate": 1e-3}))
    words = ["llamafactory-cli", "train", str(file), "learning_rate=2e-5", "--seed", "7"]
    spec = command.imported(words, None, None, 2, None).job["spec"]
    assert (spec["training"]["learningRate"], spec["training"]["seed"]) == (2e-5, 7)
    assert spec["training"]["globalBatchSize"] == 16


def test_other_commands_are_refused() -> None:
    with pytest.raises(Problem, match="No training of LLaMA-Factory"):
        command_line.parse("python train_gpt.py --lr 1")


TRAIN_JOB = """
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainJob
metadata: {name: qwen}
spec:
  runtimeRef: {name: torchtune-qwen2.5-1.5b}
  initializer:
    model: {storageUri: "hf://Qwen/Qwen2.5-1.5B-Instruct", secretRef: {name: hub}}
    dataset: {storageUri: "hf://tatsu-lab/alpaca/data"}
  trainer:
    numNodes: 2
    resourcesPerNode: {limits: {nvidia.com/gpu: 2, memory: 64Gi}}
    env: [{name: A, value: b}]
    args: [dtype=bf16, batch_size=2, epochs=3, model.lora_rank=16, optimizer.lr=2e-5, clip=1]
"""


def test_a_train_job_of_kubeflow_becomes_a_job() -> None:
    imported = kubeflow.convert(yaml.safe_load(TRAIN_JOB))
    spec = imported.job["spec"]
    assert manifest.mistakes(imported.job) == []
    assert spec["model"] == {"source": "hf://Qwen/Qwen2.5-1.5B-Instruct"}
    assert spec["datasets"][0]["source"] == "hf://tatsu-lab/alpaca/data"
    assert spec["tuning"] == {"method": "lora", "lora": {"rank": 16}}
    assert spec["training"] == {
        "precision": "bf16",
        "microBatchSize": 2,
        "epochs": 3.0,
        "learningRate": 2e-5,
        "globalBatchSize": 8,
    }
    assert spec["resources"]["nodes"] == 2
    assert spec["secrets"] == {"huggingFace": "hub"}
    assert fates(imported)["clip=1"] is Fate.LEFT_OUT


def test_a_train_job_with_a_program_of_its_own_says_what_is_lost() -> None:
    imported = kubeflow.convert({"kind": "TrainJob", "spec": {"trainer": {"command": ["python", "mine.py"]}}})
    assert fates(imported)["trainer.command"] is Fate.LEFT_OUT
    assert manifest.mistakes(imported.job) == []


def test_the_page_is_made_of_the_data() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "finetune_cli.importing.table", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_names_without_loss_are_arguments_of_the_tables() -> None:
    assert [name for name in table.sections()["nothing lost"] if table.row(name) is None] == []


@pytest.mark.parametrize("file", sorted(Path("examples").rglob("*.yaml")), ids=str)
def test_our_own_examples_come_back_as_they_are(file: Path) -> None:
    """What `finetune run -f FILE --dry-run` prints is what the file says."""
    from finetune_cli.output import to_yaml

    for document in yaml.safe_load_all(file.read_text()):
        if document.get("kind") == manifest.KIND:
            manifest.check(document, str(file))
            assert yaml.safe_load(to_yaml(document)) == document
