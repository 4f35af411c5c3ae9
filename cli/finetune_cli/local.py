"""What the trainer does on this machine, as a process of its own: it checks rows, estimates memory, and trains.

The trainer and torch come with the extra `local`.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_cli.problem import Exit, Problem

MISSING = (
    "The trainer is not installed beside the command line, and this needs it. Install it:"
    " pip install ./crds ./trainer_image './cli[local]' (in a checkout of finetune-operator)"
)


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
        file = Path(scratch) / "job.yaml"
        file.write_text(to_yaml(job), encoding="utf-8")
        words = ["estimate", "--job", str(file), "--workspace", scratch]
        words += ["--model", model] if model else []
        words += [word for number in gpus for word in ("--gpus", str(number))]
        done = subprocess.run(command(*words), capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the trainer ended with {done.returncode}"]
        hint = "" if model else ". A folder that has the model's config.json can be named: --model-folder DIR"
        raise Problem(lines[-1] + hint, Exit.FAILED)
    rows: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return rows
