"""Every text of the pages is in one file, and every text of the file is on a page: so a translation is one file more.
Every template parses."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_ui.buttons import CONFIRMED
from finetune_ui.form.layout import GROUPS, metadata
from finetune_ui.guard import WHAT
from finetune_ui.markup import TEMPLATES
from finetune_ui.render import environment
from finetune_ui.texts import LANGUAGE, _all
from jinja2.meta import find_referenced_templates

FOLDER = TEMPLATES.parent
TEXTS = _all(LANGUAGE)
SOURCES = [*FOLDER.rglob("*.html"), *FOLDER.rglob("*.py")]
MADE = {
    *(f"errors.{what}" for what in (*WHAT.values(), "broken")),
    *(f"login.{how}" for how in ("proxy", "laptop")),
    *(f"actions.{verb}" for verb in ("suspend", "resume", "retry", "stop", "delete")),
    *(f"actions.confirm_{verb}" for verb in CONFIRMED),
    *(f"form.group.{name}" for name in (*dict(GROUPS), "more")),
    *(f"form.empty_{kind}" for kind in ("section", "map", "text")),
    *(f"form.{bound}" for bound in ("above", "from", "below", "to")),
    *(f"form.do.{action}" for action in ("preview", "check", "create", "load", "import")),
    *(f"form.metadata.{name}" for name in metadata()["properties"]),
    *(key for key in TEXTS if key.startswith("form.word.")),
}
"""Keys that code puts together."""
MACHINES = {"width=device-width, initial-scale=1", "light dark"}
"""Values of attributes that browsers read."""
PROSE = re.compile(r"(?<![A-Za-z])[A-Z][a-z]+,? [a-z]+")
"""How a sentence begins."""
NOT_ON_PAGES = {
    "serve.py": "whoever starts the page reads it in a terminal",
    "settings.py": "as above",
    "refusals.py": "it reads the words of the API server",
}
TEXT = re.compile(r"""\b(?:t|text)\(\s*["']([a-z_.]+)["']""")


def used() -> set[str]:
    return {key for file in SOURCES for key in re.findall(TEXT, file.read_text())}


def test_every_text_that_is_used_exists_and_every_text_is_used() -> None:
    known = used() - {key for key in used() if key.endswith((".", "_"))} | MADE
    assert known - set(TEXTS) == set()
    assert set(TEXTS) - known == set()


def test_templates_have_no_text_of_their_own() -> None:
    """What is between tags and no expression is a text that another language would miss."""
    for file in FOLDER.rglob("*.html"):
        bare = "".join(value for _, kind, value in environment().lex(file.read_text()) if kind == "data")
        said = re.findall(r'(?:aria-label|placeholder|title|alt|content)="([^"]*[A-Za-z]{3,}[^"]*)"', bare)
        assert set(said) <= MACHINES, f"{file.name} has texts: {said}"
        bare = re.sub(r'[-\w]+="[^"]*"', "", bare)  # also attributes that a macro makes
        words = re.findall(r"[A-Za-z]{3,}", " ".join(re.findall(r">([^<]*)<", bare)))
        assert words == [], f"{file.name} has texts: {words}"


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: str(file.relative_to(FOLDER)))
def test_modules_have_no_text_of_their_own(file: Path) -> None:
    if file.name not in NOT_ON_PAGES:
        assert list(prose(ast.parse(file.read_text()))) == []


def test_a_text_of_a_module_would_be_found() -> None:
    code = 'def f():\n    """A text for readers."""\n    raise Problem(f"This is {what}.")\n'
    assert list(prose(ast.parse(code))) == ["This is "]


def prose(tree: ast.Module) -> Iterator[str]:
    """Texts that begin as a sentence does. Docstrings, and errors that only a mistake of ours raises, are none."""
    left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ValueError":
            left_out |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and id(node) not in left_out:
            words = node.value if isinstance(node.value, str) else node.value.decode(errors="replace")
            if PROSE.search(words):
                yield words


@pytest.mark.parametrize("script", ["app.js", "form.js"])
def test_scripts_have_no_text_of_their_own(script: str) -> None:
    code = re.sub(r"(?m)(^|\s)//.*$", "", (FOLDER / "static" / script).read_text())
    assert not [each for each in re.findall(r"[\"'`]([^\"'`\n]*)[\"'`]", code) if PROSE.search(each)]


def test_every_template_parses_and_what_it_is_made_of_exists() -> None:
    known = {str(file.relative_to(TEMPLATES)) for file in TEMPLATES.rglob("*.html")}
    parts = {part for name in known for part in find_referenced_templates(environment().parse(source(name)))}
    assert {"base.html", "form/fields.html"} <= parts, "pages extend and import others"
    assert parts <= known


def source(name: str) -> str:
    return (TEMPLATES / name).read_text()


def test_our_script_makes_nothing_from_text() -> None:
    """Texts of jobs reach the script as data: it may not put them into the page as code."""
    script = (FOLDER / "static" / "app.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
