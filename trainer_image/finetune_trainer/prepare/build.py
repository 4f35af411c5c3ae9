"""An entry of the cache, from data files to shards: every row checked and tokenized once, then drawn and packed.

Called by ``prepare.run`` through ``cache.entry``. A data set with maxSamples is read twice: first every row is checked,
then those are tokenized that were drawn. Where data sets are split or interleaved, each is first written by itself and
its rows are copied from there, mapped and not loaded, in the order of ``selection``; else rows go straight to their
split. Returns the facts for the manifest.
"""

import json
import logging
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt
from finetune_api.contract import ResolvedJob
from finetune_api.data import UNITS, DatasetSpec

from finetune_trainer.data import pack
from finetune_trainer.data.files import DataFile, data_files
from finetune_trainer.data.rows import blocks
from finetune_trainer.data.store import ShardWriter, Split, SplitFacts, open_split, write_packs
from finetune_trainer.errors import InvalidData
from finetune_trainer.prepare import pool, selection
from finetune_trainer.prepare.findings import Findings, too_many_broken, warning

PARTS = "parts"
INVALID_ROWS = "invalid-rows.jsonl"
"""In the reports of every job, and in the entry if it has any."""
EVALUATION = 1000
"""Data sets to evaluate on are drawn from as if they came after so many others."""
COPIED = 1024
"""Rows copied between two looks at whether to stop."""

log = logging.getLogger(__name__)

Activity = Literal["Validating", "Tokenizing"]


class BrokenRows(InvalidData):
    """With what was found, for the report."""

    def __init__(self, message: str, findings: list[Findings]) -> None:
        super().__init__(message)
        self.findings = findings


@dataclass(frozen=True)
class Source:
    """A data set and where it was fetched to."""

    spec: DatasetSpec
    path: Path

    @property
    def files(self) -> list[DataFile]:
        """Its files, in the order in which they are read."""
        return data_files(self.path, self.spec)

    @property
    def size(self) -> int:
        """Of the files, in bytes."""
        return sum(file.path.stat().st_size for file in self.files)


@dataclass(frozen=True)
class Read:
    """How far reading has come, for people."""

    activity: Activity
    rows: int
    """Checked or tokenized."""
    size: int
    """Bytes of the files that were read for it, as far as they are known: of an archive or a table, when it ends."""
    total: int


@dataclass(frozen=True)
class Plan:
    """What is built, of what, and how."""

    job: ResolvedJob
    train: list[Source]
    evaluate: list[Source]
    tools: pool.Tools
    processes: int
    reports: Path
    invalid_rows: str
    """Where in the workspace all broken rows are listed, for messages."""
    report: Callable[[Read], None]
    check_stop: Callable[[], None]

    @property
    def evaluation_splits(self) -> list[str]:
        """eval, or eval-1, eval-2, ... where there are several data sets."""
        if self.job.evaluation is None:
            return []
        if len(self.evaluate) < 2:
            return ["eval"]
        return [f"eval-{number}" for number in range(1, len(self.evaluate) + 1)]

    @property
    def unit(self) -> str:
        """What the stage trains on."""
        return UNITS[self.job.stage]

    @property
    def limit(self) -> str:
        """Why units are left out after they were tokenized, in words."""
        cutoff, ppo = self.job.training.cutoff_length, self.job.ppo
        if ppo:
            rest = f"{cutoff} - {ppo.max_new_tokens} = {cutoff - ppo.max_new_tokens}"
            return f"they are longer than what training.cutoffLength leaves beside ppo.maxNewTokens ({rest} tokens)"
        if self.job.stage == "pt":
            return "they have a single token"
        begins = "an answer begins" if self.unit == "pairs" else "the answer begins"
        return f"{begins} after training.cutoffLength ({cutoff} tokens)"

    @property
    def draws(self) -> bool:
        """Whether the rows to train on are not simply those of the data sets, one after the other."""
        fraction = self.job.evaluation.split_fraction if self.job.evaluation else None
        return bool(fraction or self.job.mixing != "concatenate")


