"""The page as a tree of nodes: which control, with which text, which message, open or folded. The templates only print
it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import quote

from finetune_ui import texts
from finetune_ui.form import names, placeholders
from finetune_ui.form.fields import Field, nearest, tree
from finetune_ui.form.layout import COMMON, GROUPS, STAGE, SUGGESTED
from finetune_ui.form.names import Values
from finetune_ui.form.reading import is_shown
from finetune_ui.form.refusals import Errors


class Option(NamedTuple):
    """An entry of a list of choices, or a check box."""

    name: str
    value: str
    label: str
    chosen: bool


@dataclass(frozen=True)
class Node:
    """A control, or a section with its nodes."""

    kind: str
    id: str
    label: str
    api: str
    """The field's name in YAML."""
    help: str = ""
    error: str = ""
    value: str = ""
    placeholder: str = ""
    options: tuple[Option, ...] = ()
    bounds: tuple[float | None, float | None] = (None, None)
    required: bool = False
    suggestions: str = ""
    empty: Option | None = None
    """The check box that sets an empty field."""
    shown: tuple["Node", ...] = ()
    folded: tuple["Node", ...] = ()
    """Parts that people seldom change."""
    open: bool = False
    """Whether the folded parts are open, because a message is there."""
    count: int = 0
    """Controls in it that are set."""


class Group(NamedTuple):
    """A part of the page that can be folded."""

    title: str
    nodes: tuple[Node, ...]
    open: bool
    changed: int
    """Controls in it that are set."""


class Message(NamedTuple):
    """A line of the summary of mistakes."""

    link: str
    """Address of the field on the page, '' if the field is not there."""
    label: str
    text: str


class Page(NamedTuple):
    """Everything that the form shows."""

    stage: Node
    groups: tuple[Group, ...]
    other: Node
    messages: tuple[Message, ...]


class _Facts(NamedTuple):
    """What every node is made from."""

    values: Values
    errors: Mapping[str, str]
    defaults: Mapping[str, Any]
    suggested: Mapping[str, Sequence[str]]


def page(values: Values, errors: Errors, suggested: Mapping[str, Sequence[str]]) -> Page:
    """The page of a form. `suggested` are names that exist: kind (jobs, claims, queues, secrets, namespaces) ->
    names."""
    facts = _Facts(values, errors.fields, placeholders.defaults(values), suggested)
    nodes = {part.path: part for top in tree().parts for part in (top.parts if top.name == "spec" else [top])}
    stage = _node(nodes.pop(STAGE), STAGE, facts)
    groups = []
    for title, paths in GROUPS:
        fields = [nodes.pop(path) for path in paths]
        groups.append(_group(title, [field for field in fields if is_shown(field, values)], facts))
    groups.append(_group("more", list(nodes.values()), facts))
    other = Node(
        kind="yaml",
        id=names.OTHER,
        label=texts.text("form.group.other"),
        api="",
        help=texts.text("form.other_help"),
        error=errors.fields.get(names.OTHER, ""),
        value=values.get(names.OTHER, ""),
    )
    full = tuple(group for group in groups if group.nodes)
    there = {node.id for node in _all([stage, other, *(node for group in full for node in group.nodes)])}
    return Page(stage, full, other, _messages(errors, there))


def address(name: str) -> str:
    """The address of a control on the page."""
    return "#" + quote(name, safe=".")


def _messages(errors: Errors, there: set[str]) -> tuple[Message, ...]:
    found = []
    for path, text in errors.fields.items():
        place = nearest(path)
        label = (
            texts.text("form.group.other") if path == names.OTHER else f"{place[1].label} ({path})" if place else path
        )
        found.append(Message(address(path) if path in there else "", label, text))
    return (*found, *(Message("", "", text) for text in errors.rest))


def _all(nodes: Sequence[Node]) -> list[Node]:
    return [each for node in nodes for each in (node, *_all(node.shown), *_all(node.folded))]


def _group(name: str, fields: Sequence[Field], facts: _Facts) -> Group:
    nodes = tuple(_node(field, field.path, facts) for field in fields)
    every = _all(nodes)
    is_open = any(_has_common(field) for field in fields) or any(node.error for node in every)
    return Group(texts.text(f"form.group.{name}"), nodes, is_open, sum(node.count for node in nodes))


def _has_common(field: Field) -> bool:
    return field.path in COMMON or any(_has_common(part) for part in field.parts)


