"""Texture lookup in Warp, forward and adjoint, for CPU threads and CUDA. The contract is in the package's docstring.

Values, and gradients of positions and levels: one item per lookup. The gradient of the texels is a scatter:

- on a CPU, each thread owns rows of texels, ROWS at a time in turn. Lookups are first sorted into one bucket for each
  thread, chunk by chunk; then every thread empties its buckets in order. So no two threads add to one texel, and every
  texel is summed in the order of the lookups whatever the number of threads. For two threads, sorting costs what it
  saves: there, and for few lookups, one thread adds alone.
- on CUDA there is one item per lookup, and texels are summed by atomic adds.
"""

import functools
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.launch import OPTIONS, array, launch, scalar, threads, vectors
from dreamkit.kernels.texture import Layout, columns, reference

ROWS = 16  # in turn to each thread: a lookup touches two, so most have one owner, and charts are shared evenly
CHUNK = 2048  # lookups whose owners stay in the first cache while they are sorted
FEW = 1 << 13  # lookups that are not worth sharing among threads
SHARED = 3  # threads, from which on sorting pays


def lookup(texels: Tensor, at: Tensor, level: Tensor | None, layout: Layout) -> Tensor:
    """texels [T, C], uv [N, 2] or directions [N, 3], level [N] -> [N, C]."""
    level = level.contiguous() if level is not None else at.new_empty(0)  # of no length: all on the finest
    result: Tensor = _Lookup.apply(texels.contiguous(), at.contiguous(), level, layout)
    return result


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, texels: Tensor, at: Tensor, level: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(texels, at, level)
        ctx.layout = layout
        out = at.new_empty(len(at), texels.shape[1])
        _run("forward", layout, texels, at, level, len(at), [_rows(texels), _rows(out)])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        texels, at, level = ctx.saved_tensors
        layout, gradient = ctx.layout, gradient.contiguous()
        to_texels = to_at = to_level = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            to_at, to_level = torch.empty_like(at), torch.empty_like(level)
            outputs = [vectors(to_at, at.shape[1]), array(to_level, scalar(at))]
            _run("to_position", layout, texels, at, level, len(at), [_rows(texels), _rows(gradient), *outputs])
        if ctx.needs_input_grad[0]:
            to_texels = _to_texels(texels, at, level, layout, gradient)
        return to_texels, to_at, to_level if ctx.needs_input_grad[2] else None, None


