"""Keep the log for what a user can use: no progress bars, no advice of libraries to their own authors.

Called by workflows and by ``generate`` before anything is loaded.
"""

import logging
import warnings

import datasets
from transformers.utils import logging as transformers_logging


def quiet() -> None:
    """Errors and warnings of libraries still come through, deprecations don't."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("accelerate", "torch.distributed", "matplotlib", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)
