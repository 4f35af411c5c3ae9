"""Answers that are wanted and answers that are not, about FineTuneJobs: ``python examples/preferences.py``.

Writes two files beside the questions and answers that they are made of, ``data/finetunejobs.jsonl``. For stages rm and
dpo, ``preferences.jsonl``: each question with its answer, and with a worse one. For stage kto, ``judged.jsonl``: each
question with one of the two, and whether it is wanted. Wanted is a short answer that says what is so and what to do.
Worse is one that evades, or that answers another question.
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
    """One for each question."""
    answers = list(dict.fromkeys(row["messages"][-1]["content"] for row in rows))
    made = []
    for number, row in enumerate(rows):
        question, answer = row["messages"]
        far = answers[(answers.index(answer["content"]) + len(answers) // 2) % len(answers)]
        worse = EVASIVE[number // 2 % len(EVASIVE)] if number % 2 else far
        made.append({"prompt": [question], "chosen": [answer], "rejected": [{"role": "assistant", "content": worse}]})
    return made


def judged(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One answer of each; in each five, three are wanted."""
    made = []
    for number, pair in enumerate(pairs):
        wanted = number % 5 in (0, 2, 3)
        answer = pair["chosen" if wanted else "rejected"]
        made.append({"prompt": pair["prompt"], "completion": answer, "label": wanted})
    return made


def files() -> dict[str, str]:
    """What each file holds."""
    lines = (DATA / "finetunejobs.jsonl").read_text(encoding="utf-8").splitlines()
    made = pairs([json.loads(line) for line in lines])
    rows = {"preferences.jsonl": made, "judged.jsonl": judged(made)}
    return {name: "".join(json.dumps(row) + "\n" for row in each) for name, each in rows.items()}


if __name__ == "__main__":
    for name, text in files().items():
        (DATA / name).write_text(text, encoding="utf-8")
