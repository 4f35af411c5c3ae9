"""Which lines are filtered out of a job's log."""

import logging
import warnings

import pytest
from finetune_trainer.reporting.library_logs import silence_libraries


def test_only_irrelevant_lines_are_filtered(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        silence_libraries()
        warnings.warn("`x` is deprecated and will be removed in v6", FutureWarning, stacklevel=1)
        warnings.warn("your data is odd", UserWarning, stacklevel=1)
    log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "offline")
    log.warning("this CPU is too old")
    assert [str(each.message) for each in warned] == ["your data is odd"]
    assert caplog.messages == ["this CPU is too old"]
