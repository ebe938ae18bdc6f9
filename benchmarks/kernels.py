"""How fast the operators are, forward and backward, on each backend: `python -m benchmarks.kernels`.

One process, backends in turn, the best of some rounds. Wall milliseconds need a quiet machine. The processor time (of
all threads together) and the ratios hold on a busy one.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dreamkit import device
from dreamkit.kernels.composite import composite
from dreamkit.kernels.hashgrid import HashGridShape, hashgrid
from dreamkit.kernels.march import march

Job = Callable[[], object]


@dataclass(frozen=True)
class Time:
    """Milliseconds: on the wall, and of all threads of this process together."""

    wall: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="share of the points and rays to work on")
    arguments = parser.parse_args()
    where = device.choose(arguments.device)
    print(f"forward and backward, {where}, best of {arguments.rounds}; ms on the wall (ms of processor time)")
    print(f"{'':40}{'warp':>16}{'reference':>18}{'ratio':>7}{'warp, 1 thread':>18}{'scaling':>9}")
    for name, make in OPERATORS.items():
        job = make(where, arguments.scale)
        torch.set_num_threads(arguments.threads)
        warp = best(lambda job=job: job("warp"), arguments.rounds)  # type: ignore[misc]
        reference = best(lambda job=job: job("reference"), max(arguments.rounds // 4, 1))  # type: ignore[misc]
        torch.set_num_threads(1)
        single = best(lambda job=job: job("warp"), arguments.rounds)  # type: ignore[misc]
        print(
            f"{name:40}{shown(warp):>16}{shown(reference):>18}{reference.wall / warp.wall:7.1f}"
            f"{shown(single):>18}{single.wall / warp.wall:9.2f}"
        )


def best(job: Job, rounds: int) -> Time:
    """The fastest round, wall and processor each by itself, after one for warming up."""
    job()
    times = []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        job()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)))
    return Time(min(t[0] for t in times), min(t[1] for t in times))


def shown(seconds: Time) -> str:
    return f"{seconds.wall:.1f} ({seconds.processor:.1f})"


def hashgrid_job(where: torch.device, scale: float, *, of_points: bool = False) -> Callable[[str], object]:
    """65,536 points in 12 levels of 2 features, 2^15 entries a level."""
    shape, count = HashGridShape(), int(2**16 * scale)
    points = torch.rand(count, 3, device=where).requires_grad_(of_points)
    table = torch.randn(shape.total, shape.features, device=where).requires_grad_()
    gradient = torch.randn(count, shape.width, device=where)

    def run(backend: str) -> None:
        points.grad = table.grad = None
        hashgrid(points, table, shape, backend=backend).backward(gradient)

    return run


def composite_job(where: torch.device, scale: float) -> Callable[[str], object]:
    """65,536 rays of 64 samples, 3 features; gradients arrive at features and alpha."""
    rays = int(2**16 * scale)
    total = rays * 64
    offsets = torch.arange(0, total + 1, 64, device=where).int()
    density = (torch.rand(total, device=where) * 30).requires_grad_()
    features = torch.rand(total, 3, device=where).requires_grad_()
    t, length = torch.rand(total, device=where), torch.full((total,), 0.01, device=where)
    gradients = [torch.randn(rays, 3, device=where), torch.randn(rays, device=where)]

    def run(backend: str) -> None:
        density.grad = features.grad = None
        seen = composite(density, features, t, length, offsets, backend=backend)
        torch.autograd.backward([seen.features, seen.alpha], gradients)

    return run


def march_job(where: torch.device, scale: float) -> Callable[[str], object]:
    """16,384 rays from one camera at a hollow ball in 64^3 cells, 128 steps to the cube's diagonal."""
    side = int(128 * math.sqrt(scale))
    across = torch.linspace(-0.4, 0.4, side)
    directions = torch.stack(torch.meshgrid(torch.tensor([-1.0]), across, across, indexing="ij"), -1).reshape(-1, 3)
    directions = torch.nn.functional.normalize(directions, dim=1).to(where)
    origins = torch.tensor([3.0, 0.0, 0.0], device=where).expand_as(directions)
    axis = torch.linspace(-1, 1, 64, device=where)
    radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    occupancy = (radius - 0.6).abs() < 0.05
    jitter = torch.rand(len(directions), device=where)
    step = 2 * math.sqrt(3) / 128
    return lambda backend: march(origins, directions, occupancy, step=step, jitter=jitter, backend=backend)


OPERATORS: dict[str, Callable[[torch.device, float], Callable[[str], object]]] = {
    "hashgrid 65,536 points, to the table": hashgrid_job,
    "hashgrid 65,536 points, to both": lambda where, scale: hashgrid_job(where, scale, of_points=True),
    "composite 65,536 rays x 64": composite_job,
    "march 16,384 rays (forward)": march_job,
}

if __name__ == "__main__":
    main()
