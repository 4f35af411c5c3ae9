"""The memory of a GPU, from labels of nodes."""

from __future__ import annotations

from finetune_operator.views.node import least_gpu_memory


def test_the_smallest_gpu_counts() -> None:
    assert least_gpu_memory(["81559", "15360", "", "lots"]) == 15360 * 2**20
    assert least_gpu_memory([]) is None
