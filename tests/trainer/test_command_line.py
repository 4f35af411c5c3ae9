"""The trainer as a user of a laptop meets it: FineTuneJobs in YAML, no cluster, a real (tiny) model."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from finetune_trainer import __main__ as cli
from finetune_trainer.stopping import Stop

from tests.trainer.attempt import Rank
from tests.trainer.forge import Forge


def trainer(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    volumes = ["--volume", f"models={root / 'models'}", "--volume", f"data={root / 'data'}"]
    places = ["--job", str(root / "job.yaml"), "--workspace", str(root / "ws"), *volumes]
    command = [sys.executable, "-m", "finetune_trainer", arguments[0], *places, *arguments[1:]]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def job(name: str, **model: str) -> dict[str, Any]:
    return {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "stage": "sft",
            "model": model,
            "datasets": [{"source": "pvc://data/rows.jsonl", "format": "openai"}],
            "training": {"maxSteps": 2, "globalBatchSize": 4, "cutoffLength": 128},
            "workspace": {"claimName": f"{name}-claim"},
        },
    }


def test_train_train_again_and_ask(root: Path) -> None:
    manifest = job("tiny", source="pvc://models/model")
    # A laptop uses what it has.
    manifest["spec"]["resources"] = {"gpusPerNode": 4}
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

    manifest["spec"]["datasets"][0]["source"] = "pvc://data/missing.jsonl"
    manifest["metadata"] = {"name": "other"}
    (root / "job.yaml").write_text(yaml.safe_dump(manifest))
    missing = trainer(root, "train")
    assert missing.returncode == 66
    assert "pvc://data/ has: rows.jsonl" in missing.stderr
    assert "Traceback" not in missing.stderr


def command(arguments: list[str]) -> int:
    """In a child of the forge: the command line, whose ranks are forked, too."""
    mock.patch.object(subprocess, "Popen", partial(Rank, [])).start()
    return cli.main(arguments, Stop())


def test_a_job_starts_from_what_another_one_made_here(forge: Forge, root: Path) -> None:
    """A chain without a cluster, each job on a claim of its own; and one that was copied elsewhere alone."""
    early, late = job("early", source="pvc://models/model"), job("late", fromJob="early")

    def run(what: str, manifest: dict[str, Any], *more: str, workspace: str = "ws") -> tuple[int, str]:
        file, log = root / "chain.yaml", root / "log"
        file.write_text(yaml.safe_dump(manifest))
        log.unlink(missing_ok=True)
        volumes = ["--volume", f"models={root / 'models'}", "--volume", f"data={root / 'data'}"]
        places = ["--job", str(file), "--workspace", str(root / workspace), *volumes]
        code = forge.start(command, [what, *places, *more], log=log, CUDA_VISIBLE_DEVICES="").wait()
        return code, log.read_text()

    ask = ("--prompt", "say alpha 1", "--max-new-tokens", "8")
    code, said = run("train", late)
    assert code == 66
    assert "spec.model.fromJob: nothing that early has made is in" in said
    assert "jobs/early lacks RESULT.json. Train early first" in said
    for manifest in (early, late):
        code, said = run("train", manifest)
        assert code == 0, said
    jobs = root / "ws" / "jobs"
    made = json.loads((jobs / "early" / "RESULT.json").read_text())["result"]["artifact"]
    known = json.loads((jobs / "late" / "artifact" / "provenance.json").read_text())["references"]
    assert [(one["job"], one["stage"], one["artifact"]) for one in known] == [("early", "sft", made)]
    code, said = run("generate", late, *ask)
    assert code == 0, said
    answer = said.splitlines()[-1]

    shutil.copytree(jobs / "late", root / "alone" / "jobs" / "late")
    code, said = run("generate", late, *ask, workspace="alone")
    assert (code, said.splitlines()[-1]) == (0, answer)
    code, said = run("export", late, "--out", str(root / "whole"), workspace="alone")
    assert code == 0, said
    assert (root / "whole" / "model.safetensors").is_file()
    code, said = run("train", late, workspace="alone")
    assert (code, "done already" in said) == (0, True), said
