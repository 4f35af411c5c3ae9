"""Builds an entry of the data cache, from data files to shards: every row is checked and tokenized once, then drawn
and packed.

The pipeline calls it through `data_cache`. A data set with maxSamples is read twice: first all rows are checked, then
the drawn rows are tokenized. If data sets are split or interleaved, each is first written to a folder of its own, and
its rows are copied from there in the order of `selection`, memory-mapped; otherwise rows are written to their split
directly. Returns the facts for the manifest.
"""

import json
import logging
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt

from finetune_trainer.data import pack
from finetune_trainer.data.readers.blocks import read_blocks
from finetune_trainer.data.splits import ShardWriter, Split, SplitFacts, open_split, write_packs
from finetune_trainer.errors import InvalidData
from finetune_trainer.prepare import selection
from finetune_trainer.prepare.build_plan import BuildActivity, BuildPlan, DatasetSource, ReadProgress
from finetune_trainer.prepare.dataset_statistics import DatasetStatistics, data_warning, invalid_rows_message
from finetune_trainer.prepare.worker_pool import BlockResult, RowFormat, Selection, TokenizeBlocks, worker_pool

PARTS = "parts"
INVALID_ROWS = "invalid-rows.jsonl"
"""In the reports of every job, and in the entry if it has invalid rows."""
FIRST_EVALUATION = 1000
"""Number of the first data set for evaluation: its draws must differ from those of training data with the same seed."""
COPIED = 1024
"""Rows copied between two checks for a stop."""

log = logging.getLogger(__name__)


class UnusableData(InvalidData):
    """Raised after all rows were read, with the statistics of all data sets for the report."""

    def __init__(self, message: str, statistics: list[DatasetStatistics]) -> None:
        super().__init__(message)
        self.statistics = statistics


class DatasetPart(NamedTuple):
    """The tokenized rows of a data set, before rows are drawn from it."""

    split: Split
    group_sizes: npt.NDArray[np.int32]
    """Tokenized rows of each row of the data set."""


