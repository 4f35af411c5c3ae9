"""The form has every field of the CRD: what a control looks like is what the schema says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from finetune_ui import form
from finetune_ui.form import fields, layout

from tests.unit.ui.form.browser import Page, page
from tests.unit.ui.form.jobs import SPEC, STAGES

Node = dict[str, Any]


def leaves(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """Every field without parts, with 0 as the number of each row. It does not use the form's own tree."""
    if "properties" in node:
        for name, sub in node["properties"].items():
            yield from leaves(sub, f"{path}.{name}")
    elif "properties" in node.get("items", {}):
        yield from leaves(node["items"], f"{path}[0]")
    else:
        yield path, node


LEAVES = dict(leaves(SPEC, "spec"))


def lists(node: Node, path: str) -> Iterator[str]:
    if "properties" in node:
        for name, sub in node["properties"].items():
            yield from lists(sub, f"{path}.{name}")
    elif "properties" in node.get("items", {}):
        yield path
        yield from lists(node["items"], f"{path}[0]")
    elif "additionalProperties" in node:
        yield path


def with_rows(stage: str) -> Page:
    """The form of a stage, with an empty row in each list and map."""
    rows = {f"{path}[0]|row": "on" for path in lists(SPEC, "spec")}
    return page(form.render({"spec.stage": stage, **rows}, csrf="token"))


PAGES = {stage: with_rows(stage) for stage in STAGES}


def page_of(path: str) -> Page:
    """The page that has a field: the settings of a stage are on its own page."""
    return PAGES.get(path.split(".")[1], PAGES["sft"])


def free(path: str) -> bool:
    return any(path.startswith(f"{box}.") for box in layout.FREE)


@pytest.mark.parametrize("path", [path for path in LEAVES if not free(path)])
def test_a_field_has_its_control(path: str) -> None:
    node, there = LEAVES[path], page_of(path)
    named = {given["name"]: (tag, given) for tag, given in there.tags if "name" in given and tag != "button"}
    if "additionalProperties" in node:
        assert {f"{path}[0]|key", f"{path}[0]|value"} <= set(named)
    elif "enum" in node.get("items", {}):
        assert {f"{path}|{word}" for word in node["items"]["enum"]} <= set(named)
    elif "items" in node or node.get("maxLength", 0) > 2048:
        assert named[path][0] == "textarea"
    elif "enum" in node or node.get("type") == "boolean":
        assert named[path][0] == "select"
    elif node.get("type") in ("integer", "number"):
        _, given = named[path]
        assert given["type"] == "number"
        assert (given.get("min"), given.get("max")) == tuple(
            str(node[bound]) if bound in node else None for bound in ("minimum", "maximum")
        )
    else:
        assert named[path][1]["type"] == "text"


def test_a_box_for_yaml_stands_for_what_has_no_controls() -> None:
    areas = {given["name"] for tag, given in PAGES["sft"].tags if tag == "textarea"}
    assert areas >= layout.FREE
    boxed = [path for path in LEAVES if free(path)]
    assert boxed
    assert all("affinity" in path for path in boxed)


@pytest.mark.parametrize("path", [path for path, node in LEAVES.items() if "enum" in node and not free(path)])
def test_a_list_of_choices_has_those_of_the_schema(path: str) -> None:
    select = _options(page_of(path), path)
    assert select == ["", *(str(choice) for choice in LEAVES[path]["enum"] if choice != "")]


@pytest.mark.parametrize("path", [path for path, node in LEAVES.items() if node.get("type") == "boolean"])
def test_a_boolean_can_be_unset_true_or_false(path: str) -> None:
    assert _options(page_of(path), path) == ["", "true", "false"]


def _options(there: Page, name: str) -> list[str]:
    start = next(at for at, (tag, given) in enumerate(there.tags) if tag == "select" and given["name"] == name)
    options = []
    for tag, given in there.tags[start + 1 :]:
        if tag != "option":
            break
        options.append(given["value"])
    return options


@pytest.mark.parametrize("stage", STAGES)
def test_every_control_has_a_label_and_its_help(stage: str) -> None:
    there = PAGES[stage]
    ids = [given["id"] for _, given in there.tags if given.get("id")]
    assert len(ids) == len(set(ids))
    labelled = {given["for"] for tag, given in there.tags if tag == "label" and "for" in given}
    for tag, given in there.tags:
        for part in given.get("aria-describedby", "").split():
            assert part in ids
        if tag in ("input", "select", "textarea") and given.get("type") not in ("hidden", "checkbox"):
            assert given["id"] in labelled


def test_the_help_of_a_field_is_the_description_of_the_schema() -> None:
    rank = SPEC["properties"]["tuning"]["properties"]["lora"]["properties"]["rank"]
    assert rank["description"] in PAGES["sft"].text
    assert "spec.tuning.lora.rank|help" in PAGES["sft"].with_id("spec.tuning.lora.rank")["aria-describedby"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_page_has_the_settings_of_its_stage_only(stage: str) -> None:
    names = {given["name"] for _, given in PAGES[stage].tags if "name" in given}
    sections = {
        name.split(".")[1] for name in names if name.startswith(("spec.rm", "spec.dpo", "spec.kto", "spec.ppo"))
    }
    assert sections == {stage} & {"rm", "dpo", "kto", "ppo"}


def test_the_stage_comes_first() -> None:
    controls = [
        given for tag, given in PAGES["sft"].tags if tag in ("input", "select") and given.get("type") != "hidden"
    ]
    assert controls[0]["name"] == "spec.stage"


def test_lists_of_paths_name_fields_that_exist() -> None:
    known: set[str] = set()

    def add(field: fields.Field) -> None:
        known.add(field.path)
        for part in field.parts:
            add(part)

    add(fields.tree())
    grouped = {path for _, paths in layout.GROUPS for path in paths}
    assert known >= grouped | layout.COMMON | layout.FREE | layout.MEANINGFUL_EMPTY | {layout.STAGE}
    assert {path.rsplit(".", 1)[-1] for path in known} >= set(layout.SUGGESTED)


def test_the_form_shows_as_many_rows_as_the_schema_allows() -> None:
    def most(node: Node) -> int:
        below = [*node.get("properties", {}).values(), *([node["items"]] if "items" in node else [])]
        has_rows = "properties" in node.get("items", {}) or "additionalProperties" in node
        return max([node["maxItems" if "items" in node else "maxProperties"] if has_rows else 0, *map(most, below)])

    assert 0 < most(SPEC) <= layout.ROW_LIMIT


def test_a_field_that_no_control_fits_fails_and_is_not_left_out() -> None:
    with pytest.raises(ValueError, match=r"spec\.odd: no control of the form fits"):
        fields._field("spec.odd", "odd", {"type": "array", "items": {"type": "integer"}}, False)
