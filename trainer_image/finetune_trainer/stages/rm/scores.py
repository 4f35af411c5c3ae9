"""What the finished reward model says of pairs that it wasn't trained on.

Called by the workflow on every rank. Stage ppo takes scores by their mean and deviation, which are written into the
artifact; each pair's two scores are written into the reports.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_trainer.data.pairs import Pairs
from finetune_trainer.errors import Preempted
from finetune_trainer.model.reward import STATISTICS
from finetune_trainer.run import Run
from finetune_trainer.stages.engine import Values
from finetune_trainer.stages.evaluation import Evaluation
from finetune_trainer.stages.playbook import Data, Training

FILE = "scores.jsonl"
PAIRS = 512
"""So many of those that were trained on stand for others where no data is held out."""


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
        content = {"mean": float(both.mean()), "std": float(both.std()), "rows": len(both)}
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
    model = made.trainer.model
    attention = str(model.config.get_text_config()._attn_implementation)
    pad_id = model.config.get_text_config().pad_token_id
    values = Evaluation(run, {"train": First(data.train)}, pad_id, attention, made.progress.alive).scan(made.trainer)
    if values is None:
        raise Preempted("told to stop after the last step, before the artifact was written: the next attempt does it")
    return Scores(values)
