"""manifest.json: the size and sha256 of every file of a checkpoint, and the facts that a run needs to resume from it.

`saver` writes it last, so a directory without it is no checkpoint. `verify` finds any change to any file, an added file
included: libraries choose what to load by the files that exist. The manifest contains its own digest.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from finetune_api.base import ApiModel
from pydantic import ValidationError

from finetune_trainer.checkpoints.paths import step_of
from finetune_trainer.runtime import heartbeat
from finetune_trainer.workspace.files import parse_object, write_json

FILE = "manifest.json"
DIGEST = "digest"
FORMAT = 1
CHUNK = 1 << 22
LARGEST = 64 << 20
"""Bytes of a manifest: a hundred thousand files have less."""
OTHER_KIND = (errno.EISDIR, errno.ENOTDIR)
"""A directory is in the place of a file, or the other way round."""
OF_FILE_SERVERS = ".nfs"
"""Prefix of the names that NFS gives to deleted files which a process still has open."""


class BrokenCheckpoint(Exception):
    """A flaw of a checkpoint. It is proven: the checkpoint is not merely unreadable at the moment."""


class OtherFormat(Exception):
    """The manifest is intact, but another version of the trainer wrote it. The checkpoint is not broken."""


class FileEntry(ApiModel):
    size: int
    sha256: str


class Manifest(ApiModel):
    """The facts about one checkpoint."""

    format: int = FORMAT
    step: int
    """Optimizer steps done."""
    samples: int
    """Rows, or packs, trained on so far."""
    world: int
    micro_batch: int | str
    """Rows, or a number of tokens with its unit."""
    global_batch: int
    parallelism: str
    dtypes: list[str]
    """Number types of the trained weights."""
    versions: dict[str, str]
    """Versions of the libraries that wrote it."""
    job: str
    """Digest of the part of the job that decides the result."""
    attempt: int
    run: str
    time: str
    metrics: dict[str, float]
    """Metrics of the evaluation at this step, if there was one."""
    files: dict[str, FileEntry]
    """By path relative to the checkpoint's directory."""


def list_files(folder: Path) -> list[str]:
    """The relative paths of all files of a checkpoint but its manifest."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(OF_FILE_SERVERS)]
    return sorted(name for path in files if (name := path.relative_to(folder).as_posix()) != FILE)


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and sha256 of complete files. Each file is on disk when this returns."""
    entries = {}
    for name in names:
        with (folder / name).open("rb") as content:
            digest = hash_stream(content)
            os.fsync(content.fileno())
            heartbeat.refresh()
            entries[name] = FileEntry(size=os.fstat(content.fileno()).st_size, sha256=digest)
    return entries


def write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the directory a checkpoint."""
    content = manifest.to_dict()
    write_json(folder / FILE, {**content, DIGEST: _digest_of_content(content)})


def read(folder: Path) -> Manifest:
    """Raises BrokenCheckpoint with the flaw, OtherFormat, and OSError when the state is unknown at the moment."""
    try:
        if not _is_plausible(folder / FILE):
            raise BrokenCheckpoint(f"{FILE} is not as it was written")
        raw = (folder / FILE).read_bytes()
    except OSError as error:
        raise BrokenCheckpoint(_proven_flaw(folder, FILE, error)) from error
    try:
        content = parse_object(raw)
        untouched = json.dumps(content, ensure_ascii=False, indent=1).encode() == raw
        if not untouched or content.pop(DIGEST) != _digest_of_content(content):
            raise BrokenCheckpoint(f"{FILE} is not as it was written")
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise OtherFormat from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpoint(f"{FILE} is not as it was written") from error
    if manifest.format != FORMAT:
        raise OtherFormat
    if manifest.step != step_of(folder):
        raise BrokenCheckpoint(f"it is the checkpoint of step {manifest.step}")
    return manifest


def read_complete(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose files all exist in their sizes. This is quick, but no proof: contents are not
    read, see `verify`. Raises as `read`."""
    manifest = read(folder)
    for name, entry in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise BrokenCheckpoint(_proven_flaw(folder, name, error)) from error
        if size != entry.size:
            raise BrokenCheckpoint(_wrong_size(name, size, entry))
    return manifest


def verify(folder: Path, manifest: Manifest, rank: int = 0, world: int = 1) -> list[str]:
    """Read this rank's share of the files and return their flaws. Together, the ranks read each file once. Raises
    OSError for a file that is unreadable for a reason that proves nothing."""
    flaws = []
    if rank == 0:
        flaws = [f"{name} does not belong to it" for name in list_files(folder) if name not in manifest.files]
    for name in files_of_rank(manifest, rank, world):
        flaw = _find_flaw(folder, name, manifest.files[name])
        if flaw:
            flaws.append(flaw)
    return flaws


def files_of_rank(manifest: Manifest, rank: int, world: int) -> list[str]:
    """The files that a rank reads: each file is read by one rank, and all ranks read about as many bytes."""
    loads, own = [0] * world, []
    for name in sorted(manifest.files, key=lambda name: (-manifest.files[name].size, name)):
        least = loads.index(min(loads))
        loads[least] += manifest.files[name].size
        if least == rank:
            own.append(name)
    return own


def _is_plausible(file: Path) -> bool:
    """Whether it is a file, of a size that a manifest can have: others could fill the memory or never end."""
    status = file.stat()
    return stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST


def _proven_flaw(folder: Path, name: str, error: OSError) -> str:
    """The flaw that an error proves. Raises the error when it proves none: a file server that does not answer, a
    permission that was removed, a process without free file handles. Then the file may be intact, and another attempt
    can read it."""
    if isinstance(error, FileNotFoundError) and folder.is_dir():
        return f"{name} is missing"
    if error.errno in OTHER_KIND:
        return f"{name} can't be read ({error.strerror})"
    raise OSError(error.errno, error.strerror or str(error), str(folder / name)) from error


def _wrong_size(name: str, size: int, entry: FileEntry) -> str:
    return f"{name} has {size} bytes instead of {entry.size}"


def _find_flaw(folder: Path, name: str, entry: FileEntry) -> str | None:
    try:
        if stat.S_ISFIFO((folder / name).stat().st_mode):  # opening it would wait for a writer
            return f"{name} is no file"
        with (folder / name).open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            if size != entry.size:
                return _wrong_size(name, size, entry)
            if hash_stream(content) != entry.sha256:
                return f"{name} is not as it was written"
    except OSError as error:
        return _proven_flaw(folder, name, error)
    return None


def hash_stream(file: BinaryIO) -> str:
    """sha256 of the rest of a file. A large file takes longer than the hang detection allows, so each chunk sends a
    heartbeat."""
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        heartbeat.refresh()
    return digest.hexdigest()


def _digest_of_content(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
