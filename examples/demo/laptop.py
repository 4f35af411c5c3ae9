"""The demo without Kubernetes: the trainer alone runs the same FineTuneJob. It needs no root, only Python.

A cluster has the progress in the job's status. Here it comes from the trainer's log.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from examples.demo import ending, volume
from examples.demo.kubectl import DemoError
from examples.demo.view import View

HOME = volume.RESULTS / "laptop"


def run() -> None:
    """Unpack the model, train it and show the answers. Raises DemoError if the job fails."""
    name = volume.job()["metadata"]["name"]
    print(f"The model and the data: {os.path.relpath(volume.LOCAL)}", flush=True)
    models = volume.make()
    workspace = HOME / "workspace"
    # A finished job would return its old result at once.
    shutil.rmtree(workspace / "jobs" / name, ignore_errors=True)
    common = ["--job", str(volume.JOB_FILE), "--workspace", str(workspace), "--volume", f"models={models}"]

    log = HOME / "trainer.log"
    print(f"Training: python -m finetune_trainer train --job {os.path.relpath(volume.JOB_FILE)} ...", flush=True)
    print(f"Its log: {os.path.relpath(log)}\n", flush=True)
    reports = workspace / "jobs" / name / "reports"
    train(common, name, log, reports / ending.LOG)

    before, after = (ask(common, model) for model in ("base", "artifact"))
    ending.show(reports, before, after)
    print(f"\n  The adapter: {os.path.relpath(workspace / 'jobs' / name / 'artifact')}")


def train(common: list[str], name: str, log: Path, lines: Path) -> None:
    """Run the trainer and show its progress."""
    view = View(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        trainer = subprocess.Popen(trainer_command("train", common), stdout=out, stderr=subprocess.STDOUT)
    try:
        while trainer.poll() is None:
            view.show({"phase": "Running", "progress": progress(lines)})
            time.sleep(1)
    except KeyboardInterrupt:
        # The terminal sends the signal to the trainer too. It saves and ends.
        trainer.wait()
        raise
    except SystemExit:
        # Nobody else tells the trainer. It saves and ends.
        trainer.terminate()
        trainer.wait()
        raise
    if trainer.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise DemoError(f"the trainer ended with exit code {trainer.returncode}; the end of its log:\n{tail}")
    view.show({"phase": "Succeeded", "progress": progress(lines)}, final=True)


def progress(lines: Path) -> dict[str, Any] | None:
    """The newest line of the trainer's log, with the keys of status.progress."""
    try:
        newest = json.loads(lines.read_text().splitlines()[-1])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    step, total = newest["current_steps"], newest["total_steps"]
    percent = 100 * step // total
    return {
        "percent": percent,
        "summary": f"{step}/{total} ({percent}%)",
        "loss": newest["loss"],
        "eta": newest["remaining_time"],
    }


def ask(common: list[str], model: str) -> str:
    """The answer of a model: `base` or `artifact`."""
    command = trainer_command("generate", [*common, "--checkpoint", model, "--prompt", volume.QUESTION])
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoError(f"asking the {model} model failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def trainer_command(command: str, arguments: list[str]) -> list[str]:
    """The command line of the trainer in this environment."""
    return [sys.executable, "-m", "finetune_trainer", command, *arguments]
