"""Format alpaca: a task and its answer, optionally with earlier turns."""

from finetune_trainer.data.formats.fields import Fields, shown
from finetune_trainer.data.samples import Conversation, Message, RowError

QUESTION = "the question or task"


def alpaca(fields: Fields) -> Conversation:
    """instruction, input, output; optionally system, tools, and history, a list of [question, answer]."""
    messages = prompt(fields, fields.required("prompt", "instruction", meaning=QUESTION))
    answer = fields.text(fields.required("response", "output", meaning="the answer to learn"), "the answer to learn")
    return Conversation([*messages, {"role": "assistant", "content": answer}], fields.tools)


def prompt(fields: Fields, key: str) -> list[Message]:
    """All messages before the answer; ``key`` is the column of the instruction."""
    question = fields.text(key, QUESTION)
    if query := fields.optional_text(fields.column("query", "input")):
        question = f"{question}\n{query}"
    messages: list[Message] = []
    if system := fields.optional_text(fields.column("system", "system")):
        messages.append({"role": "system", "content": system})
    history = fields.column("history", "history")
    for number, pair in enumerate(fields.optional_list(history), start=1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p.strip() for p in pair)):
            expected = "[question, answer], both non-empty text"
            raise RowError("wrong-type", f"{history} {number}: found {shown(pair)}, expected {expected}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": question}]
