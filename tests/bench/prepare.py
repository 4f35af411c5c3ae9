"""How fast and how lean preparing is, beside plain ``datasets.map`` with the same tokenizer in the same run.

``python -m tests.bench.prepare [--rows N] [--memory MIB ...]`` prints JSON: rows and tokens a second of both with one
and two processes, and for each size of file the largest resident memory of the process that writes.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from finetune_trainer.prepare import build

from tests.trainer import tiny
from tests.trainer.test_prepare import TOKENIZER, plan, rows

TEXT = " ".join(f"say {word} and then think about it for a while" for word in tiny.WORDS)


def save(file: Path, count: int) -> None:
    """Rows as long as those of common instruction sets: some 600 characters."""
    with file.open("w") as out:
        for number in range(count):
            asked, answered = {"role": "user", "content": f"{number} {TEXT[: 80 + number % 97]}"}, TEXT[number % 50 :]
            out.write(json.dumps({"messages": [asked, {"role": "assistant", "content": answered}]}) + "\n")


def ours(folder: Path, processes: int) -> dict[str, float]:
    job = tiny.job(datasets=[rows("rows.jsonl")], training={"cutoffLength": 2048})
    entry = folder / f"entry-{processes}"
    entry.mkdir()
    began = time.monotonic()
    facts = build.build(plan(job, folder, processes=processes), entry)["splits"]["train"]
    return rates(facts["rows"], facts["tokens"], began)


def plain(folder: Path, processes: int) -> dict[str, float]:
    """What a script would do: load, render, tokenize; no check, no mask, no cutting."""
    import datasets

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        texts = TOKENIZER.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": TOKENIZER(texts, add_special_tokens=False)["input_ids"]}

    datasets.disable_progress_bars()
    began = time.monotonic()
    cache = str(folder / f"plain-{processes}")
    read: Any = datasets.load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=cache)
    made = read.map(work, batched=True, batch_size=512, remove_columns=["messages"], num_proc=processes)
    end = time.monotonic()
    tokens = sum(map(len, made["input_ids"]))
    return rates(len(made), tokens, began, end)


def rates(count: int, tokens: int, began: float, end: float | None = None) -> dict[str, float]:
    took = (end or time.monotonic()) - began
    return {"seconds": round(took, 2), "rows/s": round(count / took), "tokens/s": round(tokens / took)}


def peak(folder: Path, mebibytes: int, answer: Any) -> None:
    save(folder / "rows.jsonl", mebibytes * (1 << 20) // 700)
    ours(folder, 1)
    answer.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--memory", type=int, nargs="*", default=[10, 100], metavar="MIB")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-prepare-"))
    try:
        save(folder / "rows.jsonl", args.rows)
        speed = {f"{f.__name__}, {n} process(es)": f(folder, n) for n in (1, 2) for f in (plain, ours)}
        print(json.dumps({"rows": args.rows, "speed": speed}, indent=1), flush=True)
        context = multiprocessing.get_context("spawn")
        for size in args.memory:
            below = folder / str(size)
            below.mkdir()
            answer: Any = context.Queue()
            process = context.Process(target=peak, args=(below, size, answer))
            process.start()
            print(json.dumps({"file MiB": size, "peak resident MiB": answer.get()}), flush=True)
            process.join()
            shutil.rmtree(below)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
