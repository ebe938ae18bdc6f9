"""The hash encoding in Warp, with two derivatives, for CPU threads and CUDA. The contract is in the package.

All of it is three walks over points and levels. With w_v(x) the trilinear weight of vertex v:

    gather   features = sum_v w_v table[v]              along a: sum_v (a . grad w_v) table[v]
    scatter  table[v] += w_v g                          along a: (a . grad w_v) g
    slope    to_points = sum_v (g . table[v]) grad w_v  along a: sum_v (g . table[v]) Hessian(w_v) a

The features are linear in the table, so the adjoint of each is made of the others: gather's is scatter and slope;
slope's, for a gradient a that reaches to_points, is gather and scatter and slope along a; scatter's is gather and
slope with the gradient in the table's place.

The work is cut into items: one block of points on one group of levels. With `groups` groups, group g has the levels
g, g + groups, g + 2 groups, ... On a CPU, gather and slope have one group, and threads share the blocks; scatter has
one group for each thread, so that no two threads add to one row, and every row is summed in the order of the points
whatever the number of threads. A block is so short that its features stay in the first cache while the levels pass;
but where the whole table is too large for the last cache, so long that only one level of it is needed at a time.

On CUDA a block is one point, a group is one level (for slope, all), and rows are summed by atomic adds.
"""

import functools
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.hashgrid import PRIMES, HashGridShape
from dreamkit.kernels.launch import FUSED, array, large_pages, launch, scalar, threads, vectors

BLOCK = 256  # points
LARGE_TABLE = 8 * 2**20  # bytes
INDEX = 0x7FFFFFFF


