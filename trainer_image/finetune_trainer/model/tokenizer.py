"""The model's tokenizer, and the tokens at which generation with it stops."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from finetune_trainer.data.template import Template
from finetune_trainer.errors import InvalidSpec


def load(folder: Path) -> Any:
    """The tokenizer of a model or artifact folder. It can always pad: with its end token where it has no other."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parsers do
        raise InvalidSpec(f"model.source: its tokenizer can't be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InvalidSpec("model.source: its tokenizer has neither pad_token nor eos_token; set eos_token in it")
    return tokenizer


def template(tokenizer: Any, folder: Path) -> Template:
    """The tokenizer's own chat template, with the stop tokens of the model's generation config."""
    ids = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        stops = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        ids |= set(stops) if isinstance(stops, list) else {stops}
    return Template(tokenizer, frozenset(ids - {None}))
