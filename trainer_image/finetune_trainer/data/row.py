"""A tokenized row: the unit of prepared data, of packing and of collation."""

from typing import NamedTuple

IGNORED = -100
"""Label of a token without a loss; the ``ignore_index`` of torch's cross-entropy."""


class Row(NamedTuple):
    """Token ids, and which of them are trained."""

    input_ids: list[int]
    trained: list[tuple[int, int]]
    """Half-open spans of input_ids, in order and disjoint. Token 0 of a row never has a loss: nothing precedes it."""
    cut: int = 0
    """Tokens that training.cutoffLength removed."""
    desirable: bool = True
    """Stage kto: whether the answer is desirable."""

    @property
    def answer_start(self) -> int:
        """Length of the prompt: index of the first trained token, or the whole length if no token is trained."""
        return self.trained[0][0] if self.trained else len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens with a loss."""
        return sum(end - max(start, 1) for start, end in self.trained if end > 1)

    @property
    def labels(self) -> list[int]:
        """Labels for the loss, aligned with input_ids."""
        labels = [IGNORED] * len(self.input_ids)
        for start, end in self.trained:
            labels[start:end] = self.input_ids[start:end]
        return labels
