"""Statistics of a data set: how many rows it has, which rows are invalid, and how long the others are.

`build_data` fills them as blocks are tokenized, in the order of the files. The manifest of the data cache keeps them,
so that a second run reports the same without reading any row. Counts are in the unit that the stage trains: rows,
pairs, answers or prompts (``finetune_api.data.UNITS``).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from finetune_trainer.data.row import Row
from finetune_trainer.data.templates import left_out

EXAMPLES_PER_RULE = 20
"""Invalid rows that the report lists per rule. The file beside the report lists all."""
BUCKETS = tuple(2**power for power in range(5, 21))
"""Histogram of lengths: up to 32 tokens, up to 64, and so on."""
PAIR = ("chosen", "rejected")
NAMED_IN_MESSAGE = 8
MESSAGE_LENGTH = 1000
"""Characters. The message must fit into a condition and into a termination message."""
LINE_LENGTH = 240
NAMES_COUNTED = 200
"""Names of unused keys per data set. Rows may use ids as keys, so the number of names has no bound."""
OTHER_NAMES = "other keys"
NAMES_SHOWN = 6
WITH_MEANING = {
    *("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call", "functions", "tools", "system"),
    *("weight", "train", "loss", "refusal", "history", "chat_template_kwargs", "image", "video", "audio"),
}
"""Names of columns and keys that say what to train. If they are not used, training may not be what the user means."""
WITH_MEANING_LEFT_OUT = {
    name + left_out.SUFFIX for name in (*left_out.TEXTS.values(), "tool_calls[].function", "parts of tools")
}
"""The same for what a chat template leaves out. Templates leave out ids and earlier thoughts on purpose."""


class InvalidRow(NamedTuple):
    """A row that cannot be used."""

    place: str
    """``name:line`` or ``name[index]``."""
    rule: str
    message: str


@dataclass
class DatasetStatistics:
    """See the module. The names of the fields are those of the report in JSON."""

    source: str
    unit: str = "rows"
    rows: int = 0
    """Rows of the files, valid and invalid."""
    broken: int = 0
    """Invalid rows."""
    rules: dict[str, int] = field(default_factory=dict)
    """Rule -> invalid rows."""
    examples: list[InvalidRow] = field(default_factory=list)
    truncated: int = 0
    """Units that training.cutoffLength shortened."""
    tokens_cut: int = 0
    emptied: int = 0
    """Units dropped after tokenization because none of their tokens is trained; pairs: none of either answer's."""
    alike: int = 0
    """Pairs dropped because training.cutoffLength ends before their answers differ."""
    kept: int = 0
    unwanted: int = 0
    """Stage kto: kept answers that are not desirable."""
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Histograms of what is kept: of the units, or of both rows of pairs, and of their prompts."""
    not_used: dict[str, int] = field(default_factory=dict)
    """Name of a column or key that is not used -> rows that have a value in it."""

    @property
    def left_out(self) -> int:
        """Units dropped after tokenization."""
        return self.emptied + self.alike

    def add_unused(self, names: Mapping[str, int]) -> None:
        """Count what rows have and training does not use."""
        for name, rows in names.items():
            known = name in self.not_used or len(self.not_used) < NAMES_COUNTED
            name = name[:LINE_LENGTH] if known else OTHER_NAMES
            self.not_used[name] = self.not_used.get(name, 0) + rows

    def add_invalid(self, row: InvalidRow) -> None:
        """Count an invalid row, and keep it as an example if its rule has few examples."""
        self.broken += 1
        self.rules[row.rule] = self.rules.get(row.rule, 0) + 1
        if self.rules[row.rule] <= EXAMPLES_PER_RULE:
            self.examples.append(row)

    def add_rows(self, group: list[Row]) -> list[Row]:
        """Count the tokenized rows of a row of the data set. Returns the rows to train."""
        units = [group] if self.unit == "pairs" else [[row] for row in group]
        return [row for unit in units if self._add_unit(unit) for row in unit]

    def _add_unit(self, rows: list[Row]) -> bool:
        """Whether the unit is kept. ``rows``: a single row, or the two rows of a pair."""
        self.truncated += any(row.cut for row in rows)
        self.tokens_cut += sum(row.cut for row in rows)
        if not all(row.input_ids if self.unit == "prompts" else row.trained_tokens for row in rows):
            self.emptied += 1
            return False
        if self.unit == "pairs" and rows[0].input_ids == rows[1].input_ids:
            self.alike += 1
            return False
        self.kept += 1
        for name, row in zip(PAIR if self.unit == "pairs" else (self.unit,), rows, strict=True):
            self._add_length(name, len(row.input_ids))
        if self.unit in ("pairs", "answers"):
            self._add_length("prompts", rows[0].answer_start)
        self.unwanted += not rows[0].desirable
        return True

    def _add_length(self, name: str, length: int) -> None:
        self.lengths.setdefault(name, [0] * (len(BUCKETS) + 1))[_bucket(length)] += 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON, for the manifest and the report."""
        return asdict(self) | {"examples": [list(row) for row in self.examples]}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "DatasetStatistics":
        """From `to_dict`."""
        return DatasetStatistics(**{**content, "examples": [InvalidRow(*row) for row in content["examples"]]})


