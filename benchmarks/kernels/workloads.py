"""The workloads: what each operator is timed on, and the least work there is in it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.kernels.floor import Work
from dreamkit.cameras import orbit
from dreamkit.kernels.composite import composite, distortion
from dreamkit.kernels.hashgrid import HashGridShape, hashgrid
from dreamkit.kernels.march import Samples, march, resample, visible
from dreamkit.kernels.raster import antialias, edge_neighbours, interpolate, project, rasterize
from dreamkit.kernels.splat import splat
from dreamkit.kernels.tets import marching_tetrahedra, tet_grid
from dreamkit.kernels.texture import sample

Job = Callable[[str], object]
"""Runs once, forward and backward, on the backend of that name."""


@dataclass(frozen=True)
class Workload:
    name: str
    operator: str
    """The folder in dreamkit/kernels whose backends can run it."""
    make: Callable[[torch.device, float], Job]
    """The job on a device, with that share of the points, rays, Gaussians or triangles."""
    work: Work = field(default_factory=Work)
    entries: int = 0
    """Entries of the table, or of its level, that gathers go to."""


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


def hashgrid_workload(name: str, shape: HashGridShape, points: int, of_points: bool = False) -> Workload:
    """Eight vertices a level are read, and added to, which is counted as no more than a read; besides, points,
    features and their gradient, and the table's."""
    moved = points * (2 * 12 + 2 * 4 * shape.width) + 4 * shape.total * shape.features
    least = Work(moved=moved, gathers=2 * 8 * shape.levels * points)
    return Workload(name, "hashgrid", hashgrid_job(shape, points, of_points), least, entries=2**shape.log2_entries)


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


