"""Time of the order of an epoch, compared with the shuffle of a Python list, which gives the same order.

``python -m tests.bench.order [--rows N] [--rounds N]`` prints the medians of CPU seconds, which other load changes
little. Both take turns.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
from finetune_api.micro_batch import MicroBatch
from finetune_trainer.data import micro_batches, order

BATCH = 48


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def listed(rows: int) -> list[int]:
    numbers = list(range(rows))
    random.Random("order:42:0").shuffle(numbers)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = options.rows // BATCH * BATCH
    lengths = np.random.default_rng(0).integers(50, 2000, rows).astype(np.int32)
    order_of_epoch = order.epoch_order(rows, BATCH, 42, 0)
    step = sorted(lengths[:BATCH].tolist(), reverse=True)
    tasks: dict[str, Callable[[], object]] = {
        "order of an epoch": lambda: order.epoch_order(rows, BATCH, 42, 0),
        "shuffle of a Python list": lambda: listed(rows),
        "grouping by length": lambda: order.grouped_by_length(order_of_epoch, lengths, BATCH, 42, 0),
        "dealing a step by tokens": lambda: micro_batches.deal(step, MicroBatch(16_384, "tokens"), 8),
    }
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(options.rounds):
        for name, work in tasks.items():
            times[name].append(seconds(work))
    for name, measured in times.items():
        print(f"{name}: {statistics.median(measured):.4f} s")


if __name__ == "__main__":
    main()
