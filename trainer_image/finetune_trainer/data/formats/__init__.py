"""A row in a format that users have -> a sample, the only form that the rest of the trainer knows.

Preparation's worker processes call it for every row. Each value of a row is used, makes the row an error, or is named
as not used, so that nothing is lost silently. A row that does not fit raises `RowError` with a rule, what was found and
what is expected; the caller adds file and line. No row raises any other error.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from finetune_trainer.data.formats import alpaca, conversations, kto, preference, text
from finetune_trainer.data.formats.fields import Fields, shown
from finetune_trainer.data.formats.layout import Layout
from finetune_trainer.data.formats.tools import tools
from finetune_trainer.data.samples import Prompt, RowError, Sample

__all__ = ["Layout", "Parsed", "read"]


class Parsed(NamedTuple):
    """A sample, and what its row has besides."""

    sample: Sample
    unused: list[str]
    """Names of columns, and of keys inside columns, that have a value and are not used."""


def read(value: Any, layout: Layout, *, prompt: bool = False) -> Parsed:
    """The sample of a raw row. With ``prompt`` only its prompt, for stage ppo: the model generates answers. Raises
    RowError."""
    if not isinstance(value, dict):
        raise RowError("not-an-object", f"found {shown(value)}, expected an object")
    fields = Fields(value, layout)
    try:
        if layout.format != "text":
            fields.tools = tools(fields)
        sample = (_PROMPTS if prompt else _SAMPLES)[layout.format](fields)
        return Parsed(sample, fields.unused_names())
    except RecursionError:
        raise RowError("wrong-type", "found lists or objects that are nested too deeply") from None


def _alpaca_prompt(fields: Fields) -> Prompt:
    key = fields.required("prompt", "instruction", meaning=alpaca.QUESTION)
    return Prompt(alpaca.prompt(fields, key), fields.tools)


def _preference_prompt(fields: Fields) -> Prompt:
    pair = preference.preference(fields)
    columns = fields.layout.columns
    fields.unused.update((columns.chosen or "chosen", columns.rejected or "rejected"))
    return Prompt(pair.prompt, pair.tools)


_SAMPLES: dict[str, Callable[[Fields], Sample]] = {
    "alpaca": alpaca.alpaca,
    "sharegpt": lambda fields: conversations.conversation(fields, fields.layout.sharegpt),
    "openai": lambda fields: conversations.conversation(fields, fields.layout.openai),
    "text": text.text,
    "preference": preference.preference,
    "kto": kto.kto,
}
_PROMPTS: dict[str, Callable[[Fields], Prompt]] = {
    "alpaca": _alpaca_prompt,
    "sharegpt": lambda fields: conversations.prompt(fields, fields.layout.sharegpt),
    "openai": lambda fields: conversations.prompt(fields, fields.layout.openai),
    "preference": _preference_prompt,
}
