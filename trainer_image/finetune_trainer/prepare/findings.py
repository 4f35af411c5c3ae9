"""What was found while a data set was read: how many rows, which are broken, how long the others are.

Filled by ``build`` as blocks come back, in the order of the files; kept in the cache's manifest, so that a second run
reports the same without reading anything.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from finetune_trainer.data.row import Row

EXAMPLES = 20
"""Broken rows shown of each rule. All of them are in the file beside the report."""
EDGES = tuple(2**power for power in range(5, 21))
"""Histogram of lengths: up to 32 tokens, up to 64, and so on."""
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
    rows: int = 0
    """Rows of the files, good and bad."""
    broken: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    examples: list[Broken] = field(default_factory=list)
    truncated: int = 0
    """Tokenized rows that lost their end to training.cutoffLength."""
    tokens_cut: int = 0
    emptied: int = 0
    """Tokenized rows left out: nothing in them is trained."""
    kept: int = 0
    lengths: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))

    def add_broken(self, row: Broken) -> None:
        """Count it, and keep it if it is one of the first of its kind."""
        self.broken += 1
        self.rules[row.rule] = self.rules.get(row.rule, 0) + 1
        if self.rules[row.rule] <= EXAMPLES:
            self.examples.append(row)

    def add_row(self, row: Row) -> bool:
        """Count a tokenized row; whether it is one to train on."""
        if row.cut:
            self.truncated += 1
            self.tokens_cut += row.cut
        if not row.trained_tokens:
            self.emptied += 1
            return False
        self.kept += 1
        self.lengths[_bucket(len(row.input_ids))] += 1
        return True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"examples": [list(row) for row in self.examples]}

    @staticmethod
    def from_dict(content: dict[str, Any]) -> "Findings":
        return Findings(**{**content, "examples": [Broken(*row) for row in content["examples"]]})


def _bucket(length: int) -> int:
    return min(max(0, (length - 1).bit_length() - 5), len(EDGES)) if length > 0 else 0


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
