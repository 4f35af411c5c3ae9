"""What stage ppo asks: prompts, each as inference has it.

Made by workflows over a split of the prepared data, whose rows have no trained token. There is no collator: prompts are
answered first, and batches are made of the answers.
"""

import numpy as np
import numpy.typing as npt

from finetune_trainer.data.store import Split


class Prompts:
    """The prompts of one split, by number."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.lengths: npt.NDArray[np.integer] = split.lengths
        """Tokens of each prompt."""

    def __len__(self) -> int:
        return len(self.lengths)

    def prompt(self, item: int) -> list[int]:
        """Token ids, up to where the answer begins."""
        return self.split.row(item).input_ids
