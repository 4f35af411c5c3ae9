"""What the trainer does on this machine, as a process of its own: it checks rows, estimates memory, and trains.

The trainer and torch come with the extra `local`.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_cli.problem import Exit, Problem

MISSING = (
    "The trainer is not installed beside the command line, and this needs it. Install it:"
    " pip install ./crds ./trainer_image './cli[local]' (in a checkout of finetune-operator)"
)
HUB = "https://huggingface.co"
CONFIG_SECONDS = 30


def command(*arguments: str) -> list[str]:
    """The command that runs the trainer. Raises Problem if it is not installed."""
    if importlib.util.find_spec("finetune_trainer") is None:
        raise Problem(MISSING)
    return [sys.executable, "-m", "finetune_trainer", *arguments]


def check_rows(file: str, workspace: str | None, volumes: Sequence[str]) -> int:
    """Fetch, check and tokenize the data as the prepare pod does; returns the exit code. The trainer prints what is
    wrong, with file and line."""
    places = [word for volume in volumes for word in ("--volume", volume)]
    with tempfile.TemporaryDirectory() as scratch:
        words = ["prepare", "--job", file, "--workspace", workspace or scratch, *places]
        code = subprocess.run(command(*words)).returncode
        report = next(Path(workspace or scratch).glob("jobs/*/reports/prepare.md"), None)
        if report and not code:
            print(report.read_text(encoding="utf-8"))
    return Exit.FAILED if code else Exit.DONE


def estimate(job: dict[str, Any], model: str | None, gpus: Sequence[int]) -> list[dict[str, Any]]:
    """Memory by tuning method and number of GPUs."""
    from finetune_cli.output import to_yaml

    command()  # says at once if it is missing
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(model) if model else _config(job, Path(scratch))
        file = Path(scratch) / "job.yaml"
        file.write_text(to_yaml(job), encoding="utf-8")
        words = ["estimate", "--job", str(file), "--workspace", scratch, "--model", str(folder)]
        words += [word for number in gpus for word in ("--gpus", str(number))]
        done = subprocess.run(command(*words), capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the trainer ended with {done.returncode}"]
        raise Problem(lines[-1], Exit.FAILED)
    rows: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return rows


def _config(job: dict[str, Any], folder: Path) -> Path:
    """The config.json of a hub model. Weights are not needed."""
    source = str(job["spec"]["model"].get("source") or "")
    if not source.startswith("hf://"):
        raise Problem(
            f"The config of {source or 'the model'} is not here. Name a folder that has it: --model-folder DIR"
        )
    name, _, revision = source.removeprefix("hf://").partition("@")
    url = f"{os.environ.get('HF_ENDPOINT', HUB)}/{name}/resolve/{revision or 'main'}/config.json"
    headers = {"Authorization": f"Bearer {os.environ['HF_TOKEN']}"} if os.environ.get("HF_TOKEN") else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=CONFIG_SECONDS) as answer:
            (folder / "config.json").write_bytes(answer.read())
    except (urllib.error.URLError, OSError) as error:
        text = f"The config of {source} cannot be fetched ({error}). Name a folder that has it: --model-folder DIR"
        raise Problem(text, Exit.UNREACHABLE) from error
    return folder
