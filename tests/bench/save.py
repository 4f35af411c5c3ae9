"""What a save costs, beside one of plain transformers ``Trainer`` of the same model in the same process.

``python -m tests.bench.save [--width N] [--layers N] [--saves N]`` prints JSON: the seconds that steps stand still and
the seconds of the whole save (ours: until every byte is digested, on disk and in its place; theirs: as long as standing
still, as they do none of that), their medians and ratios. The two take turns, so that both see the same disk.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from finetune_trainer.data.datasets import TokenSequences
from finetune_trainer.model import base, build, tokenizer
from finetune_trainer.stages.sft.trainer import SftTrainer
from finetune_trainer.training import recipe
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tests.trainer.support import tiny

SETTLE = 1
"""Saves of each that aren't counted: the first saves allocate and import."""


def ours(root: Path, resolved: Any) -> Any:
    """The trainer of stage sft, after its first step."""
    run = tiny.make_run(root, resolved)
    tokens = tokenizer.load(run.prepared.model, resolved.model, run.job.template.name, allow_remote_code=False)
    precision = base.precision(resolved.training)
    model = build.build(resolved, run.prepared.model, None, tokens, precision, root)
    data = recipe.open_data(run, lambda split: TokenSequences(split, "none"))
    made = recipe.set_up(run, SftTrainer, model, tokens, data)
    made.trainer.train()
    return made.trainer


def plain(root: Path, folder: Path) -> Any:
    """transformers' own, after its first step."""
    arguments = TrainingArguments(
        str(root / "plain"),
        max_steps=1,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_total_limit=2,
        save_steps=1000,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows: Any = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tiny.tokenizer())
    trainer.train()
    return trainer


def timed(trainer: Any, step: int) -> tuple[float, float]:
    """(steps stand still, whole save). What was written before is on disk first, as after many steps it would be."""
    trainer.state.global_step = step
    os.sync()
    began = time.monotonic()
    trainer._save_checkpoint(trainer.model, None)
    stood_still = time.monotonic() - began
    if hasattr(trainer, "saver"):
        trainer.saver.wait()
    return stood_still, time.monotonic() - began


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--saves", type=int, default=5)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="bench-save-"))
    try:
        shape = {"hidden_size": args.width, "intermediate_size": 2 * args.width, "num_hidden_layers": args.layers}
        folder = tiny.save_model(root / "models" / "model", **shape)
        tiny.save_rows(root / "data" / "rows.jsonl")
        resolved = tiny.job(tuning={"method": "full"}, training={"maxSteps": 1, "precision": "fp32"})
        trainers = {"plain": plain(root, folder), "ours": ours(root, resolved)}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in trainers}
        for step in range(2, 2 + SETTLE + args.saves):
            for name, trainer in trainers.items():
                times[name].append(timed(trainer, step))
        still, whole = (
            {name: [round(one[part], 2) for one in taken[SETTLE:]] for name, taken in times.items()} for part in (0, 1)
        )
        medians = [{name: statistics.median(taken) for name, taken in part.items()} for part in (still, whole)]
        print(
            json.dumps(
                {
                    "checkpoint MiB": size(max((root / "plain").glob("checkpoint-*"))) >> 20,
                    "steps stand still, s": still,
                    "whole save, s": whole,
                    "medians, s": medians,
                    "ratio of standing still": round(medians[0]["ours"] / medians[0]["plain"], 2),
                    "ratio of the whole": round(medians[1]["ours"] / medians[1]["plain"], 2),
                },
                indent=1,
            )
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
