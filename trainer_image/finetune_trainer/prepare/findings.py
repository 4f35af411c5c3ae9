"""What was found while a data set was read: how many rows, which are broken, how long the others are.

Filled by ``build`` as blocks come back, in the order of the files; kept in the cache's manifest, so that a second run
reports the same without reading anything. What is counted is what the stage trains on: rows, pairs, answers or prompts
(``finetune_api.data.UNITS``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from finetune_trainer.data.row import Row

EXAMPLES = 20
"""Broken rows shown of each rule. All of them are in the file beside the report."""
EDGES = tuple(2**power for power in range(5, 21))
"""Histogram of lengths: up to 32 tokens, up to 64, and so on."""
PAIR = ("chosen", "rejected")
NAMED = 8
CHARACTERS = 1000
"""The message has to fit into a condition and a termination message."""


class Broken(NamedTuple):
    """A row that can't be used."""

    place: str
    rule: str
    message: str


@dataclass
class Findings:
    """Of one data set."""

    source: str
    unit: str = "rows"
    rows: int = 0
    """Rows of the files, good and bad."""
    broken: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    examples: list[Broken] = field(default_factory=list)
    truncated: int = 0
    """Those that lost their end to training.cutoffLength."""
    tokens_cut: int = 0
    emptied: int = 0
    """Left out after they were tokenized: nothing in them is trained. Of pairs, nothing of one answer or both."""
    kept: int = 0
    unwanted: int = 0
    """Kept answers of stage kto that are not wanted."""
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Of what is kept, how many are of which length: of the units, or of both rows of pairs; and of their prompts."""

    def add_broken(self, row: Broken) -> None:
        """Count it, and keep it if it is one of the first of its kind."""
        self.broken += 1
        self.rules[row.rule] = self.rules.get(row.rule, 0) + 1
        if self.rules[row.rule] <= EXAMPLES:
            self.examples.append(row)

    def add(self, group: list[Row]) -> list[Row]:
        """Count what a row of the data set was tokenized to; those of it to train on."""
        pieces = [group] if self.unit == "pairs" else [[row] for row in group]
        return [row for piece in pieces if self._keeps(piece) for row in piece]

    def _keeps(self, rows: list[Row]) -> bool:
        """``rows``: one, or the two of a pair."""
        self.truncated += any(row.cut for row in rows)
        self.tokens_cut += sum(row.cut for row in rows)
        if not all(row.input_ids if self.unit == "prompts" else row.trained_tokens for row in rows):
            self.emptied += 1
            return False
        self.kept += 1
        for name, row in zip(PAIR if self.unit == "pairs" else (self.unit,), rows, strict=True):
            self._measure(name, len(row.input_ids))
        if self.unit in ("pairs", "answers"):
            self._measure("prompts", rows[0].answer_start)
        self.unwanted += not rows[0].desirable
        return True

    def _measure(self, what: str, length: int) -> None:
        self.lengths.setdefault(what, [0] * (len(EDGES) + 1))[_bucket(length)] += 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"examples": [list(row) for row in self.examples]}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "Findings":
        return Findings(**{**content, "examples": [Broken(*row) for row in content["examples"]]})


def _bucket(length: int) -> int:
    return min(max(0, (length - 1).bit_length() - 5), len(EDGES)) if length > 0 else 0


def warning(findings: Sequence[Findings], limit: str) -> str | None:
    """What of the data to train on looks wrong, although it can be trained on. ``limit``: what rows were left out by,
    in words."""
    said = []
    kept, unwanted, emptied = (sum(getattr(f, name) for f in findings) for name in ("kept", "unwanted", "emptied"))
    unit = findings[0].unit
    if unit == "answers" and unwanted in (0, kept):
        label = "unwanted" if unwanted else "wanted"
        said.append(
            f"all {kept:,} answers are {label}, and kto learns from the difference: see that the labels are right"
        )
    if emptied:
        said.append(f"{emptied:,} of {kept + emptied:,} {unit} are left out because {limit}")
    return "; ".join(said) or None


def too_many_broken(found: Findings, allowed: int, invalid_rows: str) -> str:
    """For the condition: how many, the first of them one by one, and the file that has the rest."""
    beyond = f", more than the {allowed} that maxInvalidRows allows" if allowed else ""
    head = f"{found.broken} of {found.rows} rows can't be used{beyond}: "
    tail = f"; all of them are in {invalid_rows}"
    shown: list[str] = []
    # One of each kind first: seven mistakes of seven kinds are more news than seven of one.
    first_of_rule = {row.rule: row for row in reversed(found.examples)}
    chosen = sorted(found.examples, key=lambda row: row is not first_of_rule[row.rule])[:NAMED]
    for row in sorted(chosen, key=found.examples.index):
        line = f"{row.place}: {row.message}"
        line = line if len(line) <= 240 else line[:237] + "..."
        rest = f"; and {found.broken - len(shown)} more"
        if len(head) + sum(map(len, shown)) + 2 * len(shown) + len(line) + len(rest) + len(tail) > CHARACTERS:
            break
        shown.append(line)
    more = found.broken - len(shown)
    return head + "; ".join(shown) + (f"; and {more} more" if more else "") + tail