def _to_texels(texels: Tensor, at: Tensor, level: Tensor, layout: Layout, gradient: Tensor) -> Tensor:
    if at.is_cuda and torch.are_deterministic_algorithms_enabled():
        with torch.enable_grad():
            leaf = texels.detach().requires_grad_()
            found = reference.lookup(leaf, at, level if len(level) else None, layout)
            return torch.autograd.grad(found, leaf, gradient)[0]
    result = torch.zeros_like(texels)
    bands = threads(at.device)
    outputs = [_rows(gradient), _rows(result)]
    if bands < SHARED or len(at) <= FEW:
        _run("to_texels", layout, texels, at, level, len(at), outputs, slices=1)
        return result
    parts, chunks = 2 if len(level) else 1, -(-len(at) // CHUNK)  # a part is a lookup on one of its levels
    owners = torch.empty(len(at) * parts, dtype=torch.int32)
    buckets, ends = torch.empty(2 * len(owners), dtype=torch.int32), torch.zeros(chunks * bands, dtype=torch.int32)
    sorting = [bands, parts, *(array(tensor, wp.int32) for tensor in (buckets, ends))]
    _run("sort", layout, texels, at, level, chunks, [*sorting, array(owners, wp.int32)])
    _run("to_rows", layout, texels, at, level, bands, [*sorting, *outputs])
    return result


def _run(
    name: str,
    layout: Layout,
    texels: Tensor,
    at: Tensor,
    level: Tensor,
    items: int,
    arguments: list[Any],
    slices: int | None = None,
) -> None:
    real = scalar(at)
    table = columns(layout, at.device)
    shape = array(table, wp.types.vector(4, wp.int32))
    per_texture = max(len(at) // layout.count, 1)
    launch(
        _kernels(real, texels.shape[1], layout.border)[name],
        items,
        [per_texture, shape, vectors(at, at.shape[1]), array(level, real), *arguments],
        at.device,
        slices,
    )


def _rows(texels: Tensor) -> Any:
    return vectors(texels, texels.shape[1])


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def _kernels(real: Any, channels: int, border: str) -> dict[str, wp.Kernel]:
    """The kernels, for one scalar type, number of channels and border."""
    cube, wrap = border == "cube", border == "wrap"
    row, point = wp.types.vector(channels, real), wp.types.vector(3 if cube else 2, real)
    vec2, vec3, quad = wp.types.vector(2, real), wp.types.vector(3, real), wp.types.vector(4, wp.int32)
    rows, points, reals, quads = (wp.array(dtype=of) for of in (row, point, real, quad))
    ints = wp.array(dtype=wp.int32)
    zero, half, one = real(0.0), real(0.5), real(1.0)
    lining = 2 if cube else 0  # texels of a row that are not its own
    turn, chunk = ROWS, CHUNK

    @wp.func
    def frame(d: vec3):
        """The face of a direction, its centre, and where its columns and rows count to; see cube.frame."""
        size = vec3(wp.abs(d[0]), wp.abs(d[1]), wp.abs(d[2]))
        axis = 2
        if size[0] >= size[1] and size[0] >= size[2]:
            axis = 0
        elif size[1] >= size[2]:
            axis = 1
        face = 2 * axis
        sign = one
        if d[axis] < zero:
            face += 1
            sign = -one
        centre = vec3(zero, zero, sign)
        right = vec3(zero, -one, zero)
        down = vec3(sign, zero, zero)
        if axis == 0:
            centre = vec3(sign, zero, zero)
            right = vec3(zero, -sign, zero)
            down = vec3(zero, zero, -one)
        if axis == 1:
            centre = vec3(zero, sign, zero)
            right = vec3(sign, zero, zero)
            down = vec3(zero, zero, -one)
        return face, centre, right, down

    # Where a lookup falls: which texture, and (right, down) in it, all of it being [0, 1]^2; and the way back.
    if cube:

        @wp.func
        def place(d: point, n: wp.int32, per_texture: wp.int32):
            face, centre, right, down = frame(d)
            scale = half / wp.dot(centre, d)
            return face, vec2(wp.dot(right, d) * scale + half, wp.dot(down, d) * scale + half)

        @wp.func
        def place_back(d: point, g: vec2):
            _, centre, right, down = frame(d)
            length = one / wp.dot(centre, d)
            a = wp.dot(right, d) * length
            b = wp.dot(down, d) * length
            return half * length * (g[0] * (right - a * centre) + g[1] * (down - b * centre))

    else:

        @wp.func
        def place(uv: point, n: wp.int32, per_texture: wp.int32):
            return n // per_texture, vec2(uv[0], one - uv[1])

        @wp.func
        def place_back(uv: point, g: vec2):
            return vec2(g[0], -g[1])

    @wp.func
    def position(x: real, size: wp.int32):
        """Where x in [0, 1] is among the centres of the texels."""
        if wp.static(wrap):
            x -= wp.floor(x)
        x *= real(size - lining)
        if wp.static(cube):
            x += half
        else:
            x -= half
        # Not wp.clamp: these comparisons keep a NaN. Farther out there is no news.
        if x < -one:
            x = -one
        if x > real(size):
            x = real(size)
        return x

    @wp.func
    def exists(i: wp.int32, size: wp.int32):
        if wp.static(wrap):
            if i < 0:
                i += size
            if i >= size:
                i -= size
        # What a NaN becomes is a texel that exists, too; its NaN weight does the rest.
        return wp.clamp(i, 0, size - 1)

    @wp.func
    def levels_of(level: reals, n: wp.int32, levels: wp.int32):
        """The level of a lookup, whole part and fraction."""
        if level.shape[0] == 0:
            return wp.int32(0), zero
        x = level[n]
        if x < zero:
            x = zero
        if x > real(levels - 1):
            x = real(levels - 1)
        lower = wp.clamp(wp.int32(x), 0, levels - 1)
        return lower, x - real(lower)

    @wp.func
    def found(n: wp.int32, per_texture: wp.int32, shape: quads, at: points, level: reals):
        """Of a lookup: its texture and its place in it, and its level, whole part and fraction."""
        texture, p = place(at[n], n, per_texture)
        lower, fraction = levels_of(level, n, shape.shape[0])
        return texture, p, lower, fraction

    @wp.func
    def window(shape: quads, level: wp.int32, texture: wp.int32):
        """Of one texture on one level: height, width, its first texel, and its first row among all rows."""
        s = shape[level]
        return quad(s[0], s[1], s[2] + texture * s[0] * s[1], s[3] + texture * s[0])

    @wp.func
    def around(p: vec2, s: quad):
        """The texels around a position in reading order, how far to the right and down it is among them, the row."""
        x = position(p[0], s[1])
        y = position(p[1], s[0])
        x0 = wp.floor(x)
        y0 = wp.floor(y)
        i = wp.int32(x0)
        j = wp.int32(y0)
        left = exists(i, s[1])
        right = exists(i + 1, s[1])
        top = s[2] + exists(j, s[0]) * s[1]
        bottom = s[2] + exists(j + 1, s[0]) * s[1]
        return quad(top + left, top + right, bottom + left, bottom + right), x - x0, y - y0, j

    @wp.func
    def mean(texels: rows, p: vec2, s: quad):
        t, x, y, _j = around(p, s)
        top = texels[t[0]] + x * (texels[t[1]] - texels[t[0]])
        bottom = texels[t[2]] + x * (texels[t[3]] - texels[t[2]])
        return top + y * (bottom - top)

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32, per_texture: wp.int32, shape: quads, at: points, level: reals, texels: rows, out: rows
    ):
        n = start + wp.tid()
        texture, p, lower, fraction = found(n, per_texture, shape, at, level)
        value = mean(texels, p, window(shape, lower, texture))
        if fraction != zero and lower + 1 < shape.shape[0]:
            value += fraction * (mean(texels, p, window(shape, lower + 1, texture)) - value)
        out[n] = value

    @wp.func
    def slopes(texels: rows, g: row, p: vec2, s: quad):
        """Through the gradient that arrives: the derivatives along right and down, and the value."""
        t, x, y, _j = around(p, s)
        s0 = wp.dot(g, texels[t[0]])
        s1 = wp.dot(g, texels[t[1]])
        s2 = wp.dot(g, texels[t[2]])
        s3 = wp.dot(g, texels[t[3]])
        top = s0 + x * (s1 - s0)
        bottom = s2 + x * (s3 - s2)
        along = (s1 - s0) + y * ((s3 - s2) - (s1 - s0))
        return vec3(along * real(s[1] - lining), (bottom - top) * real(s[0] - lining), top + y * (bottom - top))

    @wp.kernel(**OPTIONS)
    def to_position(
        start: wp.int32, per_texture: wp.int32, shape: quads, at: points, level: reals, texels: rows, to_out: rows,
        to_at: points, to_level: reals,
    ):  # fmt: skip
        n = start + wp.tid()
        texture, p, lower, fraction = found(n, per_texture, shape, at, level)
        near = slopes(texels, to_out[n], p, window(shape, lower, texture))
        further = vec3()
        if level.shape[0] > 0:
            if lower + 1 < shape.shape[0]:
                further = slopes(texels, to_out[n], p, window(shape, lower + 1, texture)) - near
            to_level[n] = further[2]
            if level[n] < zero or level[n] > real(shape.shape[0] - 1):
                to_level[n] = zero
        both = near + fraction * further
        to_at[n] = place_back(at[n], vec2(both[0], both[1]))

    @wp.func
    def owner(y: wp.int32, s: quad, bands: wp.int32):
        return ((s[3] + exists(y, s[0])) // turn) % bands

    @wp.func
    def add(result: rows, g: row, p: vec2, s: quad, band: wp.int32, bands: wp.int32):
        """Add g to the texels around p, in the rows that the band owns."""
        t, x, y, j = around(p, s)
        if bands == 1 or owner(j, s, bands) == band:
            wp.atomic_add(result, t[0], ((one - y) * (one - x)) * g)
            wp.atomic_add(result, t[1], ((one - y) * x) * g)
        if bands == 1 or owner(j + 1, s, bands) == band:
            wp.atomic_add(result, t[2], (y * (one - x)) * g)
            wp.atomic_add(result, t[3], (y * x) * g)

    @wp.kernel(**OPTIONS)
    def to_texels(
        start: wp.int32, per_texture: wp.int32, shape: quads, at: points, level: reals, to_out: rows, result: rows
    ):
        n = start + wp.tid()
        texture, p, lower, fraction = found(n, per_texture, shape, at, level)
        add(result, (one - fraction) * to_out[n], p, window(shape, lower, texture), 0, 1)
        if fraction != zero and lower + 1 < shape.shape[0]:
            add(result, fraction * to_out[n], p, window(shape, lower + 1, texture), 0, 1)

    @wp.kernel(**OPTIONS)
    def sort(
        start: wp.int32, per_texture: wp.int32, shape: quads, at: points, level: reals, bands: wp.int32,
        parts: wp.int32, buckets: ints, ends: ints, owners: ints,
    ):  # fmt: skip
        # One chunk of lookups: a counting sort of their parts by owner; a part with rows of two owners is in both.
        item = start + wp.tid()
        begin = item * chunk
        end = wp.min(begin + chunk, at.shape[0])
        for n in range(begin, end):
            texture, p, lower, fraction = found(n, per_texture, shape, at, level)
            for part in range(parts):
                pair = wp.int32(-1)
                if part == 0 or (fraction != zero and lower + 1 < shape.shape[0]):
                    s = window(shape, lower + part, texture)
                    y = wp.int32(wp.floor(position(p[1], s[0])))
                    a = owner(y, s, bands)
                    b = owner(y + 1, s, bands)
                    pair = a * bands + b
                    ends[item * bands + a] += 1
                    if a != b:
                        ends[item * bands + b] += 1
                owners[n * parts + part] = pair
        total = 2 * begin * parts
        for band in range(bands):
            size = ends[item * bands + band]
            ends[item * bands + band] = total
            total += size
        for part in range(begin * parts, end * parts):
            pair = owners[part]
            if pair >= 0:
                a = item * bands + pair // bands
                b = item * bands + pair % bands
                buckets[ends[a]] = part
                ends[a] += 1
                if a != b:
                    buckets[ends[b]] = part
                    ends[b] += 1

    @wp.kernel(**OPTIONS)
    def to_rows(
        start: wp.int32, per_texture: wp.int32, shape: quads, at: points, level: reals, bands: wp.int32,
        parts: wp.int32, buckets: ints, ends: ints, to_out: rows, result: rows,
    ):  # fmt: skip
        band = start + wp.tid()
        for bucket in range(ends.shape[0] // bands):
            begin = 2 * bucket * chunk * parts
            if band > 0:
                begin = ends[bucket * bands + band - 1]
            for i in range(begin, ends[bucket * bands + band]):
                n = buckets[i] // parts
                upper = buckets[i] % parts
                texture, p, lower, fraction = found(n, per_texture, shape, at, level)
                weight = one - fraction
                if upper == 1:
                    weight = fraction
                add(result, weight * to_out[n], p, window(shape, lower + upper, texture), band, bands)

    return {"forward": forward, "to_position": to_position, "to_texels": to_texels, "sort": sort, "to_rows": to_rows}
