"""Marching in Warp, for CPU threads and CUDA: one item per ray, two passes. The contract is in the package's docstring.

The first pass counts the samples of a ray, the second writes them where the counts say. Empty space is passed in
leaps: from a candidate in an empty cell to the first candidate beyond that cell, or beyond the block of cells around
it if all of that is empty. A leap ends a little early rather than late, and every candidate is computed from its
number as the reference does it, so leaping changes nothing.
"""

import functools
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor

from dreamkit.kernels.launch import OPTIONS, array, launch, scalar, vectors
from dreamkit.kernels.march import Samples

BLOCK = 4  # cells per axis of a block


def march(origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor, near: float) -> Samples:
    """[R, 3] rays -> Samples."""
    rays, device, real = len(origins), origins.device, scalar(origins)
    count, fill, pool = _kernels(real)
    size, blocks = len(occupancy), -(-len(occupancy) // BLOCK)
    fine = occupancy.contiguous().view(torch.uint8)
    coarse = fine.new_empty(blocks**3)
    grids = [size, array(fine.view(-1), wp.uint8), blocks, array(coarse, wp.uint8)]
    launch(pool, blocks**3, grids, device)

    origins, directions, jitter = (tensor.detach().contiguous() for tensor in (origins, directions, jitter))
    line = [vectors(origins, 3), vectors(directions, 3), array(jitter, real), real(step), real(near), *grids]
    found, first = torch.empty(2, rays, dtype=torch.int32, device=device).unbind()
    launch(count, rays, [*line, array(found, wp.int32), array(first, wp.int32)], device)

    offsets = torch.zeros(rays + 1, dtype=torch.int32, device=device)
    torch.cumsum(found, 0, dtype=torch.int32, out=offsets[1:])
    total = int(offsets[-1])
    ray = torch.empty(total, dtype=torch.int32, device=device)
    t = origins.new_empty(total)
    launch(fill, rays, [*line, *(array(x, wp.int32) for x in (offsets, first, ray)), array(t, real)], device)
    return Samples(ray, t, torch.full_like(t, step), offsets)


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def _kernels(real: Any) -> tuple[wp.Kernel, wp.Kernel, wp.Kernel]:
    """Count, fill, and the pooling of cells to blocks, for one scalar type."""
    vec3 = wp.types.vector(3, real)
    vec2 = wp.types.vector(2, real)
    zero, one, two, far = real(0.0), real(1.0), real(2.0), real(1.0e30)
    margin = real(1.0e-5 if real == wp.float32 else 1.0e-12)  # well over the rounding of a distance of 1

    @wp.func
    def inside(origin: vec3, direction: vec3, near: real) -> vec2:
        """Where the ray comes into the cube [-1,1]^3 and where it leaves it; (0, 0) if it never is inside."""
        t_in = near
        t_out = far
        for axis in range(3):
            o = origin[axis]
            d = direction[axis]
            if d != zero:
                a = (-one - o) / d
                b = (one - o) / d
                t_in = wp.max(t_in, wp.min(a, b))
                t_out = wp.min(t_out, wp.max(a, b))
            elif wp.abs(o) > one:
                t_out = -far
        # wp.min and wp.max may lose a NaN, and a direction of length 0 never leaves: without this, an endless loop.
        if wp.length_sq(origin) < far and wp.length_sq(direction) > zero and t_out < far:
            return vec2(t_in, t_out)
        return vec2(zero, zero)

    @wp.func
    def leaves(origin: vec3, direction: vec3, low: vec3, width: real) -> real:
        """Where the ray leaves the cube with the lowest corner `low`, inside which it is."""
        t = far
        for axis in range(3):
            d = direction[axis]
            if d > zero:
                t = wp.min(t, (low[axis] + width - origin[axis]) / d)
            if d < zero:
                t = wp.min(t, (low[axis] - origin[axis]) / d)
        return t

    @wp.func
    def cell_axis(x: real, size: wp.int32) -> wp.int32:
        return wp.clamp(wp.int32(wp.floor((x + one) * (real(size) / two))), 0, size - 1)

    @wp.func
    def next_sample(
        index: wp.int32,
        span: vec2,
        origin: vec3,
        direction: vec3,
        jitter: real,
        step: real,
        size: wp.int32,
        fine: wp.array(dtype=wp.uint8),
        blocks: wp.int32,
        coarse: wp.array(dtype=wp.uint8),
    ) -> wp.int32:
        """The number of the first candidate from `index` on that lies in an occupied cell, or -1."""
        t_in = span[0]
        t_out = span[1]
        t = t_in + (real(index) + jitter) * step
        while t < t_out:
            x = origin + direction * t
            i = cell_axis(x[0], size)
            j = cell_axis(x[1], size)
            k = cell_axis(x[2], size)
            if fine[(i * size + j) * size + k] != wp.uint8(0):
                return index
            width = two / real(size)
            corner = vec3(real(i), real(j), real(k))
            i //= BLOCK
            j //= BLOCK
            k //= BLOCK
            if coarse[(i * blocks + j) * blocks + k] == wp.uint8(0):
                width *= real(float(BLOCK))
                corner = vec3(real(i), real(j), real(k))
            low = corner * width - vec3(one, one, one)
            t_next = leaves(origin, direction, low, width)
            t_next -= margin * (one + wp.abs(t_next))
            index = wp.max(index + 1, wp.int32(wp.ceil((wp.min(t_next, t_out) - t_in) / step - jitter)))
            t = t_in + (real(index) + jitter) * step
        return -1

    @wp.kernel(**OPTIONS)
    def count(
        start: wp.int32,
        origins: wp.array(dtype=vec3),
        directions: wp.array(dtype=vec3),
        jitter: wp.array(dtype=real),
        step: real,
        near: real,
        size: wp.int32,
        fine: wp.array(dtype=wp.uint8),
        blocks: wp.int32,
        coarse: wp.array(dtype=wp.uint8),
        found: wp.array(dtype=wp.int32),
        first: wp.array(dtype=wp.int32),
    ):
        ray = start + wp.tid()
        o = origins[ray]
        d = directions[ray]
        span = inside(o, d, near)
        index = next_sample(0, span, o, d, jitter[ray], step, size, fine, blocks, coarse)
        first[ray] = index
        total = wp.int32(0)
        while index >= 0:
            total += 1
            index = next_sample(index + 1, span, o, d, jitter[ray], step, size, fine, blocks, coarse)
        found[ray] = total

    @wp.kernel(**OPTIONS)
    def fill(
        start: wp.int32,
        origins: wp.array(dtype=vec3),
        directions: wp.array(dtype=vec3),
        jitter: wp.array(dtype=real),
        step: real,
        near: real,
        size: wp.int32,
        fine: wp.array(dtype=wp.uint8),
        blocks: wp.int32,
        coarse: wp.array(dtype=wp.uint8),
        offsets: wp.array(dtype=wp.int32),
        first: wp.array(dtype=wp.int32),
        rays: wp.array(dtype=wp.int32),
        t: wp.array(dtype=real),
    ):
        ray = start + wp.tid()
        o = origins[ray]
        d = directions[ray]
        span = inside(o, d, near)
        index = first[ray]
        for s in range(offsets[ray], offsets[ray + 1]):
            rays[s] = ray
            t[s] = span[0] + (real(index) + jitter[ray]) * step
            if s + 1 < offsets[ray + 1]:
                index = next_sample(index + 1, span, o, d, jitter[ray], step, size, fine, blocks, coarse)

    @wp.kernel(**OPTIONS)
    def pool(
        start: wp.int32,
        size: wp.int32,
        fine: wp.array(dtype=wp.uint8),
        blocks: wp.int32,
        coarse: wp.array(dtype=wp.uint8),
    ):
        block = start + wp.tid()
        i0 = block // (blocks * blocks) * BLOCK
        j0 = (block // blocks) % blocks * BLOCK
        k0 = block % blocks * BLOCK
        occupied = wp.uint8(0)
        for i in range(i0, wp.min(i0 + BLOCK, size)):
            for j in range(j0, wp.min(j0 + BLOCK, size)):
                for k in range(k0, wp.min(k0 + BLOCK, size)):
                    occupied = occupied | fine[(i * size + j) * size + k]
        coarse[block] = occupied

    return count, fill, pool
