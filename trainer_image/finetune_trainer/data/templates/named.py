"""Chat templates by name: for base models that have none, or instead of a model's own.

Used by ``model.tokenizer``. Taken from TRL's package data where it has them; the others are in ``jinja``, written after
what the model family published.
"""

from dataclasses import dataclass
from typing import Any

from finetune_api.data import TemplateName

from finetune_trainer.data.templates import marks
from finetune_trainer.errors import InvalidSpec


@dataclass(frozen=True)
class Named:
    """Where a template is, and the tokens that it needs."""

    file: str
    stops: tuple[str, ...] = ()
    """End an answer. None of them: the tokenizer's eos_token does."""
    needs: tuple[str, ...] = ()
    from_trl: bool = False
    before: str = ""


NAMED: dict[TemplateName, Named] = {
    "chatml": Named("chatml", ("<|im_end|>",)),
    "llama3": Named("llama3", ("<|eot_id|>",), from_trl=True),
    "qwen2.5": Named("qwen2_5", ("<|im_end|>",), from_trl=True),
    "qwen3": Named("qwen3", ("<|im_end|>",), from_trl=True),
    "qwen3-nothink": Named("qwen3", ("<|im_end|>",), from_trl=True, before=marks.NO_THINKING),
    "gemma3": Named("gemma3", ("<end_of_turn>",), from_trl=True),
    "mistral": Named("mistral"),
    "phi4": Named("phi4", ("<|im_end|>",), needs=("<|im_sep|>",)),
    "glm4": Named("glm4", ("<|user|>", "<|observation|>")),
    "deepseek": Named("deepseek", ("<｜end▁of▁sentence｜>",)),
    "deepseek-r1": Named("deepseek_r1_distill", ("<｜end▁of▁sentence｜>",), from_trl=True),
    "alpaca": Named("alpaca"),
    "default": Named("default"),
}


def text(name: TemplateName) -> str:
    """The template as it is saved with the tokenizer, without marks."""
    named = NAMED[name]
    folder = marks.trl_folder() if named.from_trl else marks.OURS
    return named.before + marks.unmark((folder / f"{named.file}.jinja").read_text(encoding="utf-8"))


def stop_ids(name: TemplateName, tokenizer: Any) -> set[int]:
    """Tokens that end an answer. Raises InvalidSpec when the tokenizer doesn't have them, each as one token: the model
    would write them in pieces, at which nothing stops."""
    missing = _missing(NAMED[name], tokenizer)
    if missing:
        fitting = ", ".join(other for other, named in NAMED.items() if not _missing(named, tokenizer))
        raise InvalidSpec(
            f"template.name: {name} needs {' and '.join(missing)}, which the model's tokenizer doesn't have as one"
            f" token. Templates that fit it: {fitting or 'none'}. Or add the token by model.newSpecialTokens."
        )
    return {tokenizer.convert_tokens_to_ids(stop) for stop in NAMED[name].stops or (tokenizer.eos_token,)}


def _missing(named: Named, tokenizer: Any) -> list[str]:
    if not named.stops and tokenizer.eos_token is None:
        return ["an eos_token"]
    return [repr(token) for token in named.stops + named.needs if token not in tokenizer.get_vocab()]
