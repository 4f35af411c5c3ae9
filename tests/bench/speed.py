"""How fast and how lean training is, beside plain TRL, and where it is installed LLaMA-Factory, in the same run.

``python -m tests.bench.speed [--rounds N] [--steps N] [--kinds sft packed dpo rm kto] [--model DIR] [--peer PYTHON]
[--without PEER] [--results FILE]``
prints the table of docs/benchmarks.md. Each measurement is a process of its own on the same rows: ours is the command
line that a pod runs, TRL's a short script on the raw rows, as people write it, LLaMA-Factory's its command line. They
take turns, so that a machine on which others work slows all of them; ratios are medians of the rounds. LoRA of rank 8
on every linear layer, fp32, micro-batches of 4, no recomputation.

Of sft it also says which share of the machine's peak ours reaches: 4 FLOPs a token for each weight of the backbone's
matrices (forward pass, and the gradients of what went in; frozen weights have none), against the fastest product of two
square fp32 matrices on the same cores before each round. The head, the adapters and attention itself are not counted.

Start-up is the time from the process's start to the end of its first step; ours prepares in a pod of its own before,
which holds no GPU and is reported separately. Speed is that of the steps after the first: rows, or pairs, a second.
Memory is the most that the process and all that it started had of their own.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from finetune_trainer.data import order
from safetensors import safe_open

from examples import preferences
from examples.demo import volume
from tests.bench.prepare import MIB, SAMPLED, memory

KINDS = {"sft": "sft", "packed": "sft", "dpo": "dpo", "rm": "rm", "kto": "kto"}
"""Kind of measurement -> stage."""
FORMATS = {"sft": "openai", "dpo": "preference", "rm": "preference", "kto": "kto"}
ROWS, BATCH, MICRO, CUTOFF, PACK, SEED = 240, 8, 4, 512, 2, 42
"""BATCH rows are a step, or PACK packs, which hold about as many tokens."""
ROLES = ("system", "user", "assistant")
SYSTEM = {"role": "system", "content": "You answer in one sentence."}
"""In each row: without a system prompt, SmolLM2's template writes its own and LLaMA-Factory's chatml does not."""


class Line(NamedTuple):
    """A step was logged."""

    at: float
    """Seconds since the process was started."""
    epoch: float
    tokens: int = 0
    """So far; only ours logs them."""


class Measured(NamedTuple):
    """Of one process."""

    start: float
    rows: float
    """A second."""
    peak: float
    """MiB."""
    share: float = 0.0
    """The backbone's products, as a share of the machine's peak."""


def save_rows(folder: Path, scale: int) -> dict[str, int]:
    """A file for each stage: answers of very different length, as instruction sets have them; and one for the others,
    in the order of our first epoch. Characters in each."""
    chance = random.Random(1)
    lines = (volume.DATA / "finetunejobs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = preferences.pairs([json.loads(line) for line in lines])

    def answer(which: str) -> list[dict[str, str]]:
        picked = chance.choices(pairs, k=chance.randint(1, scale))
        return [{"role": "assistant", "content": " ".join(pair[which][0]["content"] for pair in picked)}]

    rows: dict[str, list[dict[str, Any]]] = {"sft": [], "pairs": [], "kto": []}
    for number in range(ROWS):
        asked = [SYSTEM, *pairs[number % len(pairs)]["prompt"]]
        chosen, rejected, wanted = answer("chosen"), answer("rejected"), number % 2 == 0
        rows["sft"].append({"messages": asked + chosen})
        rows["pairs"].append({"prompt": asked, "chosen": chosen, "rejected": rejected})
        rows["kto"].append({"prompt": asked, "completion": chosen if wanted else rejected, "label": wanted})
    rows["dpo"] = rows["rm"] = rows.pop("pairs")
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
        ordered = [each[at] for at in order.epoch_order(ROWS, BATCH, SEED, 0)]
        (folder / f"{name}.ordered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ordered))
    return {name: len((folder / f"{name}.jsonl").read_text()) for name in rows}


def ours(root: Path, kind: str, steps: int, place: Path) -> Iterator[Line]:
    """The command lines of a job's two pods; only the training pod, which holds a GPU, is timed."""
    packed = kind == "packed"
    job = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "speed"},
        "spec": {
            "stage": KINDS[kind],
            "model": {"source": "pvc://models/model"},
            "datasets": [{"source": f"pvc://data/{KINDS[kind]}.jsonl", "format": FORMATS[KINDS[kind]]}],
            "training": {
                "maxSteps": steps,
                "globalBatchSize": PACK if packed else BATCH,
                "microBatchSize": PACK if packed else MICRO,
                "cutoffLength": CUTOFF,
                "learningRate": 1e-4,
                "precision": "fp32",
                "recompute": "none",
                "logEverySteps": 1,
                "seed": SEED,
                **({"packing": "bfd"} if packed else {}),
            },
            "workspace": {"claimName": "workspace"},
            "resources": {"gpusPerNode": 0},
        },
    }
    (place / "job.yaml").write_text(yaml.safe_dump(job))
    said = ["--job", str(place / "job.yaml"), "--workspace", str(place / "workspace")]
    said += [f"--volume={name}={root / name}" for name in ("models", "data")]
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "finetune_trainer", "prepare", *said], check=True, capture_output=True)
    preparing.append(time.monotonic() - began)
    command = [sys.executable, "-m", "finetune_trainer", "train", *said]
    return lines_of_file(command, place / "workspace" / "jobs" / "speed" / "reports" / "trainer_log.jsonl", place)


