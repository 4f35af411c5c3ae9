"""Every text of the pages is in one file, and every text of the file is on a page. Every template parses."""

from __future__ import annotations

import re

from finetune_ui.buttons import CONFIRMED
from finetune_ui.guard import WHAT
from finetune_ui.markup import TEMPLATES
from finetune_ui.render import environment
from finetune_ui.texts import LANGUAGE, _all
from jinja2.meta import find_referenced_templates

FOLDER = TEMPLATES.parent
TEXTS = _all(LANGUAGE)
SOURCES = [*FOLDER.rglob("*.html"), *(file for file in FOLDER.rglob("*.py") if "form" not in file.parts)]
MADE = {
    *(f"errors.{what}" for what in (*WHAT.values(), "broken")),
    *(f"login.{how}" for how in ("proxy", "laptop")),
    *(f"actions.{verb}" for verb in ("suspend", "resume", "retry", "stop", "delete")),
    *(f"actions.confirm_{verb}" for verb in CONFIRMED),
}
"""Keys that code puts together."""
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
        bare = re.sub(r'[-\w]+="[^"]*"', "", bare)  # also attributes that a macro makes
        words = re.findall(r"[A-Za-z]{3,}", " ".join(re.findall(r">([^<]*)<", bare)))
        assert words == [], f"{file.name} has texts: {words}"


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
