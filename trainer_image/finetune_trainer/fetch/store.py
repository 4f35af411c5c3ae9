"""The workspace's store of fetched sources: each version of each source once, whole or not at all.

Called by ``hub`` and ``s3``. Layout, below cache/sources:

``<folder>/<version>/files/…``        what was fetched
``<folder>/<version>/manifest.json``  {uri, revision, path, files: name -> {size, sha256}}, written last
``<folder>/.staging-<version>/``      what is being fetched, renamed to <version> when whole; a file that isn't whole
                                      ends in .part, and the next run goes on from there

Invariants: under <version> lies nothing that wasn't checked; one run at a time writes a version (a lease).
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_trainer.errors import NoSpace, SourceUnreachable
from finetune_trainer.fetch import prune, sums
from finetune_trainer.fetch.lease import lease
from finetune_trainer.fetch.places import Fetched, Places
from finetune_trainer.fetch.remote import Remote, RemoteFile, Stream
from finetune_trainer.fetch.retry import PAUSES, Unsteady, wait
from finetune_trainer.workspace import read_json, sync_folder, usable, write_json

MANIFEST = "manifest.json"
READ_BACK = 1 << 20
GB = 1e9

log = logging.getLogger(__name__)


def look_up(places: Places, folder: str, version: str, uri: str) -> Fetched | None:
    """What an earlier run fetched, without asking anybody; None if it isn't there, or no longer whole."""
    entry = places.cache / "sources" / folder / version
    manifest = read_json(entry / MANIFEST)
    if manifest is None:
        return None
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name, facts in files.items():
        try:
            whole = (entry / "files" / name).stat().st_size == facts["size"]
        except FileNotFoundError:
            whole = False
        if not whole:
            return None
    prune.used(entry)
    return _fetched(uri, entry, manifest)


def keep(
    remote: Remote, places: Places, progress: Callable[[int, int], None], check_stop: Callable[[], None]
) -> Fetched:
    """Have this version in the store. Raises NoSpace before anything is fetched, SourceUnreachable."""
    with usable(places.cache.parent):
        found = _found(remote, places)
        if found:
            return found
        lock = places.cache / "locks" / f"{remote.folder.replace('/', '-')}-{remote.version[:20]}"
        with lease(lock, places.owner, check_stop, places.attempt) as held:
            found = _found(remote, places)  # by who held the lease before
            if found:
                return found

            def check() -> None:
                check_stop()
                held.check()

            return _fetch(remote, places.cache, progress, check)


def _found(remote: Remote, places: Places) -> Fetched | None:
    return look_up(places, remote.folder, remote.version, remote.uri)


def _fetch(remote: Remote, cache: Path, progress: Callable[[int, int], None], check: Callable[[], None]) -> Fetched:
    folder = cache / "sources" / remote.folder
    staging, entry = folder / f".staging-{remote.version}", folder / remote.version
    if entry.exists():  # damaged: its whole files need not be fetched again
        shutil.rmtree(staging, ignore_errors=True)
        entry.rename(staging)
    (staging / "files").mkdir(parents=True, exist_ok=True)
    os.utime(staging)  # of whatever age it was, it is in use now: nobody prunes it
    _check_space(remote, staging, cache)
    total, done = sum(file.size for file in remote.files), 0
    log.info("Fetching %s: %d files, %.2f GB", remote.uri, len(remote.files), total / GB)
    facts = {}
    for file in remote.files:
        before = done

        def heard(bytes_of_file: int, before: int = before) -> None:
            progress(before + bytes_of_file, total)

        facts[file.name] = {"size": file.size, "sha256": _file(remote, file, staging / "files", heard, check)}
        done += file.size
    content = {"uri": remote.uri, "revision": remote.revision, "path": remote.path, "files": facts}
    write_json(staging / MANIFEST, content)
    check()
    staging.rename(entry)
    sync_folder(folder)
    return _fetched(remote.uri, entry, content)


def _fetched(uri: str, entry: Path, manifest: dict[str, Any]) -> Fetched:
    files = {name: str(facts["sha256"]) for name, facts in manifest["files"].items()}
    return Fetched(uri, entry / "files" / str(manifest["path"]), files, manifest["revision"])


def _check_space(remote: Remote, staging: Path, cache: Path) -> None:
    have = sum(path.stat().st_size for path in (staging / "files").rglob("*") if path.is_file())
    need = sum(file.size for file in remote.files) - have
    if need > shutil.disk_usage(staging).free:
        prune.prune(cache, prune.RECENT, need)
    space = shutil.disk_usage(staging)
    if need > space.free:
        raise NoSpace(
            f"{remote.uri} needs {need / GB:.2f} GB more in the workspace, which has {space.free / GB:.2f} GB free of"
            f" {space.total / GB:.2f} GB: give its claim room, or remove old jobs/ and cache/ from it"
        )


def _file(
    remote: Remote, file: RemoteFile, folder: Path, heard: Callable[[int], None], check: Callable[[], None]
) -> str:
    """Fetch one file; its sha256. Tries go on while bytes arrive, and end when so many in a row brought none."""
    whole = folder / file.name
    part = whole.with_name(f"{whole.name}.part")
    whole.parent.mkdir(parents=True, exist_ok=True)
    if whole.exists():  # of a run that was broken off: check it as it is checked when it arrives
        whole.replace(part)
    without, damaged = 0, 0
    while True:
        had = _size(part)
        try:
            return _try(remote, file, part, whole, heard, check)
        except _Damaged as error:
            part.unlink()
            damaged += 1
            if damaged > 1:
                raise
            log.warning("%s; fetching it once more", error)
            continue
        except Unsteady:
            without = 0 if _size(part) > had else without + 1
            if without > len(PAUSES):
                raise
        wait(PAUSES[max(0, without - 1)], check)


class _Damaged(SourceUnreachable):
    """A file isn't what the server says it is."""


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _try(
    remote: Remote,
    file: RemoteFile,
    part: Path,
    whole: Path,
    heard: Callable[[int], None],
    check: Callable[[], None],
) -> str:
    if _size(part) > file.size:
        part.unlink()
    with file.open(_size(part)) as stream, part.open("r+b" if part.exists() else "x+b") as out:
        running = _sums(stream, file.size)
        out.truncate(stream.start)
        while chunk := out.read(READ_BACK):
            check()
            for one in running.values():
                one.update(chunk)
        done = stream.start
        heard(done)
        for chunk in stream.chunks:
            check()
            done += len(chunk)
            if done > file.size:
                break
            out.write(chunk)
            for one in running.values():
                one.update(chunk)
            heard(done)
        out.flush()
        os.fsync(out.fileno())
        if done < file.size:
            raise Unsteady(f"{remote.uri}: {file.name} ended after {done} of {file.size} bytes")
        expected = stream.check
        if done > file.size or (expected and running[expected[0]].hexdigest() != expected[1]):
            raise _Damaged(
                f"{remote.uri}: {file.name} is damaged: "
                + (
                    f"expected {expected[0]} {expected[1]}, got {running[expected[0]].hexdigest()}"
                    if expected and done == file.size
                    else f"more than its {file.size} bytes arrived"
                )
            )
    part.replace(whole)
    return running["sha256"].hexdigest()


def _sums(stream: Stream, size: int) -> dict[str, sums.Sum]:
    """sha256, which the manifest wants, and what the server can be checked by."""
    kinds = {"sha256", stream.check[0] if stream.check else "sha256"}
    return {kind: sums.make(kind, size, stream.part_size) for kind in kinds}
