"""The variant of a chat template that marks what the assistant says with ``{% generation %}``.

Used by `template` and `named`. Few published templates have marks. TRL brings marked variants of well-known ones; they
are looked up by the exact text of the original, in TRL's package data: importing TRL would take seconds.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Method = Literal["generation", "trlVariant", "prefix"]

OURS = Path(__file__).parent / "jinja"
NO_THINKING = "{%- set enable_thinking = false %}"
"""Put before a template that thinks unless told not to."""

_MARK = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def is_marked(template: str) -> bool:
    """Whether it says itself what the assistant says."""
    return _MARK.search(template) is not None


def unmark(template: str) -> str:
    """The same text for readers that don't know the tag, such as llama.cpp. An ``if`` in its place keeps what the
    tag does to the white space around it."""
    return _MARK.sub(lambda mark: f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}", template)


def find(template: str) -> tuple[str, Method]:
    """What rows are rendered with, and how their trained tokens are found. ``prefix``: the template itself, and what
    follows the inference prompt is trained."""
    if is_marked(template):
        return template, "generation"
    if template.startswith(NO_THINKING):
        variant, method = find(template.removeprefix(NO_THINKING))
        return NO_THINKING + variant, method
    if template in _ours():
        return _ours()[template], "generation"
    if template in _trl():
        return _trl()[template], "trlVariant"
    return template, "prefix"


def trl_folder() -> Path:
    """TRL's chat templates."""
    spec = find_spec("trl")
    assert spec, "trl is a dependency"
    assert spec.submodule_search_locations, "trl is a folder"
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


@cache
def _ours() -> dict[str, str]:
    marked = [file.read_text(encoding="utf-8") for file in sorted(OURS.glob("*.jinja"))]
    return {unmark(text): text for text in marked}


@cache
def _trl() -> dict[str, str]:
    folder = trl_folder()
    variants = {file: folder / file.name.replace("_training.", ".") for file in sorted(folder.glob("*_training.jinja"))}
    return {
        original.read_text(encoding="utf-8"): variant.read_text(encoding="utf-8")
        for variant, original in variants.items()
        if original.is_file()
    }
