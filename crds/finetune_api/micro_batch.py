"""The micro-batch: what a GPU holds at once in a forward and backward pass of training.

Used by the operator, which halves it after a GPU ran out of memory, and by the trainer.
"""

from typing import Literal, NamedTuple, Protocol


class HasMicroBatch(Protocol):
    """The section of a spec, or the facts of an attempt, which may set one of them."""

    micro_batch_size: int | None
    micro_batch_tokens: int | None


class MicroBatch(NamedTuple):
    """So many rows, or rows with so many tokens together. A row with more tokens is a micro-batch of its own."""

    size: int
    unit: Literal["rows", "tokens"] = "rows"

    def rows(self, tokens: int) -> int:
        """The number of rows it holds if each has at most so many tokens."""
        return self.size if self.unit == "rows" else max(1, self.size // max(1, tokens))

    def half(self, longest: int = 1) -> "MicroBatch":
        """The next smaller. Rows: the largest divisor that is at most half, because it divides whatever the size
        divides. Tokens: half, but at least ``longest``, the tokens of the longest row."""
        if self.unit == "tokens":
            return MicroBatch(max(self.size // 2, longest), "tokens")
        return MicroBatch(next((part for part in range(self.size // 2, 0, -1) if self.size % part == 0), 1))

    def is_smallest(self, longest: int = 1) -> bool:
        """Whether a smaller one would hold the same rows. ``longest``: as in `half`."""
        return self.size <= (longest if self.unit == "tokens" else 1)

    def fields(self) -> dict[str, int | None]:
        """As the fields of `HasMicroBatch`."""
        return {f"micro_batch_{name}": self.size if self.unit == unit else None for unit, name in _FIELDS.items()}

    def __str__(self) -> str:
        return f"{self.size:,} tokens" if self.unit == "tokens" else str(self.size)


_FIELDS = {"rows": "size", "tokens": "tokens"}


def first_micro_batch(*sources: HasMicroBatch | None) -> MicroBatch | None:
    """The micro-batch of the first source that has any."""
    for source in sources:
        if source is not None and source.micro_batch_tokens is not None:
            return MicroBatch(source.micro_batch_tokens, "tokens")
        if source is not None and source.micro_batch_size is not None:
            return MicroBatch(source.micro_batch_size)
    return None
