"""`finetune fetch`: the artifact of a job as a local folder, which appears only when it is whole.

The pod says which files there are, and sends their bytes one after the other. What has arrived lies in a hidden folder
beside the target, so a later call continues there. At the end, the digest of all files is compared with the digest in
the status; only then the folder gets its name.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from finetune_cli import jobs
from finetune_cli.cluster.client import Client, Object
from finetune_cli.cluster.errors import ApiError
from finetune_cli.cluster.remote import Broken
from finetune_cli.output import warn
from finetune_cli.problem import Exit, Problem
from finetune_cli.workspace.pod import Need
from finetune_cli.workspace.session import Reader, opened

HOURS = 6
TRIES = 7
"""Connections that break one after the other without a byte between them. All pauses together are longer than a restart
of the API server."""
PAUSE_SECONDS = 1.0


class File(NamedTuple):
    """A file of the artifact."""

    name: str
    size: int


def fetch(client: Client, job: Object, folder: str | None, queue: str | None, timeout: float) -> Path:
    """Copy the artifact of a job that has succeeded. Returns the folder."""
    artifact = artifact_of(job)
    target = Path(folder or job["metadata"]["name"]).resolve()
    check_target(target)
    staging = Staging(target, artifact["digest"])
    path = f"jobs/{job['metadata']['name']}/artifact"
    with opened(client, job, Need(HOURS * 3600, queue=queue), timeout) as reader:
        with reader.read("list", path) as command:
            listed = json.loads(b"".join(command.output()))["files"]
        files = [File(str(file["name"]), int(file["size"])) for file in listed]
        staging.prepare(files)
        _copy(reader, path, staging, files)
    staging.finish()
    return target


def artifact_of(job: Object) -> dict[str, Any]:
    """status.artifact. Raises Problem if the job has none."""
    name, artifact = job["metadata"]["name"], jobs.status(job).get("artifact")
    if jobs.phase(job) != "Succeeded" or not artifact:
        raise Problem(
            f"{name} is {jobs.phase(job)}: only a job that has Succeeded has an artifact. `finetune watch {name}` waits"
            " for its end.",
            Exit.REFUSED,
        )
    return dict(artifact)


def check_target(target: Path) -> None:
    """Raises Problem if the folder has something that would be overwritten."""
    if target.exists() and not target.is_dir():
        raise Problem(f"{target} exists and is no folder. Name another: -o FOLDER")
    if target.is_dir() and any(target.iterdir()):
        raise Problem(f"The folder {target} is not empty, and nothing in it is overwritten. Name another: -o FOLDER")
    if not target.parent.is_dir():
        raise Problem(f"The folder {target.parent} does not exist. Create it first.")


class Staging:
    """The part of an artifact that has arrived: a hidden folder beside the target."""

    def __init__(self, target: Path, digest: str) -> None:
        self.target, self.digest = target, digest
        self.folder = target.with_name(f".{target.name}.fetching")
        self.files = self.folder / "files"

    def prepare(self, files: list[File]) -> None:
        """Keep what an earlier call has fetched of the same artifact, and nothing else. Raises Problem for names that
        lead out of the folder."""
        for file in files:
            name = PurePosixPath(file.name)
            if not name.parts or name.is_absolute() or ".." in name.parts or "\\" in file.name or ":" in file.name:
                raise Problem(f"The artifact has a file {file.name!r}, which would lie elsewhere. Nothing is written.")
        note = self.folder / "digest"
        if not note.is_file() or note.read_text(encoding="utf-8") != self.digest or self._strange(files):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.files.mkdir(parents=True, exist_ok=True)
        note.write_text(self.digest, encoding="utf-8")

    def _strange(self, files: list[File]) -> bool:
        """Whether something else than the first part of these files is there."""
        here = {path.relative_to(self.files).as_posix() for path in self.files.rglob("*") if not path.is_dir()}
        expected, complete = set[str](), True
        for file in files:
            size = self.size(file)
            if size > file.size or (size and not complete):
                return True
            complete = complete and size == file.size
            expected.add(file.name)
        return not here <= expected

    def size(self, file: File) -> int:
        """Bytes of a file that have arrived."""
        path = self.files / file.name
        return path.stat().st_size if path.is_file() and not path.is_symlink() else 0

    def arrived(self, files: list[File]) -> int:
        """Bytes that have arrived."""
        return sum(self.size(file) for file in files)

    def open(self, file: File) -> BinaryIO:
        """The file, for what comes next of it."""
        path = self.files / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")

    def finish(self) -> None:
        """Give the folder its name, if its digest is right. Raises Problem otherwise, and removes it."""
        found = digest_of(self.files)
        if found != self.digest:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise Problem(
                f"What was fetched is not the artifact of the status: its digest is {found}, and that of the status is"
                f" {self.digest}. It was removed. Run the command again; if the digests differ again, the artifact in"
                " the workspace was changed or is damaged.",
                Exit.FAILED,
            )
        check_target(self.target)
        self.files.replace(self.target)
        shutil.rmtree(self.folder, ignore_errors=True)


def _copy(reader: Reader, path: str, staging: Staging, files: list[File]) -> None:
    """Fetch what has not arrived yet, over as many connections as it takes."""
    total, failures = sum(file.size for file in files), 0
    progress = Progress(total)
    while True:
        begun = progress.done = staging.arrived(files)
        try:
            with reader.read("send", path, "--offset", str(begun)) as command:
                _write(command.output(), staging, files, progress)
        except (Broken, Problem) as error:
            if isinstance(error, ApiError) and error.code is Exit.DENIED:
                raise
            failures = 1 if staging.arrived(files) > begun else failures + 1
            problem = reader.broke(error) if isinstance(error, Broken | ApiError) else error
            if failures == TRIES or problem.code is not Exit.UNREACHABLE:
                raise problem from error
            warn(f"The connection broke ({error}). It continues at {gigabytes(staging.arrived(files))}.")
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))
            continue
        if staging.arrived(files) != total:
            raise Problem(
                f"Only {gigabytes(staging.arrived(files))} of {gigabytes(total)} have arrived. Run the command again.",
                Exit.FAILED,
            )
        progress.end()
        return


def _write(parts: Iterator[bytes], staging: Staging, files: list[File], progress: "Progress") -> None:
    """Write the bytes to the files, from the first byte that has not arrived."""
    rest = memoryview(b"")
    for file in files:
        missing = file.size - staging.size(file)
        if not missing and (staging.files / file.name).exists():
            continue
        with staging.open(file) as out:
            while missing:
                if not rest:
                    part = next(parts, None)
                    if part is None:
                        return
                    rest = memoryview(part)
                taken = rest[:missing]
                out.write(taken)
                rest = rest[len(taken) :]
                missing -= len(taken)
                progress.add(len(taken))
            out.flush()
            os.fsync(out.fileno())
    for _ in parts:  # nothing is left but the end of the command
        pass


def digest_of(folder: Path) -> str:
    """The digest of an artifact, as the trainer computes it: sha256 over the names and contents of its files."""
    total = hashlib.sha256()
    for name in sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()):
        with (folder / name).open("rb") as content:
            total.update(f"{name}\0{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def gigabytes(size: int) -> str:
    """A size for people."""
    power = min(3, max(0, size.bit_length() - 1) // 10)
    return f"{size / 1024**power:.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


class Progress:
    """A line on the terminal that says how much has arrived."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.shown = total, 0, 0.0
        self.live = sys.stderr.isatty()

    def add(self, size: int) -> None:
        """So many bytes have arrived."""
        self.done += size
        if self.live and time.monotonic() - self.shown > 0.2:
            self.shown = time.monotonic()
            sys.stderr.write(f"\r{gigabytes(self.done)} of {gigabytes(self.total)} ")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if self.live:
            sys.stderr.write("\r\x1b[K")
