"""Removes log lines of libraries that no user can act on: progress bars, deprecations, and known false alarms.

`launcher.worker` and the command line call `filter_log_lines` before they import libraries. Workflows, ``generate``,
``export`` and the memory estimate call `silence_libraries` before they load models.
"""

import logging
import warnings

OPTIONAL_KERNEL = "gemm_4bit_forward"
"""An optional CPU kernel of bitsandbytes. It would be downloaded, and is not needed."""

LOAD_REPORT = "LOAD REPORT"
"""transformers reports weights that a file lacks or has too many. `model.base` refuses a file that lacks needed
weights, and the new head of a reward model is expected to be missing."""


def filter_log_lines() -> None:
    """Filter what libraries log when they are imported. Their other warnings still appear."""
    for name in ("accelerate", "torch.distributed", "matplotlib", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("bitsandbytes.backends.cpu.ops", "transformers.modeling_utils"):
        logging.getLogger(name).addFilter(_is_relevant)


def silence_libraries() -> None:
    """Hide progress bars and deprecations of libraries. Their other warnings and errors still appear."""
    import datasets  # takes seconds: a worker that only reports its end does not need it
    from transformers.utils import logging as transformers_logging

    filter_log_lines()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _is_relevant(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return OPTIONAL_KERNEL not in message and LOAD_REPORT not in message
