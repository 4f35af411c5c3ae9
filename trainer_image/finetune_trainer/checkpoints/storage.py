"""Failures of the workspace's storage while something is saved, told as what they are.

`finetune_trainer.workspace.usable` knows the errors of the file system; safetensors and torch report them in words of
their own, and libraries wrap them.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.workspace import usable

NEARLY_FULL = 1 << 20


@contextmanager
def guard(folder: str | Path) -> Iterator[None]:
    """Around everything that writes below ``folder``. Raises NoSpace or WorkspaceUnusable where that is the cause."""
    with usable(Path(folder)):
        try:
            yield
        except Exception as error:
            cause = _cause(error, Path(folder))
            if cause is not None and cause is not error:
                raise cause from error
            raise


def _cause(error: BaseException | None, folder: Path) -> OSError | None:
    """The error of the file system behind an error, if there is one."""
    if error is None or isinstance(error, OSError):
        return error
    if "os error 28" in str(error) or (isinstance(error, RuntimeError) and "writ" in str(error) and _full(folder)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _cause(error.__cause__ or error.__context__, folder)


def _full(folder: Path) -> bool:
    disk = os.statvfs(next(place for place in (folder, *folder.parents) if place.exists()))
    return disk.f_bavail * disk.f_frsize < NEARLY_FULL
