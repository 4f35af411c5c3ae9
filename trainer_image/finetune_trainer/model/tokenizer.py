"""The model's tokenizer as a job has it, and the tokens at which generation with it stops.

Used by whoever prepares data, trains, or asks a model.
"""

from pathlib import Path
from typing import Any

from finetune_api.data import TemplateName
from finetune_api.model import ModelSettings
from transformers import AddedToken, AutoTokenizer, GenerationConfig

from finetune_trainer.data.templates import named
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model.folder import code_hint


def load(
    folder: Path,
    model: ModelSettings | None = None,
    template_name: TemplateName | None = None,
    *,
    allow_remote_code: bool = False,
) -> Any:
    """The tokenizer of a model or artifact folder, with the new tokens of ``model`` and the template of that name. It
    can always pad: with its end token where it has no other. The repository's code runs only if the job
    (``model.trust_remote_code``) and the installation both allow it."""
    code = bool(model and model.trust_remote_code and allow_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
    except Exception as error:  # transformers raises whatever its parsers do
        hint = "" if code else code_hint(folder)
        raise InvalidSpec(f"model.source: its tokenizer can't be loaded.{hint} ({error})") from error
    if model:
        _add(tokenizer, model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InvalidSpec("model.source: its tokenizer has neither pad_token nor eos_token; set eos_token in it")
    if template_name:
        named.stop_ids(template_name, tokenizer)  # refuses what doesn't fit
        tokenizer.chat_template = named.text(template_name)
    return tokenizer


def stop_ids(tokenizer: Any, folder: Path, template_name: TemplateName | None = None) -> list[int]:
    """Where generation stops: at the tokenizer's end token, those of the model's generation config, and those of the
    named template. It is what the artifact's generation config will hold."""
    ids: set[int | None] = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        stops = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        ids |= set(stops) if isinstance(stops, list) else {stops}
    if template_name:
        ids |= named.stop_ids(template_name, tokenizer)
    return sorted(i for i in ids if i is not None)


def _add(tokenizer: Any, model: ModelSettings) -> None:
    tokenizer.add_tokens(list(model.new_tokens or []))
    special = [AddedToken(token, special=True, normalized=False) for token in model.new_special_tokens or []]
    tokenizer.add_tokens(special, special_tokens=True)
    for field, tokens in (("newTokens", model.new_tokens), ("newSpecialTokens", model.new_special_tokens)):
        for token in tokens or []:
            if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
                raise InvalidSpec(f"model.{field}: the tokenizer still splits {token!r}: choose another spelling")