def build(plan: Plan, folder: Path) -> dict[str, Any]:
    """Fill ``folder``. Raises InvalidData, after all rows were looked at, when too many are broken."""
    plan.reports.mkdir(parents=True, exist_ok=True)
    (folder / PARTS).mkdir()
    with (
        pool.workers(plan.processes, plan.tools, plan.check_stop) as run,
        (plan.reports / INVALID_ROWS).open("w", encoding="utf-8") as invalid,
    ):
        reading = _Reading(plan, run, invalid)
        splits: dict[str, SplitFacts] = {}
        if plan.draws:
            parts = [reading.part(source, i, folder / PARTS, f"part-{i}") for i, source in enumerate(plan.train)]
        else:
            with closing(_Writer(folder, "train")) as writer:
                for number, source in enumerate(plan.train):
                    reading.read(source, number, writer)
            splits["train"] = writer.facts
        names = zip(plan.evaluation_splits, plan.evaluate, strict=bool(plan.evaluate))
        for number, (name, source) in enumerate(names, start=EVALUATION):
            with closing(_Writer(folder, name)) as writer:
                reading.read(source, number, writer)
            splits[name] = writer.facts
    _check(plan, reading.findings)
    if plan.draws:
        splits |= _draw(plan, folder, parts)
    shutil.rmtree(folder / PARTS)
    if any(found.broken for found in reading.findings):
        shutil.copyfile(plan.reports / INVALID_ROWS, folder / INVALID_ROWS)
    for name, facts in splits.items():
        if not facts.rows:
            raise InvalidData(f"no row is left for {name}: raise maxSamples or evaluation.splitFraction")
        _pack(plan, folder, name)
    rows_each = 2 if plan.unit == "pairs" else 1
    return {
        "splits": {
            name: asdict(splits[name]) | {"rows": splits[name].rows // rows_each}
            for name in ("train", *plan.evaluation_splits)
        },
        "datasets": [found.to_dict() for found in reading.findings],
        "warning": warning(reading.findings[: len(plan.train)], plan.limit),
    }


def list_invalid(folder: Path, reports: Path) -> None:
    """The broken rows of an entry, which another job may have built, in this job's reports."""
    reports.mkdir(parents=True, exist_ok=True)
    kept = folder / INVALID_ROWS
    (reports / INVALID_ROWS).write_bytes(kept.read_bytes() if kept.is_file() else b"")


class _Writer:
    """A split that is being written; ``close`` may be called after a failure, too."""

    def __init__(self, folder: Path, split: str) -> None:
        self._shards = ShardWriter(folder, split)
        self.write = self._shards.write
        self.facts = SplitFacts(0, 0, 0, 0, -1)

    def close(self) -> None:
        self.facts = self._shards.close()


class _Reading:
    """Reads data sets one after the other, and notes what was found."""

    def __init__(self, plan: Plan, run: pool.Run, invalid: TextIO) -> None:
        self._plan, self._run, self._invalid = plan, run, invalid
        self.findings: list[Findings] = []
        self._rows: Counter[Activity] = Counter()
        self._bytes = 0
        self._total = sum(source.size for source in (*plan.train, *plan.evaluate))

    def read(self, source: Source, number: int, writer: _Writer) -> "array[int]":
        """Write the good rows of a data set, or those drawn of them; how many rows each group became. ``number`` tells
        it from the others that are drawn from with the same seed."""
        found, groups = Findings(source.spec.source, self._plan.unit), array("i")
        self.findings.append(found)
        chosen: Iterable[pool.Chosen] = repeat("all")
        if source.spec.max_samples is not None:
            good = [done.good for done in self._blocks(source, "Validating", found, repeat("none"))]
            chosen = selection.by_block(good, source.spec.max_samples, self._plan.job.training.seed, number)
        for done in self._blocks(source, "Tokenizing", found, chosen):
            for group in done.groups:
                if kept := found.add(group):
                    groups.append(len(kept))
                    writer.write(kept)
        self._bytes += source.size
        return groups

    def part(self, source: Source, number: int, folder: Path, name: str) -> tuple[Split, npt.NDArray[np.int32]]:
        """A data set by itself, to draw from: its rows, and how many of them each group has."""
        with closing(_Writer(folder, name)) as writer:
            groups = self.read(source, number, writer)
        return open_split(folder, name), np.array(groups, np.int32)

    def _blocks(
        self, source: Source, activity: Activity, found: Findings, chosen: Iterable[pool.Chosen]
    ) -> Iterator[pool.Done]:
        """What became of each block of a data set, noted and reported."""
        before = 0
        choices, shape = iter(chosen), pool.Shape.of(source.spec, self._plan.job.stage)
        for file in source.files:
            whole, read = file.path.stat().st_size, 0
            # zip asks a file that has ended for no choice: the next one is for the next file's first block.
            for done in self._run(zip(blocks(file), choices, strict=False), shape):
                found.rows += done.rows
                for row in done.broken:
                    found.add_broken(row)
                    line = {"source": source.spec.source, "place": row.place, "rule": row.rule, "message": row.message}
                    self._invalid.write(json.dumps(line, ensure_ascii=False) + "\n")
                yield done
                self._rows[activity] += done.rows if activity == "Validating" else len(done.groups)
                read = min(whole, read + done.size)
                self._plan.report(Read(activity, self._rows[activity], self._bytes + before + read, self._total))
            before += whole


def _draw(plan: Plan, folder: Path, parts: list[tuple[Split, npt.NDArray[np.int32]]]) -> dict[str, SplitFacts]:
    """The rows to train on, and those that splitFraction keeps from it."""
    seed, evaluation = plan.job.training.seed, plan.job.evaluation
    used = [np.arange(len(groups), dtype=np.int64) for _, groups in parts]
    splits = {}
    if evaluation and evaluation.split_fraction:
        used, held = selection.hold_out(used, evaluation.split_fraction, seed)
        splits["eval"] = _copy(plan, folder, "eval", parts, *selection.mix(held, "concatenate", [], seed))
    for source, groups in zip(plan.train, used, strict=True):
        if not len(groups) and plan.job.mixing != "concatenate":
            raise InvalidData(f"{source.spec.source}: no row is left of it to be mixed with the other data sets")
    weights = [source.spec.weight or 1.0 for source in plan.train]
    splits["train"] = _copy(plan, folder, "train", parts, *selection.mix(used, plan.job.mixing, weights, seed))
    return splits


def _copy(
    plan: Plan,
    folder: Path,
    name: str,
    parts: list[tuple[Split, npt.NDArray[np.int32]]],
    sets: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
) -> SplitFacts:
    picks = selection.expand(sets, groups, [sizes for _, sizes in parts])
    with closing(_Writer(folder, name)) as writer:
        for first in range(0, len(picks.rows), COPIED):
            plan.check_stop()
            piece = slice(first, first + COPIED)
            pairs = zip(picks.parts[piece].tolist(), picks.rows[piece].tolist(), strict=True)
            writer.write([parts[part][0].row(row) for part, row in pairs])
    return writer.facts


def _pack(plan: Plan, folder: Path, name: str) -> None:
    training = plan.job.training
    if training.packing in ("bfd", "wrapped"):
        way = pack.bfd if training.packing == "bfd" else pack.wrapped
        write_packs(folder, name, way(open_split(folder, name).lengths, training.cutoff_length))


def _check(plan: Plan, findings: list[Findings]) -> None:
    """Raises InvalidData. All data sets have been read: who has to repair one wants to know of the others, too."""
    bad = [
        too_many_broken(found, source.spec.max_invalid_rows or 0, plan.invalid_rows)
        for source, found in zip([*plan.train, *plan.evaluate], findings, strict=True)
        if found.broken > (source.spec.max_invalid_rows or 0)
    ]
    if bad:
        message = bad[0] if len(bad) == 1 else f"{len(bad)} data sets have broken rows. {bad[0]}"
        raise BrokenRows(message, findings)
    for source, found in zip([*plan.train, *plan.evaluate], findings, strict=True):
        good = found.rows - found.broken
        if not good:
            raise InvalidData(f"the data sets hold no rows: {source.spec.source}")
        if not found.kept:
            raise InvalidData(
                f"all {good} {plan.unit} of {source.spec.source} are left out because {plan.limit}: nothing is left to"
                " train on. Raise training.cutoffLength, or shorten the prompts."
            )
        if found.emptied:
            log.warning("%s: %d %s left out because %s", found.source, found.emptied, plan.unit, plan.limit)
