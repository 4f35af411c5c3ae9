"""``make gpu-check``: what the trainer does on a real GPU, as a table for docs/benchmarks.md.

Runs stage sft with each tuning method, with and without gradient checkpointing and packing, packing in stages sft and
pt with each implementation of attention, each of the other stages with lora, qlora and full, and what meets other code
on GPUs than on CPUs (`MORE`), all in bf16 through the launcher as users do, on SmolLM2-135M and the examples' data.
Says tokens per second without padding, peak GPU memory and how far prepare's estimate is from it, and fails where a run
fails or an estimate is more than 15 % off. It needs a visible CUDA device and asserts no time.

``--cpu`` walks through the same on a CPU with a model made up on the spot: nothing is measured, all of it is run.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from finetune_api.exit_codes import ExitCode
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from examples.demo import volume
from tests.trainer import tiny

STEPS, REWARD, EARLIER = 60, "reward", "earlier"
TOLERATED = 0.15
"""Share of the measured peak by which the estimate may be off."""
ATTENTION = {"sdpa": None, "flashAttention2": "flash_attn"}
"""Implementation -> the package that it needs."""
MORE: dict[str, dict[str, Any]] = {
    "": {},
    # A head in fp32 meets hidden states in bf16.
    "answers": {
        "model": {"newTokens": ["FineTuneJob"]},
        "evaluation": {"splitFraction": 0.1, "generate": {"maxNewTokens": 32, "maxRows": 32}},
    },
    "evaluated": {"evaluation": {"splitFraction": 0.1}},
    "dora": {"tuning": {"lora": {"dora": True}}},
    "pissa": {"tuning": {"lora": {"init": "pissa"}}},
    "continued": {"tuning": {"adapter": {"source": f"pvc://models/{EARLIER}", "mode": "continue"}}},
    "precomputed": {"dpo": {"precomputeReference": True}},
    # States that may leave the GPU are read back; the estimate counts none of them.
    "resumed": {"training": {"optimizer": "paged_adamw_8bit"}, "checkpoints": {"everySteps": 20}},
}
"""What a case sets besides, by name."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    stage: str = "sft"
    method: str = "lora"
    recompute: bool = True
    packing: str = "none"
    attention: str = "auto"
    more: str = ""
    """One of `MORE`."""

    @property
    def name(self) -> str:
        parts = (self.stage, self.method, "recompute" if self.recompute else "keep", self.packing, self.attention[:5])
        return "-".join((self.stage, self.method, self.more) if self.more else parts).lower()


def cases(cpu: bool) -> Iterator[Case]:
    """What is measured; on a CPU without what needs a GPU."""
    for method, recompute, packing in itertools.product(
        ("lora", "qlora", "freeze", "full"), (False, True), ("none", "bfd")
    ):
        yield Case(method=method, recompute=recompute, packing=packing)
    for attention, package in ATTENTION.items():
        if package and (cpu or importlib.util.find_spec(package) is None):
            print(f"left out: {attention}, which needs a GPU and the package {package}", file=sys.stderr)
            continue
        yield Case(packing="bfd", attention=attention)
        yield Case("pt", "full", packing="bfd", attention=attention)
        yield Case("pt", "full", packing="wrapped", attention=attention)

    for stage, method in itertools.product(("rm", "dpo", "kto", "ppo"), ("lora", "qlora", "full")):
        yield Case(stage, method)

    yield Case(more="answers")
    yield Case(more="dora")
    yield Case(method="full", more="resumed")
    yield Case("dpo", more="pissa")
    yield Case("dpo", more="continued")
    yield Case("dpo", "full", more="precomputed")
    yield Case("ppo", more="evaluated")
    yield Case("ppo", "full", more="evaluated")


DATA = {"rm": ("preferences", "preference"), "dpo": ("preferences", "preference"), "kto": ("judged", "kto")}
"""File and format of the stages whose data are not the demo's."""


def job(case: Case, cpu: bool) -> dict[str, Any]:
    """The demo's job, longer in batch and rows than a CPU could bear."""
    made = volume.job()
    made["metadata"]["name"] = f"gpu-{case.name}"
    spec = made["spec"]
    spec["stage"] = case.stage
    spec["tuning"] = {"method": case.method}
    spec["model"]["attention"] = case.attention
    if case.stage == "pt":
        spec["datasets"] = [{"source": "pvc://models/documents.jsonl", "format": "text"}]
        spec.pop("evaluation", None)
        spec.pop("template", None)
    if case.stage in DATA:
        file, format = DATA[case.stage]
        spec["datasets"] = [{"source": f"pvc://models/data/{file}.jsonl", "format": format}]
        spec["evaluation"] = {"splitFraction": 0.1}
    if case.stage == "ppo":
        spec.pop("evaluation", None)
        spec["ppo"] = {"rewardModel": {"source": f"pvc://models/{REWARD}"}, "epochs": 2, "maxNewTokens": 32}
    spec["training"] = {
        "maxSteps": 2 if cpu else STEPS,
        "globalBatchSize": 4 if cpu else 64,
        "microBatchSize": 2 if cpu else 32,
        "cutoffLength": 128 if cpu else 512,
        "packing": case.packing,
        "precision": "fp32" if cpu else "bf16",
        "gradientCheckpointing": case.recompute,
        "logEverySteps": 1 if cpu else 5,
    }
    for section, fields in MORE[case.more].items():
        spec[section] = {**spec.get(section, {}), **fields}
    return made


