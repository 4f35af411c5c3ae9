"""Format kto: one answer to a prompt, and whether it is wanted."""

from finetune_api.data import ColumnsSpec, TagsSpec

from finetune_trainer.data.formats import answers
from finetune_trainer.data.formats.tools import tools
from finetune_trainer.data.formats.values import Fields, missing, shown
from finetune_trainer.data.samples import BadRow, Labelled


def kto(row: Fields, columns: ColumnsSpec, tags: TagsSpec) -> Labelled:
    """label (or kto_tag), with prompt and completion, an alpaca instruction and output, or messages whose last is the
    answer."""
    dialect = answers.dialect_of(row, columns, tags)
    asked = answers.prompt(row, columns, dialect)
    key = columns.response or ("completion" if "completion" in row else "output")
    if key in row:
        answered = answers.answer(row, key, dialect)
    elif asked and asked[-1].message["role"] == "assistant":
        asked, answered, key = asked[:-1], asked[-1:], "the last message"
    else:
        raise missing(row, "completion", "the answer that is judged")
    prompt, answer = answers.apart(asked, answered, key, row, columns, dialect)
    return Labelled(prompt, answer, _label(row, columns), tools(row, columns))


def _label(row: Fields, columns: ColumnsSpec) -> bool:
    key = columns.label or ("kto_tag" if "kto_tag" in row else "label")
    if key not in row:
        raise missing(row, key, "true where the answer is wanted, else false")
    value = row[key]
    if isinstance(value, str):  # as csv has it
        value = {"true": True, "false": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise BadRow("bad-label", f"{key}: found {shown(value)}, expected true or false")
    return value
