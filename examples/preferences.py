"""Preference data about FineTuneJobs: ``python examples/preferences.py``.

Reads questions and answers from ``data/finetunejobs.jsonl`` and writes two files beside it. ``preferences.jsonl`` is
for stages rm and dpo: each question with its answer and a worse answer. ``judged.jsonl`` is for stage kto: each
question with either answer, and whether that answer is wanted. A wanted answer is short, and says what is true and what
to do. A worse answer evades the question or answers another question.
"""

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
EVASIVE = (
    "It depends on many things. Please ask your administrator, who may know more about it.",
    "That is a good question! There are several ways to look at this, and each of them has its advantages.",
    "As far as I know this is described somewhere in the documentation, which you could read from the start.",
    "I am not sure what you mean. Could you describe in more detail what you would like to know?",
    "Usually it works by itself. If it doesn't, try again later or restart everything.",
)


def pairs(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A pair of answers for each question."""
    answers = list(dict.fromkeys(row["messages"][-1]["content"] for row in rows))
    result = []
    for number, row in enumerate(rows):
        question, answer = row["messages"]
        far = answers[(answers.index(answer["content"]) + len(answers) // 2) % len(answers)]
        worse = EVASIVE[number // 2 % len(EVASIVE)] if number % 2 else far
        result.append({"prompt": [question], "chosen": [answer], "rejected": [{"role": "assistant", "content": worse}]})
    return result


def judged(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One answer of each pair. Three of five answers are wanted."""
    result = []
    for number, pair in enumerate(pairs):
        wanted = number % 5 in (0, 2, 3)
        answer = pair["chosen" if wanted else "rejected"]
        result.append({"prompt": pair["prompt"], "completion": answer, "label": wanted})
    return result


def files() -> dict[str, str]:
    """The content of each file, by its name."""
    lines = (DATA / "finetunejobs.jsonl").read_text(encoding="utf-8").splitlines()
    answers = pairs([json.loads(line) for line in lines])
    rows = {"preferences.jsonl": answers, "judged.jsonl": judged(answers)}
    return {name: "".join(json.dumps(row) + "\n" for row in each) for name, each in rows.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (DATA / name).write_text(text, encoding="utf-8")
