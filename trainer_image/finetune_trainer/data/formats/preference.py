"""Format preference: two answers to one prompt, the better and the worse."""

from finetune_api.data import ColumnsSpec, TagsSpec

from finetune_trainer.data.formats import answers
from finetune_trainer.data.formats.tools import tools
from finetune_trainer.data.formats.turns import Turn
from finetune_trainer.data.formats.values import Fields
from finetune_trainer.data.samples import BadRow, Preference


def preference(row: Fields, columns: ColumnsSpec, tags: TagsSpec) -> Preference:
    """chosen and rejected, with the prompt as text, messages or an alpaca instruction; or both as whole conversations
    that begin alike."""
    dialect = answers.dialect_of(row, columns, tags)
    better, worse = columns.chosen or "chosen", columns.rejected or "rejected"
    chosen, rejected = (answers.answer(row, key, dialect) for key in (better, worse))
    if chosen == rejected:
        raise BadRow("no-preference", f"found the same answer as {better} and as {worse}, expected two different ones")
    if all(turns[0].message["role"] != "assistant" for turns in (chosen, rejected)):
        same = _common(chosen, rejected, f"{better} and {worse}")
        asked, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    else:
        asked = answers.prompt(row, columns, dialect)
    prompt, preferred = answers.apart(asked, chosen, better, row, columns, dialect)
    _, other = answers.apart(asked, rejected, worse, row, columns, dialect)
    return Preference(prompt, preferred, other, tools(row, columns))


def _common(one: list[Turn], other: list[Turn], names: str) -> int:
    """How many messages both begin with, up to the answer that tells them apart."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    while same and not (_answers(one, same) and _answers(other, same)):
        same -= 1
    if not same:
        raise BadRow("no-common-prompt", f"{names} are conversations, expected both to begin with one prompt")
    return same


def _answers(turns: list[Turn], index: int) -> bool:
    return index < len(turns) and turns[index].message["role"] == "assistant"
