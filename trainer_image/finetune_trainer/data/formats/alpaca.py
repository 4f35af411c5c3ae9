"""Format alpaca: one task and its answer, optionally with what was said before."""

from finetune_api.data import ColumnsSpec

from finetune_trainer.data.formats.tools import tools
from finetune_trainer.data.formats.values import Fields, optional_list, optional_text, shown, text
from finetune_trainer.data.samples import BadRow, Conversation, Message


def alpaca(row: Fields, columns: ColumnsSpec) -> Conversation:
    """instruction, input, output; optionally system, tools, and history, a list of [question, answer]."""
    asked = prompt(row, columns, columns.prompt or "instruction")
    answer = text(row, columns.response or "output", "the answer to learn")
    return Conversation([*asked, {"role": "assistant", "content": answer}], tools(row, columns))


def prompt(row: Fields, columns: ColumnsSpec, key: str) -> list[Message]:
    """All that comes before the answer; ``key`` is the column of the instruction."""
    question = text(row, key, "the question or task")
    if extra := optional_text(row, columns.query or "input"):
        question = f"{question}\n{extra}"
    messages: list[Message] = []
    if system := optional_text(row, columns.system or "system"):
        messages.append({"role": "system", "content": system})
    history = columns.history or "history"
    for number, pair in enumerate(optional_list(row, history), start=1):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) and p.strip() for p in pair)):
            expected = "[question, answer], both non-empty text"
            raise BadRow("wrong-type", f"{history} {number}: found {shown(pair)}, expected {expected}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": question}]
