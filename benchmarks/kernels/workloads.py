"""The workloads: what each operator is timed on, and the least work there is in it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.kernels.floor import Work
from dreamkit.kernels.composite import composite
from dreamkit.kernels.hashgrid import HashGridShape, hashgrid
from dreamkit.kernels.march import march
from dreamkit.kernels.tets import marching_tetrahedra, tet_grid
from dreamkit.kernels.texture import sample

Job = Callable[[str], object]
"""Runs once, forward and backward, on the backend of that name."""


@dataclass(frozen=True)
class Workload:
    name: str
    make: Callable[[torch.device, float], Job]
    """The job on a device, with that share of the points, rays, Gaussians or triangles."""
    work: Work = field(default_factory=Work)
    table_bytes: float = 0.0
    """Size of the table that gathers go to."""


SMALL = HashGridShape(levels=12, features=2, log2_entries=15, coarsest=16, finest=256)
LARGE = HashGridShape(levels=16, features=2, log2_entries=19, coarsest=16, finest=2048)


def hashgrid_job(shape: HashGridShape, points: int, of_points: bool = False) -> Callable[[torch.device, float], Job]:
    """Random points; a gradient to the table and, if asked for, to the points."""

    def make(where: torch.device, scale: float) -> Job:
        count = int(points * scale)
        place = torch.rand(count, 3, device=where).requires_grad_(of_points)
        table = torch.randn(shape.total, shape.features, device=where).requires_grad_()
        gradient = torch.randn(count, shape.width, device=where)

        def run(backend: str) -> None:
            place.grad = table.grad = None
            hashgrid(place, table, shape, backend=backend).backward(gradient)

        return run

    return make


def hashgrid_work(shape: HashGridShape, points: int) -> Work:
    """Eight vertices a level, read once and added to once; points, features and their gradient; the table's gradient
    is written."""
    moved = points * (2 * 12 + 2 * 4 * shape.width) + 4 * shape.total * shape.features
    return Work(moved=moved, gathers=2 * 8 * shape.levels * points)


def composite_job(where: torch.device, scale: float) -> Job:
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


def march_job(where: torch.device, scale: float) -> Job:
    """16,384 rays from one camera at a hollow ball in 64^3 cells, 128 steps to the cube's diagonal; no gradient."""
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


def texture_job(mips: bool) -> Callable[[torch.device, float], Job]:
    """262,144 pixels of a turned plane, 1.3 texels a pixel, in a texture of 1024^2 and 3 channels."""

    def make(where: torch.device, scale: float) -> Job:
        side, step = int(512 * math.sqrt(scale)), 1.3 / 1024
        texture = torch.rand(1024, 1024, 3, device=where).requires_grad_()
        across = (torch.arange(side, device=where) - side / 2) * step
        turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], device=where)
        uv = torch.cartesian_prod(across, across).flip(1) @ turn.T + 0.5
        footprint = (turn * step).expand(len(uv), 2, 2) if mips else None
        gradient = torch.randn(len(uv), 3, device=where)

        def run(backend: str) -> None:
            texture.grad = None
            sample(texture, uv, footprint, backend=backend).backward(gradient)

        return run

    return make


def marching_tetrahedra_job(where: torch.device, scale: float) -> Job:
    """A ball of radius 0.6 in a grid of 64^3 cubes, 3.1 million tetrahedra; gradients to vertices and values."""
    grid = tet_grid(max(int(64 * scale ** (1 / 3)), 1), device=where)
    vertices = grid.vertices.clone().requires_grad_()
    sdf = (grid.vertices.norm(dim=1) - 0.6).requires_grad_()

    def run(backend: str) -> None:
        vertices.grad = sdf.grad = None
        marching_tetrahedra(vertices, sdf, grid.tets, backend=backend).vertices.sum().backward()

    return run


SAMPLES = 2**16 * 64
LOOKUPS = 2**18

WORKLOADS: tuple[Workload, ...] = (
    Workload(
        "hash grid, 2^16 points, 12 levels of 2^15",
        hashgrid_job(SMALL, 2**16),
        hashgrid_work(SMALL, 2**16),
        table_bytes=8 * SMALL.total,
    ),
    Workload(
        "hash grid, the same, to the points also",
        hashgrid_job(SMALL, 2**16, of_points=True),
        hashgrid_work(SMALL, 2**16),
        table_bytes=8 * SMALL.total,
    ),
    Workload(
        "hash grid, 2^18 points, 16 levels of 2^19",
        hashgrid_job(LARGE, 2**18),
        hashgrid_work(LARGE, 2**18),
        table_bytes=8 * LARGE.total,
    ),
    Workload(
        "composite, 65,536 rays x 64",
        composite_job,
        # Six numbers read and a weight written, then weight, length and features read and four gradients written.
        Work(moved=4 * SAMPLES * (6 + 1 + 5 + 4), exps=SAMPLES),
    ),
    Workload("march, 16,384 rays, 64^3 cells (forward)", march_job),
    # uv read twice, colours written and their gradient read, four texels read and added to.
    Workload("texture, 2^18 lookups", texture_job(mips=False), Work(moved=4 * LOOKUPS * (4 + 6), gathers=8 * LOOKUPS)),
    Workload("texture, the same, mip-mapped", texture_job(mips=True)),
    # Corner signs of every tetrahedron.
    Workload("marching tetrahedra, 64^3 cubes", marching_tetrahedra_job, Work(moved=12 * 64**3 * 33)),
)
