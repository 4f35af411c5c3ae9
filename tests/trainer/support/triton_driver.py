"""Triton's link to the GPU's driver, compiled, linked and loaded without a GPU.

Triton compiles `driver.c` when it launches its first kernel, and links it with libcuda.so.1, which only machines with a
GPU have. Here a library with the same functions stands for it. ``python -m tests.trainer.support.triton_driver FOLDER``
does so in the built image; the compiled module lands in Triton's cache, as in a pod.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

NO_DEVICE = 100


def stand_in(folder: Path, source: Path) -> Path:
    """Compile a libcuda.so.1 whose functions say that there is no GPU. ``source`` names the functions."""
    names = sorted(set(re.findall(r"\b(cu[A-Z]\w*)\s*\(", source.read_text(encoding="utf-8"))))
    functions = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in names)
    code, library = folder / "cuda.c", folder / "libcuda.so.1"
    code.write_text(functions)
    flags = ["-shared", "-fPIC", "-fno-builtin", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(code)], check=True)
    return library


def link(folder: Path) -> dict[str, Any]:
    """Let Triton compile and load its module; what it has, and where it lies."""
    import triton.backends.nvidia.driver as nvidia

    library = stand_in(folder, Path(nvidia.__file__).with_name("driver.c"))
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    utilities = nvidia.CudaUtils()
    module = sys.modules.get("cuda_utils")
    cache = Path(os.environ["TRITON_CACHE_DIR"])
    return {
        "launches": callable(utilities.launch) and callable(utilities.load_binary),
        "loaded_from": [str(file) for file in cache.rglob("cuda_utils*.so")],
        "module": str(module),
    }


if __name__ == "__main__":
    print(json.dumps(link(Path(sys.argv[1]))))