def _bucket(length: int) -> int:
    return min(max(0, (length - 1).bit_length() - 5), len(BUCKETS)) if length > 0 else 0


def data_warning(statistics: Sequence[DatasetStatistics], limit: str) -> str | None:
    """What looks wrong in the training data although it can be trained. ``limit``: why units are dropped after
    tokenization, in words."""
    warnings = []
    kept, unwanted, emptied = (sum(getattr(s, name) for s in statistics) for name in ("kept", "unwanted", "emptied"))
    unit = statistics[0].unit
    if unit == "answers" and unwanted in (0, kept):
        label = "unwanted" if unwanted else "wanted"
        warnings.append(
            f"all {kept:,} answers are {label}, and kto learns from the difference: check that the labels are right"
        )
    total = kept + sum(s.left_out for s in statistics)
    if emptied:
        warnings.append(f"{emptied:,} of {total:,} {unit} are left out because {limit}")
    if alike := sum(s.alike for s in statistics):
        warnings.append(
            f"{alike:,} of {total:,} pairs are left out because training.cutoffLength ends before their answers differ"
        )
    unused = not_used(statistics)
    lost = {name: rows for name, rows in unused.items() if name in WITH_MEANING_LEFT_OUT or _last(name) in WITH_MEANING}
    if lost:
        warnings.append(f"not used although it may matter: {shown_names(lost)}")
    return "; ".join(warnings)[:MESSAGE_LENGTH] or None


def not_used(statistics: Sequence[DatasetStatistics]) -> dict[str, int]:
    """What rows of any data set have and training does not use, the most frequent first."""
    counts: Counter[str] = Counter()
    for dataset in statistics:
        counts.update(dataset.not_used)
    return dict(sorted(counts.items(), key=lambda count: (-count[1], count[0])))


def shown_names(names: Mapping[str, int]) -> str:
    """Names of unused keys in a line."""
    shown = [f"{' '.join(name.split())[:60]} ({rows:,} rows)" for name, rows in list(names.items())[:NAMES_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more else "")


def _last(name: str) -> str:
    return name.rpartition("].")[2]


def invalid_rows_message(statistics: DatasetStatistics, allowed: int, invalid_rows: str) -> str:
    """The message for the condition: how many rows are invalid, the first of them, and the file that lists all
    (``invalid_rows``)."""
    beyond = f", more than the {allowed} that maxInvalidRows allows" if allowed else ""
    head = f"{statistics.broken} of {statistics.rows} rows can't be used{beyond}: "
    tail = f"; all of them are in {invalid_rows}"
    if statistics.broken < statistics.rows:
        tail += f". To leave them out, set datasets.maxInvalidRows to {statistics.broken}"
    shown: list[str] = []
    # First one row of each rule: seven mistakes of seven kinds tell more than seven of the same kind.
    first_of_rule = {row.rule: row for row in reversed(statistics.examples)}
    selected = sorted(statistics.examples, key=lambda row: row is not first_of_rule[row.rule])[:NAMED_IN_MESSAGE]
    for row in sorted(selected, key=statistics.examples.index):
        line = f"{row.place}: {row.message}"
        line = line if len(line) <= LINE_LENGTH else line[: LINE_LENGTH - 3] + "..."
        rest = f"; and {statistics.broken - len(shown)} more"
        if len(head) + sum(map(len, shown)) + 2 * len(shown) + len(line) + len(rest) + len(tail) > MESSAGE_LENGTH:
            break
        shown.append(line)
    more = statistics.broken - len(shown)
    return head + "; ".join(shown) + (f"; and {more} more" if more else "") + tail
