"""GPU memory that is used up, by the messages of the libraries that say so."""

import pytest
from finetune_trainer.runtime import gpumemory

USED_UP = [
    "CUDA out of memory. Tried to allocate 358.00 MiB. GPU 0 has a total capacity of 139.81 GiB of which 88.44 MiB is",
    "HIP out of memory. Tried to allocate 2.00 MiB. GPU 7 has a total capacity of 287.98 GiB of which 203.49 GiB is",
    # A kernel's launch or a library's own allocation (torch.AcceleratorError, or RuntimeError before torch 2.8).
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "HIP error: out of memory\nHIP kernel errors might be asynchronously reported at some other API call",
    # Expandable segments are mapped by the driver.
    "CUDA driver error: out of memory",
    "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many dynamic shapes, cuDNN may need",
    "Triton Error [CUDA]: out of memory",
    "hipErrorOutOfMemory: out of memory",
    "cudaErrorMemoryAllocation: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, unhandled cuda error (run with"
    " NCCL_DEBUG=INFO for details), NCCL version 2.21.5\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 2 'out of memory'",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 'out of memory'",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc 6291456 bytes",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nHIP failure 'out of memory'",
    "Error out of memory at line 380 in file /src/bitsandbytes/csrc/pythonInterface.c",
]
OTHERS = [
    "out of resource: shared memory, Required: 131072, Hardware limit: 101376. Reducing block sizes",
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "CUDA error: too many resources requested for launch",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 999 'unknown error'",
    "Failed to CUDA host alloc 4194304 bytes",
    "Error operation not supported at line 380 in file /src/bitsandbytes/csrc/pythonInterface.c",
    "[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
    "Unable to allocate 2.00 GiB for an array with shape (268435456,) and data type float64",
    "malloc of size 134217728 failed: out of memory",
    "[Errno 12] Cannot allocate memory",
]


@pytest.mark.parametrize("message", USED_UP)
def test_every_library_s_name_for_used_up_gpu_memory_is_known(message: str) -> None:
    assert gpumemory.is_out_of_memory(RuntimeError(message))
    assert gpumemory.sentence(f"starting\n{message}\nframe #0: c10::Error")


@pytest.mark.parametrize("message", OTHERS)
def test_other_errors_are_not_taken_for_it(message: str) -> None:
    assert not gpumemory.is_out_of_memory(RuntimeError(message))
    assert gpumemory.sentence(message) == ""


def test_the_host_s_memory_is_not_the_gpu_s() -> None:
    assert not gpumemory.is_out_of_memory(MemoryError("CUDA out of memory"))
