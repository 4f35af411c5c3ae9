"""All data sets of a job, checked row by row and tokenized.

Called by a workflow before the model is loaded, so that bad data ends a run in seconds. Either every row is good, or
`InvalidData` names the first broken ones with file and line.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_api.data import DatasetSpec

from finetune_trainer.data import formats, sources
from finetune_trainer.data.formats import BadRow
from finetune_trainer.data.template import Template
from finetune_trainer.data.tokenize import Row, tokenize
from finetune_trainer.errors import InvalidData
from finetune_trainer.run import Folders

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

BROKEN_SHOWN = 5
BETWEEN_CHECKS = 256
"""Rows between two looks at whether to stop."""


@dataclass
class TrainingData:
    """What there is to train on, and what became of the rest."""

    rows: list[Row] = field(default_factory=list)
    cut: int = 0
    """Rows that lost their end to cutoffLength."""
    emptied: int = 0
    """Rows left out: cutoffLength took every trained token."""
    digests: dict[str, str] = field(default_factory=dict)
    """Source -> sha256 of its file."""

    @property
    def lengths(self) -> list[int]:
        return [len(row.input_ids) for row in self.rows]

    @property
    def highest_id(self) -> int:
        return max(max(row.input_ids) for row in self.rows)

    @property
    def trained_tokens(self) -> int:
        return sum(row.trained for row in self.rows)

    def as_dataset(self) -> "Dataset":
        """As trainers take it."""
        from datasets import Dataset  # needs seconds to import, and checking data doesn't need it

        return Dataset.from_dict(
            {"input_ids": [row.input_ids for row in self.rows], "labels": [row.labels for row in self.rows]}
        )

    def describe(self) -> str:
        """One line for the log."""
        lengths = sorted(self.lengths)
        return (
            f"{len(lengths)} rows, {sum(lengths)} tokens of which {self.trained_tokens} trained; lengths: median"
            f" {lengths[len(lengths) // 2]}, longest {lengths[-1]}; {self.cut} cut at the end, {self.emptied} left out"
        )


def load(
    datasets: list[DatasetSpec],
    folders: Folders,
    template: Template,
    cutoff: int,
    check_stop: Callable[[], None] = lambda: None,
) -> TrainingData:
    """Read, check and tokenize everything. ``check_stop`` is called now and then and may raise."""
    data = TrainingData()
    broken: list[str] = []
    count = 0
    for place, value, dataset in _values(datasets, folders, data):
        if count % BETWEEN_CHECKS == 0:
            check_stop()
        count += 1
        try:
            row = tokenize(formats.parse(value, dataset.format), template, cutoff)
        except BadRow as error:
            broken.append(f"{place}: {error}")
            continue
        data.cut += row.cut
        if row.trained:
            data.rows.append(row)
        else:
            data.emptied += 1
    if broken:
        raise InvalidData(_broken_message(broken, count))
    if not count:
        raise InvalidData("the data sets hold no rows: " + ", ".join(dataset.source for dataset in datasets))
    if not data.rows:
        raise InvalidData(
            f"training.cutoffLength is {cutoff} tokens, and in every one of {count} rows the answer begins later:"
            " nothing is left to train on. Raise it, or shorten the prompts."
        )
    if data.emptied:
        log.warning("%d of %d rows left out: cutoffLength %d ends before their answers", data.emptied, count, cutoff)
    log.info("data: %s", data.describe())
    return data


def _values(
    datasets: list[DatasetSpec], folders: Folders, data: TrainingData
) -> Iterator[tuple[str, Any, DatasetSpec]]:
    files = [folders.find(dataset.source) for dataset in datasets]
    for dataset, file in zip(datasets, files, strict=True):
        sources.check_name(file, dataset.source)
    for dataset, file in zip(datasets, files, strict=True):
        for place, value in sources.read(file):
            yield place, value, dataset
        data.digests[dataset.source] = sources.digest(file)


def _broken_message(broken: list[str], count: int) -> str:
    more = f"; and {len(broken) - BROKEN_SHOWN} more" if len(broken) > BROKEN_SHOWN else ""
    return f"{len(broken)} of {count} rows can't be used: " + "; ".join(broken[:BROKEN_SHOWN]) + more
