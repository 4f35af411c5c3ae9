"""Digests: sha256 over names and contents, remembered so that a second job doesn't read 100 GB again.

Called by ``source`` for mounted sources; ``store`` knows those of what it fetched. A file whose size and time of
change are what they were is not read again, unless it changed so shortly before it was read that another change could
bear the same time. The memory is a cache: damaged or lost, it is made anew.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_trainer.errors import NotFound
from finetune_trainer.run import denied
from finetune_trainer.workspace import usable, write_json

CHUNK = 1 << 20
SETTLED = 2.0
"""Seconds after which a change must have got a new time, on any file system."""


def combined(files: Mapping[str, str]) -> str:
    """Name -> sha256 of the content, as one digest."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{files[name]}\n".encode())
    return "sha256:" + total.hexdigest()


def without_code(files: Mapping[str, str]) -> str:
    """The same of all but Python files: of a model, what an adapter fits, whether or not its code came with it."""
    return combined({name: content for name, content in files.items() if not name.endswith(".py")})


def of(
    path: Path,
    uri: str,
    cache: Path,
    progress: Callable[[int, int], None],
    check_stop: Callable[[], None],
    volume: Path | None = None,
) -> dict[str, str]:
    """Name -> sha256 of the content, of a file or of all files below a folder that are not hidden. Links must not lead
    out of ``volume``. Raises AccessDenied, NotFound."""
    memory = cache / "digests" / (hashlib.sha256(f"{uri} {path}".encode()).hexdigest()[:20] + ".json")
    known = _recall(memory)
    files = dict(_files(path, uri, (volume or path).resolve()))
    found: dict[str, list[Any]] = {}
    unsettled: set[str] = set()
    total, done = sum(file.stat().st_size for file in files.values()), 0
    for name, file in files.items():
        facts = file.stat()
        key = [facts.st_size, facts.st_mtime_ns]
        before = known.get(name)
        if isinstance(before, list) and before[:2] == key and len(before) == 3:
            found[name] = before
        else:
            found[name] = [*key, _sha256(file, uri, check_stop)]
            if time.time() - facts.st_mtime < SETTLED:
                unsettled.add(name)
        done += facts.st_size
        progress(done, total)
    remember = {name: facts for name, facts in found.items() if name not in unsettled}
    if remember != known:
        with usable(cache.parent):
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, remember)
    return {name: str(facts[2]) for name, facts in found.items()}


def _recall(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _sha256(file: Path, uri: str, check_stop: Callable[[], None]) -> str:
    one = hashlib.sha256()
    try:
        with file.open("rb") as content:
            while chunk := content.read(CHUNK):
                check_stop()
                one.update(chunk)
    except PermissionError:
        raise denied(file, uri) from None
    return one.hexdigest()


def _files(path: Path, uri: str, volume: Path) -> Iterator[tuple[str, Path]]:
    """Name, relative to the folder, and file. Links may lead about inside the folder's volume as they like, but a
    folder is entered once."""
    if not path.is_dir():
        yield path.name, path
        return

    def refuse(error: OSError) -> None:
        raise denied(Path(error.filename), uri) from None

    entered = set()
    for root, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        here = Path(root)
        entered.add(here.resolve())
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (here / n).resolve() not in entered)
        for name in sorted(n for n in files if not n.startswith(".")):
            if not (here / name).exists():
                raise NotFound(f"{uri}: {name} is a link to a file that isn't there")
            if not (here / name).resolve().is_relative_to(volume):
                raise NotFound(f"{uri}: {name} is a link out of the volume; put the file itself there")
            yield (here / name).relative_to(path).as_posix(), here / name
