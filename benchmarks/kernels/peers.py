"""Libraries that no adapter serves, and what they need for the same workloads where they are installed: Dr.Jit.

A peer gives its job, or None for a workload it has no counterpart of, or where it cannot run. Its numbers are as random
as ours.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.kernels.workloads import LARGE, SMALL, Workload
from dreamkit.kernels.hashgrid import HashGridShape


def drjit(workload: Workload, where: torch.device) -> Callable[[], object] | None:
    """Dr.Jit's LLVM backend: its own hash grid, and compositing as two loops written by hand."""
    jobs = {
        "hash grid, 2^16 points, 12 levels of 2^15": lambda: _drjit_hashgrid(SMALL, 2**16),
        "hash grid, 2^18 points, 16 levels of 2^19": lambda: _drjit_hashgrid(LARGE, 2**18),
        "composite, 65,536 rays x 64": _drjit_composite,
    }
    if find_spec("drjit") is None or where.type != "cpu" or workload.name not in jobs:
        return None
    import drjit as dr

    dr.set_thread_count(torch.get_num_threads())
    return jobs[workload.name]()


def _drjit_hashgrid(shape: HashGridShape, points: int) -> Callable[[], object]:
    import drjit as dr
    from drjit.llvm.ad import Array3f, Float32
    from drjit.nn import HashGridEncoding

    encoding: Any = HashGridEncoding(
        dtype=Float32,
        dimension=3,
        n_levels=shape.levels,
        n_features_per_level=shape.features,
        hashmap_size=2**shape.log2_entries,
        base_resolution=shape.coarsest,
        per_level_scale=(shape.finest / shape.coarsest) ** (1 / (shape.levels - 1)),
        align_corners=True,
    )
    place = Array3f(torch.rand(3, points).numpy())
    gradients = [Float32(torch.randn(points).numpy()) for _ in range(shape.width)]
    dr.eval(place, gradients)

    def run() -> None:
        table = dr.detach(encoding.data)
        dr.enable_grad(table)
        encoding.data = table
        features = list(encoding(place))
        for feature, gradient in zip(features, gradients, strict=True):
            dr.set_grad(feature, gradient)
        dr.enqueue(dr.ADMode.Backward, *features)
        dr.traverse(dr.ADMode.Backward)
        dr.eval(features, dr.grad(table))
        dr.sync_thread()

    return run


def _drjit_composite() -> Callable[[], object]:
    import drjit as dr
    from drjit.llvm import Array3f, Float32, UInt32

    rays, count = 2**16, 64
    total = rays * count
    density, length = Float32((torch.rand(total) * 30).numpy()), dr.full(Float32, 0.01, total)
    features = Float32(torch.rand(3 * total).numpy())
    t = Float32(torch.rand(total).numpy())
    to_seen, to_alpha = Array3f(torch.randn(3, rays).numpy()), Float32(torch.randn(rays).numpy())
    to_density, to_features = dr.zeros(Float32, total), dr.zeros(Float32, 3 * total)
    dr.eval(density, length, features, t, to_seen, to_alpha, to_density, to_features)

    def forward(ray: UInt32) -> tuple[Float32, Float32, Array3f]:
        def body(i: UInt32, through: Float32, far: Float32, seen: Array3f) -> tuple[UInt32, Float32, Float32, Array3f]:
            left = dr.exp(-dr.gather(Float32, density, i) * dr.gather(Float32, length, i))
            weight = through * (1 - left)
            seen = seen + weight * dr.gather(Array3f, features, i)
            return i + 1, through * left, far + weight * dr.gather(Float32, t, i), seen

        last = (ray + 1) * count
        start = (ray * count, Float32(1), Float32(0), Array3f(0))
        _, through, far, seen = dr.while_loop(start, lambda i, *rest: i < last, body)
        return through, far, seen

    def adjoint(ray: UInt32, through_all: Float32, seen: Array3f) -> None:
        def body(i: UInt32, through: Float32, behind: Float32) -> tuple[UInt32, Float32, Float32]:
            width = dr.gather(Float32, length, i)
            left = dr.exp(-dr.gather(Float32, density, i) * width)
            weight = through * (1 - left)
            through = through * left
            worth = dr.dot(to_seen, dr.gather(Array3f, features, i))
            behind = behind - weight * worth
            dr.scatter(to_density, width * (through * worth - behind + to_alpha * through_all), i)
            dr.scatter(to_features, weight * to_seen, i)
            return i + 1, through, behind

        last = (ray + 1) * count
        start = (ray * count, Float32(1), dr.dot(to_seen, seen))
        dr.while_loop(start, lambda i, *rest: i < last, body)

    def run() -> None:
        ray = dr.arange(UInt32, rays)
        through, far, seen = forward(ray)
        dr.eval(through, far, seen)
        adjoint(ray, through, seen)
        dr.eval(to_density, to_features)
        dr.sync_thread()

    return run


PEERS: dict[str, Callable[[Workload, torch.device], Callable[[], object] | None]] = {"Dr.Jit": drjit}
