"""Drawing faces: coverage by edges in float64, the nearest face by an integer key; barycentrics, depth, the adjoint."""

import functools
from typing import Any, no_type_check

import torch
import warp as wp

from dreamkit.kernels.launch import FUSED
from dreamkit.kernels.raster import DEPTH_STEPS
from dreamkit.kernels.raster.warp_tiles import Frame, adding, centre_x, centre_y, flattening, ints, ints3, tile_of, vec3

SMALL = 32  # pixels of a face's box that are tried one by one; in larger boxes every row looks where it meets the face


@wp.func
@no_type_check
def line_of_64(a: vec3, b: vec3, i: wp.int32, j: wp.int32) -> vec3:
    """The edge from vertex i at a to vertex j at b: to the last bit the negative of the edge from j to i."""
    if i < j:
        return wp.cross(a, b)
    return -wp.cross(b, a)


@wp.func
@no_type_check
def line_of_32(a: vec3, b: vec3, i: wp.int32, j: wp.int32) -> vec3:
    """The same for coordinates that were float32."""
    return wp.cross(a, b)


def lines(real: Any) -> wp.Function:
    # These kernels fuse one of a cross product's two products with the difference, and then a x b is not -(b x a).
    # Products of float32 are exact in float64, so there it makes no difference.
    return line_of_32 if real == wp.float32 else line_of_64


@wp.func
@no_type_check
def beyond(a: vec3, b: vec3, c: vec3, x: wp.float64, y: wp.float64, z: wp.float64) -> wp.bool:
    """Whether all three have a negative product with (x, y, z)."""
    n = vec3(x, y, z)
    return wp.max(wp.max(wp.dot(a, n), wp.dot(b, n)), wp.dot(c, n)) < wp.float64(0.0)


@wp.func
@no_type_check
def least_inside(n: vec3) -> wp.float64:
    """The least e of a pixel centre inside the edge n: 0 if the centres on it are its own (the top-left rule)."""
    zero = wp.float64(0.0)
    if n[0] > zero or (n[0] == zero and n[1] < zero):
        return zero
    return wp.float64(1.0e-300)


@wp.func
@no_type_check
def reach(n: vec3) -> wp.float64:
    """-1 / n_x, by which a row finds where it meets the edge; 0 if the edge is so level that it may not be exact."""
    level = wp.float64(1.0e-6) * (wp.abs(n[1]) + wp.abs(n[2]))
    return wp.where(wp.abs(n[0]) > level, wp.float64(-1.0) / n[0], wp.float64(0.0))


@wp.func
@no_type_check
def lower(rest: wp.float64, g: wp.float64) -> wp.float64:
    """A bound of the x in [-1, 1] of a row, where e = n_x x + rest, from which on it is inside the edge."""
    return wp.where(g < wp.float64(0.0), rest * g, wp.float64(-1.0))


@wp.func
@no_type_check
def upper(rest: wp.float64, g: wp.float64) -> wp.float64:
    """The bound up to which it is inside."""
    return wp.where(g > wp.float64(0.0), rest * g, wp.float64(1.0))


@wp.func
@no_type_check
def keep_alone(nearest: wp.array(dtype=wp.int64), p: wp.int32, key: wp.int64):
    """The lesser of what is there and `key`, where nobody else writes."""
    nearest[p] = wp.min(nearest[p], key)


@wp.func
@no_type_check
def keep_together(nearest: wp.array(dtype=wp.int64), p: wp.int32, key: wp.int64):
    """The lesser of what is there and `key`, where others write."""
    if key < nearest[p]:
        wp.atomic_min(nearest, p, key)


@wp.func
@no_type_check
def first_at(low: wp.float64, size: wp.int32) -> wp.int32:
    """The first pixel centre from the coordinate `low` in [-1, 1] on."""
    at = (low + wp.float64(1.0)) * wp.float64(size) * wp.float64(0.5) - wp.float64(0.5 + 1.0e-6)
    return wp.int32(wp.clamp(at, wp.float64(-1.0), wp.float64(size)) + wp.float64(1.0))


