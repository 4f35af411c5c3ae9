"""The JSON of a row, whose meaning must be clear: an object with a key twice, or half a character, is an error.

Python's parser keeps the last of two equal keys, so a row would lose text silently. Readers use it for whole rows, and
formats for JSON inside a column.
"""

import json
from typing import Any

from finetune_trainer.data.samples import RowError


def loads(text: str) -> Any:
    """The value. Raises RowError for what the module names, and otherwise ValueError and RecursionError as
    ``json.loads`` does."""
    value = _STRICT.decode(text)
    check_characters(value, text)
    return value


def raw_decode(text: str, position: int) -> tuple[Any | RowError, int]:
    """The value that begins at ``position``, and where it ends. A key that an object has twice is a RowError in the
    place of the value, because the values after it can be read."""
    try:
        return _STRICT.raw_decode(text, position)
    except RowError as error:
        return error, _PLAIN.raw_decode(text, position)[1]


def check_characters(value: Any, text: str) -> None:
    """Check a value whose JSON is ``text``. Raises RowError for half a surrogate pair, which no tokenizer accepts: from
    bytes that are not UTF-8, or from half an escaped character."""
    try:
        if "\\u" in text:
            text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise RowError("not-utf8", f"found {half!r}, which is half a character, expected UTF-8 text") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError("not-json", f"found an object with the key {twice[:40]!r} twice, expected each key once")
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_object)
_PLAIN = json.JSONDecoder()
