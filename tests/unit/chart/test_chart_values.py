"""values.yaml is read with its comments, and schema and README follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chart_values.__main__ import files
from tests.chart_values.reader import CHART, ValuesError, read
from tests.chart_values.readme import readme
from tests.chart_values.schema import schema
from tests.chart_values.types import TYPES, type_of

VALUES = """# Of the whole file.

# A switch,
# in two lines.
flag: true

# A section.
section:
  # A number.
  # Type: integer from 1 to 9
  number: 3
  inner:
    # A word. | <tag>
    # Type: one of red, blue
    word: red
# The user's own keys.
# Type: labels
labels: {}
# Not described below.
# Type: resources of a container
resources:
  limits:
    memory: 1Gi
"""


def made(tmp_path: Path, text: str = VALUES) -> list[Any]:
    file = tmp_path / "values.yaml"
    file.write_text(text)
    return read(file)


def test_values_are_read_with_comments_and_types(tmp_path: Path) -> None:
    values = {value.name: value for value in made(tmp_path)}
    assert list(values) == [
        "flag",
        "section",
        "section.number",
        "section.inner",
        "section.inner.word",
        "labels",
        "resources",
    ]
    assert values["flag"].text == "A switch, in two lines."
    assert [value.name for value in values.values() if value.is_section] == ["section", "section.inner"]
    assert (values["section.number"].default, values["section.number"].type) == (3, "integer from 1 to 9")
    assert values["resources"].default == {"limits": {"memory": "1Gi"}}


def test_the_schema_is_closed_and_requires_what_has_a_default(tmp_path: Path) -> None:
    root = json.loads(schema(made(tmp_path)))
    assert root["additionalProperties"] is False
    assert root["required"] == ["flag", "section", "resources"]
    section = root["properties"]["section"]
    assert section["additionalProperties"] is False
    assert section["description"] == "A section."
    assert section["properties"]["number"] == {
        "description": "A number.",
        "type": "integer",
        "minimum": 1,
        "maximum": 9,
        "default": 3,
    }
    assert section["properties"]["inner"]["properties"]["word"]["enum"] == ["red", "blue"]


def test_the_readme_lists_every_value_in_one_table_of_its_section(tmp_path: Path) -> None:
    about = {"description": "Text", "kubeVersion": ">=1.31.0-0"}
    text = readme(made(tmp_path), "charts/x", about)
    assert "Kubernetes 1.31 or newer" in text
    assert "| `flag` | true or false | A switch, in two lines. | `true` |" in text
    assert '| `section.inner.word` | one of red, blue | A word. \\| &lt;tag> | `"red"` |' in text
    assert text.index("## section") > text.index("`labels`")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("flag: true\n", "flag has no comment"),
        ("# Text.\n\nflag: true\n", "flag has no comment"),
        ("# Text.\nkeys: {}\n", "the default of keys does not show its type: write a line '# Type: "),
        ("# Text.\nlist: [{}]\n", "the default of list does not show its type"),
        ("# Text.\n# Type: colour\nword: a\n", "word names the type 'colour', which tests/chart_values/types.py lacks"),
    ],
)
def test_what_is_missing_is_reported_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValuesError, match=complaint):
        schema(made(tmp_path, text))


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        ("true", {"type": "boolean"}),
        ("5", {"type": "integer"}),
        ("text", {"type": "string"}),
        ("[]", {"type": "array", "items": {"type": "string", "minLength": 1}}),
        ("[a]", {"type": "array", "items": {"type": "string", "minLength": 1}}),
    ],
)
def test_a_default_shows_its_type(tmp_path: Path, default: str, expected: dict[str, Any]) -> None:
    [value] = made(tmp_path, f"# Text.\nkey: {default}\n")
    known = type_of(value)
    assert known.schema == expected
    assert value.default not in known.good


def test_the_files_of_the_chart_are_up_to_date() -> None:
    for path, text in files().items():
        assert path.read_text() == text, f"{path}: run `make generate`"


def test_every_object_of_the_schema_is_closed() -> None:
    """A key that nobody knows is refused at every level, also inside what Kubernetes defines."""

    def check(node: Any, where: str) -> None:
        if isinstance(node, list):
            for item in node:
                check(item, where)
        if not isinstance(node, dict):
            return
        if node.get("type") == "object" and not where.endswith("/global"):
            assert node.get("additionalProperties", True) is not True, where
        for key, value in node.items():
            if key not in ("default", "description", "enum"):
                check(value, f"{where}/{key}")

    check(json.loads((CHART / "values.schema.json").read_text()), "")


def test_every_type_is_used_and_has_examples() -> None:
    for name, known in TYPES.items():
        assert known.good, name
        assert len(known.bad) >= 3, name
    used = {value.type for value in read() if value.type in TYPES}
    assert used == set(TYPES)


def test_an_example_differs_from_the_default() -> None:
    """The tests in tests/helm set it to see that a template uses the value."""
    for value in read():
        if not value.is_section:
            assert any(other != value.default for other in type_of(value).good), value.name
