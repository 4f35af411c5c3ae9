"""The workspace's cache of fetched sources: each version of each source once, complete or absent.

Called by `hub` and `s3`. Layout, below cache/sources:

``<folder>/<version>/files/…``        the fetched files
``<folder>/<version>/manifest.json``  {uri, revision, path, files: name -> {size, sha256}}, written last
``<folder>/.staging-<version>/``      a fetch in progress, renamed to <version> when complete. An incomplete file ends
                                      in .part, and the next run resumes it

Invariants: every file under <version> has been checked, and one run at a time writes a version (a lease).
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from finetune_trainer.errors import NoSpace
from finetune_trainer.fetch import prune
from finetune_trainer.fetch.context import CheckStop, FetchContext, Fetched, Progress
from finetune_trainer.fetch.download import GB, download
from finetune_trainer.fetch.lease import lease
from finetune_trainer.fetch.remote_files import RemoteSource
from finetune_trainer.workspace.files import read_json, sync_folder, write_json
from finetune_trainer.workspace.storage import storage_errors

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


def look_up(context: FetchContext, folder: str, version: str, uri: str) -> Fetched | None:
    """The entry of an earlier run, without any network access. None when it is absent or no longer complete."""
    entry = context.cache / "sources" / folder / version
    manifest = read_json(entry / MANIFEST)
    if manifest is None:
        return None
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, facts in files.items():
        try:
            complete = (entry / "files" / name).stat().st_size == facts["size"]
        except FileNotFoundError:
            complete = False
        if not complete:
            return None
    prune.mark_used(entry)
    return _fetched(uri, entry, manifest)


def ensure(remote: RemoteSource, context: FetchContext, progress: Progress, check_stop: CheckStop) -> Fetched:
    """The entry of this version, fetched if it is not in the cache. Raises NoSpace before it fetches anything, and
    SourceUnreachable."""
    with storage_errors(context.cache.parent):
        cached = _look_up(remote, context)
        if cached:
            return cached
        lock = context.cache / "locks" / f"{remote.folder.replace('/', '-')}-{remote.version[:20]}"
        with lease(lock, context.owner, check_stop, context.attempt) as held:
            cached = _look_up(remote, context)  # the earlier holder of the lease may have fetched it
            if cached:
                return cached

            def check() -> None:
                check_stop()
                held.check()

            return _fetch(remote, context.cache, progress, check)


def _look_up(remote: RemoteSource, context: FetchContext) -> Fetched | None:
    return look_up(context, remote.folder, remote.version, remote.uri)


def _fetch(remote: RemoteSource, cache: Path, progress: Progress, check: CheckStop) -> Fetched:
    folder = cache / "sources" / remote.folder
    staging, entry = folder / f".staging-{remote.version}", folder / remote.version
    if entry.exists():  # damaged: reuse its complete files
        shutil.rmtree(staging, ignore_errors=True)
        entry.rename(staging)
    (staging / "files").mkdir(parents=True, exist_ok=True)
    os.utime(staging)  # an old staging directory is in use again, so no other run may prune it
    _check_space(remote, staging, cache)
    total, done = sum(file.size for file in remote.files), 0
    log.info("Fetching %s: %d files, %.2f GB", remote.uri, len(remote.files), total / GB)
    files = {}
    for file in remote.files:
        before = done

        def on_bytes(bytes_of_file: int, before: int = before) -> None:
            progress(before + bytes_of_file, total)

        sha256 = download(remote.uri, file, staging / "files", on_bytes, check)
        files[file.name] = {"size": file.size, "sha256": sha256}
        done += file.size
    content = {"uri": remote.uri, "revision": remote.revision, "path": remote.path, "files": files}
    write_json(staging / MANIFEST, content)
    check()
    staging.rename(entry)
    sync_folder(folder)
    return _fetched(remote.uri, entry, content)


def _fetched(uri: str, entry: Path, manifest: dict[str, Any]) -> Fetched:
    files = {name: str(facts["sha256"]) for name, facts in manifest["files"].items()}
    return Fetched(uri, entry / "files" / str(manifest["path"]), files, manifest["revision"])


def _check_space(remote: RemoteSource, staging: Path, cache: Path) -> None:
    present = sum(path.stat().st_size for path in (staging / "files").rglob("*") if path.is_file())
    needed = sum(file.size for file in remote.files) - present
    if needed > shutil.disk_usage(staging).free:
        prune.prune(cache, prune.RECENT, needed)
    space = shutil.disk_usage(staging)
    if needed > space.free:
        raise NoSpace(
            f"{remote.uri} needs {needed / GB:.2f} GB more in the workspace, which has {space.free / GB:.2f} GB free of"
            f" {space.total / GB:.2f} GB. Enlarge its claim, or remove old jobs/ and cache/ directories from it"
        )
