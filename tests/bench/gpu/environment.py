"""What the machine has: driver, GPU, libraries, and whether Triton can compile and launch a kernel."""

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
import time
from typing import Any

OURS = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "flash-attn")
NEEDED = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "pyarrow", "safetensors", "tokenizers"),
    *("pydantic", "yaml", "jinja2", "boto3", "zstandard"),
)
"""Modules without which nothing can be measured but the environment."""
SIZE = 8192
PEAKS = {"B200": 2250, "GB200": 2500, "H200": 989, "H100": 989, "GH200": 989, "A100": 312, "L40S": 362, "MI300X": 1307}
"""TFLOP/s in bf16, dense, by the vendors' data sheets (SXM parts). The longest name that fits counts."""


def describe() -> dict[str, Any]:
    """Everything that can be said; a part that fails says why."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "versions": {name: version for name in OURS if (version := _version(name))},
        "missing": missing(),
        "gcc": shutil.which("gcc"),
        "nvidia-smi": _nvidia_smi(),
    }
    if "torch" in found["missing"]:
        return found
    import torch

    found["cuda"] = torch.version.cuda or torch.version.hip
    if not torch.cuda.is_available():
        return found | {"gpu": None}
    properties = torch.cuda.get_device_properties(0)
    found["gpu"] = properties.name
    found["capability"] = f"{properties.major}.{properties.minor}"
    found["memory_gib"] = round(properties.total_memory / 2**30, 1)
    found["peak_tflops"] = peak(properties.name)
    for name, part in (("triton", _triton), ("gemm_tflops", _gemm), ("attention", _attention)):
        try:
            found[name] = part()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"[:500]
    return found


def missing() -> list[str]:
    """Of `NEEDED`."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def peak(gpu: str) -> int | None:
    """TFLOP/s by the data sheet."""
    return next((PEAKS[name] for name in sorted(PEAKS, key=len, reverse=True) if name in gpu), None)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str:
    query = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def _triton() -> str:
    """Compile Triton's link to the driver and one kernel, launch it, and look at the result."""
    import torch
    from trl.kernels import chunked_logprob

    began = time.monotonic()
    hidden = torch.randn(64, 128, device="cuda", dtype=torch.bfloat16)
    weight, targets = torch.randn(512, 128, device="cuda", dtype=torch.bfloat16), torch.arange(64, device="cuda")
    score: Any = chunked_logprob.ChunkedLogProbFunction
    got = score.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())[0]
    wanted = (hidden @ weight.T).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    off = float((got - wanted).abs().max())
    return f"works, largest difference {off:.1e}, {time.monotonic() - began:.1f} s with compilation"


def _gemm() -> float:
    """TFLOP/s of the best of ten products of two bf16 matrices."""
    import torch

    one, other = (torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    fastest = float("inf")
    for _ in range(13):
        torch.cuda.synchronize()
        began = time.perf_counter()
        one @ other
        torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - began)
    return round(2 * SIZE**3 / fastest / 1e12, 1)


def _attention() -> str:
    """Whether torch's attention over documents of one stream runs here."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    def draw() -> Any:
        return torch.randn(300, 8, 64, device="cuda", dtype=torch.bfloat16)

    query, key, value = draw(), draw(), draw()
    ends = torch.tensor([0, 100, 300], device="cuda", dtype=torch.int32)
    together: Any = varlen_attn(query, key, value, ends, ends, 200, 200, window_size=(-1, 0))
    attend: Any = torch.nn.functional.scaled_dot_product_attention
    alone = []
    for begin, end in ((0, 100), (100, 300)):
        document = [part[begin:end].transpose(0, 1)[None].float() for part in (query, key, value)]
        alone.append(attend(*document, is_causal=True)[0].transpose(0, 1))
    off = float((torch.cat(alone) - together.float()).abs().max())
    return f"varlen_attn works, largest difference from each document alone {off:.1e}"


if __name__ == "__main__":
    print(describe(), file=sys.stderr)
