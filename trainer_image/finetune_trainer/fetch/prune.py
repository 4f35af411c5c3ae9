"""Room in the workspace's cache: what no job names and nobody used for long is removed, least recently used first.

Called at the end of preparation, and by ``store`` before it says that there is no room. An entry is a folder of
cache/data, cache/sources or cache/merged with a manifest, whose time is that of its last use (`used`). What a job's
PREPARED.json names stays, whatever its age; so do the first states of PiSSA adapters, files in cache/merged which a
job needs until it ends. An entry leaves its name before it is removed, so nobody finds half of one; what somebody
fetches or builds is new, and is only taken when it hasn't been written to for long.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LONG = 30 * 86400.0
"""Seconds after which what nobody used is removed."""
RECENT = 86400.0
"""Seconds for which it stays even where room is needed: a job may be about to name it."""
MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


def used(entry: Path) -> None:
    """Remember that a run uses it. A workspace that can't be written is found out by others."""
    with suppress(OSError):
        os.utime(entry / MANIFEST)


def prune(cache: Path, older_than: float = LONG, need: int | None = None) -> None:
    """Remove what wasn't used for ``older_than`` seconds; with ``need`` only until so many bytes are free. It is never
    worth a job: what can't be removed stays."""
    try:
        named = _named(cache.parent)
        found = sorted(_unused(cache, named, time.time() - older_than))
    except (OSError, ValueError) as error:
        log.warning("The cache is left as it is: %s", error)
        return
    for at, entry in found:
        if need is not None and shutil.disk_usage(cache).free >= need:
            return
        log.info("Removing %s from the cache, unused for %d days", entry.relative_to(cache), (time.time() - at) / 86400)
        doomed = entry.with_name(f".deleting-{entry.name.lstrip('.')}")
        with suppress(OSError):
            entry.rename(doomed)
        if doomed.is_dir():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            with suppress(OSError):
                doomed.unlink(missing_ok=True)


def _named(workspace: Path) -> set[Path]:
    """What the jobs of this workspace were prepared with. Raises ValueError for a PREPARED.json that can't be read."""
    named = set()
    for file in workspace.glob("jobs/*/PREPARED.json"):
        content = json.loads(file.read_bytes())
        named |= {(workspace / str(content[key])).resolve() for key in ("model", "adapter", "data") if content.get(key)}
    return named


def _unused(cache: Path, named: set[Path], before: float) -> Iterator[tuple[float, Path]]:
    """(time of last use, folder), or a file that somebody began to write."""
    for entry in (*cache.glob("data/*"), *cache.glob("sources/*/*/*"), *cache.glob("merged/*")):
        if not entry.is_dir() and not entry.name.startswith("."):
            continue
        if any(path.is_relative_to(entry.resolve()) for path in named):
            continue
        whole = entry / MANIFEST
        begun = entry.name.startswith(".") or not whole.is_file()
        at = _last_write(entry) if begun else whole.stat().st_mtime
        if at < before:
            yield at, entry


def _last_write(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