def trl(root: Path, kind: str, steps: int, place: Path) -> Iterator[Line]:
    command = [sys.executable, "-m", "tests.bench.trl_script", str(root), kind, str(steps), str(place)]
    return lines_of_file(command, place / "log.jsonl", place)


def llama_factory(python: str, root: Path, kind: str, steps: int, place: Path) -> Iterator[Line]:
    """Its own YAML and registry of data; of preferences it wants sharegpt's words."""
    stage, packed = KINDS[kind], kind == "packed"
    names = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected", "kto_tag": "kto_tag"}
    tags = {"role_tag": "role", "content_tag": "content"} | {f"{role}_tag": role for role in ROLES}
    kept = {"sft": ["messages"], "kto": ["messages", "kto_tag"]}.get(stage, ["messages", "chosen", "rejected"])
    info = {
        "file_name": "rows.jsonl",
        "formatting": "sharegpt",
        "ranking": stage in ("dpo", "rm"),
        "columns": {name: names[name] for name in kept},
        "tags": tags,
    }
    (place / "dataset_info.json").write_text(json.dumps({"rows": info}))
    with (place / "rows.jsonl").open("w") as out:
        for text in (root / "data" / f"{stage}.ordered.jsonl").read_text().splitlines():
            row = json.loads(text)
            asked, answered = row.get("prompt", []), row.get("completion", [])
            made: dict[str, Any] = {"conversations": row.get("messages") or asked + answered}
            if info["ranking"]:
                made |= {"chosen": row["chosen"][0], "rejected": row["rejected"][0]}
            out.write(json.dumps(made | ({"kto_tag": row["label"]} if stage == "kto" else {})) + "\n")
    config = {
        "stage": stage,
        "do_train": True,
        "model_name_or_path": str(root / "models" / "model"),
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(place),
        "template": "chatml",
        "cutoff_len": CUTOFF,
        "output_dir": str(place / "out"),
        "max_steps": steps,
        "per_device_train_batch_size": PACK if packed else MICRO,
        "gradient_accumulation_steps": 1 if packed else BATCH // MICRO,
        "learning_rate": 1e-4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_gradient_checkpointing": True,
        "overwrite_cache": True,
        "disable_shuffling": True,
        **({"packing": True, "neat_packing": True} if packed else {}),
    }
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    command = [python, "-m", "llamafactory.cli", "train", str(place / "config.yaml")]
    return lines_of_file(command, place / "out" / "trainer_log.jsonl", place)


preparing: list[float] = []
"""Seconds that our pods that prepare took."""
running: list[subprocess.Popen[bytes]] = []
"""The process that is being measured."""


def lines_of_file(command: list[str], log: Path, place: Path) -> Iterator[Line]:
    """Run a command, and say when each line of its log came."""
    began, seen = time.monotonic(), 0
    with (place / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"OMP_NUM_THREADS": "2"})
    running[:] = [process]
    ended = False
    while not ended:
        ended = process.poll() is not None
        text = log.read_text() if log.exists() else ""
        for line in text[: text.rfind("\n") + 1].splitlines()[seen:]:
            seen += 1
            entry = json.loads(line)
            if "loss" in entry:
                yield Line(time.monotonic() - began, entry["epoch"], entry.get("total_tokens", 0))
        time.sleep(0.02)
    if process.returncode:
        tail = (place / "output").read_text(errors="replace")[-3000:]
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")


PRODUCT = """
import time, torch
torch.set_num_threads(2)
fastest = 0.0
for size in (1024, 2048):
    left, right = torch.randn(size, size), torch.randn(size, size)
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        fastest = max(fastest, 2 * size**3 / (time.perf_counter() - began))
print(fastest)
"""


def machine_peak() -> float:
    """FLOP/s of the fastest product of two fp32 matrices."""
    return float(subprocess.run([sys.executable, "-c", PRODUCT], check=True, capture_output=True).stdout)


