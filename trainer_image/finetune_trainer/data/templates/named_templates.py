"""Chat templates by name (``template.name``): for base models without a template, or instead of a model's own.

``model.tokenizer`` uses it. The templates come from TRL's package data if TRL has them. The others are in ``jinja``,
written after the publications of the model families.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.data import TemplateName

from finetune_trainer.data.templates import training_templates
from finetune_trainer.errors import InvalidSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class NamedTemplate:
    """Where a template is, and the tokens that it requires."""

    file: str
    stop_tokens: tuple[str, ...] = ()
    """Tokens that end an answer; empty: the tokenizer's eos_token ends it."""
    other_tokens: tuple[str, ...] = ()
    """Other tokens that the tokenizer must have."""
    from_trl: bool = False
    prefix: str = ""


NAMED: dict[TemplateName, NamedTemplate] = {
    "chatml": NamedTemplate("chatml", ("<|im_end|>",)),
    "llama3": NamedTemplate("llama3", ("<|eot_id|>",)),
    "qwen2.5": NamedTemplate("qwen2_5", ("<|im_end|>",), from_trl=True),
    "qwen3": NamedTemplate("qwen3", ("<|im_end|>",), from_trl=True),
    "qwen3-nothink": NamedTemplate("qwen3", ("<|im_end|>",), from_trl=True, prefix=training_templates.NO_THINKING),
    "gemma3": NamedTemplate("gemma3", ("<end_of_turn>",), from_trl=True),
    "mistral": NamedTemplate("mistral"),
    "phi4": NamedTemplate("phi4", ("<|im_end|>",), other_tokens=("<|im_sep|>",)),
    "glm4": NamedTemplate("glm4", ("<|user|>", "<|observation|>")),
    "deepseek": NamedTemplate("deepseek", ("<｜end▁of▁sentence｜>",)),
    "deepseek-r1": NamedTemplate("deepseek_r1_distill", ("<｜end▁of▁sentence｜>",), from_trl=True),
    "alpaca": NamedTemplate("alpaca"),
    "default": NamedTemplate("default"),
}


def text(name: TemplateName) -> str:
    """The template without marks, as it is saved with the tokenizer."""
    named = NAMED[name]
    folder = training_templates.trl_folder() if named.from_trl else training_templates.OWN_TEMPLATES
    marked = (folder / f"{named.file}.jinja").read_text(encoding="utf-8")
    return named.prefix + training_templates.without_marks(marked)


def names_with_tools(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The templates that have a place for tools and calls, for messages: those that fit the tokenizer, if some do."""
    able = [name for name in NAMED if has_tools(text(name))]
    return ", ".join([name for name in able if not _missing(NAMED[name], tokenizer)] or able)


def has_tools(template: str) -> bool:
    """Whether a template reads tools and calls."""
    return re.search(r"\btools\b", template) is not None and "tool_calls" in template


def stop_ids(name: TemplateName, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids of the tokens that end an answer. Raises InvalidSpec if the tokenizer lacks them: the model would write them
    in several tokens, and generation would not stop."""
    missing = _missing(NAMED[name], tokenizer)
    if missing:
        fitting = ", ".join(other for other, named in NAMED.items() if not _missing(named, tokenizer))
        raise InvalidSpec(
            f"template.name: {name} needs {' and '.join(missing)}, which the model's tokenizer does not have as a"
            f" single token. Use a template that fits this tokenizer ({fitting or 'none does'}), or add the token with"
            " model.newSpecialTokens."
        )
    stops = NAMED[name].stop_tokens or (str(tokenizer.eos_token),)
    return {int(tokenizer.convert_tokens_to_ids(stop)) for stop in stops}  # type: ignore[arg-type]


def _missing(named: NamedTemplate, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    if not named.stop_tokens and tokenizer.eos_token is None:
        return ["an eos_token"]
    return [repr(token) for token in named.stop_tokens + named.other_tokens if token not in tokenizer.get_vocab()]
