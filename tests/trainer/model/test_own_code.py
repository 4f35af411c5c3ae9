"""Models with their own code: prepared, trained and used by the real command line, or refused with the reason."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import base, model_files, tokenizer

from tests.hub import Hub
from tests.trainer.support import tiny

CONFIG = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own-of-tests"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A model that transformers can't load without the files beside it."""
    folder = tiny.save_model(tmp_path / "models" / "own")
    (folder / "configuration_own.py").write_text(CONFIG)
    (folder / "modeling_own.py").write_text(MODEL)
    change(folder, model_type="own-of-tests", architectures=["OwnForCausalLM"], auto_map=AUTO_MAP)
    tiny.save_rows(tmp_path / "data" / "rows.jsonl")
    return folder


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def command(tmp_path: Path, name: str, job: dict[str, Any], *more: str, **environment: str) -> tuple[int, str]:
    """Exit code and output."""
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    call = [sys.executable, "-m", "finetune_trainer", name, "--job", str(file)]
    places = ["--workspace", str(tmp_path / "work")]
    for claim in ("models", "data"):
        places += ["--volume", f"{claim}={tmp_path / claim}"]
    temporary = tmp_path / "tmp"
    temporary.mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    # Nothing but the folder for temporary files has to be writable.
    where = {"HF_HOME": "/proc/no-home", "TMPDIR": str(temporary), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*call, *places, *more], env={**inherited, **where, **environment}, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def job(source: str, **tuning: Any) -> dict[str, Any]:
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "own"},
        "spec": {
            "stage": "sft",
            "model": {"source": source, "trustRemoteCode": True},
            "datasets": [{"source": "pvc://data/rows.jsonl", "format": "openai"}],
            "tuning": tuning,
            "training": {"maxSteps": 2, "globalBatchSize": 8, "cutoffLength": 128, "recompute": "none"},
            "workspace": {"claimName": "work"},
        },
    }


def test_from_a_hub_it_is_prepared_then_trained_and_used_offline(tmp_path: Path, own: Path) -> None:
    hub = Hub()
    try:
        commit = hub.add("org/own", {file.name: file.read_bytes() for file in own.iterdir()})
        job_file = job(f"hf://org/own@{commit}", method="lora")
        code, output = command(tmp_path, "prepare", job_file, "--allow-remote-code", HF_ENDPOINT=hub.address)
        assert code == 0, output
        code, output = command(tmp_path, "train", job_file, "--allow-remote-code", HF_HUB_OFFLINE="1")
        assert code == 0, output
        assert (tmp_path / "work" / "jobs" / "own" / "artifact" / "adapter_model.safetensors").is_file()
        environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "tmp" / "modules")}
        more = ("--allow-remote-code", "--prompt", "say alpha 1", "--max-new-tokens", "4")
        code, output = command(tmp_path, "generate", job_file, *more, **environment)
        assert code == 0, output
        code, output = command(tmp_path, "prepare", job_file, HF_ENDPOINT=hub.address)
        assert (code, "trainer.allowRemoteCode" in output) == (64, True), output
    finally:
        hub.close()


@pytest.mark.sweep
def test_from_a_folder_every_weight_is_trained_and_the_artifact_has_the_code(tmp_path: Path, own: Path) -> None:
    job_file = job("pvc://models/own", method="full")
    code, output = command(tmp_path, "train", job_file, "--allow-remote-code", HF_HUB_OFFLINE="1")
    assert code == 0, output
    artifact = tmp_path / "work" / "jobs" / "own" / "artifact"
    assert (artifact / "modeling_own.py").read_text() == MODEL
    assert (artifact / "configuration_own.py").read_text() == CONFIG
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "tmp" / "modules")}
    more = ("--allow-remote-code", "--prompt", "say alpha 1", "--max-new-tokens", "4")
    code, output = command(tmp_path, "generate", job_file, *more, **environment)
    assert code == 0, output


def test_without_permission_none_of_it_runs_and_the_message_names_both_switches(tmp_path: Path, own: Path) -> None:
    (own / "configuration_own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(InvalidSpec, match=r"model\.trustRemoteCode .*trainer\.allowRemoteCode"):
        base.check(own, "hf://org/own")
    settings = json.loads((own / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    (own / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidSpec, match=r"model\.trustRemoteCode .*trainer\.allowRemoteCode"):
        tokenizer.load(own)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("other/repository--code.Own", "names code of another repository"),
        ("code.Own", r"there is no code\.py"),
    ],
)
def test_code_that_is_not_beside_the_model_is_refused(own: Path, named: str, message: str) -> None:
    change(own, auto_map={**AUTO_MAP, "AutoModelForCausalLM": named})
    with pytest.raises(InvalidSpec, match=message):
        model_files.check_remote_code(own, "hf://org/own")
