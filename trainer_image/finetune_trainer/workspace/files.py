"""Files of the workspace: atomic writes, JSON, and the digest of a directory."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from finetune_trainer.errors import WorkspaceUnusable

CHUNK = 1 << 20


def write_json(file: Path, content: Any) -> None:
    """Write ``content`` atomically: a reader sees the old file or the new file, also after a crash. The file is on disk
    when this returns."""
    temporary = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as out:
            json.dump(content, out, ensure_ascii=False, indent=1)
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a directory to disk, so that they survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def parse_json(raw: str | bytes) -> Any:
    """The value of a JSON text that somebody else may have written. Raises ValueError, also for a value that is nested
    too deeply."""
    try:
        return json.loads(raw)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(raw: str | bytes) -> dict[str, Any]:
    """As `parse_json`, of an object."""
    value = parse_json(raw)
    if not isinstance(value, dict):
        raise ValueError(f"it is a {type(value).__name__}, not an object")
    return value


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when the file does not exist. Raises WorkspaceUnusable when the file holds no
    JSON object."""
    try:
        content = parse_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise damaged(file, error) from error
    if not isinstance(content, dict):
        raise damaged(file, "not an object")
    return content


def damaged(file: Path, why: object) -> WorkspaceUnusable:
    """The error for a file of the workspace that cannot be parsed."""
    return WorkspaceUnusable(
        f"{file} is damaged ({why}). The job cannot continue from it. Remove {file.parent}, or use another"
        " metadata.name"
    )


def digest_folder(folder: Path) -> tuple[str, int]:
    """sha256 over the names and contents of all files below ``folder``, sorted by name, and their total size in bytes.
    `fetch` computes the same digest for an artifact that another job reads."""
    total = hashlib.sha256()
    size = 0
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    for name in names:
        file = folder / name
        content_hash = hashlib.sha256()
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                content_hash.update(chunk)
                size += len(chunk)
        total.update(f"{name}\0{content_hash.hexdigest()}\n".encode())
    return "sha256:" + total.hexdigest(), size
