"""The trainer on a laptop: FineTuneJobs in YAML, no cluster, a real (tiny) model."""

import io
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
from finetune_trainer.runtime.signals import Stop

from tests import readme
from tests.trainer.support import tiny
from tests.trainer.support.attempt import Rank
from tests.trainer.support.forge import Forge


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


def test_train_twice_and_generate(root: Path) -> None:
    manifest = job("tiny", source="pvc://models/model")
    # A laptop uses the GPUs that it has.
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
        generated = trainer(root, "generate", "--prompt", "hello", "--checkpoint", checkpoint, "--max-new-tokens", "3")
        assert generated.returncode == 0, generated.stderr
        assert not generated.stderr
    exported = trainer(root, "export", "--out", str(root / "whole"))
    assert exported.returncode == 0, exported.stderr
    assert not exported.stderr

    manifest["spec"]["datasets"][0]["source"] = "pvc://data/missing.jsonl"
    manifest["metadata"] = {"name": "other"}
    (root / "job.yaml").write_text(yaml.safe_dump(manifest))
    missing = trainer(root, "train")
    assert missing.returncode == 66
    assert "pvc://data/ has: rows.jsonl" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_the_sample_of_the_readme_is_what_prepare_prints(root: Path) -> None:
    """The command is that of the README, but for the folders."""
    [shown] = readme.sample(readme.PREPARE)
    data = root / "data"
    tiny.save_rows(data / "rows.jsonl", 48)
    rows = (data / "rows.jsonl").read_text().splitlines()
    rows[6] = json.dumps({"messages": [{"role": "user", "content": "no answer follows"}]})
    (data / "broken.jsonl").write_text("\n".join(rows))
    manifest = job("broken-row", source="pvc://models/model")
    manifest["spec"]["datasets"][0]["source"] = "pvc://data/broken.jsonl"
    (root / "job.yaml").write_text(yaml.safe_dump(manifest))
    done = trainer(root, "prepare")
    assert done.returncode == 65
    assert readme.shows(shown, done.stderr.splitlines()[-1])


def command(arguments: list[str]) -> int:
    """Runs in a child of the fork server: the command line, whose ranks are forked, too."""
    mock.patch.object(subprocess, "Popen", partial(Rank, [])).start()
    return cli.main(arguments, Stop())


def asked(arguments: list[str], lines: str) -> int:
    """The same with a standard input."""
    mock.patch.object(sys, "stdin", io.StringIO(lines)).start()
    return command(arguments)


def test_a_job_starts_from_the_artifact_of_another(forge: Forge, root: Path) -> None:
    """A chain without a cluster, each job on its own claim; and a job of it that was copied elsewhere alone."""
    early, late = job("early", source="pvc://models/model"), job("late", fromJob="early")

    def run(name: str, manifest: dict[str, Any], *more: str, workspace: str = "ws") -> tuple[int, str]:
        file, log = root / "chain.yaml", root / "log"
        file.write_text(yaml.safe_dump(manifest))
        log.unlink(missing_ok=True)
        volumes = ["--volume", f"models={root / 'models'}", "--volume", f"data={root / 'data'}"]
        places = ["--job", str(file), "--workspace", str(root / workspace), *volumes]
        code = forge.start(command, [name, *places, *more], log=log, CUDA_VISIBLE_DEVICES="").wait()
        return code, log.read_text()

    prompt = ("--prompt", "say alpha 1", "--max-new-tokens", "8")
    code, output = run("train", late)
    assert code == 66
    assert "spec.model.fromJob: job early has no artifact in" in output
    assert "jobs/early lacks RESULT.json. Train early first" in output
    for manifest in (early, late):
        code, output = run("train", manifest)
        assert code == 0, output
    jobs = root / "ws" / "jobs"
    artifact = json.loads((jobs / "early" / "RESULT.json").read_text())["result"]["artifact"]
    references = json.loads((jobs / "late" / "artifact" / "provenance.json").read_text())["references"]
    assert [(entry["job"], entry["stage"], entry["artifact"]) for entry in references] == [("early", "sft", artifact)]
    code, output = run("generate", late, *prompt)
    assert code == 0, output
    answer = output.splitlines()[-1]

    # As `finetune ask` does: the artifact says of which job it is, and prompts come one after the other.
    places = ["--job", str(jobs / "late" / "artifact" / "provenance.json"), "--workspace", str(root / "ws")]
    words = ["generate", *places, "--volume", f"models={root / 'models'}", "--prompts", "-", "--max-new-tokens", "8"]
    log = root / "answers"
    assert forge.start(asked, words, '"say alpha 1"\n' * 2, log=log, CUDA_VISIBLE_DEVICES="").wait() == 0, (
        log.read_text()
    )
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [line["answer"] for line in lines if "answer" in line] == [answer] * 2
    first = lines[: next(at for at, line in enumerate(lines) if "answer" in line)]
    assert "".join(line["text"] for line in first).strip() == answer

    shutil.copytree(jobs / "late", root / "alone" / "jobs" / "late")
    code, output = run("generate", late, *prompt, workspace="alone")
    assert (code, output.splitlines()[-1]) == (0, answer)
    code, output = run("export", late, "--out", str(root / "whole"), workspace="alone")
    assert code == 0, output
    assert (root / "whole" / "model.safetensors").is_file()
    code, output = run("train", late, workspace="alone")
    assert (code, "done already" in output) == (0, True), output
