"""Errors of the hardware are recognised, and reported with the node that they are on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from finetune_trainer.runtime import exit_report, hardware, results
from finetune_trainer.runtime.exit_report import ExitReport

ECC = "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    "text",
    [
        ECC,
        "CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error: uncorrectable NVLink error",
        "cudaErrorNvlinkUncorrectable: uncorrectable NVLink error detected during the execution",
        "ncclUnhandledCudaError: Cuda failure 214 'uncorrectable ECC error encountered'",
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.",
        "Xid 79: GPU fell off the bus",
        "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost. Reboot the system",
        "NVLink: fatal error detected on link 3",
        "CUDA error: hardware stack error",
    ],
)
def test_errors_of_the_hardware_are_known(text: str) -> None:
    report = exit_report.from_error(RuntimeError(text), rank=9, workspace=Path("/ws"))
    assert (report.code, report.reason, report.needs_new_pods) == (70, "HardwareError", True)
    assert "rank 9" in report.message
    assert hardware.sentence(text) in report.message


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "NCCL INFO Connected all rings, use NVLink SHARP",
        "NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM over NVLink",
        "KeyError: 'maxid'",
        "Connection closed by peer [10.0.0.1]:29500",
    ],
)
def test_errors_of_programs_are_none(text: str) -> None:
    report = exit_report.from_error(RuntimeError(text), rank=9, workspace=Path("/ws"))
    assert report.reason == "InternalError"


def test_the_rank_whose_hardware_failed_decides() -> None:
    """The others fail because of it, and with the same code."""
    faulty = exit_report.at_node(exit_report.hardware_error(ECC, 3), 1)
    report = exit_report.combine([exit_report.internal_error("NCCL error on rank 0"), faulty])
    assert (report.reason, report.faulty_node) == ("HardwareError", 1)
    assert results.to_result(report, 1).faulty_node == 1


def test_a_node_that_repeats_the_error_of_another_is_not_blamed() -> None:
    heard = replace(exit_report.hardware_error(ECC, 3), secondhand=True)
    assert exit_report.at_node(heard, 0).faulty_node is None
    bug = ExitReport(70, "InternalError", "a bug")
    assert exit_report.at_node(bug, 0).faulty_node is None
