"""The tokenizer of a model with the job's new tokens and template, and the tokens at which generation stops.

Used by preparation, training and generation.
"""

from pathlib import Path
from typing import Any

from finetune_api.data import TemplateName
from finetune_api.model import ModelSettings
from transformers import AddedToken, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from finetune_trainer.data.templates import named_templates
from finetune_trainer.errors import InvalidSpec
from finetune_trainer.model.model_files import remote_code_hint


def load(
    folder: Path,
    model: ModelSettings | None = None,
    template_name: TemplateName | None = None,
    *,
    allow_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or artifact directory, with the new tokens of ``model`` and the template of that name. A
    tokenizer without a padding token pads with its end token. The directory's own code runs only if the job
    (``model.trust_remote_code``) and the installation both allow it. Raises InvalidSpec."""
    code = bool(model and model.trust_remote_code and allow_remote_code)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=code)
    except Exception as error:  # transformers passes on all errors of its parsers
        hint = "" if code else remote_code_hint(folder)
        raise InvalidSpec(f"model.source: its tokenizer can't be loaded.{hint} ({error})") from error
    if model:
        _add_tokens(tokenizer, model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InvalidSpec("model.source: its tokenizer has neither pad_token nor eos_token. Set eos_token in it")
    if template_name:
        named_templates.stop_ids(template_name, tokenizer)  # raises if the template does not fit
        tokenizer.chat_template = named_templates.text(template_name)
    return tokenizer


def stop_ids(tokenizer: Any, folder: Path, template_name: TemplateName | None = None) -> list[int]:
    """The tokens at which generation stops: the tokenizer's end token, those of the model's generation config, and
    those of the named template. The artifact's generation config gets the same list."""
    ids: set[int | None] = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        stops = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        ids |= set(stops) if isinstance(stops, list) else {stops}
    if template_name:
        ids |= named_templates.stop_ids(template_name, tokenizer)
    return sorted(i for i in ids if i is not None)


def _add_tokens(tokenizer: Any, model: ModelSettings) -> None:
    tokenizer.add_tokens(list(model.new_tokens or []))
    special = [AddedToken(token, special=True, normalized=False) for token in model.new_special_tokens or []]
    tokenizer.add_tokens(special, special_tokens=True)
    for field, tokens in (("newTokens", model.new_tokens), ("newSpecialTokens", model.new_special_tokens)):
        for token in tokens or []:
            if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
                raise InvalidSpec(f"model.{field}: the tokenizer still splits {token!r}. Choose another spelling")
