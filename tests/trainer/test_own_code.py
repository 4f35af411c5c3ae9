"""Models that bring their own code: prepared, trained and asked by the real command line, and refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model import base, folder, tokenizer

from tests.hub import Hub
from tests.trainer import tiny

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
    made = tiny.save_model(tmp_path / "models" / "own")
    (made / "configuration_own.py").write_text(CONFIG)
    (made / "modeling_own.py").write_text(MODEL)
    change(made, model_type="own-of-tests", architectures=["OwnForCausalLM"], auto_map=AUTO_MAP)
    tiny.save_rows(tmp_path / "data" / "rows.jsonl")
    return made


def change(made: Path, **settings: Any) -> None:
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, **settings}))


def command(tmp_path: Path, name: str, job: dict[str, Any], *more: str, **environment: str) -> tuple[int, str]:
    """Exit code, and all that was said."""
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
            "training": {"maxSteps": 2, "globalBatchSize": 8, "cutoffLength": 128, "gradientCheckpointing": False},
            "workspace": {"claimName": "work"},
        },
    }


def test_from_a_hub_it_is_prepared_then_trained_and_asked_offline(tmp_path: Path, own: Path) -> None:
    hub = Hub()
    try:
        commit = hub.add("org/own", {file.name: file.read_bytes() for file in own.iterdir()})
        asked = job(f"hf://org/own@{commit}", method="lora")
        code, said = command(tmp_path, "prepare", asked, "--allow-remote-code", HF_ENDPOINT=hub.address)
        assert code == 0, said
        code, said = command(tmp_path, "train", asked, "--allow-remote-code", HF_HUB_OFFLINE="1")
        assert code == 0, said
        assert (tmp_path / "work" / "jobs" / "own" / "artifact" / "adapter_model.safetensors").is_file()
        there = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "tmp" / "modules")}
        more = ("--allow-remote-code", "--prompt", "say alpha 1", "--max-new-tokens", "4")
        code, said = command(tmp_path, "generate", asked, *more, **there)
        assert code == 0, said
        code, said = command(tmp_path, "prepare", asked, HF_ENDPOINT=hub.address)
        assert (code, "trainer.allowRemoteCode" in said) == (64, True), said
    finally:
        hub.close()


def test_from_a_folder_every_weight_is_trained_and_the_artifact_has_the_code(tmp_path: Path, own: Path) -> None:
    asked = job("pvc://models/own", method="full")
    code, said = command(tmp_path, "train", asked, "--allow-remote-code", HF_HUB_OFFLINE="1")
    assert code == 0, said
    artifact = tmp_path / "work" / "jobs" / "own" / "artifact"
    assert (artifact / "modeling_own.py").read_text() == MODEL
    assert (artifact / "configuration_own.py").read_text() == CONFIG
    there = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "tmp" / "modules")}
    more = ("--allow-remote-code", "--prompt", "say alpha 1", "--max-new-tokens", "4")
    code, said = command(tmp_path, "generate", asked, *more, **there)
    assert code == 0, said


def test_without_leave_nothing_of_it_runs_and_who_can_give_it_is_said(tmp_path: Path, own: Path) -> None:
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
        folder.check_code(own, "hf://org/own")
