"""The hash encoding in Warp, forward and adjoint, for CPU threads and CUDA. The contract is in the package's docstring.

The work is cut into items: one block of points on one group of levels. With `groups` groups, group g has the levels
g, g + groups, g + 2 groups, ... On a CPU a block is long, and there is

- for the features and for the gradient of the points: one group, and threads share the blocks;
- for the gradient of the table: one group for each thread, so that no two threads add to one row, and every row is
  summed in the order of the points whatever the number of threads.

On CUDA a block is one point, a group is one level, and rows are summed by atomic adds.
"""

import functools
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.hashgrid import PRIMES, HashGridShape
from dreamkit.kernels.launch import OPTIONS, array, launch, scalar, threads, vectors

BLOCK = 256  # points per item on a CPU: their features stay in the first cache while the levels pass


def hashgrid(points: Tensor, table: Tensor, shape: HashGridShape) -> Tensor:
    """[N, 3] points -> [N, levels * features]."""
    result: Tensor = _HashGrid.apply(points.contiguous(), table.contiguous(), shape)
    return result


class _HashGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, shape: HashGridShape) -> Tensor:
        ctx.save_for_backward(points, table)
        ctx.shape = shape
        out = points.new_empty(len(points), shape.width)
        groups = 1 if points.device.type == "cpu" else shape.levels
        _run("forward", points, shape, groups, [vectors(table, shape.features), vectors(out, shape.features)])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        points, table = ctx.saved_tensors
        shape = ctx.shape
        gradient = gradient.contiguous()
        to_out = vectors(gradient, shape.features)
        to_points = to_table = None
        if ctx.needs_input_grad[0]:
            to_points = torch.empty_like(points)
            _run("to_points", points, shape, 1, [vectors(table, shape.features), to_out, vectors(to_points, 3)])
        if ctx.needs_input_grad[1]:
            to_table = torch.zeros_like(table)
            groups = min(threads(points.device), shape.levels) if points.device.type == "cpu" else shape.levels
            _run("to_table", points, shape, groups, [to_out, vectors(to_table, shape.features)])
        return to_points, to_table, None


