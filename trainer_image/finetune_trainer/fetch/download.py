"""Download one file: resumed after a broken connection, and checked against the server's checksum.

Called by `source_cache`.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from finetune_trainer.errors import SourceUnreachable
from finetune_trainer.fetch import checksums
from finetune_trainer.fetch.context import CheckStop
from finetune_trainer.fetch.remote_files import RemoteFile, Stream
from finetune_trainer.fetch.retry import PAUSES, TransientError, wait

READ_BACK = 1 << 20
"""Bytes read at a time from a partial file."""
GB = 1e9

log = logging.getLogger(__name__)


class _Damaged(SourceUnreachable):
    """The received file does not have the server's checksum or size."""


def download(uri: str, file: RemoteFile, folder: Path, on_bytes: Callable[[int], None], check_stop: CheckStop) -> str:
    """Fetch one file into ``folder`` and return its sha256. ``on_bytes`` is called with the bytes received so far.

    Attempts continue while bytes arrive. They end after `PAUSES` attempts in a row that brought no byte.
    """
    target = folder / file.name
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # from an interrupted run: check it as if it had just arrived
        target.replace(part)
    attempts_without_bytes, damaged = 0, 0
    while True:
        before = _size(part)
        try:
            return _attempt(uri, file, part, target, on_bytes, check_stop)
        except _Damaged as error:
            part.unlink()
            damaged += 1
            if damaged > 1:
                raise
            log.warning("%s. Fetching it again", error)
            continue
        except TransientError:
            attempts_without_bytes = 0 if _size(part) > before else attempts_without_bytes + 1
            if attempts_without_bytes > len(PAUSES):
                raise
        wait(PAUSES[max(0, attempts_without_bytes - 1)], check_stop)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _attempt(
    uri: str, file: RemoteFile, part: Path, target: Path, on_bytes: Callable[[int], None], check_stop: CheckStop
) -> str:
    """Append to ``part`` what is missing, check it, and rename it to ``target``."""
    if _size(part) > file.size:
        part.unlink()
    with file.open(_size(part)) as stream, part.open("r+b" if part.exists() else "x+b") as out:
        sums = _checksums(stream, file.size)
        out.truncate(stream.start)
        while chunk := out.read(READ_BACK):
            check_stop()
            _update(sums, chunk)
        done = stream.start
        on_bytes(done)
        for chunk in stream.chunks:
            check_stop()
            done += len(chunk)
            if done > file.size:
                break
            out.write(chunk)
            _update(sums, chunk)
            on_bytes(done)
        out.flush()
        os.fsync(out.fileno())
        if done < file.size:
            raise TransientError(f"{uri}: {file.name} ended after {done} of {file.size} bytes")
        if done > file.size:
            raise _Damaged(f"{uri}: {file.name} is damaged: more than its {file.size} bytes arrived")
        if stream.checksum:
            kind, expected = stream.checksum
            if sums[kind].hexdigest() != expected:
                raise _Damaged(
                    f"{uri}: {file.name} is damaged: expected {kind} {expected}, got {sums[kind].hexdigest()}"
                )
    part.replace(target)
    return sums["sha256"].hexdigest()


def _checksums(stream: Stream, size: int) -> dict[str, checksums.Checksum]:
    """sha256 for the manifest, and the kind that the server gives."""
    kinds = {"sha256", stream.checksum[0] if stream.checksum else "sha256"}
    return {kind: checksums.create(kind, size, stream.part_size) for kind in kinds}


def _update(sums: dict[str, checksums.Checksum], chunk: bytes) -> None:
    for checksum in sums.values():
        checksum.update(chunk)
