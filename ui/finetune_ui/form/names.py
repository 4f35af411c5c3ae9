"""Names of controls. A control has the path of its field, as the API server writes it: spec.datasets[0].source. So the
posted form, the messages of the server and the addresses of fields on the page agree without a table.

A control that is a part of its field has a mark after the path: `|set` (set although empty), `|Failed` (a check box of
a list of words), `|key` and `|value` (of a row of a map), `|row` (a row that is there although it is empty).
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from finetune_ui.form.layout import ROW_LIMIT

OTHER = "other"
"""The box for fields without a control."""
DO = "do"
"""The name of all buttons."""
ADD, REMOVE, STAGE = "add:", "remove:", "stage"
"""Values of buttons that only change the form: with the path of a list, or of a row."""
CSRF = "csrf"

Values = Mapping[str, str]
"""Name of a control -> its text. What a browser posts, without what is checked or unset."""

_ROW = re.compile(r"\[([0-9]{1,4})\]")


def key(path: str) -> str:
    return f"{path}|key"


def value(path: str) -> str:
    return f"{path}|value"


def is_set(path: str) -> str:
    return f"{path}|set"


def choice(path: str, word: str) -> str:
    return f"{path}|{word}"


def row(path: str) -> str:
    return f"{path}|row"


def rows(names: Iterable[str], path: str) -> list[int]:
    """The numbers of a list's rows, in order."""
    found = {int(match[1]) for name in names if name.startswith(path) and (match := _ROW.match(name, len(path)))}
    return sorted(found)[:ROW_LIMIT]


def filled_rows(values: Values) -> set[str]:
    """The paths of the rows in which any control has a text: spec.datasets[0]. One pass, because an attacker may post
    thousands of rows."""
    return {name[: match.end()] for name, text in values.items() if text.strip() for match in _ROW.finditer(name)}


def below(names: Iterable[str], path: str) -> list[str]:
    """The names of a path's controls."""
    return [name for name in names if name.startswith(path) and name[len(path) : len(path) + 1] in ("", ".", "|", "[")]


def pressed(posted: Sequence[tuple[str, str]]) -> str:
    """The value of the button that was pressed, '' if none was."""
    return next((text for name, text in posted if name == DO), "")


def only_changes(posted: Sequence[tuple[str, str]]) -> bool:
    """Whether the button only changes the form: a row more or less, or another stage."""
    return pressed(posted).startswith((ADD, REMOVE)) or pressed(posted) == STAGE
