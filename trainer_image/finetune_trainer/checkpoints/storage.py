"""Failures of the workspace's storage while something is saved, told as what they are.

`finetune_trainer.workspace.usable` knows the errors of the file system; safetensors and torch report them in words of
their own, and libraries wrap them.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_trainer.workspace import usable

NEARLY_FULL = 1 << 20
OF_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors and tokenizers say errno."""
OF_TORCH = ("writ", "Parent directory", "cannot be opened", "unexpected pos")
"""Words of torch's errors in saving, none of which says why."""


@contextmanager
def guard(folder: str | Path, called: Path | None = None) -> Iterator[None]:
    """Around everything that writes below ``folder``. Raises NoSpace or WorkspaceUnusable where that is the cause;
    ``called`` is what they name instead."""
    with usable(called or Path(folder)):
        try:
            yield
        except BaseException as error:
            first = _of_shards(error)
            cause = _cause(first, Path(folder)) if isinstance(first, Exception) else None
            if cause is not None and cause is not error:
                raise cause from error
            if first is not error:
                raise first from error
            raise


def _of_shards(error: BaseException) -> BaseException:
    """What made torch's distributed checkpoint fail, on the first rank that did. Its own exception is no Exception, so
    it would pass all who look for one."""
    if isinstance(error, Exception) or type(error).__name__ != "CheckpointException":
        return error
    from torch.distributed.checkpoint.api import CheckpointException

    if not isinstance(error, CheckpointException) or not error.failures:
        return error
    return error.failures[min(error.failures)][0]


def _cause(error: BaseException | None, folder: Path) -> OSError | None:
    """The error of the file system behind an error, if there is one."""
    if error is None or isinstance(error, OSError):
        return error
    told = OF_RUST.search(str(error))
    number = int(told[1]) if told else None
    if number is None and isinstance(error, RuntimeError) and any(words in str(error) for words in OF_TORCH):
        number = _state(folder)
    if number is not None:
        return OSError(number, os.strerror(number), str(folder))
    return _cause(error.__cause__ or error.__context__, folder)


def _state(folder: Path) -> int | None:
    """What is wrong with the place itself."""
    if not folder.is_dir():
        return errno.ENOENT
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < NEARLY_FULL:
        return errno.ENOSPC
    return None if os.access(folder, os.W_OK) else errno.EROFS