def _node(field: Field, path: str, facts: _Facts) -> Node:
    """The node of a field. `path` has the numbers of its rows."""
    value = facts.values.get(path, "")
    empty = None
    if field.may_be_empty:
        words = texts.text(f"form.empty_{field.kind if field.kind in ('section', 'map') else 'text'}")
        empty = Option(names.is_set(path), "on", words, names.is_set(path) in facts.values)
    node = Node(
        kind=field.kind,
        id=path,
        label=field.label,
        api=field.name,
        help=_help(field),
        error=facts.errors.get(path, ""),
        value=value,
        placeholder=_default(field, path, facts),
        bounds=field.bounds,
        required=field.required and field.kind not in ("section", "rows", "map"),
        suggestions=SUGGESTED.get(field.name, ""),
        empty=empty,
        count=bool(value.strip()) + bool(empty and empty.chosen),
    )
    if path == "metadata.namespace" and facts.suggested.get("namespaces"):
        return replace(
            node, kind="choice", options=_options(path, value, facts.suggested["namespaces"], texts.text("form.choose"))
        )
    match field.kind:
        case "flag" | "choice":
            choices = (
                ("true", "false") if field.kind == "flag" else [str(choice) for choice in field.choices if choice != ""]
            )
            unset = texts.text("form.default", value=node.placeholder) if node.placeholder else texts.text("form.unset")
            unset = texts.text("form.choose") if field.required else unset
            return replace(node, options=_options(path, value, choices, unset))
        case "choices":
            boxes = [(names.choice(path, word), word) for word in field.choices]
            options = tuple(Option(name, "on", word, name in facts.values) for name, word in boxes)
            return replace(node, options=options, count=sum(option.chosen for option in options))
        case "section":
            return _section(node, field, path, facts)
        case "rows":
            return _rows(node, field, path, facts)
        case "map":
            return _map(node, path, facts)
    return node


def _help(field: Field) -> str:
    more = {"lines": texts.text("form.lines_help"), "yaml": texts.text("form.yaml_help")}.get(field.kind, "")
    return " ".join(part for part in (field.help, more) if part)


def _options(path: str, value: str, choices: Sequence[str], unset: str) -> tuple[Option, ...]:
    """The choices, and an entry for none. A value that is no choice stays in the list, so that it is not lost."""
    known = [*choices, *([value] if value and value not in choices else [])]
    return (Option(path, "", unset, not value), *(Option(path, each, each, each == value) for each in known))


def _default(field: Field, path: str, facts: _Facts) -> str:
    value = facts.defaults.get(path, field.default)
    if value is None or isinstance(value, dict):
        return ""
    if isinstance(value, list):
        return "\n".join(str(each) for each in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _section(node: Node, field: Field, path: str, facts: _Facts) -> Node:
    """A section whose common parts are shown and whose others are folded. If nothing in it is common, then what is
    around it is folded, and it is shown whole."""
    parts = [(part, _node(part, f"{path}.{part.name}".lstrip("."), facts)) for part in field.parts]
    split = _has_common(field)
    shown = tuple(each for part, each in parts if not split or _has_common(part))
    folded = tuple(each for part, each in parts if split and not _has_common(part))
    return replace(
        node,
        shown=shown,
        folded=folded,
        open=any(each.error for each in _all(folded)),
        count=node.count + sum(each.count for each in (*shown, *folded)),
    )


def _rows(node: Node, field: Field, path: str, facts: _Facts) -> Node:
    """A list. A list that a job must have shows an empty row if it has none."""
    numbers = names.rows(facts.values, path) or ([0] if field.required else [])
    rows = []
    for number in numbers:
        here = f"{path}[{number}]"
        label = texts.text("form.entry", label=field.label, number=number + 1)
        row = Node(kind="row", id=here, label=label, api="", error=facts.errors.get(here, ""))
        rows.append(_section(row, field, here, facts))
    return replace(node, shown=tuple(rows), count=node.count + sum(row.count for row in rows))


def _map(node: Node, path: str, facts: _Facts) -> Node:
    rows = []
    for number in names.rows(facts.values, path):
        here = f"{path}[{number}]"
        texts_of = [(names.key(here), texts.text("form.key")), (names.value(here), texts.text("form.value"))]
        parts = tuple(
            Node(kind="text", id=name, label=label, api="", value=facts.values.get(name, ""))
            for name, label in texts_of
        )
        label = texts.text("form.entry", label=node.label, number=number + 1)
        rows.append(Node(kind="entry", id=here, label=label, api="", shown=parts, count=1))
    return replace(node, shown=tuple(rows), count=node.count + len(rows))
