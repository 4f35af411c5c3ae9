"""Errors of the workspace's storage, translated into errors of the job.

`storage_errors` goes around work with plain files. `save_errors` goes around libraries that save models: safetensors
and torch report an error of the file system in their own words, and wrap it.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.errors import NoSpace, TrainerError, WorkspaceUnusable

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
TRANSIENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
NEARLY_FULL = 1 << 20
"""Free bytes below which a file system counts as full."""
RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers report errno."""
TORCH_SAVE_ERRORS = ("writ", "Parent directory", "cannot be opened", "unexpected pos")
"""Parts of torch's messages when a save fails. None of them names the cause."""


@contextmanager
def storage_errors(workspace: Path) -> Iterator[None]:
    """Raise NoSpace or WorkspaceUnusable for an OSError. A transient error passes unchanged: the operator starts
    another attempt."""
    try:
        yield
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        raise _translate(error, workspace) from error


@contextmanager
def save_errors(folder: str | Path, workspace: Path | None = None) -> Iterator[None]:
    """Around everything that writes below ``folder``. Raises NoSpace or WorkspaceUnusable when the storage is the
    cause; the message names ``workspace``, by default ``folder``."""
    with storage_errors(workspace or Path(folder)):
        try:
            yield
        except BaseException as error:
            first = _first_failure(error)
            cause = _os_error(first, Path(folder)) if isinstance(first, Exception) else None
            if cause is not None and cause is not error:
                raise cause from error
            if first is not error:
                raise first from error
            raise


def _translate(error: OSError, workspace: Path) -> TrainerError:
    if error.errno in NO_SPACE:
        return NoSpace(
            f"The workspace {workspace} is full ({error}). Nothing more can be saved. Give its claim more room, or"
            " remove old directories in jobs/"
        )
    return WorkspaceUnusable(
        f"The workspace {workspace} cannot be used by uid {os.getuid()}, gid {os.getgid()}: {error}. Mount it writable,"
        " and use a StorageClass that supports fsGroup or make the volume writable for that user"
    )


def _first_failure(error: BaseException) -> BaseException:
    """The error behind a failed distributed checkpoint of torch, from the lowest rank that failed. torch's own
    exception is no Exception, so that no ``except Exception`` sees it."""
    if isinstance(error, Exception) or type(error).__name__ != "CheckpointException":
        return error
    from torch.distributed.checkpoint.api import CheckpointException

    if not isinstance(error, CheckpointException) or not error.failures:
        return error
    return error.failures[min(error.failures)][0]


def _os_error(error: BaseException | None, folder: Path) -> OSError | None:
    """The error of the file system behind an error, if any."""
    if error is None or isinstance(error, OSError):
        return error
    match = RUST_ERROR.search(str(error))
    number = int(match[1]) if match else None
    if number is None and isinstance(error, RuntimeError) and any(part in str(error) for part in TORCH_SAVE_ERRORS):
        number = _probe(folder)
    if number is not None:
        return OSError(number, os.strerror(number), str(folder))
    return _os_error(error.__cause__ or error.__context__, folder)


def _probe(folder: Path) -> int | None:
    """The errno that fits the state of the directory; None when it looks usable."""
    if not folder.is_dir():
        return errno.ENOENT
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < NEARLY_FULL:
        return errno.ENOSPC
    return None if os.access(folder, os.W_OK) else errno.EROFS
