"""Blocks of raw rows -> tokenized rows, in as many worker processes as there are CPUs, in the order of the file.

`build_data` uses it. Because results come in the order of the file, they do not depend on the number of processes, and
the bound on pending blocks bounds the memory. Workers come from a fork server, which has no threads: a fork of the
current process, whose reporter and leases run in threads, could deadlock.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotReady
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from finetune_api.contract import ResolvedJob
from finetune_api.data import ColumnsSpec, DatasetSpec, TagsSpec

from finetune_trainer.data import formats
from finetune_trainer.data.readers.blocks import Block, parse_block
from finetune_trainer.data.row import Row
from finetune_trainer.data.samples import RowError, Sample
from finetune_trainer.data.templates import ChatTemplate
from finetune_trainer.data.tokenize import tokenize_batch
from finetune_trainer.prepare.dataset_statistics import InvalidRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PENDING_PER_PROCESS = 2
"""Blocks per process that are submitted before the first result is awaited."""
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1

Selection = Literal["all", "none"] | list[int]
"""Which rows of a block are tokenized, by their index among the rows that fit their format. "none": rows are only
checked. A list: the block was checked before, so its invalid rows are known."""
Task = tuple[Block, Selection]


@dataclass(frozen=True)
class Tokenization:
    """How samples become tokens; the same for all data sets of a job."""

    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate | None
    """None in stage pt, which trains documents."""
    cutoff: int
    """Tokens of a row; 0: no limit."""


def row_limit(job: ResolvedJob) -> int:
    """Tokens that a row of the job may have; 0: no limit."""
    if job.training.packing == "wrapped":
        return 0
    return job.training.cutoff_length - (job.ppo.max_new_tokens if job.ppo else 0)


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a data set are parsed."""

    format: str
    columns: ColumnsSpec | None
    tags: TagsSpec | None
    prompts_only: bool = False
    """Whether only the prompt of a row is used."""

    @staticmethod
    def for_dataset(spec: DatasetSpec, stage: str) -> "RowFormat":
        return RowFormat(spec.format, spec.columns, spec.tags, stage == "ppo")

    @cached_property
    def layout(self) -> formats.Layout:
        """The names of columns and messages."""
        return formats.Layout(self.format, self.columns, self.tags)

    def read(self, value: Any) -> formats.Parsed:
        """The sample of a raw row, and what of the row is not used. Raises RowError."""
        return formats.read(value, self.layout, prompt=self.prompts_only)


@dataclass
class BlockResult:
    """The tokenized rows and the invalid rows of a block."""

    rows: int = 0
    """Rows checked."""
    valid: int = 0
    """Rows that fit their format. Whether they fit the template, too, is known after tokenization."""
    size: int = 0
    """Bytes of the file, as in `Block`."""
    groups: list[list[Row]] = field(default_factory=list)
    """Tokenized rows of each valid row."""
    invalid: list[InvalidRow] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    """Name of a column or key that is not used, or that the template does not write -> rows that have it."""


def tokenize_block(
    block: Block, row_format: RowFormat, tokenization: Tokenization, selection: Selection = "all"
) -> BlockResult:
    """Parse, check and tokenize the selected rows of a block."""
    result = BlockResult(size=block.size)
    if not selection:
        return result
    checked_before = isinstance(selection, list)
    selected = set(selection) if checked_before else ()
    places: list[str] = []
    samples: list[Sample] = []
    for place, value in parse_block(block):
        result.rows += not checked_before
        try:
            if isinstance(value, RowError):
                raise value
            sample, unused = row_format.read(value)
            if not checked_before:
                result.unused.update(unused)
            if selection == "all" or result.valid in selected:
                samples.append(sample)
                places.append(place)
            result.valid += 1
        except RowError as error:
            if not checked_before:
                result.invalid.append(InvalidRow(place, error.rule, str(error)))
    tokenized = tokenize_batch(
        samples, tokenization.template, tokenization.cutoff, tokenization.tokenizer, result.unused
    )
    for place, rows in zip(places, tokenized, strict=True):
        if isinstance(rows, RowError):
            result.invalid.append(InvalidRow(place, rows.rule, str(rows)))
        else:
            result.groups.append(rows)
    return result


TokenizeBlocks = Callable[[Iterable[Task], RowFormat], Iterator[BlockResult]]


@contextmanager
def worker_pool(processes: int, tokenization: Tokenization, check_stop: Callable[[], None]) -> Iterator[TokenizeBlocks]:
    """Worker processes for the duration of the context; with 1, the current process does the work."""
    if processes == 1:
        yield lambda tasks, row_format: _run_inline(tasks, row_format, tokenization, check_stop)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(processes, context, _initialize_worker, (tokenization,))
    try:
        yield lambda tasks, row_format: _run_in_order(pool, processes, tasks, row_format, check_stop)
    except BrokenProcessPool:
        raise MemoryError(
            "a process that tokenizes was killed, most likely for lack of memory. All processes share prepare.memory"
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()  # a block may take long, and its result is not needed
        pool.shutdown(cancel_futures=True)


def _run_inline(
    tasks: Iterable[Task], row_format: RowFormat, tokenization: Tokenization, check_stop: Callable[[], None]
) -> Iterator[BlockResult]:
    for block, selection in tasks:
        check_stop()
        yield tokenize_block(block, row_format, tokenization, selection)


def _run_in_order(
    pool: ProcessPoolExecutor,
    processes: int,
    tasks: Iterable[Task],
    row_format: RowFormat,
    check_stop: Callable[[], None],
) -> Iterator[BlockResult]:
    pending: deque[Future[BlockResult]] = deque()
    for block, selection in tasks:
        pending.append(pool.submit(_tokenize_in_worker, block, row_format, selection))
        if len(pending) >= PENDING_PER_PROCESS * processes:
            yield _wait(pending.popleft(), check_stop)
    while pending:
        yield _wait(pending.popleft(), check_stop)


def _wait(future: "Future[BlockResult]", check_stop: Callable[[], None]) -> BlockResult:
    while True:
        check_stop()
        try:
            return future.result(POLL_SECONDS)
        except NotReady:
            continue


_worker_tokenization: Tokenization | None = None


def _initialize_worker(tokenization: Tokenization) -> None:
    """Runs in each new worker. A worker ends with its parent, and leaves Ctrl-C to the parent."""
    global _worker_tokenization
    _worker_tokenization = tokenization
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _tokenize_in_worker(block: Block, row_format: RowFormat, selection: Selection) -> BlockResult:
    assert _worker_tokenization is not None
    return tokenize_block(block, row_format, _worker_tokenization, selection)