def multiplied(model: Path) -> int:
    """Weights in the matrices of a model's layers."""
    count = 0
    for file in model.glob("*.safetensors"):
        with safe_open(file, framework="np") as weights:
            shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        count += sum(math.prod(shape) for name, shape in shapes.items() if ".layers." in name and len(shape) == 2)
    return count


def measure(lines: Iterator[Line], weights: int = 0, peak_flops: float = 1.0) -> Measured:
    """Until the process has ended."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLED):
            if running:
                try:
                    peak[0] = max(peak[0], memory(running[0].pid)[0] / MIB)
                except OSError:  # it ended while it was looked at
                    continue

    running.clear()
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        got = list(lines)
    finally:
        done.set()
        watching.join()
    first, last = got[0], got[-1]
    seconds = last.at - first.at
    share = 4 * weights * (last.tokens - first.tokens) / seconds / peak_flops
    return Measured(first.at, (last.epoch - first.epoch) * ROWS / seconds, peak[0], share)


def save_model(folder: Path, model: Path | None, tiny_one: bool) -> None:
    """SmolLM2, another model, or a random model that tries this program."""
    if tiny_one:
        from tests.trainer.support import tiny

        tiny.save_model(folder, max_position_embeddings=CUTOFF)
    else:
        shutil.copytree(model or volume.make() / volume.MODEL, folder)  # a link would lead out of the volume


def read_results(file: Path | None) -> dict[str, dict[str, list[Measured]]]:
    """Kind -> trainer -> rounds, of earlier runs."""
    if file is None or not file.exists():
        return {}
    return {
        kind: {trainer: [Measured(*one) for one in rounds] for trainer, rounds in found.items()}
        for kind, found in json.loads(file.read_text()).items()
    }


def table(kind: str, found: dict[str, list[Measured]]) -> list[str]:
    """A row for each trainer; ratios are to the fastest of the others."""
    others = [name for name in found if name != "ours"]
    rows = []
    for name, all_rounds in found.items():
        start, rate, peak = (statistics.median(one[part] for one in all_rounds) for part in range(3))
        ratio = ""
        if name == "ours":
            each = [
                mine.rows / max(found[other][number].rows for other in others if number < len(found[other]))
                for number, mine in enumerate(all_rounds)
            ]
            starts = [mine.start / other.start for mine, other in zip(all_rounds, found["trl"], strict=False)]
            ratio = f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
            ratio += f"; start {statistics.median(starts):.2f}"
            if KINDS[kind] == "sft":
                ratio += f"; {statistics.median(mine.share for mine in all_rounds):.0%} of the fp32 peak"
        rows.append(f"| {kind} | {name} | {start:.1f} s | {rate:.2f} | {peak:,.0f} MiB | {ratio} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7, help="of each process; the first is its start-up")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--model", type=Path, metavar="DIR", help="default: SmolLM2-135M-Instruct")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers and short rows: tries this program")
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with LLaMA-Factory")
    parser.add_argument("--without", choices=["trl", "llama-factory"], help="a peer that was slower before")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep every round there, and add to those it has")
    args = parser.parse_args()
    kept = read_results(args.results)
    with tempfile.TemporaryDirectory(prefix="bench-speed-") as name:
        root = Path(name)
        for folder in ("models", "data"):
            (root / folder).mkdir()
        save_model(root / "models" / "model", args.model, args.tiny)
        save_rows(root / "data", 2 if args.tiny else 8)
        weights = multiplied(root / "models" / "model")
        print("| kind | trainer | first step done | rows/s | peak memory | ours / the faster peer |", flush=True)
        print("|---|---|---:|---:|---:|---:|", flush=True)
        for kind in args.kinds:
            trainers = ["ours", "trl", *(["llama-factory"] if args.peer else [])]
            found = kept.setdefault(kind, {trainer: [] for trainer in trainers})
            for _ in range(args.rounds):
                peak = machine_peak()
                for trainer, results in found.items():
                    if trainer == args.without:
                        continue
                    with tempfile.TemporaryDirectory(dir=root) as place:
                        where = Path(place)
                        if trainer == "llama-factory":
                            lines = llama_factory(args.peer, root, kind, args.steps, where)
                        else:
                            lines = (ours if trainer == "ours" else trl)(root, kind, args.steps, where)
                        results.append(measure(lines, weights, peak))
                if args.results:
                    args.results.write_text(json.dumps(kept))
            print("\n".join(table(kind, found)), flush=True)
        print(f"\nPreparing, in a pod of its own before: {statistics.median(preparing):.1f} s (median)")


if __name__ == "__main__":
    main()
