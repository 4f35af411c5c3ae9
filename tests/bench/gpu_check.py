"""``make gpu-check``: what the trainer does on a real GPU, as a table for docs/benchmarks.md.

Runs each tuning method in bf16, with gradient checkpointing and packing off and on, through the launcher as users do,
on SmolLM2-135M and the demo's data. Says tokens per second without padding, peak GPU memory and time to the first step,
and fails where a run does. It needs a visible CUDA device and asserts no time.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from examples.demo import volume

STEPS = 60
METHODS = ("lora", "qlora", "freeze", "full")
CHECKPOINTING = (False, True)
PACKING = ("none", "bfd")


def job(method: str, recompute: bool, packing: str) -> dict[str, Any]:
    """The demo's job, longer in batch and rows than a CPU could bear."""
    made = volume.job()
    made["metadata"]["name"] = f"gpu-{method}-{'recompute' if recompute else 'keep'}-{packing}"
    made["spec"]["tuning"] = {"method": method}
    made["spec"]["training"] = {
        "maxSteps": STEPS,
        "globalBatchSize": 64,
        "microBatchSize": 32,
        "cutoffLength": 512,
        "packing": packing,
        "precision": "bf16",
        "gradientCheckpointing": recompute,
        "logEverySteps": 5,
    }
    return made


def measure(folder: Path, models: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Train; the run's metrics and the wall time of all of it."""
    file = folder / f"{made['metadata']['name']}.yaml"
    file.write_text(yaml.safe_dump(made))
    command = [sys.executable, "-m", "finetune_trainer", "train", "--job", str(file)]
    command += ["--workspace", str(folder / "workspace"), "--volume", f"models={models}"]
    began = time.monotonic()
    subprocess.run(command, check=True)
    results = folder / "workspace" / "jobs" / made["metadata"]["name"] / "reports" / "train_results.json"
    return {**json.loads(results.read_text()), "wall": time.monotonic() - began}


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device is visible: run this on a machine with a GPU", file=sys.stderr)
        return 1
    models = volume.make()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {STEPS} steps, bf16\n")
    print("| method | gradient checkpointing | packing | tokens/s | peak GPU memory | final loss | whole run |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for method, recompute, packing in itertools.product(METHODS, CHECKPOINTING, PACKING):
            got = measure(Path(folder), models, job(method, recompute, packing))
            print(
                f"| {method} | {'on' if recompute else 'off'} | {packing} | {got['train_tokens_per_second']:.0f}"
                f" | {got['peak_gpu_memory_gib']:.2f} GiB | {got['final_loss']:.3f} | {got['wall']:.0f} s |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
