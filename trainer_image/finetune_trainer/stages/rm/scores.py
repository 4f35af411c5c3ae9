"""Scores of the finished reward model for pairs that it was not trained on.

The workflow calls `compute` on every rank. Their mean and deviation, by which stage ppo normalizes rewards, go into the
artifact. The two scores of each pair go into the reports.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_trainer.data.datasets import Pairs
from finetune_trainer.model.reward_model import STATISTICS
from finetune_trainer.run import Run
from finetune_trainer.training.loop import Training
from finetune_trainer.training.recipe import Data
from finetune_trainer.training.trainer import EvaluationValues

log = logging.getLogger(__name__)

FILE = "scores.jsonl"
PAIRS = 512
"""Number of trained pairs that are scored if no pairs are held out. Their scores lie further apart."""
TRAINED = "train"


class FirstPairs(Pairs):
    """The first `PAIRS` pairs of a split."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__(pairs.split)
        self.lengths = self.lengths[:PAIRS]


@dataclass(frozen=True)
class Scores:
    """Split -> scores of its pairs, as ``chosen`` and ``rejected``."""

    values: dict[str, EvaluationValues]

    def write_statistics(self, folder: Path) -> None:
        """Write mean and deviation into the artifact."""
        scores = np.concatenate([split[side] for split in self.values.values() for side in ("chosen", "rejected")])
        held_out = TRAINED not in self.values
        content = {"mean": float(scores.mean()), "std": float(scores.std()), "rows": len(scores), "heldOut": held_out}
        (folder / STATISTICS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def write_rows(self, folder: Path) -> None:
        """Write a line per pair, in the order of the data."""
        with (folder / FILE).open("w", encoding="utf-8") as file:
            for split, values in self.values.items():
                for at in np.argsort(values["item"]).tolist():
                    line = {"split": split, "row": int(values["item"][at])}
                    line |= {name: float(values[name][at]) for name in ("chosen", "rejected")}
                    file.write(json.dumps(line) + "\n")


def compute(run: Run, training: Training, data: Data[Pairs]) -> Scores:
    """Scores of the held-out pairs from the last evaluation, or of some trained pairs if none are held out."""
    if training.evaluation.values:
        return Scores(training.evaluation.values)
    if run.is_main:
        log.warning(
            "No pairs are held out. %s describes pairs that were trained on, whose scores lie further apart than those"
            " of others. For stage ppo (rewardNormalization: model) set evaluation.splitFraction.",
            STATISTICS,
        )
    return Scores(training.values_of({TRAINED: FirstPairs(data.train)}))
