"""Launching Warp kernels: on CUDA as they are, on a CPU cut into slices for a few threads.

A Warp launch on the CPU runs on one thread, but lets go of the interpreter, so slices of one launch can run at the
same time. `wp.atomic_add` is a plain add there: no two slices may add to one address. Cut so that none do, and the
result does not depend on the number of threads either.

Only `warp_kernel.py` files import this; it imports Warp.
"""

import functools
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import warp as wp
from torch import Tensor

if hasattr(wp.config, "log_level"):
    wp.config.log_level = wp.LOG_ERROR  # no banner, no line for every kernel that is compiled
else:
    wp.config.quiet = True  # type: ignore[attr-defined]  # an older Warp's word for it


def _init() -> None:
    """Start Warp. Without CUDA its native code says so on standard error at every start, which is no news."""
    if torch.cuda.is_available():
        wp.init()
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        wp.init()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


_init()

OPTIONS: dict[str, Any] = {"module": "unique", "enable_backward": False}  # of every kernel: the adjoints are written


def threads(device: torch.device) -> int:
    """Slices worth making on this device: torch's threads on a CPU, one elsewhere."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def launch(kernel: wp.Kernel, items: int, inputs: list[Any], device: torch.device, slices: int | None = None) -> None:
    """Run `kernel` for the items 0 to items - 1.

    The kernel's first argument is the first item of its slice: its item is `first + wp.tid()`. The other arguments
    are `inputs`. On a CPU the items are cut into `slices` runs of equal length (as many as torch has threads, if
    None); anywhere else there is one.
    """
    if items == 0:
        return
    slices = min(slices or threads(device), items) if device.type == "cpu" else 1
    wp_device = wp.device_from_torch(device)
    stream = None if device.type == "cpu" else wp.stream_from_torch(torch.cuda.current_stream(device))
    bounds = [items * i // slices for i in range(slices + 1)]

    def run(i: int) -> None:
        count = bounds[i + 1] - bounds[i]
        wp.launch(kernel, dim=count, inputs=[bounds[i], *inputs], device=wp_device, stream=stream, record_tape=False)

    if slices > 1:
        _compile(kernel)
        others = [_pool(os.getpid(), slices - 1).submit(run, i) for i in range(1, slices)]
    run(0)
    if slices > 1:
        for other in others:
            other.result()


def array(tensor: Tensor, dtype: Any) -> Any:
    """`tensor`, which must be contiguous, as a kernel argument: an array of `dtype`. The caller keeps it alive."""
    return wp.from_torch(tensor.detach(), dtype=dtype, return_ctype=True)


def vectors(tensor: Tensor, length: int) -> Any:
    """`tensor`, which must be contiguous, as a kernel argument: a flat array of vectors of `length` of its scalars."""
    # By way of one dimension: it gives an empty or expanded tensor the strides that Warp insists on.
    return array(tensor.view(-1).view(-1, length), wp.types.vector(length, scalar(tensor)))


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
