"""The memory of a GPU, as the labels of nodes state it."""

import re
from collections.abc import Iterable


def least_gpu_memory(labels: Iterable[str]) -> int | None:
    """Bytes, from values of the label nvidia.com/gpu.memory, which counts MiB. Values that are no number are ignored;
    None if none is left."""
    return min((int(text) * 2**20 for text in labels if re.fullmatch(r"[1-9][0-9]{0,8}", text)), default=None)
