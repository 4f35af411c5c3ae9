"""Free space in the workspace's cache: remove entries that no job names and no run has used for long, least recently
used first.

Called at the end of preparation, and by `source_cache` before it raises NoSpace. An entry is a directory of cache/data,
cache/sources or cache/merged with a manifest, whose modification time is the time of its last use (`mark_used`).
Entries that a job's PREPARED.json names stay, whatever their age. So do the initial states of PiSSA adapters, which are
files in cache/merged that a job needs until it ends. An entry is renamed before it is removed, so no run meets half an
entry. An entry that a run is fetching or building is removed only after it has not been written to for long.
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
"""Seconds after which an unused entry is removed."""
RECENT = 86400.0
"""Seconds for which an entry stays even when space is needed: a job may be about to name it."""
MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


def mark_used(entry: Path) -> None:
    """Record that a run uses the entry. Errors are ignored: other code reports a read-only workspace."""
    with suppress(OSError):
        os.utime(entry / MANIFEST)


def prune(cache: Path, older_than: float = LONG, need: int | None = None) -> None:
    """Remove entries unused for ``older_than`` seconds; with ``need``, only until that many bytes are free. It never
    fails a job: an entry that cannot be removed stays."""
    try:
        named = _named(cache.parent)
        unused = sorted(_unused(cache, named, time.time() - older_than))
    except (OSError, ValueError) as error:
        log.warning("The cache is not pruned: %s", error)
        return
    for at, entry in unused:
        if need is not None and shutil.disk_usage(cache).free >= need:
            return
        log.info("Removing %s from the cache, unused for %d days", entry.relative_to(cache), (time.time() - at) / 86400)
        deleting = entry.with_name(f".deleting-{entry.name.lstrip('.')}")
        with suppress(OSError):
            entry.rename(deleting)
        if deleting.is_dir():
            shutil.rmtree(deleting, ignore_errors=True)
        else:
            with suppress(OSError):
                deleting.unlink(missing_ok=True)


def _named(workspace: Path) -> set[Path]:
    """What the PREPARED.json files of the workspace's jobs name. Raises ValueError for a file that is not readable."""
    named = set()
    for file in workspace.glob("jobs/*/PREPARED.json"):
        content = json.loads(file.read_bytes())
        named |= {(workspace / str(content[key])).resolve() for key in ("model", "adapter", "data") if content.get(key)}
    return named


def _unused(cache: Path, named: set[Path], before: float) -> Iterator[tuple[float, Path]]:
    """(time of last use, path) of complete entries, and of entries and files that a run began to write."""
    for entry in (*cache.glob("data/*"), *cache.glob("sources/*/*/*"), *cache.glob("merged/*")):
        if not entry.is_dir() and not entry.name.startswith("."):
            continue
        if any(path.is_relative_to(entry.resolve()) for path in named):
            continue
        manifest = entry / MANIFEST
        incomplete = entry.name.startswith(".") or not manifest.is_file()
        at = _last_write(entry) if incomplete else manifest.stat().st_mtime
        if at < before:
            yield at, entry


def _last_write(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
