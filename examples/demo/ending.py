"""The end of the demo: the loss curve, and the answers to the same question before and after training.

Called by both playbooks.
"""

import json
import os
import textwrap
from pathlib import Path

from examples.demo import plot
from examples.demo.volume import QUESTION

LOG = "trainer_log.jsonl"
PICTURE = "training_loss.png"


def losses(log: Path) -> list[tuple[float, float]]:
    """(step, loss) for each line of the trainer's log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["current_steps"], line["loss"]) for line in lines]


def show(reports: Path, before: str, after: str) -> None:
    """Print the loss curve from the log, the path of the plot, and the two answers."""
    print("\n  Training loss by step")
    print("\n".join(plot.curve(losses(reports / LOG))))
    print(f"\n  As an image: {os.path.relpath(reports / PICTURE)}")
    print(f"\n  Question: {QUESTION}")
    for title, answer in (("Before:", before), ("After:", after)):
        print(textwrap.fill(answer, 100, initial_indent=f"  {title:<10}", subsequent_indent=" " * 12))
