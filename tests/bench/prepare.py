"""Speed and memory of preparation, compared with ``datasets.map`` with the same tokenizer in the same run.

``python -m tests.bench.prepare [--rows N] [--rounds N] [--memory MIB ...]`` prints the tables of docs/benchmarks.md.
Both take turns, so that other load on the machine slows both; the ratio is the median of the rounds. Each is timed from
the file to all rows on disk, with the start of its processes. With a single process the ratio of CPU time is printed,
too, because other load does not change it. For memory, a child process prepares documents of long words with two
worker processes, and the memory of all processes is added: long words have few tokens, so that a gigabyte is read in
minutes.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from finetune_trainer.prepare import build_data, worker_pool

from tests.trainer.prepare.test_prepare import TOKENIZER, plan, rows
from tests.trainer.support import tiny

TEXT = " ".join(f"say {word} and then think about it for a while" for word in tiny.WORDS)
MIB = 1 << 20
SAMPLED = 0.1
"""Seconds between two samples of the memory."""


class Rate(NamedTuple):
    """The speed of a run."""

    rows: float
    """Per second."""
    tokens: float
    """Per second."""
    cpu: float
    """Seconds of CPU time of this process."""

    @staticmethod
    def since(count: int, tokens: int, began: tuple[float, float]) -> "Rate":
        wall, cpu = now()
        return Rate(count / (wall - began[0]), tokens / (wall - began[0]), cpu - began[1])


def now() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def save(file: Path, count: int) -> None:
    """Write rows of typical length for instruction data: about 600 characters."""
    with file.open("w") as out:
        for number in range(count):
            asked, answered = {"role": "user", "content": f"{number} {TEXT[: 80 + number % 97]}"}, TEXT[number % 50 :]
            out.write(json.dumps({"messages": [asked, {"role": "assistant", "content": answered}]}) + "\n")


def ours(folder: Path, processes: int) -> Rate:
    """Everything that preparation does with rows: checks, masks, the check of prompts, shards."""
    job = tiny.job(datasets=[rows("rows.jsonl")], training={"cutoffLength": 2048})
    with tempfile.TemporaryDirectory(dir=folder) as entry:
        began = now()
        facts = build_data.build(plan(job, folder, processes=processes), Path(entry))["splits"]["train"]
        return Rate.since(facts["rows"], facts["tokens"], began)


def plain(folder: Path, processes: int) -> Rate:
    """What a simple script does: load, render, tokenize; without checks, masks and cuts."""
    import datasets

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        texts = TOKENIZER.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": TOKENIZER(texts, add_special_tokens=False)["input_ids"]}

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        began = now()
        read: Any = datasets.load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=cache)
        workers = processes if processes > 1 else None  # 1 would start a child process
        made = read.map(work, batched=True, batch_size=512, remove_columns=["messages"], num_proc=workers)
        rate = Rate.since(len(made), 0, began)
        tokens = sum(map(len, made["input_ids"]))
        return rate._replace(tokens=rate.rows * tokens / len(made))


def speed(folder: Path, count: int, rounds: int) -> None:
    """Print a table of both, with one and with two processes."""
    save(folder / "rows.jsonl", count)
    found: dict[tuple[str, int], list[Rate]] = {}
    ways: dict[str, Callable[[Path, int], Rate]] = {"plain": plain, "ours": ours}
    for number in range(rounds + 1):
        for processes in (1, 2):
            for name, way in ways.items():
                rate = way(folder, processes)
                if number:  # the first round warms up
                    found.setdefault((name, processes), []).append(rate)
    print(f"{count} rows, median of {rounds} rounds\n")
    print("| processes | datasets.map rows/s | prepare rows/s | prepare tokens/s | prepare / datasets.map |")
    print("|---:|---:|---:|---:|---:|")
    for processes in (1, 2):
        theirs, mine = found["plain", processes], found["ours", processes]
        ratio = statistics.median(m.rows / t.rows for m, t in zip(mine, theirs, strict=True))
        print(
            f"| {processes} | {statistics.median(t.rows for t in theirs):,.0f}"
            f" | {statistics.median(m.rows for m in mine):,.0f} | {statistics.median(m.tokens for m in mine):,.0f}"
            f" | {ratio:.2f} |"
        )
    shares = [t.cpu / m.cpu for m, t in zip(found["ours", 1], found["plain", 1], strict=True)]
    print(f"\nBy processor time, one process: {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")
    for name in ("plain", "ours"):
        pairs = zip(found[name, 1], found[name, 2], strict=True)
        print(f"{name}: two processes are {statistics.median(b.rows / a.rows for a, b in pairs):.2f} times as fast")
    print(flush=True)


def below(pid: int) -> list[int]:
    """Ids of a process and all its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += below(int(child))
    return found


def memory(pid: int) -> tuple[int, int]:
    """(private memory, resident memory) in bytes of a process and all its descendants. Resident memory includes
    the pages of mapped files, which the kernel can reclaim at any time."""
    own = resident = 0
    for each in below(pid):
        try:
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith(" kB")}
        own += sizes.get("RssAnon", 0)
        resident += sizes.get("VmRSS", 0)
    return own, resident


def documents(file: Path, mebibytes: int) -> None:
    """Lines of 4 KiB, 80 words each."""
    line = " ".join(f"{number % 32:050}" for number in range(80)) + "\n"
    with file.open("w") as out:
        for _ in range(mebibytes * MIB // len(line)):
            out.write(line)


def words() -> Any:
    """A tokenizer whose vocabulary is the words of `documents`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"<end>": 0, **{f"{number:050}": 1 + number for number in range(32)}}
    made = Tokenizer(models.WordLevel(known, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=made, eos_token="<end>")


def prepare_documents(folder: Path) -> None:
    """The work that `peak` measures."""
    job = tiny.job(stage="pt", datasets=[{"source": "pvc://data/rows.txt", "format": "text"}])
    made = plan(job, folder, processes=2, tokenization=worker_pool.Tokenization(words(), None, 0))
    with tempfile.TemporaryDirectory(dir=folder) as entry:
        build_data.build(made, Path(entry))


def peak(folder: Path, mebibytes: int) -> tuple[float, float, float]:
    """(private MiB, resident MiB, seconds) for the preparation of a file of this size with two processes."""
    documents(folder / "rows.txt", mebibytes)
    process = multiprocessing.get_context("spawn").Process(target=prepare_documents, args=(folder,))
    highest, ended, began = [0, 0], threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(SAMPLED):
            try:
                highest[:] = map(max, highest, memory(process.pid or 0))
            except OSError:  # the process has ended
                continue

    watching = threading.Thread(target=watch)
    process.start()
    watching.start()
    process.join()
    ended.set()
    watching.join()
    if process.exitcode:
        raise SystemExit(f"preparing {mebibytes} MiB ended with {process.exitcode}")
    return highest[0] / MIB, highest[1] / MIB, time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000, help="0: leave the speed out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="*", default=[10, 100], metavar="MIB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as folder:
        if args.rows:
            speed(Path(folder), args.rows, args.rounds)
        if args.memory:
            print("| file | peak memory of all processes | with mapped files | took |")
            print("|---:|---:|---:|---:|")
        for size in args.memory:
            own, resident, took = peak(Path(folder), size)
            print(f"| {size} MiB | {own:,.0f} MiB | {resident:,.0f} MiB | {took:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
