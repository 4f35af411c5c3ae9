"""Format kto: an answer to a prompt, and whether the answer is desirable."""

from finetune_trainer.data.formats import prompt_answer
from finetune_trainer.data.formats.fields import Fields, shown
from finetune_trainer.data.samples import LabelledAnswer, RowError


def kto(fields: Fields) -> LabelledAnswer:
    """label (or kto_tag), with prompt and completion, an alpaca instruction and output, or messages whose last is the
    answer."""
    dialect = prompt_answer.dialect_of(fields)
    key = fields.column("response", "completion", "output")
    if key is not None and key in fields.row:
        answer = prompt_answer.answer(fields, key, dialect)
        prompt = prompt_answer.prompt(fields, dialect, [answer])
    else:
        prompt = prompt_answer.prompt(fields, dialect)
        if not prompt or prompt[-1].message["role"] != "assistant":
            raise fields.missing(key or "completion", "the labelled answer")
        prompt, answer, key = prompt[:-1], prompt[-1:], "the last message"
    messages, answer_messages = prompt_answer.checked_pair(prompt, answer, key, fields, dialect)
    return LabelledAnswer(messages, answer_messages, _label(fields), fields.tools)


def _label(fields: Fields) -> bool:
    default = "kto_tag" if "kto_tag" in fields.row else "label"
    key = fields.required("label", default, meaning="true if the answer is desirable, otherwise false")
    value = fields.get(key)
    if isinstance(value, str):  # from csv
        value = {"true": True, "false": False}.get(value.lower(), value)
    if not isinstance(value, bool):
        raise RowError("bad-label", f"{key}: found {shown(value)}, expected true or false")
    return value
