"""Marching in Warp, for CPU threads and CUDA: one item per ray. The contract is in the package's docstring.

`march` and `visible` go over the rays twice. The first pass counts the samples of a ray, the second writes them where
the counts say. Marching passes empty space in leaps: from a candidate in an empty cell to the first candidate beyond
that cell, or beyond the block of cells around it if all of that is empty. A leap ends a little early rather than
late, and every candidate is computed from its number as the reference does it, so leaping changes nothing.
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
    walk, pool = _march_kernels(real)
    size, blocks = len(occupancy), -(-len(occupancy) // BLOCK)
    fine = occupancy.contiguous().view(torch.uint8)
    coarse = fine.new_empty(blocks**3)
    grids = [size, array(fine.view(-1), wp.uint8), blocks, array(coarse, wp.uint8)]
    launch(pool, blocks**3, grids, device)

    origins, directions, jitter = (tensor.detach().contiguous() for tensor in (origins, directions, jitter))
    line = [vectors(origins, 3), vectors(directions, 3), array(jitter, real), real(step), real(near), *grids]
    found, first = torch.empty(2, rays, dtype=torch.int32, device=device).unbind()

    def go(offsets: Tensor, ray: Tensor, t: Tensor) -> None:
        whole = [array(tensor, wp.int32) for tensor in (found, first, offsets, ray)]
        launch(walk, rays, [*line, *whole, array(t, real)], device)

    go(found[:0], found[:0], origins.new_empty(0))
    offsets = _offsets(found)
    ray = found.new_empty(int(offsets[-1]))
    t = origins.new_empty(len(ray))
    go(offsets, ray, t)
    return Samples(ray, t, torch.full_like(t, step), offsets)


def visible(depth: Tensor, offsets: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """[S] optical depths -> the new offsets [R+1] int32 and the places [K] int64 of the samples not behind `limit`."""
    real, rays = scalar(depth), len(offsets) - 1
    count, fill = _visible_kernels(real)
    depth, offsets = depth.contiguous(), offsets.contiguous()
    found = torch.empty(rays, dtype=torch.int32, device=depth.device)
    launch(
        count, rays, [array(offsets, wp.int32), array(depth, real), real(limit), array(found, wp.int32)], depth.device
    )
    kept = _offsets(found)
    chosen = torch.empty(int(kept[-1]), dtype=torch.int64, device=depth.device)
    launch(fill, rays, [array(offsets, wp.int32), array(kept, wp.int32), array(chosen, wp.int64)], depth.device)
    return kept, chosen


def resample(
    t: Tensor, length: Tensor, offsets: Tensor, weight: Tensor, count: int, jitter: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """[S] ... -> t and length [len(rows) * count] of the new samples, on the rays `rows`, which all own some."""
    real = scalar(t)
    new = t.new_empty(2, len(rows) * count)
    values = [array(tensor.detach().contiguous(), real) for tensor in (t, length, weight, jitter)]
    kept = [offsets.contiguous(), rows.contiguous()]
    whole = [array(kept[0], wp.int32), array(kept[1], wp.int64)]
    launch(
        _resample_kernel(real), len(rows), [*whole, count, *values, array(new[0], real), array(new[1], real)], t.device
    )
    return new[0], new[1]


def _offsets(found: Tensor) -> Tensor:
    """[R] samples on each ray -> [R+1] where they begin."""
    offsets = found.new_zeros(len(found) + 1)
    torch.cumsum(found, 0, dtype=torch.int32, out=offsets[1:])
    return offsets


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def _march_kernels(real: Any) -> tuple[wp.Kernel, wp.Kernel]:
    """The walk along a ray, and the pooling of cells to blocks, for one scalar type."""
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
    def walk(
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
        offsets: wp.array(dtype=wp.int32),
        rays: wp.array(dtype=wp.int32),
        t: wp.array(dtype=real),
    ):
        """Without offsets, find how many samples the ray has and which is its first; with them, write the samples."""
        ray = start + wp.tid()
        o = origins[ray]
        d = directions[ray]
        span = inside(o, d, near)
        total = wp.int32(0)
        if offsets.shape[0] == 0:
            index = next_sample(0, span, o, d, jitter[ray], step, size, fine, blocks, coarse)
            first[ray] = index
            while index >= 0:
                total += 1
                index = next_sample(index + 1, span, o, d, jitter[ray], step, size, fine, blocks, coarse)
            found[ray] = total
        else:
            number = first[ray]
            while total < found[ray]:
                if total > 0:
                    number = next_sample(number + 1, span, o, d, jitter[ray], step, size, fine, blocks, coarse)
                rays[offsets[ray] + total] = ray
                t[offsets[ray] + total] = span[0] + (real(number) + jitter[ray]) * step
                total += 1

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

    return walk, pool


@functools.cache
@no_type_check
def _visible_kernels(real: Any) -> tuple[wp.Kernel, wp.Kernel]:
    """How many samples of a ray are seen; and their places."""

    @wp.kernel(**OPTIONS)
    def count(
        start: wp.int32,
        offsets: wp.array(dtype=wp.int32),
        depth: wp.array(dtype=real),
        limit: real,
        found: wp.array(dtype=wp.int32),
    ):
        ray = start + wp.tid()
        i = offsets[ray]
        before = real(0.0)
        while i < offsets[ray + 1] and not before > limit:  # not "<=": a NaN hides nothing
            before += depth[i]
            i += 1
        found[ray] = i - offsets[ray]

    @wp.kernel(**OPTIONS)
    def fill(
        start: wp.int32,
        offsets: wp.array(dtype=wp.int32),
        kept: wp.array(dtype=wp.int32),
        chosen: wp.array(dtype=wp.int64),
    ):
        ray = start + wp.tid()
        for i in range(kept[ray], kept[ray + 1]):
            chosen[i] = wp.int64(offsets[ray] + i - kept[ray])

    return count, fill


@functools.cache
@no_type_check
def _resample_kernel(real: Any) -> wp.Kernel:
    """One ray: a walk over its stretches that stops at every new sample and every border between two."""
    zero, one, two = real(0.0), real(1.0), real(2.0)

    @wp.func
    def mass(weight: wp.array(dtype=real), length: wp.array(dtype=real), i: wp.int32, even: bool) -> real:
        if even:
            return length[i]
        return weight[i]

    @wp.kernel(**OPTIONS)
    def resample(
        start: wp.int32,
        offsets: wp.array(dtype=wp.int32),
        rows: wp.array(dtype=wp.int64),
        count: wp.int32,
        t: wp.array(dtype=real),
        length: wp.array(dtype=real),
        weight: wp.array(dtype=real),
        jitter: wp.array(dtype=real),
        new_t: wp.array(dtype=real),
        new_length: wp.array(dtype=real),
    ):
        item = start + wp.tid()
        ray = wp.int32(rows[item])
        begin = offsets[ray]
        end = offsets[ray + 1]
        total = zero
        for i in range(begin, end):
            total += weight[i]
        even = not total > zero
        last = begin  # the last stretch that holds anything
        total = zero
        whole = zero
        for i in range(begin, end):
            held = mass(weight, length, i, even)
            if held > zero:
                last = i
            total += held
            whole += length[i]
        at = begin  # the stretch where the walk stands; the weight and the length before it
        before = zero
        gone = zero
        border = zero
        for stop in range(2 * count):  # samples at the even stops, borders at the odd ones
            k = real(stop // 2)
            share = (k + jitter[ray]) / real(count)
            if stop % 2 == 1:
                share = (k + one) / real(count)
            target = share * total
            held = mass(weight, length, at, even)
            while at < last and before + held <= target:
                before += held
                gone += length[at]
                at += 1
                held = mass(weight, length, at, even)
            part = zero
            if held > zero:
                part = wp.clamp((target - before) / held, zero, one) * length[at]
            slot = item * count + stop // 2
            if stop % 2 == 0:
                new_t[slot] = t[at] - length[at] / two + part
            else:
                reached = gone + part
                if stop == 2 * count - 1:
                    reached = whole  # stretches at the end may hold nothing
                new_length[slot] = reached - border
                border = reached

    return resample
