"""Errors of the hardware: how to recognise them in what libraries and drivers say.

Used by `exit_report` and `launcher.supervise`. Such an error needs other pods, on another node if there is one. An
error that a mistake in a program may cause as well, like an illegal memory access, is not among them.
"""

import re

NAMES = re.compile(
    # The CUDA runtime and driver, which torch and NCCL repeat.
    r"\buncorrectable (NVLink|ECC)\b|\bECC uncorrectable\b|\bUncorr(ectable)? ECC\b|\bhardware stack error\b"
    r"|\bcudaError(ECCUncorrectable|NvlinkUncorrectable|HardwareStackError|DevicesUnavailable)\b"
    r"|\bCUDA_ERROR_(ECC_UNCORRECTABLE|NVLINK_UNCORRECTABLE|HARDWARE_STACK_ERROR|DEVICE_UNAVAILABLE)\b"
    # The driver's own words, in the log of the kernel and of NVML.
    r"|\bNVRM: Xid\b|\bXid\b[^\n]{0,40}: ?[0-9]+|\b(has )?fallen off the bus\b|\bfell off the bus\b|\bGPU is lost\b"
    r"|\bNVLink\b[^\n]{0,60}\b(error|fault|failure|is down|inactive)\b|\bNVSwitch\b[^\n]{0,60}\b(error|fault)\b"
    # AMD
    r"|\bhipErrorECCNotCorrectable\b|\bRAS\b[^\n]{0,40}\buncorrectable\b",
    re.IGNORECASE,
)


def tells_of_it(text: str) -> bool:
    """Whether an error message or the end of a log tells of an error of the hardware."""
    return NAMES.search(text) is not None


def sentence(text: str) -> str:
    """The last line of a log that says so; '' without one."""
    return next((line.strip() for line in reversed(text.splitlines()) if tells_of_it(line)), "")