@wp.func
@no_type_check
def end_at(high: wp.float64, size: wp.int32) -> wp.int32:
    """One after the last pixel centre up to the coordinate `high` in [-1, 1]."""
    at = (high + wp.float64(1.0)) * wp.float64(size) * wp.float64(0.5) - wp.float64(0.5 - 1.0e-6)
    return wp.int32(wp.clamp(at, wp.float64(-1.0), wp.float64(size)) + wp.float64(1.0))


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def drawing(real: Any, on_cpu: bool) -> tuple[wp.Kernel, wp.Kernel, wp.Kernel]:
    """Drawing the faces, resolving what was drawn, and its adjoint, for one scalar type."""
    vec4, weights = wp.types.vector(4, real), wp.types.vector(3, real)
    reals4, reals3, reals, longs = (wp.array(dtype=of) for of in (vec4, weights, real, wp.int64))
    zero, one, two = wp.float64(0.0), wp.float64(1.0), wp.float64(2.0)
    margin, steps = wp.float64(1.0e-9), wp.float64(DEPTH_STEPS)
    low_half, nothing = wp.int64(0xFFFFFFFF), wp.int64(torch.iinfo(torch.int64).max)
    line, keep = lines(real), keep_alone if on_cpu else keep_together
    (add, slot_of), (_, corners) = adding(4, real), flattening(real)

    @wp.func
    def fragment(
        f: wp.int32,
        column: wp.int32,
        row: wp.int32,
        frame: Frame,
        n0: vec3,
        n1: vec3,
        n2: vec3,
        least: vec3,
        plane: vec3,
    ) -> wp.int64:
        """Depth and number of face f at a pixel centre, or `nothing` outside it. Without a branch: it would often be
        guessed wrong."""
        x = centre_x(column, frame.width)
        y = centre_y(row, frame.height)
        e0 = n0[0] * x + (n0[1] * y + n0[2])
        e1 = n1[0] * x + (n1[1] * y + n1[2])
        e2 = n2[0] * x + (n2[1] * y + n2[2])
        z = plane[0] * x + (plane[1] * y + plane[2]) + one
        inside = wp.min(wp.min(wp.min(e0 - least[0], e1 - least[1]), e2 - least[2]), wp.min(z, two - z)) >= zero
        key = (wp.int64(wp.clamp(z, zero, two) * steps) << wp.int64(32)) | wp.int64(f)
        return wp.where(inside, key, nothing)

    @wp.kernel(**FUSED)
    def draw(start: wp.int32, frame: Frame, runs: wp.int32, faces: ints3, clip: reals4, nearest: longs):
        height = frame.height
        width = frame.width
        item = start + wp.tid()
        run = item % runs
        strip = (item // runs) % frame.strips
        view = item // (runs * frame.strips)
        top = height * strip // frame.strips
        bottom = height * (strip + 1) // frame.strips
        if runs == 1:  # nobody else draws on this strip
            for p in range((view * height + top) * width, (view * height + bottom) * width):
                nearest[p] = nothing
        length = (faces.shape[0] + runs - 1) // runs
        for f in range(run * length, wp.min((run + 1) * length, faces.shape[0])):
            ids = faces[f]
            v0, v1, v2, z = corners(clip, view * frame.vertices, ids)
            row_begin = top
            row_end = bottom
            begin = wp.int32(0)
            end = width
            if wp.min(wp.min(v0[2], v1[2]), v2[2]) > zero:
                s0 = one / v0[2]
                s1 = one / v1[2]
                s2 = one / v2[2]
                y0 = -v0[1] * s0
                y1 = -v1[1] * s1
                y2 = -v2[1] * s2
                row_begin = wp.max(first_at(wp.min(wp.min(y0, y1), y2), height), top)
                row_end = wp.min(end_at(wp.max(wp.max(y0, y1), y2), height), bottom)
                if row_begin >= row_end:
                    continue
                x0 = v0[0] * s0
                x1 = v1[0] * s1
                x2 = v2[0] * s2
                begin = first_at(wp.min(wp.min(x0, x1), x2), width)
                end = wp.min(end_at(wp.max(wp.max(x0, x1), x2), width), width)
                if begin >= end:
                    continue
            else:  # it crosses the camera's plane, and its picture has no bounds
                y_high = centre_y(top, height) + margin
                y_low = centre_y(bottom - 1, height) - margin
                if beyond(v0, v1, v2, zero, one, -y_low) or beyond(v0, v1, v2, zero, -one, y_high):
                    continue
                if beyond(v0, v1, v2, one, zero, one) or beyond(v0, v1, v2, -one, zero, one):
                    continue
            n0 = line(v1, v2, ids[1], ids[2])
            n1 = line(v2, v0, ids[2], ids[0])
            n2 = line(v0, v1, ids[0], ids[1])
            volume = wp.dot(v0, n0)
            side = wp.where(volume < zero, -one, one)
            n0 = n0 * side
            n1 = n1 * side
            n2 = n2 * side
            plane = n0 * z[0] + n1 * z[1] + n2 * z[2]
            plane = plane * (side / volume)
            if not wp.isfinite(volume) or not wp.isfinite(plane[0] + plane[1] + plane[2]):
                continue  # no area, or a corner that is not finite
            least = vec3(least_inside(n0), least_inside(n1), least_inside(n2))
            base = view * height * width
            if (row_end - row_begin) * (end - begin) <= SMALL:
                row = wp.int32(row_begin)
                column = wp.int32(begin)
                for _ in range((row_end - row_begin) * (end - begin)):
                    key = fragment(f, column, row, frame, n0, n1, n2, least, plane)
                    keep(nearest, base + row * width + column, key)
                    column += 1
                    row = wp.where(column == end, row + 1, row)
                    column = wp.where(column == end, begin, column)
                continue
            g0 = reach(n0)
            g1 = reach(n1)
            g2 = reach(n2)
            for row in range(row_begin, row_end):
                y = centre_y(row, height)
                r0 = n0[1] * y + n0[2]
                r1 = n1[1] * y + n1[2]
                r2 = n2[1] * y + n2[2]
                low = wp.max(wp.max(lower(r0, g0), lower(r1, g1)), lower(r2, g2))
                high = wp.min(wp.min(upper(r0, g0), upper(r1, g1)), upper(r2, g2))
                for column in range(wp.max(first_at(low, width), begin), wp.min(end_at(high, width), end)):
                    key = fragment(f, column, row, frame, n0, n1, n2, least, plane)
                    keep(nearest, base + row * width + column, key)

    @wp.kernel(**FUSED)
    def resolve(
        start: wp.int32, frame: Frame, faces: ints3, clip: reals4, nearest: longs, face: ints, barycentric: reals3,
        depth: reals,
    ):  # fmt: skip
        tile = tile_of(start + wp.tid(), frame)
        for row in range(tile[1], tile[2]):
            y = centre_y(row, frame.height)
            for column in range(tile[3], tile[4]):
                p = (tile[0] * frame.height + row) * frame.width + column
                f = wp.int32(nearest[p] & low_half)
                face[p] = f
                b = weights()
                d = real(1.0)
                if f >= 0:
                    ids = faces[f]
                    v0, v1, v2, z = corners(clip, tile[0] * frame.vertices, ids)
                    at = vec3(centre_x(column, frame.width), y, one)
                    e0 = wp.dot(line(v1, v2, ids[1], ids[2]), at)
                    e1 = wp.dot(line(v2, v0, ids[2], ids[0]), at)
                    e2 = wp.dot(line(v0, v1, ids[0], ids[1]), at)
                    scale = one / (e0 + e1 + e2)
                    b = weights(real(e0 * scale), real(e1 * scale), real(e2 * scale))
                    weighted = e0 * z[0] + e1 * z[1] + e2 * z[2]
                    d = real(weighted / (e0 * v0[2] + e1 * v1[2] + e2 * v2[2]))
                barycentric[p] = b
                depth[p] = d

    @wp.kernel(**FUSED)
    def adjoint(
        start: wp.int32, frame: Frame, faces: ints3, face: ints, clip: reals4,
        barycentric: reals3, to_barycentric: reals3, to_depth: reals, where: ints, sums: reals4,
    ):  # fmt: skip
        # With g_i the gradient that reaches b_i, w = sum b_i w_i and sum e_i = volume / w:
        #     dL/de_i = h_i = (g_i - sum_j g_j b_j) w / volume,   dL/dv_0 = p x (h_1 v_2 - h_2 v_1), and so round
        tile = tile_of(start + wp.tid(), frame)
        slot = slot_of(start + wp.tid(), frame, sums)
        for row in range(tile[1], tile[2]):
            y = centre_y(row, frame.height)
            for column in range(tile[3], tile[4]):
                p = (tile[0] * frame.height + row) * frame.width + column
                f = face[p]
                if f >= 0:
                    ids = faces[f]
                    v0, v1, v2, z = corners(clip, tile[0] * frame.vertices, ids)
                    b = vec3(barycentric[p])
                    w = b[0] * v0[2] + b[1] * v1[2] + b[2] * v2[2]
                    g = vec3()
                    if to_barycentric.shape[0] > 0:
                        g = vec3(to_barycentric[p])
                    of_z = zero
                    of_w = zero
                    if to_depth.shape[0] > 0:
                        of_z = wp.float64(to_depth[p]) / w
                        of_w = -of_z * wp.dot(b, z) / w
                        g += of_z * z + of_w * vec3(v0[2], v1[2], v2[2])
                    mean = wp.dot(g, b)
                    scale = w / wp.dot(v0, wp.cross(v1, v2))
                    h = vec3((g[0] - mean) * scale, (g[1] - mean) * scale, (g[2] - mean) * scale)
                    at = vec3(centre_x(column, frame.width), y, one)
                    t0 = wp.cross(at, h[1] * v2 - h[2] * v1)
                    t1 = wp.cross(at, h[2] * v0 - h[0] * v2)
                    t2 = wp.cross(at, h[0] * v1 - h[1] * v0)
                    s0 = vec4(real(t0[0]), real(t0[1]), real(of_z * b[0]), real(t0[2] + of_w * b[0]))
                    s1 = vec4(real(t1[0]), real(t1[1]), real(of_z * b[1]), real(t1[2] + of_w * b[1]))
                    s2 = vec4(real(t2[0]), real(t2[1]), real(of_z * b[2]), real(t2[2] + of_w * b[2]))
                    add(sums, where, frame, slot, 3 * p, tile[0], ids[0], s0)
                    add(sums, where, frame, slot, 3 * p + 1, tile[0], ids[1], s1)
                    add(sums, where, frame, slot, 3 * p + 2, tile[0], ids[2], s2)

    return draw, resolve, adjoint