def build(plan: BuildPlan, folder: Path) -> dict[str, Any]:
    """Fill ``folder``. Raises InvalidData, if too many rows are invalid after all rows were checked."""
    plan.reports.mkdir(parents=True, exist_ok=True)
    (folder / PARTS).mkdir()
    splits: dict[str, SplitFacts] = {}
    parts: list[DatasetPart] = []
    with (
        worker_pool(plan.processes, plan.tokenization, plan.check_stop) as tokenize_blocks,
        (plan.reports / INVALID_ROWS).open("w", encoding="utf-8") as invalid_rows,
    ):
        reader = _DatasetReader(plan, tokenize_blocks, invalid_rows)
        if plan.draws:
            parts = [reader.read_part(source, i, folder / PARTS, f"part-{i}") for i, source in enumerate(plan.train)]
        else:
            splits["train"] = reader.write_split(list(enumerate(plan.train)), folder, "train")
        names = zip(plan.evaluation_splits, plan.evaluate, strict=bool(plan.evaluate))
        for number, (name, source) in enumerate(names, start=FIRST_EVALUATION):
            splits[name] = reader.write_split([(number, source)], folder, name)
    _check_statistics(plan, reader.statistics)
    if plan.draws:
        splits |= _draw(plan, folder, parts)
    shutil.rmtree(folder / PARTS)
    if any(statistics.broken for statistics in reader.statistics):
        shutil.copyfile(plan.reports / INVALID_ROWS, folder / INVALID_ROWS)
    for name, facts in splits.items():
        if not facts.rows:
            raise InvalidData(f"no row is left for {name}. Raise maxSamples or evaluation.splitFraction")
    packs = {name: _pack(plan, folder, name) for name in splits}
    rows_per_unit = 2 if plan.unit == "pairs" else 1
    return {
        "splits": {
            name: asdict(splits[name]) | {"rows": splits[name].rows // rows_per_unit, "packs": packs[name]}
            for name in ("train", *plan.evaluation_splits)
        },
        "datasets": [statistics.to_dict() for statistics in reader.statistics],
        "warning": data_warning(reader.statistics[: len(plan.train)], plan.limit),
    }


def copy_invalid_rows(folder: Path, reports: Path) -> None:
    """Copy the list of invalid rows from an entry, which another job may have built, to this job's reports."""
    reports.mkdir(parents=True, exist_ok=True)
    listed = folder / INVALID_ROWS
    (reports / INVALID_ROWS).write_bytes(listed.read_bytes() if listed.is_file() else b"")


class _SplitWriter:
    """A split that is being written. ``close`` may be called after an error, too."""

    def __init__(self, folder: Path, split: str) -> None:
        self._shards = ShardWriter(folder, split)
        self.write = self._shards.write
        self.facts = SplitFacts(0, 0, 0, 0, -1)

    def close(self) -> None:
        self.facts = self._shards.close()


class _DatasetReader:
    """Reads data sets, one after the other, and collects their statistics."""

    def __init__(self, plan: BuildPlan, tokenize_blocks: TokenizeBlocks, invalid_rows: TextIO) -> None:
        self._plan, self._tokenize_blocks, self._invalid_rows = plan, tokenize_blocks, invalid_rows
        self.statistics: list[DatasetStatistics] = []
        self._rows: Counter[BuildActivity] = Counter()
        self._bytes = 0
        self._total = sum(source.size for source in (*plan.train, *plan.evaluate))

    def write_split(self, sources: list[tuple[int, DatasetSource]], folder: Path, name: str) -> SplitFacts:
        """Write data sets, each with its number, to a split."""
        with closing(_SplitWriter(folder, name)) as writer:
            for number, source in sources:
                self._read(source, number, writer)
        return writer.facts

    def read_part(self, source: DatasetSource, number: int, folder: Path, name: str) -> DatasetPart:
        """Write a data set to a split of its own, from which rows are drawn later."""
        with closing(_SplitWriter(folder, name)) as writer:
            group_sizes = self._read(source, number, writer)
        return DatasetPart(open_split(folder, name), np.array(group_sizes, np.int32))

    def _read(self, source: DatasetSource, number: int, writer: _SplitWriter) -> "array[int]":
        """Write the valid rows of a data set, or a sample of them. Returns how many tokenized rows each became.
        ``number`` makes the sample differ from those of other data sets with the same seed."""
        statistics, group_sizes = DatasetStatistics(source.spec.source, self._plan.unit), array("i")
        self.statistics.append(statistics)
        selections: Iterable[Selection] = repeat("all")
        if source.spec.max_samples is not None:
            valid = [result.valid for result in self._blocks(source, "Validating", statistics, repeat("none"))]
            seed = self._plan.job.training.seed
            selections = selection.sample_by_block(valid, source.spec.max_samples, seed, number)
        for result in self._blocks(source, "Tokenizing", statistics, selections):
            for group in result.groups:
                if rows := statistics.add_rows(group):
                    group_sizes.append(len(rows))
                    writer.write(rows)
        self._bytes += source.size
        return group_sizes

    def _blocks(
        self,
        source: DatasetSource,
        activity: BuildActivity,
        statistics: DatasetStatistics,
        selections: Iterable[Selection],
    ) -> Iterator[BlockResult]:
        """The result of each block of a data set. Invalid rows are listed, and progress is reported."""
        bytes_before = 0
        remaining = iter(selections)
        row_format = RowFormat.for_dataset(source.spec, self._plan.job.stage)
        for file in source.files:
            file_size, read = file.path.stat().st_size, 0
            # zip takes no selection for a file that has ended: the next selection is for the next file's first block.
            for result in self._tokenize_blocks(zip(read_blocks(file), remaining, strict=False), row_format):
                statistics.rows += result.rows
                statistics.add_unused(result.unused)
                for row in result.invalid:
                    statistics.add_invalid(row)
                    line = {"source": source.spec.source, "place": row.place, "rule": row.rule, "message": row.message}
                    self._invalid_rows.write(json.dumps(line, ensure_ascii=False) + "\n")
                yield result
                self._rows[activity] += result.rows if activity == "Validating" else len(result.groups)
                read = min(file_size, read + result.size)
                size = self._bytes + bytes_before + read
                self._plan.report_progress(ReadProgress(activity, self._rows[activity], size, self._total))
            bytes_before += file_size


def _draw(plan: BuildPlan, folder: Path, parts: list[DatasetPart]) -> dict[str, SplitFacts]:
    """Write the training rows, and the rows that splitFraction holds out for evaluation."""
    seed, evaluation = plan.job.training.seed, plan.job.evaluation
    used = [np.arange(len(part.group_sizes), dtype=np.int64) for part in parts]
    splits = {}
    if evaluation and evaluation.split_fraction:
        used, held_out = selection.hold_out(used, evaluation.split_fraction, seed)
        splits["eval"] = _copy(plan, folder, "eval", parts, *selection.mix(held_out, "concatenate", [], seed))
    for source, groups in zip(plan.train, used, strict=True):
        if not len(groups) and plan.job.mixing != "concatenate":
            raise InvalidData(
                f"{source.spec.source}: no row is left for mixing with the other data sets. Lower"
                " evaluation.splitFraction, or remove the data set"
            )
    weights = [source.spec.weight or 1.0 for source in plan.train]
    splits["train"] = _copy(plan, folder, "train", parts, *selection.mix(used, plan.job.mixing, weights, seed))
    return splits


def _copy(
    plan: BuildPlan,
    folder: Path,
    name: str,
    parts: list[DatasetPart],
    datasets: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
) -> SplitFacts:
    """Write group ``groups[i]`` of data set ``datasets[i]``, for each i, to a split."""
    drawn = selection.expand(datasets, groups, [part.group_sizes for part in parts])
    with closing(_SplitWriter(folder, name)) as writer:
        for first in range(0, len(drawn.rows), COPIED):
            plan.check_stop()
            portion = slice(first, first + COPIED)
            places = zip(drawn.datasets[portion].tolist(), drawn.rows[portion].tolist(), strict=True)
            writer.write([parts[dataset].split.row(row) for dataset, row in places])
    return writer.facts


def _pack(plan: BuildPlan, folder: Path, name: str) -> int | None:
    """The number of packs; None if rows are not packed."""
    training = plan.job.training
    if training.packing not in ("bfd", "wrapped"):
        return None
    algorithm = pack.bfd if training.packing == "bfd" else pack.wrapped
    packs = algorithm(open_split(folder, name).lengths, training.cutoff_length)
    write_packs(folder, name, packs)
    return len(packs)


def _check_statistics(plan: BuildPlan, statistics: list[DatasetStatistics]) -> None:
    """Raises UnusableData. It runs after all data sets were read, so that the user can fix all of them at once."""
    datasets = list(zip([*plan.train, *plan.evaluate], statistics, strict=True))
    messages = [
        invalid_rows_message(dataset, source.spec.max_invalid_rows or 0, plan.invalid_rows)
        for source, dataset in datasets
        if dataset.broken > (source.spec.max_invalid_rows or 0)
    ]
    if messages:
        message = messages[0] if len(messages) == 1 else f"{len(messages)} data sets have broken rows. {messages[0]}"
        raise UnusableData(message, statistics)
    for source, dataset in datasets:
        valid = dataset.rows - dataset.broken
        if not valid:
            message = f"the data sets hold no rows: {source.spec.source}. Add rows to its files, or remove the data set"
            raise UnusableData(message, statistics)
        alike = f"training.cutoffLength ({plan.job.training.cutoff_length} tokens) ends before their answers differ"
        if not dataset.kept:
            reason = alike if dataset.alike > dataset.emptied else plan.limit
            message = f"all {valid} {plan.unit} of {source.spec.source} are left out because {reason}: nothing is left"
            advice = f"or shorten the {'answers' if reason == alike else 'prompts'}"
            raise UnusableData(f"{message} to train on. Raise training.cutoffLength, {advice}.", statistics)
        for count, reason in ((dataset.emptied, plan.limit), (dataset.alike, alike)):
            if count:
                log.warning("%s: %d %s left out because %s", dataset.source, count, plan.unit, reason)