def _run(name: str, points: Tensor, shape: HashGridShape, groups: int, arrays: list[Any]) -> None:
    """Launch the kernel `name` over all points, the levels in `groups` groups."""
    block = BLOCK if points.device.type == "cpu" else 1
    blocks = -(-len(points) // block)
    layout = [array(column, wp.int32) for column in _layout(shape, points.device)]
    launch(
        _kernels(scalar(points), shape.features)[name],
        blocks * groups,
        [blocks, block, len(points), groups, shape.levels, *layout, vectors(points, 3), *arrays],
        points.device,
        slices=None if groups == 1 else groups,
    )


@functools.lru_cache(maxsize=64)
def _layout(shape: HashGridShape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """[levels] int32 each: resolution, first row, and the mask of the hash, 0 on a level stored directly."""
    masks = [entries - 1 if hashed else 0 for entries, hashed in zip(shape.entries, shape.hashed, strict=True)]
    resolution, first, mask = torch.tensor([shape.resolutions, shape.offsets, masks], dtype=torch.int32, device=device)
    return resolution, first, mask


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def _kernels(real: Any, features: int) -> dict[str, wp.Kernel]:
    """The three kernels, for one scalar type and number of features."""
    row, vec3, rows8 = wp.types.vector(features, real), wp.types.vector(3, real), wp.types.vector(8, wp.int32)
    prime_y, prime_z = wp.uint32(PRIMES[1]), wp.uint32(PRIMES[2])
    zero, one = real(0.0), real(1.0)

    @wp.func
    def unit(x: real) -> real:
        # Not wp.clamp: these comparisons keep a NaN.
        if x < zero:
            x = zero
        if x > one:
            x = one
        return x

    @wp.func
    def unit3(x: vec3) -> vec3:
        return vec3(unit(x[0]), unit(x[1]), unit(x[2]))

    @wp.func
    def cell_axis(x: real, resolution: wp.int32) -> wp.int32:
        # Clamped as a whole number: a point at 1 is in the last cell, and what a NaN becomes is a row that exists.
        return wp.clamp(wp.int32(x), 0, resolution - 1)

    @wp.func
    def vertices(i: wp.int32, j: wp.int32, k: wp.int32, resolution: wp.int32, first: wp.int32, mask: wp.int32):
        """The rows of the 8 vertices of cell (i, j, k): x is bit 2 of the index, y bit 1, z bit 0."""
        rows = rows8()
        if mask == 0:
            dy = resolution + 1
            dz = dy * dy
            corner = first + i + j * dy + k * dz
            rows = rows8(
                corner,
                corner + dz,
                corner + dy,
                corner + dy + dz,
                corner + 1,
                corner + 1 + dz,
                corner + 1 + dy,
                corner + 1 + dy + dz,
            )
        else:
            m = wp.uint32(mask)
            x0 = wp.uint32(i)
            x1 = wp.uint32(i + 1)
            y0 = wp.uint32(j) * prime_y
            y1 = y0 + prime_y
            z0 = wp.uint32(k) * prime_z
            z1 = z0 + prime_z
            rows = rows8(
                first + wp.int32((x0 ^ y0 ^ z0) & m),
                first + wp.int32((x0 ^ y0 ^ z1) & m),
                first + wp.int32((x0 ^ y1 ^ z0) & m),
                first + wp.int32((x0 ^ y1 ^ z1) & m),
                first + wp.int32((x1 ^ y0 ^ z0) & m),
                first + wp.int32((x1 ^ y0 ^ z1) & m),
                first + wp.int32((x1 ^ y1 ^ z0) & m),
                first + wp.int32((x1 ^ y1 ^ z1) & m),
            )
        return rows

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32,
        blocks: wp.int32,
        block: wp.int32,
        count: wp.int32,
        groups: wp.int32,
        levels: wp.int32,
        resolution: wp.array(dtype=wp.int32),
        first: wp.array(dtype=wp.int32),
        mask: wp.array(dtype=wp.int32),
        points: wp.array(dtype=vec3),
        table: wp.array(dtype=row),
        out: wp.array(dtype=row),
    ):
        item = start + wp.tid()
        begin = (item % blocks) * block
        end = wp.min(begin + block, count)
        for level in range(item // blocks, levels, groups):
            r = resolution[level]
            f = first[level]
            m = mask[level]
            for p in range(begin, end):
                x = unit3(points[p]) * real(r)
                i = cell_axis(x[0], r)
                j = cell_axis(x[1], r)
                k = cell_axis(x[2], r)
                v = vertices(i, j, k, r, f, m)
                x1 = x[0] - real(i)
                y1 = x[1] - real(j)
                z1 = x[2] - real(k)
                x0 = one - x1
                y0 = one - y1
                z0 = one - z1
                out[p * levels + level] = (
                    (x0 * y0 * z0) * table[v[0]]
                    + (x0 * y0 * z1) * table[v[1]]
                    + (x0 * y1 * z0) * table[v[2]]
                    + (x0 * y1 * z1) * table[v[3]]
                    + (x1 * y0 * z0) * table[v[4]]
                    + (x1 * y0 * z1) * table[v[5]]
                    + (x1 * y1 * z0) * table[v[6]]
                    + (x1 * y1 * z1) * table[v[7]]
                )

    @wp.kernel(**OPTIONS)
    def to_table(
        start: wp.int32,
        blocks: wp.int32,
        block: wp.int32,
        count: wp.int32,
        groups: wp.int32,
        levels: wp.int32,
        resolution: wp.array(dtype=wp.int32),
        first: wp.array(dtype=wp.int32),
        mask: wp.array(dtype=wp.int32),
        points: wp.array(dtype=vec3),
        to_out: wp.array(dtype=row),
        result: wp.array(dtype=row),
    ):
        item = start + wp.tid()
        begin = (item % blocks) * block
        end = wp.min(begin + block, count)
        for level in range(item // blocks, levels, groups):
            r = resolution[level]
            f = first[level]
            m = mask[level]
            for p in range(begin, end):
                x = unit3(points[p]) * real(r)
                i = cell_axis(x[0], r)
                j = cell_axis(x[1], r)
                k = cell_axis(x[2], r)
                v = vertices(i, j, k, r, f, m)
                x1 = x[0] - real(i)
                y1 = x[1] - real(j)
                z1 = x[2] - real(k)
                x0 = one - x1
                y0 = one - y1
                z0 = one - z1
                g = to_out[p * levels + level]
                wp.atomic_add(result, v[0], (x0 * y0 * z0) * g)
                wp.atomic_add(result, v[1], (x0 * y0 * z1) * g)
                wp.atomic_add(result, v[2], (x0 * y1 * z0) * g)
                wp.atomic_add(result, v[3], (x0 * y1 * z1) * g)
                wp.atomic_add(result, v[4], (x1 * y0 * z0) * g)
                wp.atomic_add(result, v[5], (x1 * y0 * z1) * g)
                wp.atomic_add(result, v[6], (x1 * y1 * z0) * g)
                wp.atomic_add(result, v[7], (x1 * y1 * z1) * g)

    @wp.kernel(**OPTIONS)
    def to_points(
        start: wp.int32,
        blocks: wp.int32,
        block: wp.int32,
        count: wp.int32,
        groups: wp.int32,
        levels: wp.int32,
        resolution: wp.array(dtype=wp.int32),
        first: wp.array(dtype=wp.int32),
        mask: wp.array(dtype=wp.int32),
        points: wp.array(dtype=vec3),
        table: wp.array(dtype=row),
        to_out: wp.array(dtype=row),
        result: wp.array(dtype=vec3),
    ):
        item = start + wp.tid()
        for p in range(item * block, wp.min(item * block + block, count)):
            total = vec3()
            for level in range(levels):
                r = resolution[level]
                x = unit3(points[p]) * real(r)
                i = cell_axis(x[0], r)
                j = cell_axis(x[1], r)
                k = cell_axis(x[2], r)
                v = vertices(i, j, k, r, first[level], mask[level])
                x1 = x[0] - real(i)
                y1 = x[1] - real(j)
                z1 = x[2] - real(k)
                x0 = one - x1
                y0 = one - y1
                z0 = one - z1
                g = to_out[p * levels + level]
                # What each vertex has to say, seen through the gradient that arrives.
                s0 = wp.dot(g, table[v[0]])
                s1 = wp.dot(g, table[v[1]])
                s2 = wp.dot(g, table[v[2]])
                s3 = wp.dot(g, table[v[3]])
                s4 = wp.dot(g, table[v[4]])
                s5 = wp.dot(g, table[v[5]])
                s6 = wp.dot(g, table[v[6]])
                s7 = wp.dot(g, table[v[7]])
                total += real(r) * vec3(
                    y0 * (z0 * (s4 - s0) + z1 * (s5 - s1)) + y1 * (z0 * (s6 - s2) + z1 * (s7 - s3)),
                    x0 * (z0 * (s2 - s0) + z1 * (s3 - s1)) + x1 * (z0 * (s6 - s4) + z1 * (s7 - s5)),
                    x0 * (y0 * (s1 - s0) + y1 * (s3 - s2)) + x1 * (y0 * (s5 - s4) + y1 * (s7 - s6)),
                )
            for axis in range(3):  # a point that was moved to a face does not feel it
                if points[p][axis] < zero or points[p][axis] > one:
                    total[axis] = zero
            result[p] = total

    return {"forward": forward, "to_table": to_table, "to_points": to_points}
