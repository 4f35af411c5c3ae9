"""Format preference: a chosen and a rejected answer to a prompt."""

from finetune_trainer.data.formats import prompt_answer
from finetune_trainer.data.formats.fields import Fields
from finetune_trainer.data.formats.messages import Turn
from finetune_trainer.data.samples import Preference, RowError


def preference(fields: Fields) -> Preference:
    """chosen and rejected, with the prompt as text, messages or an alpaca instruction; or both as whole conversations
    that share their first messages. A prompt beside conversations must agree with them."""
    dialect = prompt_answer.dialect_of(fields)
    chosen_key = fields.required("chosen", "chosen", meaning=prompt_answer.ANSWER)
    rejected_key = fields.required("rejected", "rejected", meaning=prompt_answer.ANSWER)
    chosen, rejected = (prompt_answer.answer(fields, key, dialect) for key in (chosen_key, rejected_key))
    if chosen == rejected:
        message = f"found the same answer in {chosen_key} and in {rejected_key}, expected two different answers"
        raise RowError("no-preference", message)
    names = f"{chosen_key} and {rejected_key}"
    shared: list[Turn] = []
    if all(turns[0].message["role"] != "assistant" for turns in (chosen, rejected)):
        length = _shared_turns(chosen, rejected, names)
        shared, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    prompt = prompt_answer.prompt(fields, dialect, (chosen, rejected))
    if shared:
        prompt = prompt_answer.joined(prompt, shared, f"the prompt's column and {names}")
    messages, chosen_messages = prompt_answer.checked_pair(prompt, chosen, chosen_key, fields, dialect)
    _, rejected_messages = prompt_answer.checked_pair(prompt, rejected, rejected_key, fields, dialect)
    return Preference(messages, chosen_messages, rejected_messages, fields.tools)


def _shared_turns(chosen: list[Turn], rejected: list[Turn], names: str) -> int:
    """Number of first messages that both conversations share, up to the answer that differs."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and not (_is_answer(chosen, shared) and _is_answer(rejected, shared)):
        shared -= 1
    if not shared:
        message = f"{names} are conversations with different prompts, expected both to begin with the same prompt"
        raise RowError("no-common-prompt", message)
    return shared


def _is_answer(turns: list[Turn], index: int) -> bool:
    return index < len(turns) and turns[index].message["role"] == "assistant"
