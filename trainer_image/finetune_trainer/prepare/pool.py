"""Blocks of raw rows -> tokenized rows, in as many processes as there are CPUs, in the order of the file.

Called by ``build``. The order makes the result independent of the number of processes; the bound on blocks under way
keeps memory flat. The processes come from a fork server, which has no threads: a fork of this one, whose reporter and
leases run in threads, could hang.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.contract import ResolvedJob
from finetune_api.data import ColumnsSpec, DatasetSpec, TagsSpec

from finetune_trainer.data import formats
from finetune_trainer.data.row import Row
from finetune_trainer.data.rows import Block, parse_block
from finetune_trainer.data.samples import BadRow, Sample
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.prepare.findings import Broken

UNDER_WAY = 2
"""Blocks per process that are handed out before the first must be back."""
LOOK = 0.2


Chosen = Literal["all", "none"] | list[int]
"""Which rows of a block are tokenized, by their number among those that fit their format. "none": they are only
checked. A list: the block was checked before, and what is wrong with its rows is known."""


@dataclass(frozen=True)
class Tools:
    """What turns rows into tokens; the same for all data sets of a job."""

    tokenizer: Any
    template: Any
    cutoff: int
    """0: nothing is cut."""


def longest(job: ResolvedJob) -> int:
    """Tokens that a row of the job may have; 0: any number."""
    if job.training.packing == "wrapped":
        return 0
    return job.training.cutoff_length - (job.ppo.max_new_tokens if job.ppo else 0)


@dataclass(frozen=True)
class Shape:
    """How the rows of a data set are to be understood."""

    format: str
    columns: ColumnsSpec | None
    tags: TagsSpec | None
    prompts: bool = False
    """Whether only what a row asks is wanted."""

    @staticmethod
    def of(spec: DatasetSpec, stage: str) -> "Shape":
        return Shape(spec.format, spec.columns, spec.tags, stage == "ppo")

    def parse(self, value: Any) -> Sample:
        """What one row means. Raises BadRow."""
        parse = formats.prompt if self.prompts else formats.parse
        return parse(value, self.format, self.columns, self.tags)


@dataclass
class Done:
    """What became of a block."""

    rows: int = 0
    """Rows checked."""
    good: int = 0
    """Rows that fit their format; whether they fit the template, too, only tokenizing shows."""
    size: int = 0
    """Of the file, in bytes, as far as that is known."""
    groups: list[list[Row]] = field(default_factory=list)
    """Of each good row, what it was tokenized to."""
    broken: list[Broken] = field(default_factory=list)


def tokenize(block: Block, shape: Shape, tools: Tools, chosen: Chosen = "all") -> Done:
    """One block, start to end."""
    done = Done(size=block.size)
    if not chosen:
        return done
    known = isinstance(chosen, list)
    wanted = set(chosen) if known else ()
    places: list[str] = []
    samples: list[Sample] = []
    for place, value in parse_block(block):
        done.rows += not known
        try:
            if isinstance(value, BadRow):
                raise value
            sample = shape.parse(value)
            if chosen == "all" or done.good in wanted:
                samples.append(sample)
                places.append(place)
            done.good += 1
        except BadRow as error:
            if not known:
                done.broken.append(Broken(place, error.rule, str(error)))
    for place, made in zip(places, tokenize_batch(samples, tools.template, tools.cutoff, tools.tokenizer), strict=True):
        if isinstance(made, BadRow):
            done.broken.append(Broken(place, made.rule, str(made)))
        else:
            done.groups.append(made)
    return done


Task = tuple[Block, Chosen]
Run = Callable[[Iterable[Task], Shape], Iterator[Done]]


@contextmanager
def workers(processes: int, tools: Tools, check_stop: Callable[[], None]) -> Iterator[Run]:
    """Processes for the time of the block; 1: this very process."""
    if processes == 1:
        yield lambda tasks, shape: _inline(tasks, shape, tools, check_stop)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(processes, context, _begin, (tools,))
    try:
        yield lambda tasks, shape: _in_order(pool, processes, tasks, shape, check_stop)
    except BrokenProcessPool:
        raise MemoryError("a process that tokenizes was killed; prepare.memory is what they share") from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()  # a block may take long, and nobody waits for it any more
        pool.shutdown(cancel_futures=True)


def _inline(tasks: Iterable[Task], shape: Shape, tools: Tools, check_stop: Callable[[], None]) -> Iterator[Done]:
    for block, chosen in tasks:
        check_stop()
        yield tokenize(block, shape, tools, chosen)


def _in_order(
    pool: ProcessPoolExecutor, processes: int, tasks: Iterable[Task], shape: Shape, check_stop: Callable[[], None]
) -> Iterator[Done]:
    under_way: deque[Future[Done]] = deque()
    for block, chosen in tasks:
        under_way.append(pool.submit(_work, block, shape, chosen))
        if len(under_way) >= UNDER_WAY * processes:
            yield _wait(under_way.popleft(), check_stop)
    while under_way:
        yield _wait(under_way.popleft(), check_stop)


def _wait(future: "Future[Done]", check_stop: Callable[[], None]) -> Done:
    while True:
        check_stop()
        try:
            return future.result(LOOK)
        except NotYet:
            continue


_tools: Tools | None = None


def _begin(tools: Tools) -> None:
    """In each new process. It ends with the one that it works for, and leaves Ctrl-C to that."""
    global _tools
    _tools = tools
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _work(block: Block, shape: Shape, chosen: Chosen) -> Done:
    assert _tools is not None
    return tokenize(block, shape, _tools, chosen)
