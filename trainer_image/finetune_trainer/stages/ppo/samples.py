"""What the model answers to held-out prompts, for people: reports/samples.jsonl.

Filled by the trainer while it evaluates. Only rank 0 writes, of what it measured itself: the same prompts each time.
"""

import json
from typing import Any

from finetune_trainer.reporting.progress import cut_back
from finetune_trainer.run import Run
from finetune_trainer.workspace import usable

FILE = "samples.jsonl"
SHOWN = 8
"""Answers of one evaluation."""


class Samples:
    """Of one run."""

    def __init__(self, run: Run, tokens: Any) -> None:
        self._run, self._tokens = run, tokens
        self._taken: dict[tuple[int, ...], tuple[list[int], float]] = {}

    def take(self, prompts: list[list[int]], answers: list[list[int]], rewards: list[float]) -> None:
        """Some of a batch. One that is measured again, as a GPU had no room for it, is the same."""
        for prompt, answer, reward in zip(prompts, answers, rewards, strict=True):
            if len(self._taken) < SHOWN:
                self._taken[tuple(prompt)] = (answer, reward)

    def write(self, step: int) -> None:
        """What was taken since the last time. Lines of this step and later are those of a run that this one repeats."""
        taken, self._taken = self._taken, {}
        if not taken or not self._run.is_main:
            return
        file = self._run.folders.reports / FILE
        with usable(self._run.folders.workspace):
            cut_back(file, step - 1)
            with file.open("a", encoding="utf-8") as out:
                for prompt, (answer, reward) in taken.items():
                    line = {
                        "current_steps": step,
                        "prompt": self._tokens.decode(list(prompt)),
                        "answer": self._tokens.decode(answer, skip_special_tokens=True),
                        "reward": reward,
                    }
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
