"""Each reason, exit code and metric has its place on the pages, and what the pages say of it is what the code says.

The verbs and codes of the command line are compared in tests/unit/cli/test_docs.py, the metrics for Prometheus in
tests/unit/operator/test_metrics.py."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from finetune_api.exit_codes import END_RULES, ExitCode
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Reason
from pydantic import BaseModel

from tests.docsite import troubleshooting
from tests.docsite.pages import text_of

PAGE = text_of(troubleshooting.PAGE)
REASONS = {reason: texts for group in troubleshooting.load().values() for reason, texts in group.items()}
FEWEST_LETTERS = 16
"""So long must the fixed part of a text be that tells it from others."""


def test_every_reason_has_a_section_with_cause_turn_and_example() -> None:
    assert set(REASONS) == {str(reason) for reason in Reason}
    for reason, texts in REASONS.items():
        section = PAGE.split(f"\n### {reason}\n", 1)[1].split("\n### ", 1)[0]
        assert texts["cause"].split()[0] in section
        assert "**It is " in section
        assert "```text\n" in section


def test_every_reason_says_what_to_do() -> None:
    advice = {
        reason: re.search(r"\*\*It is .+?\*\*(.*?)```", PAGE.split(f"\n### {reason}\n", 1)[1], re.DOTALL)
        for reason in REASONS
    }
    silent = {reason for reason, found in advice.items() if found is None or not found[1].strip()}
    assert silent <= {"Accepted"}


def test_every_exit_code_of_the_trainer_is_in_the_table() -> None:
    named = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert named == set(ExitCode) | {code for rule in END_RULES for code in rule.codes}


def test_the_page_is_made_from_the_data() -> None:
    assert troubleshooting.page(PAGE) == PAGE


@cache
def templates() -> list[tuple[str, re.Pattern[str]]]:
    """Each text of operator and trainer that has a fixed part: the longest of these, and a pattern for the whole."""
    found = []
    for root in ("operator/finetune_operator", "trainer_image/finetune_trainer", "crds/finetune_api"):
        for file in sorted(Path(root).rglob("*.py")):
            for parts in strings(ast.parse(file.read_text(encoding="utf-8"))):
                longest = max((part for part in parts if part), key=len, default="")
                if len(longest) >= FEWEST_LETTERS:
                    found.append((longest, re.compile(".*?".join(re.escape(part or "") for part in parts), re.DOTALL)))
    return found


def strings(tree: ast.AST) -> Iterator[list[str]]:
    """The fixed parts of each string literal. What is between two of them is known at run time only."""
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [""]
            for value in node.values:
                if isinstance(value, ast.Constant):
                    parts[-1] += str(value.value)
                    inner.add(id(value))
                else:
                    parts.append("")
            yield parts
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield [node.value]


@pytest.mark.parametrize("reason", REASONS)
def test_examples_are_texts_that_the_code_writes(reason: str) -> None:
    example = REASONS[reason]["example"]
    assert any(longest in example and pattern.search(example) for longest, pattern in templates()), example


def test_every_logged_metric_is_explained() -> None:
    reporting = Path("trainer_image/finetune_trainer/reporting")
    names = {
        key.value
        for file in ("metrics.py", "names.py")
        for node in ast.parse((reporting / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) in ("LOGGED", "TEXTS")
        and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }
    page = text_of(Path("docs/metrics.md"))
    assert len(names) > 20
    assert {name for name in names if f"`{name}`" not in page and f"`eval_{name}`" not in page} == set()


def defaults() -> Iterator[tuple[str, str, str]]:
    """(page, field, what the page calls its default) from the tables of the stages."""
    for page in sorted(Path("docs/stages").glob("*.md")):
        table = text_of(page).split("\n## Defaults\n", 1)[1].split("\n## ", 1)[0]
        for line in table.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            for field in re.findall(r"`([\w.]+)`", cells[0]):
                yield page.stem, field, cells[1]


def test_every_stage_has_its_page_with_all_parts() -> None:
    pages = {page.stem: text_of(page) for page in Path("docs/stages").glob("*.md")}
    assert set(pages) == {"pt", "sft", "rm", "dpo", "ppo", "kto"}
    for page in pages.values():
        titles = re.findall(r"^## (.+)$", page, re.MULTILINE)
        assert [title for title in titles if title in PARTS] == list(PARTS)


PARTS = ("Formula", "Data", "Defaults", "Metrics", "When it goes wrong")


@pytest.mark.parametrize(("stage", "field", "told"), list(defaults()))
def test_defaults_of_the_stages_are_those_of_the_api(stage: str, field: str, told: str) -> None:
    model: type[BaseModel] = FineTuneJobSpec
    value: object = None
    for name in field.split("."):
        found = next(each for key, each in model.model_fields.items() if (each.alias or key) == name)
        inner = [each for each in (found.annotation, *getattr(found.annotation, "__args__", ())) if is_model(each)]
        model, value = (inner[0] if inner else model), found.get_default(call_default_factory=False)
    text = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    # Unset in the schema: the page says what follows from other fields, which tests of finetune_api.defaults know.
    assert text is None or re.search(rf"(?<![\w.]){re.escape(str(text))}(?![\w.])", told), (
        f"{stage}: {field} is {text!r}"
    )


def is_model(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