def hashgrid(points: Tensor, table: Tensor, shape: HashGridShape) -> Tensor:
    """[N, 3] points -> [N, levels * features]."""
    result: Tensor = _Features.apply(points.contiguous(), table.contiguous(), shape)
    return result


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, shape: HashGridShape) -> Tensor:
        ctx.save_for_backward(points, table)
        ctx.shape = shape
        return _gather(points, table, shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        points, table = ctx.saved_tensors
        g = g.contiguous()
        to_points = _ToPoints.apply(points, table, g, ctx.shape) if ctx.needs_input_grad[0] else None
        to_table = _ToTable.apply(points, g, ctx.shape) if ctx.needs_input_grad[1] else None
        return to_points, to_table, None


class _ToPoints(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, g: Tensor, shape: HashGridShape) -> Tensor:
        ctx.save_for_backward(points, table, g)
        ctx.shape = shape
        return _slope(points, table, g, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        points, table, g = ctx.saved_tensors
        along = along.contiguous()
        wanted = ctx.needs_input_grad
        return (
            _slope(points, table, g, ctx.shape, along) if wanted[0] else None,
            _scatter(points, g, ctx.shape, along) if wanted[1] else None,
            _gather(points, table, ctx.shape, along) if wanted[2] else None,
            None,
        )


class _ToTable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, g: Tensor, shape: HashGridShape) -> Tensor:
        ctx.save_for_backward(points, g)
        ctx.shape = shape
        return _scatter(points, g, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, table: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        points, g = ctx.saved_tensors
        table = table.contiguous()
        return (
            _slope(points, table, g, ctx.shape) if ctx.needs_input_grad[0] else None,
            _gather(points, table, ctx.shape) if ctx.needs_input_grad[1] else None,
            None,
        )


def _gather(points: Tensor, table: Tensor, shape: HashGridShape, along: Tensor | None = None) -> Tensor:
    out = large_pages(points.new_empty(len(points), shape.width))
    groups = 1 if points.device.type == "cpu" else shape.levels
    _walk("gather", points, table, out, shape, groups, along)
    return out


def _scatter(points: Tensor, g: Tensor, shape: HashGridShape, along: Tensor | None = None) -> Tensor:
    on_cpu = points.device.type == "cpu"
    table = large_pages(points.new_empty(shape.total, shape.features))
    if not on_cpu or not len(points):  # else each thread clears its levels: torch's threads would still be in the way
        table.zero_()
    groups = min(threads(points.device), shape.levels) if on_cpu else shape.levels
    _walk("scatter", points, table, g, shape, groups, along)
    return table


def _slope(points: Tensor, table: Tensor, g: Tensor, shape: HashGridShape, along: Tensor | None = None) -> Tensor:
    result = torch.empty_like(points)
    _walk("slope", points, table, g, shape, 1, along, result)
    return result


def _walk(
    name: str,
    points: Tensor,
    table: Tensor,
    features: Tensor,
    shape: HashGridShape,
    groups: int,
    along: Tensor | None,
    result: Tensor | None = None,
) -> None:
    """Launch the kernel `name` over all points, the levels in `groups` groups."""
    if not len(points):
        return
    if points.device.type == "cpu":
        large = table.numel() * table.element_size() > LARGE_TABLE
        block = max(-(-len(points) * groups // threads(points.device)), BLOCK) if large else BLOCK
    else:
        block = len(points) if name == "scatter" and torch.are_deterministic_algorithms_enabled() else 1
    blocks = -(-len(points) // block)
    none = points[:0]
    kernel = _kernel(name, scalar(points), shape.features, along is not None)
    cut = wp.vec4i(blocks, block, len(points), groups)
    places = [vectors(x, 3) for x in (points, none if along is None else along, none if result is None else result)]
    rows = [vectors(x, shape.features) for x in (table, features)]
    layout = array(_layout(shape, points.device), wp.vec4i)
    launch(kernel, blocks * groups, [cut, layout, *places, *rows], points.device, None if groups == 1 else groups)


@functools.lru_cache(maxsize=64)
def _layout(shape: HashGridShape, device: torch.device) -> Tensor:
    """[levels, 4] int32: resolution, first row, the mask of the hash (0 on a level stored directly), and rows."""
    masks = [entries - 1 if hashed else 0 for entries, hashed in zip(shape.entries, shape.hashed, strict=True)]
    columns = [shape.resolutions, shape.offsets, masks, shape.entries]
    return torch.tensor(columns, dtype=torch.int32, device=device).T.contiguous()


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def _cells(real: Any) -> dict[str, wp.Function]:
    """What all three walks need to know of a point in its cell. Vertices: x is bit 2 of the index, y bit 1, z bit 0."""
    vec3, vec8, rows8 = wp.types.vector(3, real), wp.types.vector(8, real), wp.types.vector(8, wp.int32)
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
    def cell_axis(x: real, resolution: wp.int32) -> wp.int32:
        # Clamped as a whole number: a point at 1 is in the last cell, and what a NaN becomes is a row that exists.
        return wp.clamp(wp.int32(x), 0, resolution - 1)

    @wp.func
    def vertices(i: wp.int32, j: wp.int32, k: wp.int32, resolution: wp.int32, first: wp.int32, mask: wp.int32):
        """The rows of the 8 vertices of cell (i, j, k)."""
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

    @wp.func
    def locate(point: vec3, level: wp.vec4i):
        """The rows around a point, and its place in the cell, in [0, 1]^3."""
        r = level[0]
        x = vec3(unit(point[0]), unit(point[1]), unit(point[2])) * real(r)
        i = cell_axis(x[0], r)
        j = cell_axis(x[1], r)
        k = cell_axis(x[2], r)
        return vertices(i, j, k, r, level[1], level[2]), x - vec3(real(i), real(j), real(k))

    @wp.func
    def felt(point: vec3, a: vec3) -> vec3:
        """`a` without the axes along which the point was moved to a face: it does not feel them."""
        for axis in range(3):
            if point[axis] < zero or point[axis] > one:
                a[axis] = zero
        return a

    @wp.func
    def weights(f: vec3) -> vec8:
        y0 = one - f[1]
        z0 = one - f[2]
        near = vec8(y0 * z0, y0 * f[2], f[1] * z0, f[1] * f[2], y0 * z0, y0 * f[2], f[1] * z0, f[1] * f[2])
        x0 = one - f[0]
        return wp.cw_mul(near, vec8(x0, x0, x0, x0, f[0], f[0], f[0], f[0]))

    @wp.func
    def weights_along(f: vec3, a: vec3) -> vec8:
        """The derivative of the weights along `a`."""
        x0 = one - f[0]
        y0 = one - f[1]
        z0 = one - f[2]
        yz = vec8(y0 * z0, y0 * f[2], f[1] * z0, f[1] * f[2], y0 * z0, y0 * f[2], f[1] * z0, f[1] * f[2])
        xz = vec8(x0 * z0, x0 * f[2], x0 * z0, x0 * f[2], f[0] * z0, f[0] * f[2], f[0] * z0, f[0] * f[2])
        xy = vec8(x0 * y0, x0 * y0, x0 * f[1], x0 * f[1], f[0] * y0, f[0] * y0, f[0] * f[1], f[0] * f[1])
        along_x = vec8(-a[0], -a[0], -a[0], -a[0], a[0], a[0], a[0], a[0])
        along_y = vec8(-a[1], -a[1], a[1], a[1], -a[1], -a[1], a[1], a[1])
        along_z = vec8(-a[2], a[2], -a[2], a[2], -a[2], a[2], -a[2], a[2])
        return wp.cw_mul(yz, along_x) + wp.cw_mul(xz, along_y) + wp.cw_mul(xy, along_z)

    @wp.func
    def gradient(f: vec3, s: vec8) -> vec3:
        """Of the trilinear mean of 8 values, in the cell's own unit."""
        x0 = one - f[0]
        y0 = one - f[1]
        z0 = one - f[2]
        return vec3(
            y0 * (z0 * (s[4] - s[0]) + f[2] * (s[5] - s[1])) + f[1] * (z0 * (s[6] - s[2]) + f[2] * (s[7] - s[3])),
            x0 * (z0 * (s[2] - s[0]) + f[2] * (s[3] - s[1])) + f[0] * (z0 * (s[6] - s[4]) + f[2] * (s[7] - s[5])),
            x0 * (y0 * (s[1] - s[0]) + f[1] * (s[3] - s[2])) + f[0] * (y0 * (s[5] - s[4]) + f[1] * (s[7] - s[6])),
        )

    @wp.func
    def gradient_along(f: vec3, s: vec8, a: vec3) -> vec3:
        """The derivative of `gradient` along `a`: the Hessian, which has no diagonal, times `a`."""
        xy = (one - f[2]) * (s[6] - s[4] - s[2] + s[0]) + f[2] * (s[7] - s[5] - s[3] + s[1])
        xz = (one - f[1]) * (s[5] - s[4] - s[1] + s[0]) + f[1] * (s[7] - s[6] - s[3] + s[2])
        yz = (one - f[0]) * (s[3] - s[2] - s[1] + s[0]) + f[0] * (s[7] - s[6] - s[5] + s[4])
        return vec3(xy * a[1] + xz * a[2], xy * a[0] + yz * a[2], xz * a[0] + yz * a[1])

    return {f.key.split(".")[-1]: f for f in (locate, felt, weights, weights_along, gradient, gradient_along)}


@functools.cache
@no_type_check
def _kernel(name: str, real: Any, features: int, along: bool) -> wp.Kernel:
    """The walk `name`, for one scalar type and number of features."""
    row, vec3, vec8 = wp.types.vector(features, real), wp.types.vector(3, real), wp.types.vector(8, real)
    locate, felt, weights, weights_along, gradient, gradient_along = _cells(real).values()
    gathers, scatters = name == "gather", name == "scatter"

    @wp.kernel(**FUSED)
    def walk(
        start: wp.int32,
        cut: wp.vec4i,
        layout: wp.array(dtype=wp.vec4i),
        points: wp.array(dtype=vec3),
        directions: wp.array(dtype=vec3),
        result: wp.array(dtype=vec3),
        table: wp.array(dtype=row),
        features: wp.array(dtype=row),
    ):
        item = start + wp.tid()
        begin = (item % cut[0]) * cut[1]
        end = wp.min(begin + cut[1], cut[2])
        levels = layout.shape[0]
        for level in range(item // cut[0], levels, cut[3]):
            here = layout[level]
            scale = real(here[0])
            if wp.static(scatters) and begin == 0 and cut[1] > 1:  # one thread has all blocks of this level, in order
                for n in range(here[3]):
                    table[here[1] + n] = row()
            p = begin & INDEX
            while p < end:
                v, f = locate(points[p], here)
                at = (p * levels + level) & INDEX
                a = vec3()
                if wp.static(along):
                    a = felt(points[p], directions[p]) * scale
                if wp.static(gathers or scatters):
                    w = weights(f)
                    if wp.static(along):
                        w = weights_along(f, a)
                    if wp.static(gathers):
                        total = w[0] * table[v[0] & INDEX]
                        for n in range(1, 8):
                            total += w[n] * table[v[n] & INDEX]
                        features[at] = total
                    else:
                        g = features[at]
                        for n in range(8):
                            wp.atomic_add(table, v[n] & INDEX, w[n] * g)
                else:
                    g = features[at]
                    s = vec8()  # what each vertex has to say, seen through the gradient that arrives
                    for n in range(8):
                        s[n] = wp.dot(g, table[v[n] & INDEX])
                    slope = gradient(f, s)
                    if wp.static(along):
                        slope = gradient_along(f, s, a)
                    slope = felt(points[p], slope) * scale
                    if level > 0:
                        slope += result[p]
                    result[p] = slope
                p = (p + 1) & INDEX

    return walk
