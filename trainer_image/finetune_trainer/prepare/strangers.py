"""Files of a model or adapter hold whatever somebody wrote into them, and the libraries that read them raise what they
like: an AttributeError for a text in place of an object, an OverflowError for a number. All of it means the same.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_trainer.errors import InvalidSpec, TrainerError
from finetune_trainer.runtime import gpumemory

log = logging.getLogger(__name__)


@contextmanager
def told(what: str) -> Iterator[None]:
    """Around the examination of files, before rows are read. Raises InvalidSpec, which names ``what``, for everything
    that neither the disk nor the memory explains. Errors for the user pass unchanged."""
    try:
        yield
    except (TrainerError, OSError, MemoryError):
        raise
    except Exception as error:
        if gpumemory.is_out_of_memory(error) or "DefaultCPUAllocator" in str(error):
            raise
        log.warning("The stack trace of what follows:", exc_info=True)
        raise InvalidSpec(
            f"{what} can't be used: its files hold something that no model has ({type(error).__name__}: {error})."
            " Copy it again, or name another"
        ) from error
