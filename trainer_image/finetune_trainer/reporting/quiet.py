"""Keep the log for what a user can use: no progress bars, no advice of libraries to their own authors.

`log_lines` is called by the worker as soon as there is a log, before libraries are imported; `quiet` by workflows, by
``generate`` and before the memory estimate, before models are made.
"""

import logging
import warnings

OPTIONAL_KERNEL = "gemm_4bit_forward"
"""Of bitsandbytes, for CPUs: it would be downloaded, and nothing is missing without it."""

LOAD_REPORT = "LOAD REPORT"
"""Of transformers: weights that a file lacks or has too many. What may not lack is refused by `model.base`; the head
that a reward model begins with is no news."""


def log_lines() -> None:
    """What libraries log when they are imported. Their other warnings still come through."""
    for name in ("accelerate", "torch.distributed", "matplotlib", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("bitsandbytes.backends.cpu.ops", "transformers.modeling_utils"):
        logging.getLogger(name).addFilter(_is_news)


def quiet() -> None:
    """Errors and warnings of libraries still come through, deprecations don't."""
    import datasets  # seconds, which a worker that only says how it ended doesn't have
    from transformers.utils import logging as transformers_logging

    log_lines()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _is_news(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return OPTIONAL_KERNEL not in said and LOAD_REPORT not in said
