"""Failures of the workspace's storage while something is saved, told as what they are.

The errors of the file system itself are `finetune_trainer.workspace.unusable`'s to name; safetensors and torch report
them in words of their own.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.errors import TrainerError
from finetune_trainer.workspace import unusable

STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
NEARLY_FULL = 1 << 20


@contextmanager
def guard(folder: str | Path) -> Iterator[None]:
    """Around everything that writes below ``folder``. Raises NoSpace or WorkspaceUnusable where that is the cause."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            told = _translate(cause, Path(folder))
            if told is not None:
                raise told from error
            cause = cause.__cause__ or cause.__context__
        raise


def _translate(error: BaseException, folder: Path) -> TrainerError | None:
    if isinstance(error, OSError) and error.errno in STORAGE:
        return unusable(error, folder)
    if "os error 28" in str(error) or (isinstance(error, RuntimeError) and "writ" in str(error) and _full(folder)):
        return unusable(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), folder)
    return None


def _full(folder: Path) -> bool:
    disk = os.statvfs(next(place for place in (folder, *folder.parents) if place.exists()))
    return disk.f_bavail * disk.f_frsize < NEARLY_FULL
