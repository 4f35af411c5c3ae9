"""The Triton kernels of the libraries that the stages use, compiled for GPUs that are not there.

`found` reads the sources of packages for kernels, so a new kernel is noticed. `compiled` calls the functions that
launch them with tensors on the CPU: Triton compiles what a GPU would run, down to the machine code, and the launch is
left out. ``python -m tests.trainer.support.triton_kernels`` does so in the built image.
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

ARCHITECTURES = (80, 90, 100)
"""A100, H100 and H200, B200. Others of a generation (86, 89, 120) differ in sizes, which no kernel here reads."""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
UNUSED = {
    "torch/_inductor": "torch.compile, which no stage uses",
    "torch/testing": "torch's own tests",
    "torch/_dynamo": "torch.compile",
    "torch/sparse": "sparse tensors",
    "torch/distributed/_symmetric_memory": "symmetric memory of several GPUs, used on request alone",
    "torch/_native/instrumentation.py": "an example in a docstring",
    "trl/kernels/chunked_divergence.py": "distillation",
    "bitsandbytes/backends/triton": "Intel GPUs; on NVIDIA's and AMD's the kernels are compiled C++",
}
"""Places of kernels that no stage launches, and why."""
JIT = {"jit", "_jit", "instrumented_triton_cache"}
Kernel = tuple[str, str]
"""Module and name."""


def found() -> set[Kernel]:
    """All kernels in the packages' sources, without those in places of `UNUSED` and without parts of other kernels."""
    kernels: set[Kernel] = set()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        site = Path(spec.origin).parents[1]
        for file in sorted((site / package).rglob("*.py")):
            name = file.relative_to(site).as_posix()
            if not any(name == place or name.startswith(f"{place}/") for place in UNUSED):
                module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                kernels |= {(module, kernel) for kernel in _kernels(file)}
    return kernels


def _kernels(file: Path) -> set[str]:
    text = file.read_text(encoding="utf-8", errors="replace")
    if "triton" not in text:
        return set()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    jitted = [function for function in functions if JIT & set(map(_last_name, function.decorator_list))]
    calls = {_last_name(node) for function in jitted for node in ast.walk(function) if isinstance(node, ast.Call)}
    return {function.name for function in jitted} - calls


def _last_name(node: ast.expr) -> str:
    """``triton.jit``, ``jit``, ``jit(...)`` -> jit; other libraries' (``cute.jit``) -> cute.jit."""
    node = node.func if isinstance(node, ast.Call) else node
    if isinstance(node, ast.Attribute):
        owner = getattr(node.value, "id", "?")
        return node.attr if owner == "triton" else f"{owner}.{node.attr}"
    return getattr(node, "id", "")


def compiled(architecture: int) -> set[Kernel]:
    """Compile all variants for one architecture; the kernels. Raises what Triton or ptxas raise."""
    kernels: set[Kernel] = set()
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: Any, **kwargs: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        assert kernel.asm["cubin"]
        kernels.add((self.module, self.__name__))
        return kernel

    driver.set_active(_Absent(architecture))
    with mock.patch.object(JITFunction, "run", compile_only):
        for launch in (_scores, _log_probs_and_entropy, _outer_products):
            launch()
    return kernels


class _Absent:
    """Triton's driver for a GPU that is not there. Its index is its architecture: Triton caches kernels by index."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        return self._architecture

    def get_current_stream(self, _device: int) -> int:
        return 0


SCORED: tuple[tuple[torch.dtype, tuple[str, ...], float | None, int], ...] = (
    (torch.bfloat16, (), None, 32768),
    (torch.bfloat16, ("entropy", "is_top1"), None, 100),
    (torch.bfloat16, ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1"), 30.0, 32768),
    (torch.float16, (), None, 32768),
    (torch.float32, ("entropy",), None, 32768),
)
"""Number type, outputs, soft cap of the logits and part of the vocabulary at once."""


def _scores() -> None:
    """TRL's fused head, with the outputs that the stages ask for."""
    from trl.kernels import chunked_logprob

    with mock.patch.object(chunked_logprob, "_use_triton", return_value=True):
        for dtype, outputs, softcap, chunk in SCORED:
            hidden = torch.zeros(5, 64, dtype=dtype, requires_grad=True)
            weight, targets = torch.zeros(128, 64, dtype=dtype), torch.zeros(5, dtype=torch.long)
            score: Any = chunked_logprob.ChunkedLogProbFunction
            log_probs, entropy, *_ = score.apply(hidden, weight, None, targets, 1.0, chunk, softcap, 1.0, outputs)
            log_probs.sum().backward(retain_graph=True)
            if entropy is not None:
                (log_probs.sum() + entropy.sum()).backward()


def _log_probs_and_entropy() -> None:
    """TRL's functions for logits that exist."""
    from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy

    for dtype, mask in ((torch.float32, None), (torch.bfloat16, torch.ones(2, 3, dtype=torch.bool))):
        logits = torch.zeros(2, 3, 128, dtype=dtype, requires_grad=True)
        log_probs, entropy = selective_log_softmax_and_entropy(logits, torch.zeros(2, 3, dtype=torch.long), 1.0, mask)
        torch.autograd.backward([log_probs.sum() + entropy.sum()])


def _outer_products() -> None:
    """torch's batched product of a column and a row, which is how some models compute rotary positions."""
    from torch._native.ops.bmm_outer_product.triton_kernels import bmm_outer_product

    for dtype, rows, columns in ((torch.float32, 64, 4096), (torch.float32, 32, 77), (torch.bfloat16, 128, 512)):
        bmm_outer_product(torch.zeros(1, rows, 1, dtype=dtype), torch.zeros(1, 1, columns, dtype=dtype))


def missing() -> Iterator[str]:
    """What is not compiled: kernels for each architecture."""
    for architecture in ARCHITECTURES:
        yield from (
            f"{module}.{name} for sm_{architecture}" for module, name in sorted(found() - compiled(architecture))
        )


if __name__ == "__main__":
    print(
        json.dumps({"triton": triton.__version__, "found": sorted(map(".".join, found())), "missing": list(missing())})
    )
