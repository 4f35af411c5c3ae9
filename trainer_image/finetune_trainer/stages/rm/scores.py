"""What the finished reward model says of pairs that it wasn't trained on.

Called by the workflow on every rank. Stage ppo takes scores by their mean and deviation, which are written into the
artifact; each pair's two scores are written into the reports.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_trainer.data.pairs import Pairs
from finetune_trainer.model.reward import STATISTICS
from finetune_trainer.run import Run
from finetune_trainer.stages.engine import Values
from finetune_trainer.stages.evaluation import Evaluation
from finetune_trainer.stages.playbook import Data, Training

log = logging.getLogger(__name__)

FILE = "scores.jsonl"
PAIRS = 512
"""So many of those that were trained on stand for others where no data is held out. Their scores lie further apart."""


TRAINED = "train"


class First(Pairs):
    """The first pairs of a split."""

    def __init__(self, pairs: Pairs) -> None:
        super().__init__(pairs.split)
        self.lengths = self.lengths[:PAIRS]


@dataclass(frozen=True)
class Scores:
    """By split."""

    values: dict[str, Values]

    def write_statistics(self, folder: Path) -> None:
        """Into the artifact."""
        both = np.concatenate([np.concatenate([one["chosen"], one["rejected"]]) for one in self.values.values()])
        held_out = TRAINED not in self.values
        content = {"mean": float(both.mean()), "std": float(both.std()), "rows": len(both), "heldOut": held_out}
        (folder / STATISTICS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def write_rows(self, folder: Path) -> None:
        """A line a pair, in the order of the data."""
        with (folder / FILE).open("w", encoding="utf-8") as file:
            for split, values in self.values.items():
                for at in np.argsort(values["item"]).tolist():
                    line = {"split": split, "row": int(values["item"][at])}
                    line |= {name: float(values[name][at]) for name in ("chosen", "rejected")}
                    file.write(json.dumps(line) + "\n")


def of(run: Run, made: Training, data: Data) -> Scores:
    """Of the held-out pairs, as the last evaluation found them, else of some of the others."""
    if made.evaluation.values:
        return Scores(made.evaluation.values)
    if run.is_main:
        log.warning(
            "no pairs are held out: %s is of pairs that were trained on, whose scores lie further apart than others'."
            " For stage ppo (rewardNormalization: model) set evaluation.splitFraction",
            STATISTICS,
        )
    model = made.trainer.model
    attention = str(model.config.get_text_config()._attn_implementation)
    pad_id = model.config.get_text_config().pad_token_id
    values = Evaluation(run, {TRAINED: First(data.train)}, pad_id, attention, made.progress.alive).scan(made.trainer)
    if values is None:
        made.steps.leave()
    assert values is not None  # leaving is not coming back
    return Scores(values)
