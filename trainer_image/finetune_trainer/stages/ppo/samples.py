"""The table of example answers, for people: what the model answers to held-out prompts, in ``reports/samples.jsonl``.

The trainer fills it in each evaluation. Only rank 0 writes, and only its own answers: to the same prompts each time.
"""

import json

from transformers import PreTrainedTokenizerBase

from finetune_trainer.reporting.progress import truncate_after_step
from finetune_trainer.run import Run
from finetune_trainer.workspace.storage import storage_errors

FILE = "samples.jsonl"
SAMPLES = 8
"""Answers of one evaluation in the table."""


class SampleTable:
    """The table of one run."""

    def __init__(self, run: Run, tokens: PreTrainedTokenizerBase) -> None:
        self._run, self._tokens = run, tokens
        self._pending: dict[tuple[int, ...], tuple[list[int], float]] = {}
        """Prompt -> answer and score, not written yet. An evaluation repeats a batch if the GPU has no room for it."""

    def add(self, prompts: list[list[int]], answers: list[list[int]], scores: list[float]) -> None:
        """Add the answers of a batch, as long as there are fewer than `SAMPLES`."""
        for prompt, answer, score in zip(prompts, answers, scores, strict=True):
            if len(self._pending) < SAMPLES:
                self._pending[tuple(prompt)] = (answer, score)

    def write(self, step: int) -> None:
        """Write the answers of the evaluation at this step. Lines of this step and later are deleted: they are of a run
        that this run repeats."""
        pending, self._pending = self._pending, {}
        if not pending or not self._run.is_main:
            return
        file = self._run.folders.reports / FILE
        with storage_errors(self._run.folders.workspace):
            truncate_after_step(file, step - 1)
            with file.open("a", encoding="utf-8") as out:
                for prompt, (answer, score) in pending.items():
                    line = {
                        "current_steps": step,
                        "prompt": self._tokens.decode(list(prompt)),
                        "answer": self._tokens.decode(answer, skip_special_tokens=True),
                        "reward": score,
                    }
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
