"""Launching Warp kernels: on CUDA as they are, on a CPU cut into slices for a few threads.

A Warp launch on the CPU runs on one thread, but lets go of the interpreter, so slices of one launch can run at the
same time. `wp.atomic_add` is a plain add there: no two slices may add to one address. Cut so that none do, and the
result does not depend on the number of threads either.

Only `warp_kernel.py` files import this; it imports Warp.
"""

import atexit
import ctypes
import functools
import os
import shutil
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
import warp as wp
from torch import Tensor

if hasattr(wp.config, "log_level"):
    wp.config.log_level = wp.LOG_ERROR  # no banner, no line for every kernel that is compiled
else:
    wp.config.quiet = True  # type: ignore[attr-defined]  # an older Warp's word for it


def _start() -> str:
    """Start Warp. Where its folder for compiled kernels cannot be made, it gets one that goes when the process ends;
    then what comes back says so."""
    try:
        wp.init()
        return ""
    except OSError as error:
        cache = tempfile.mkdtemp(prefix="warp-")  # not a name that another user of the machine could guess and fill
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
        wp.config.kernel_cache_dir = cache
        wp.init()
        return f"Warp cannot keep compiled kernels ({error}): every run compiles them. Set WARP_CACHE_PATH to a folder."


def _init() -> None:
    """Start Warp. Without CUDA its native code says so on standard error at every start, which is no news."""
    if torch.cuda.is_available():
        said = _start()
    else:
        sys.stderr.flush()
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            said = _start()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)
    if said:
        warnings.warn(said, stacklevel=2)


_init()

OPTIONS: dict[str, Any] = {"module": "unique", "enable_backward": False}  # of every kernel: the adjoints are written

FUSED: dict[str, Any] = {
    **OPTIONS,
    "module_options": {"cpu_compiler_flags": f"{wp.config.cpu_compiler_flags or '-march=native'} -ffp-contract=fast"},
}
"""Options of a kernel of long polynomials: a * b + c is one instruction and rounded once, as CUDA does it anyway."""


def threads(device: torch.device) -> int:
    """Slices worth making on this device: torch's threads on a CPU, one elsewhere."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def launch(kernel: wp.Kernel, items: int, inputs: list[Any], device: torch.device, slices: int | None = None) -> None:
    """Run `kernel` for the items 0 to items - 1.

    The kernel's first argument is the first item of its slice: its item is `first + wp.tid()`. The other arguments
    are `inputs`. On a CPU the items are cut into `slices` runs of equal length (as many as torch has threads, if
    None); anywhere else there is one.
    """
    launch_in_turn([(kernel, items, inputs)], device, slices)


def launch_in_turn(
    steps: list[tuple[wp.Kernel, int, list[Any]]], device: torch.device, slices: int | None = None
) -> None:
    """Run several kernels, each (kernel, items, inputs) as in `launch`, one after the other.

    On a CPU, threads do not wait for each other between the steps: a slice of a step may only read what the same slice
    of the steps before wrote. It wakes the threads once.
    """
    steps = [step for step in steps if step[1] > 0]
    if not steps:
        return
    slices = min(slices or threads(device), max(items for _, items, _ in steps)) if device.type == "cpu" else 1
    wp_device = wp.device_from_torch(device)
    stream = None if device.type == "cpu" else wp.stream_from_torch(torch.cuda.current_stream(device))

    def run(i: int) -> None:
        for kernel, items, inputs in steps:
            first, end = items * i // slices, items * (i + 1) // slices
            if first < end:
                arguments = [first, *inputs]
                wp.launch(kernel, dim=end - first, inputs=arguments, device=wp_device, stream=stream, record_tape=False)

    if slices > 1:
        for kernel, _, _ in steps:
            _compile(kernel)
        others = [_pool(os.getpid(), slices - 1).submit(run, i) for i in range(1, slices)]
    # A launch leaves its device the current one of the thread: put back.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        run(0)
    if slices > 1:
        for other in others:
            other.result()


def array(tensor: Tensor, dtype: Any) -> Any:
    """`tensor`, which must be contiguous, as a kernel argument: an array of `dtype`. The caller keeps it alive."""
    return wp.from_torch(tensor.detach(), dtype=dtype, return_ctype=True)


def vectors(tensor: Tensor, length: int) -> Any:
    """`tensor`, which must be contiguous, as a kernel argument: a flat array of vectors of `length` of its scalars."""
    # Strides are said outright: Warp insists on them even where a tensor is empty, or expanded from one element.
    flat = tensor.as_strided((tensor.numel() // length, length), (length, 1))
    return array(flat, wp.types.vector(length, scalar(tensor)))


def large_pages(tensor: Tensor) -> Tensor:
    """`tensor`, newly allocated: where it is large and on a CPU, Linux is asked to back it with pages of 2 MiB.

    Memory that is touched for the first time costs more than what kernels do with it: 1.5 us for each page of 4 KiB.
    Only a hint; its refusal, and any other system, change nothing.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and size >= LARGE and _madvise is not None:
        begin = -(-tensor.data_ptr() // PAGE) * PAGE
        _madvise(ctypes.c_void_p(begin), ctypes.c_size_t((tensor.data_ptr() + size - begin) // PAGE * PAGE), HUGE)
    return tensor


PAGE, LARGE, HUGE = 4096, 2**22, 14  # bytes, bytes, and Linux's number for MADV_HUGEPAGE
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None


def scalar(tensor: Tensor) -> Any:
    """Warp's scalar type for the elements of `tensor`."""
    return wp.float32 if tensor.dtype == torch.float32 else wp.float64


@functools.cache
def _compile(kernel: wp.Kernel) -> None:
    # Once, before threads meet over it: each would compile it for itself.
    kernel.module.load(wp.get_device("cpu"), 1)


@functools.cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    # By process: threads do not survive a fork.
    return ThreadPoolExecutor(workers, thread_name_prefix="dreamkit-warp")