def packed_rays(where: torch.device, scale: float) -> Samples:
    """65,536 rays of 64 samples between 0 and 1."""
    rays = int(2**16 * scale)
    number = torch.arange(rays * 64, device=where)
    t = (number % 64 + torch.rand(len(number), device=where)) / 64
    offsets = torch.arange(0, len(number) + 1, 64, device=where).int()
    return Samples((number // 64).int(), t, torch.full_like(t, 1 / 64), offsets)


def distortion_job(where: torch.device, scale: float) -> Job:
    """The distortion loss of 65,536 rays; its gradient to the weights."""
    samples = packed_rays(where, scale)
    weight = (torch.rand_like(samples.t) / 64).requires_grad_()
    gradient = torch.randn(len(samples.offsets) - 1, device=where)

    def run(backend: str) -> None:
        weight.grad = None
        distortion(weight, samples.t, samples.length, samples.offsets, backend=backend).backward(gradient)

    return run


def visible_job(where: torch.device, scale: float) -> Job:
    """Early termination of 65,536 rays behind a fog."""
    samples = packed_rays(where, scale)
    depth = torch.rand_like(samples.t) * 0.3
    return lambda backend: visible(samples, depth, backend=backend)


def resample_job(where: torch.device, scale: float) -> Job:
    """32 new samples for each of 65,536 rays, by the weights of 64."""
    samples = packed_rays(where, scale)
    weight = torch.rand_like(samples.t) / 64
    jitter = torch.rand(len(samples.offsets) - 1, device=where)
    return lambda backend: resample(samples, weight, 32, jitter=jitter, backend=backend)


def normals_job(where: torch.device, scale: float) -> Job:
    """Normals of 65,536 points as gradients of a linear density; the gradient of a loss on them to the table."""
    points = torch.rand(int(2**16 * scale), 3, device=where).requires_grad_()
    table = torch.randn(SMALL.total, SMALL.features, device=where).requires_grad_()
    mix = torch.randn(SMALL.width, device=where)

    def run(backend: str) -> None:
        points.grad = table.grad = None
        density = hashgrid(points, table, SMALL, backend=backend) @ mix
        (normal,) = torch.autograd.grad(density.sum(), points, create_graph=True)
        normal.square().sum().backward()

    return run


def raster_job(where: torch.device, scale: float) -> Job:
    """A ball of 19,596 triangles at 256x256: raster, interpolation and silhouettes; to positions and colours."""
    rings = max(int(71 * math.sqrt(scale)), 4)
    columns, size = 2 * rings, (256, 256)
    polar = torch.linspace(0, math.pi, rings + 1)[1:-1]
    around = torch.arange(columns) / columns * 2 * math.pi
    t, p = torch.meshgrid(polar, around, indexing="ij")
    vertices = 0.9 * torch.stack([t.sin() * p.cos(), t.sin() * p.sin(), t.cos()], -1).reshape(-1, 3)
    i = torch.arange((rings - 2) * columns)
    right = i // columns * columns + (i + 1) % columns
    quads = [torch.stack([i, i + columns, right], 1), torch.stack([right, i + columns, right + columns], 1)]
    faces = torch.cat(quads).int().to(where)
    neighbours = edge_neighbours(faces)
    cameras = orbit([30.0], 20.0, distance=3.0, fov_degrees=42.0, size=size)
    clip = project(vertices, cameras).to(where).requires_grad_()
    colours = torch.rand(len(vertices), 3, device=where).requires_grad_()
    gradient = torch.randn(1, *size, 3, device=where)

    def run(backend: str) -> None:
        clip.grad = colours.grad = None
        raster = rasterize(clip, faces, size, backend=backend)
        picture = interpolate(colours, raster, faces, backend=backend)
        antialias(picture, raster, clip, faces, neighbours, backend=backend).backward(gradient)

    return run


def splat_job(count: int, size: int) -> Callable[[torch.device, float], Job]:
    """Random anisotropic Gaussians in a unit ball, one view; gradients arrive at features and alpha."""

    def make(where: torch.device, scale: float) -> Job:
        number, side = int(count * scale), int(size * math.sqrt(scale))
        draw = torch.Generator().manual_seed(0)
        direction = torch.nn.functional.normalize(torch.randn(number, 3, generator=draw), dim=1)
        places = direction * torch.rand(number, 1, generator=draw) ** (1 / 3)
        turns = torch.randn(number, 4, generator=draw)
        sizes = 0.5 * number ** (-1 / 3) * torch.exp(0.5 * torch.randn(number, 3, generator=draw))
        tensors = [
            places,
            turns,
            sizes,
            torch.rand(number, generator=draw),
            torch.rand(number, 3, generator=draw),
        ]
        leaves = [tensor.to(where).requires_grad_() for tensor in tensors]
        camera = orbit([30.0], 15.0, size=side).to(where)
        gradients = [torch.randn(1, 3, side, side, device=where), torch.randn(1, side, side, device=where)]

        def run(backend: str) -> None:
            for leaf in leaves:
                leaf.grad = None
            means, quaternions, scales, opacities, features = leaves
            seen = splat(means, quaternions, scales, opacities, features, camera, backend=backend)
            torch.autograd.backward([seen.features, seen.alpha], gradients)

        return run

    return make


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
    hashgrid_workload("hash grid, 2^16 points, 12 levels of 2^15", SMALL, 2**16),
    hashgrid_workload("hash grid, the same, to the points also", SMALL, 2**16, of_points=True),
    Workload("hash grid, the same, a loss on normals", "hashgrid", normals_job, entries=2**15),
    hashgrid_workload("hash grid, 2^18 points, 16 levels of 2^19", LARGE, 2**18),
    Workload(
        "composite, 65,536 rays x 64",
        "composite",
        composite_job,
        # Six numbers read and a weight written, then weight, length and features read and four gradients written.
        Work(moved=4 * SAMPLES * (6 + 1 + 5 + 4), exps=SAMPLES),
    ),
    Workload("distortion, 65,536 rays x 64", "composite", distortion_job, Work(moved=4 * SAMPLES * 7)),
    Workload("march, 16,384 rays, 64^3 cells (forward)", "march", march_job),
    Workload("visible, 65,536 rays x 64 (forward)", "march", visible_job, Work(moved=4 * SAMPLES)),
    Workload("resample, 65,536 rays, 64 to 32 (forward)", "march", resample_job, Work(moved=4 * SAMPLES * 4.5)),
    Workload("splat, 10,000 Gaussians, 256x256", "splat", splat_job(10_000, 256)),
    Workload("splat, 100,000 Gaussians, 512x512", "splat", splat_job(100_000, 512)),
    Workload("raster, 19,596 triangles, 256x256", "raster", raster_job, Work(moved=256**2 * 4 * (5 + 3 + 3 + 3))),
    # uv read twice, colours written and their gradient read, four texels read and added to.
    Workload(
        "texture, 2^18 lookups",
        "texture",
        texture_job(mips=False),
        Work(moved=4 * LOOKUPS * (4 + 6), gathers=8 * LOOKUPS),
    ),
    Workload("texture, the same, mip-mapped", "texture", texture_job(mips=True)),
    # Corner signs of every tetrahedron.
    Workload("marching tetrahedra, 64^3 cubes", "tets", marching_tetrahedra_job, Work(moved=12 * 64**3 * 33)),
)
