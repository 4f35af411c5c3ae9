"""The trainer as a user of a laptop meets it: one FineTuneJob in YAML, no cluster, a real (tiny) model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml


def trainer(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    volumes = ["--volume", f"models={root / 'models'}", "--volume", f"data={root / 'data'}"]
    places = ["--job", str(root / "job.yaml"), "--workspace", str(root / "ws"), *volumes]
    command = [sys.executable, "-m", "finetune_trainer", arguments[0], *places, *arguments[1:]]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_train_train_again_and_ask(root: Path) -> None:
    manifest = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tiny"},
        "spec": {
            "stage": "sft",
            "model": {"source": "pvc://models/model"},
            "datasets": [{"source": "pvc://data/rows.jsonl", "format": "openai"}],
            "training": {"maxSteps": 2, "globalBatchSize": 4, "cutoffLength": 128},
            "workspace": {"claimName": "work"},
            # A laptop uses what it has.
            "resources": {"gpusPerNode": 4},
        },
    }
    (root / "job.yaml").write_text(yaml.safe_dump(manifest))
    home = root / "ws" / "jobs" / "tiny"

    trained = trainer(root, "train")
    assert trained.returncode == 0, trained.stderr
    assert json.loads((home / "reports" / "status.json").read_text())["status"]["progress"]["step"] == 2
    result = (home / "RESULT.json").read_text()

    again = trainer(root, "train")
    assert again.returncode == 0, again.stderr
    assert "done already" in again.stderr
    assert (home / "RESULT.json").read_text() == result

    for checkpoint in ("base", "artifact"):
        asked = trainer(root, "generate", "--prompt", "hello", "--checkpoint", checkpoint, "--max-new-tokens", "3")
        assert asked.returncode == 0, asked.stderr

    manifest["spec"]["datasets"][0]["source"] = "pvc://data/missing.jsonl"  # type: ignore[index]
    manifest["metadata"] = {"name": "other"}
    (root / "job.yaml").write_text(yaml.safe_dump(manifest))
    missing = trainer(root, "train")
    assert missing.returncode == 66
    assert "pvc://data/ has: rows.jsonl" in missing.stderr
    assert "Traceback" not in missing.stderr