def models(folder: Path, cpu: bool) -> Path:
    """The volume that the jobs read: the demo's, or on a CPU a made-up model in its place; documents for pt; and a
    reward model and an adapter that have learnt nothing, which cost as much as those that have."""
    if cpu:
        tiny.save_model(folder / volume.MODEL, hidden_size=64, intermediate_size=128, max_position_embeddings=512)
        shutil.copytree(volume.DATA, folder / "data")
    else:
        shutil.copytree(volume.make(), folder, dirs_exist_ok=True)
    reward: Any = AutoModelForSequenceClassification.from_pretrained(folder / volume.MODEL, num_labels=1)
    reward.save_pretrained(folder / REWARD)
    AutoTokenizer.from_pretrained(folder / volume.MODEL).save_pretrained(folder / REWARD)
    base: Any = AutoModelForCausalLM.from_pretrained(folder / volume.MODEL)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
    get_peft_model(base, adapter).save_pretrained(str(folder / EARLIER))
    return tiny.save_documents(folder / "documents.jsonl", 4000).parent


def measure(
    folder: Path, volumes: Path, made: dict[str, Any], *, resumed: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, ``resumed`` in two attempts; (the last one's metrics and the wall time of all of it, the estimate)."""
    name = made["metadata"]["name"]
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(made))
    command = [sys.executable, "-m", "finetune_trainer", "train", "--job", str(file)]
    command += ["--workspace", str(folder / "workspace"), "--volume", f"models={volumes}"]
    home = folder / "workspace" / "jobs" / name
    began = time.monotonic()
    if resumed:
        stop_at_a_checkpoint(command, home / "checkpoints")
    subprocess.run(command, check=True)
    wall = time.monotonic() - began
    reports = home / "reports"
    results, prepared = (json.loads((reports / f).read_text()) for f in ("train_results.json", "prepare.json"))
    return {**results, "wall": wall}, prepared["memory"]


def stop_at_a_checkpoint(command: list[str], checkpoints: Path) -> None:
    """Train until a first checkpoint is there, and stop as a pod is told to."""
    with subprocess.Popen(command) as trainer:
        while trainer.poll() is None and not any(checkpoints.glob("*/checkpoint-*")):
            time.sleep(0.1)
        trainer.send_signal(signal.SIGTERM)
    if trainer.returncode not in (0, ExitCode.DISRUPTED):  # 0: all of so short a run was over by then
        raise subprocess.CalledProcessError(trainer.returncode, command)


def off(estimate: dict[str, Any], peak_gib: float) -> float:
    """By which share of the measured peak the estimate is off; above 0: it is too high."""
    return float(estimate["total"] / (peak_gib * 2**30) - 1)


def row(case: Case, got: dict[str, Any], estimate: dict[str, Any]) -> str:
    """Of the table."""
    peak = got.get("peak_gpu_memory_gib")
    measured = f"{peak:.2f} GiB | {off(estimate, peak):+.0%}" if peak else "- | -"
    return (
        f"| {case.stage} | {case.method} | {'on' if case.recompute else 'off'} | {case.packing} | {case.attention}"
        f" | {case.more or '-'} | {got['train_tokens_per_second']:.0f} | {measured} | {got['final_loss']:.3f}"
        f" | {got['wall']:.0f} s |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="walk through it without a GPU")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose names have this in them")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        print("no CUDA device is visible: run this on a machine with a GPU, or with --cpu", file=sys.stderr)
        return 1
    device = "CPU, nothing is measured" if args.cpu else f"{torch.cuda.get_device_name()}, {STEPS} steps, bf16"
    print(f"{device}, torch {torch.__version__}\n")
    print(
        "| stage | method | gradient checkpointing | packing | attention | besides | tokens/s | peak GPU memory"
        " | estimate | final loss | whole run |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volumes = models(folder / "models", args.cpu)
        for case in cases(args.cpu):
            if args.only not in case.name:
                continue
            got, estimate = measure(folder, volumes, job(case, args.cpu), resumed=case.more == "resumed")
            print(row(case, got, estimate), flush=True)
            peak = got.get("peak_gpu_memory_gib")
            if peak and abs(off(estimate, peak)) > TOLERATED:
                wrong.append(case.name)
    if wrong:
        print(f"\nestimates more than {TOLERATED:.0%} off: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
