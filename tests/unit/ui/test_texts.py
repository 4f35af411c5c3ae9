"""Every text of the pages is in one file, and every text of the file is on a page. Every template parses."""

from __future__ import annotations

import re
from pathlib import Path

from finetune_ui.buttons import CONFIRMED
from finetune_ui.guard import WHAT
from finetune_ui.render import FOLDER, environment
from finetune_ui.texts import LANGUAGE, _all

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


def test_every_template_parses() -> None:
    for file in sorted(FOLDER.rglob("*.html")):
        environment().get_template(str(file.relative_to(FOLDER / "templates")))


def test_our_script_makes_nothing_from_text() -> None:
    """Texts of jobs reach the script as data: it may not put them into the page as code."""
    script = (Path(FOLDER) / "static" / "app.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
