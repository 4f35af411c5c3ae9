"""A tokenized row: what the prepared data holds, and what packing and collating work on."""

from typing import NamedTuple

IGNORED = -100
"""Label of a token that is seen but not trained, as torch's cross-entropy knows it."""


class Row(NamedTuple):
    """Token ids, and which of them count in the loss."""

    input_ids: list[int]
    trained: list[tuple[int, int]]
    """Half-open spans of input_ids, in order and disjoint. Token 0 of a row never counts: nothing comes before it."""
    cut: int = 0
    """Tokens that were lost to training.cutoffLength."""
    desirable: bool = True
    """Stage kto: whether the answer is wanted."""

    @property
    def answer_start(self) -> int:
        """Where the prompt ends: at the first trained token. Of a row without one, everything is prompt."""
        return self.trained[0][0] if self.trained else len(self.input_ids)

    @property
    def trained_tokens(self) -> int:
        """Tokens that count in the loss."""
        return sum(end - max(start, 1) for start, end in self.trained if end > 1)

    @property
    def labels(self) -> list[int]:
        """As losses take them."""
        labels = [IGNORED] * len(self.input_ids)
        for start, end in self.trained:
            labels[start:end] = self.input_ids[start:end]
        return labels
