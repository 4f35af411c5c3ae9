"""Rows out of a data file, each with the place it came from.

Called by `dataset`. A ``.jsonl`` file is read line by line, so memory stays flat; a ``.json`` file is one list.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.errors import InvalidData, InvalidSpec
from finetune_trainer.run import denied

EXTENSIONS = (".jsonl", ".json")


def check_name(file: Path, uri: str) -> None:
    """A data set is one file, and its name says how to read it."""
    if file.is_dir():
        files = ", ".join(sorted(p.name for p in file.iterdir())[:20]) or "nothing"
        raise InvalidSpec(f"{uri} is a folder; name one .json or .jsonl file in it. It has: {files}")
    if file.suffix not in EXTENSIONS:
        raise InvalidSpec(
            f"{uri} ends in {file.suffix or 'no extension'}; a data set is a .jsonl file (one object a line) or a"
            " .json file (one list of objects)"
        )


def read(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield (``name:line`` or ``name[index]``, value). A line that is no JSON is yielded as the JSONDecodeError itself,
    so that the caller can name all broken rows, not only the first. Raises InvalidData or AccessDenied when nothing can
    be read."""
    try:
        yield from _lines(file) if file.suffix == ".jsonl" else _list(file)
    except UnicodeDecodeError as error:
        raise InvalidData(f"{file.name} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except PermissionError:
        raise denied(file, file.name) from None
    except OSError as error:
        raise InvalidData(f"{file.name} can't be read: {error.strerror or error}") from None


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file.name}:{number}", _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return error


def _list(file: Path) -> Iterator[tuple[str, Any]]:
    text = file.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with one object a line must be named .jsonl" if error.msg == "Extra data" else ""
        raise InvalidData(f"{file.name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}{hint}") from None
    if not isinstance(rows, list):
        raise InvalidData(f"{file.name}: holds one {type(rows).__name__}, expected a list of objects: [{{...}}, ...]")
    for index, row in enumerate(rows):
        yield f"{file.name}[{index}]", row


def digest(file: Path) -> str:
    """sha256 of a file, for provenance."""
    with file.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
