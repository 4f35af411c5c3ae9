"""sha256 digests over names and contents. They are remembered, so a second job does not read 100 GB again.

Called by `dispatch` for mounted sources; `source_cache` knows the digests of the files that it fetched. A file is read
again only when its size or its modification time has changed, or when it was modified so shortly before it was read
that a later change could carry the same time. The remembered digests are a cache: when they are damaged or lost,
they are computed again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.errors import NotFound
from finetune_trainer.workspace.files import write_json
from finetune_trainer.workspace.folders import access_denied
from finetune_trainer.workspace.storage import storage_errors

CHUNK = 1 << 20
SETTLED = 2.0
"""Seconds after which another change gets another modification time, on any file system."""


def combine(files: Mapping[str, str]) -> str:
    """Name -> sha256 of the content, as one digest."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{files[name]}\n".encode())
    return "sha256:" + total.hexdigest()


def combine_without_code(files: Mapping[str, str]) -> str:
    """As `combine`, over all but Python files. An adapter fits a model whether or not the model's code was fetched."""
    return combine({name: content for name, content in files.items() if not name.endswith(".py")})


def hash_files(
    path: Path,
    uri: str,
    cache: Path,
    progress: Callable[[int, int], None],
    check_stop: Callable[[], None],
    volume: Path | None = None,
) -> dict[str, str]:
    """Name -> sha256 of the content, for a file or for all files below a directory that are not hidden. Links must not
    lead out of ``volume``. Raises AccessDenied, NotFound."""
    memory = cache / "digests" / (hashlib.sha256(f"{uri} {path}".encode()).hexdigest()[:20] + ".json")
    known = _read_memory(memory)
    files = dict(_list_files(path, uri, (volume or path).resolve()))
    entries: dict[str, list[Any]] = {}
    unsettled: set[str] = set()
    total, done = sum(file.stat().st_size for file in files.values()), 0
    for name, file in files.items():
        stat = file.stat()
        key = [stat.st_size, stat.st_mtime_ns]
        before = known.get(name)
        if isinstance(before, list) and before[:2] == key and len(before) == 3:
            entries[name] = before
        else:
            entries[name] = [*key, _sha256(file, uri, check_stop)]
            if time.time() - stat.st_mtime < SETTLED:
                unsettled.add(name)
        done += stat.st_size
        progress(done, total)
    remember = {name: entry for name, entry in entries.items() if name not in unsettled}
    if remember != known:
        with storage_errors(cache.parent):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, remember)
    return {name: str(entry[2]) for name, entry in entries.items()}


def _read_memory(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _sha256(file: Path, uri: str, check_stop: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                check_stop()
                digest.update(chunk)
    except PermissionError:
        raise access_denied(file, uri) from None
    return digest.hexdigest()


def _list_files(path: Path, uri: str, volume: Path) -> Iterator[tuple[str, Path]]:
    """(name relative to the directory, file). Links may lead anywhere inside the volume. Each directory is entered
    once."""
    if not path.is_dir():
        _check_is_file(path, path.name, uri)
        yield path.name, path
        return

    def refuse(error: OSError) -> None:
        raise access_denied(Path(error.filename), uri) from None

    entered = set()
    for root, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        here = Path(root)
        entered.add(here.resolve())
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (here / n).resolve() not in entered)
        for name in sorted(n for n in files if not n.startswith(".")):
            if not (here / name).exists():
                raise NotFound(
                    f"{uri}: {name} is a link to a file that does not exist. Restore the file or remove the link"
                )
            if not (here / name).resolve().is_relative_to(volume):
                raise NotFound(f"{uri}: {name} is a link out of the volume. Put the file itself there")
            _check_is_file(here / name, name, uri)
            yield (here / name).relative_to(path).as_posix(), here / name


def _check_is_file(path: Path, name: str, uri: str) -> None:
    if not path.is_file():  # reading a pipe would never end
        raise NotFound(f"{uri}: {name} is a pipe or a device. Put a file there, or remove it")
