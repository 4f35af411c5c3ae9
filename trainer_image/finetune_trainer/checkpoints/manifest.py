"""manifest.json: every file of a checkpoint with its size and sha256, and what has to be known to go on from it.

Written by `saver` as the last file of a checkpoint, so one without it is none. `verify` finds any change to any file,
one that was added included: libraries choose what to load by what is there. The manifest carries its own digest.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from finetune_api.base import ApiModel
from pydantic import ValidationError

from finetune_trainer import heartbeat
from finetune_trainer.checkpoints.folders import step_of
from finetune_trainer.workspace import write_json

FILE = "manifest.json"
DIGEST = "digest"
FORMAT = 1
CHUNK = 1 << 22
OTHER_KIND = (errno.EISDIR, errno.ENOTDIR)
"""There is a folder where a file was, or the other way round."""
OF_FILE_SERVERS = ".nfs"
"""Names that NFS gives to deleted files which somebody still has open."""


class Flawed(Exception):
    """What is wrong with a checkpoint: proven, not merely unreadable at the moment."""


class OtherVersion(Exception):
    """The manifest is as it was written, by a trainer that wrote others. Nothing is wrong with the checkpoint."""


class FileFacts(ApiModel):
    size: int
    sha256: str


class Manifest(ApiModel):
    """What is known of one checkpoint."""

    format: int = FORMAT
    step: int
    """Optimizer steps done."""
    samples: int
    """Rows, or packs, trained on so far."""
    world: int
    micro_batch: int
    global_batch: int
    parallelism: str
    dtypes: list[str]
    """Of the trained weights."""
    versions: dict[str, str]
    """Of the libraries that wrote it."""
    job: str
    """Digest of the job: what decides the result."""
    attempt: int
    run: str
    time: str
    metrics: dict[str, float]
    """Of the evaluation at this step, where there was one."""
    files: dict[str, FileFacts]
    """By path below the folder."""


def below(folder: Path) -> list[str]:
    """Every file of a checkpoint but its manifest, by path."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(OF_FILE_SERVERS)]
    return sorted(name for path in files if (name := path.relative_to(folder).as_posix()) != FILE)


def vouch(folder: Path, names: Iterable[str]) -> dict[str, FileFacts]:
    """Size and digest of files that are complete; each is on disk when this returns."""
    facts = {}
    for name in names:
        with (folder / name).open("rb") as content:
            digest = digest_of(content)
            os.fsync(content.fileno())
            heartbeat.alive()
            facts[name] = FileFacts(size=os.fstat(content.fileno()).st_size, sha256=digest)
    return facts


def write(folder: Path, manifest: Manifest) -> None:
    """Makes a checkpoint of the folder."""
    content = manifest.to_dict()
    write_json(folder / FILE, {**content, DIGEST: _digest(content)})


def read(folder: Path) -> Manifest:
    """Raises Flawed, which says what is wrong; OtherVersion; and OSError where that can't be told now."""
    try:
        raw = (folder / FILE).read_bytes()
    except OSError as error:
        raise Flawed(_proven(folder, FILE, error)) from error
    try:
        content = json.loads(raw)
        untouched = json.dumps(content, ensure_ascii=False, indent=1).encode() == raw
        if not untouched or content.pop(DIGEST) != _digest(content):
            raise Flawed(f"{FILE} is not as it was written")
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise OtherVersion from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Flawed(f"{FILE} is not as it was written") from error
    if manifest.format != FORMAT:
        raise OtherVersion
    if manifest.step != step_of(folder):
        raise Flawed(f"it is the checkpoint of step {manifest.step}")
    return manifest


def complete(folder: Path) -> Manifest:
    """The manifest, if everything in it is there in its size. A look, not a proof: see `verify`. Raises as `read`."""
    manifest = read(folder)
    for name, facts in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise Flawed(_proven(folder, name, error)) from error
        if size != facts.size:
            raise Flawed(_resized(name, size, facts))
    return manifest


def verify(folder: Path, manifest: Manifest, rank: int = 0, world: int = 1) -> list[str]:
    """Read this rank's share of the files and say what is wrong with them; together, ranks read each file once. Raises
    OSError where a file can't be read for a reason that proves nothing."""
    flaws = []
    if rank == 0:
        flaws = [f"{name} doesn't belong to it" for name in below(folder) if name not in manifest.files]
    for name in share(manifest, rank, world):
        flaw = _flaw(folder, name, manifest.files[name])
        if flaw:
            flaws.append(flaw)
    return flaws


def share(manifest: Manifest, rank: int, world: int) -> list[str]:
    """The files that a rank reads: each by one rank, and about as many bytes for all."""
    loads, mine = [0] * world, []
    for name in sorted(manifest.files, key=lambda name: (-manifest.files[name].size, name)):
        least = loads.index(min(loads))
        loads[least] += manifest.files[name].size
        if least == rank:
            mine.append(name)
    return mine


def _proven(folder: Path, name: str, error: OSError) -> str:
    """A flaw in words. Raises the error where it proves none: a file server that is away, a right that somebody took, a
    process out of handles. The file may be whole, and another attempt finds it."""
    if isinstance(error, FileNotFoundError) and folder.is_dir():
        return f"{name} is missing"
    if error.errno in OTHER_KIND:
        return f"{name} can't be read ({error.strerror})"
    raise OSError(error.errno, error.strerror or str(error), str(folder / name)) from error


def _resized(name: str, size: int, facts: FileFacts) -> str:
    return f"{name} has {size} bytes instead of {facts.size}"


def _flaw(folder: Path, name: str, facts: FileFacts) -> str | None:
    try:
        with (folder / name).open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            if size != facts.size:
                return _resized(name, size, facts)
            if digest_of(content) != facts.sha256:
                return f"{name} is not as it was written"
    except OSError as error:
        return _proven(folder, name, error)
    return None


def digest_of(file: BinaryIO) -> str:
    """Of the rest of a file. One may take longer than a rank may be silent: each chunk is a sign of life."""
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        heartbeat.alive()
    return digest.hexdigest()


def _digest(content: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
