"""The training variant of a chat template, which marks the assistant's part with ``{% generation %}``.

Few published templates have marks. TRL has training variants of well-known templates; they are found by the exact text
of the original, in the data of TRL's package: importing TRL takes seconds.
"""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Method = Literal["generation", "trlVariant", "prefix"]
"""How trained tokens are found: by the template's own marks, by those of TRL's variant, or as the text that follows the
prompt."""

OWN_TEMPLATES = Path(__file__).parent / "jinja"
NO_THINKING = "{%- set enable_thinking = false %}"
"""Prefix for a template that enables reasoning by default."""

_MARK = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def is_marked(template: str) -> bool:
    """Whether the template has ``{% generation %}`` marks."""
    return _MARK.search(template) is not None


def without_marks(template: str) -> str:
    """The same template for readers that do not know the tag, such as llama.cpp. An ``if`` in its place keeps the tag's
    effect on the white space around it."""
    return _MARK.sub(lambda mark: f"{{%{mark[1]} {'endif' if mark[2] else 'if true'} {mark[3]}%}}", template)


def find_variant(template: str) -> tuple[str, Method]:
    """(template that renders rows, how trained tokens are found). With method ``prefix`` it is the template itself."""
    if is_marked(template):
        return template, "generation"
    if template.startswith(NO_THINKING):
        variant, method = find_variant(template.removeprefix(NO_THINKING))
        return NO_THINKING + variant, method
    if template in _own_variants():
        return _own_variants()[template], "generation"
    if template in _trl_variants():
        return _trl_variants()[template], "trlVariant"
    return template, "prefix"


def trl_folder() -> Path:
    """TRL's folder of chat templates."""
    spec = find_spec("trl")
    assert spec, "trl is a dependency"
    assert spec.submodule_search_locations, "trl is a folder"
    return Path(spec.submodule_search_locations[0]) / "chat_templates"


@cache
def _own_variants() -> dict[str, str]:
    marked = [file.read_text(encoding="utf-8") for file in sorted(OWN_TEMPLATES.glob("*.jinja"))]
    return {without_marks(text): text for text in marked}


@cache
def _trl_variants() -> dict[str, str]:
    folder = trl_folder()
    variants = {file: folder / file.name.replace("_training.", ".") for file in sorted(folder.glob("*_training.jinja"))}
    return {
        original.read_text(encoding="utf-8"): variant.read_text(encoding="utf-8")
        for variant, original in variants.items()
        if original.is_file()
    }
