"""Attributes of vertices over the pixels: values, adjoint, and derivatives across the picture."""

import functools
from typing import Any, no_type_check

import warp as wp

from dreamkit.kernels.launch import OPTIONS
from dreamkit.kernels.raster.warp_tiles import adding, centre_x, centre_y, flattening, slot_of, tile_of, vec3


@functools.cache
@no_type_check
def interpolation(real: Any, channels: int) -> tuple[wp.Kernel, wp.Kernel, wp.Kernel]:
    """Interpolation, its adjoint, and its derivatives across the picture."""
    vec4, weights, row_type = (wp.types.vector(n, real) for n in (4, 3, channels))
    slopes = wp.types.vector(2 * channels, real)
    one, two = wp.float64(1.0), wp.float64(2.0)
    add, flat = adding(channels, real), flattening(real)

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        blocks: wp.int32,
        vertices: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        face: wp.array(dtype=wp.int32),
        stride: wp.int32,
        attributes: wp.array(dtype=row_type),
        barycentric: wp.array(dtype=weights),
        result: wp.array(dtype=row_type),
    ):
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        base = tile[0] * stride
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * height + row) * width + column
                f = face[p]
                value = row_type()
                if f >= 0:
                    ids = faces[f]
                    b = barycentric[p]
                    value = (
                        b[0] * attributes[base + ids[0]]
                        + b[1] * attributes[base + ids[1]]
                        + b[2] * attributes[base + ids[2]]
                    )
                result[p] = value

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        blocks: wp.int32,
        vertices: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        face: wp.array(dtype=wp.int32),
        stride: wp.int32,
        attributes: wp.array(dtype=row_type),
        to_result: wp.array(dtype=row_type),
        barycentric: wp.array(dtype=weights),
        to_barycentric: wp.array(dtype=weights),
        parts: wp.int32,
        where: wp.array(dtype=wp.int32),
        sums: wp.array(dtype=row_type),
    ):
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        slot = slot_of(start + wp.tid(), tile[0], parts)
        if blocks == 1 and strips == parts:  # these sums are this tile's alone
            for i in range(slot * vertices, wp.min((slot + 1) * vertices, sums.shape[0])):
                sums[i] = row_type()
        base = tile[0] * stride
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * height + row) * width + column
                f = face[p]
                of_b = weights()
                if f >= 0:
                    ids = faces[f]
                    g = to_result[p]
                    of_b = weights(
                        wp.dot(g, attributes[base + ids[0]]),
                        wp.dot(g, attributes[base + ids[1]]),
                        wp.dot(g, attributes[base + ids[2]]),
                    )
                    if sums.shape[0] > 0:
                        b = barycentric[p]
                        add(sums, where, parts, slot, 3 * p, tile[0], vertices, ids[0], b[0] * g)
                        add(sums, where, parts, slot, 3 * p + 1, tile[0], vertices, ids[1], b[1] * g)
                        add(sums, where, parts, slot, 3 * p + 2, tile[0], vertices, ids[2], b[2] * g)
                to_barycentric[p] = of_b

    @wp.kernel(**OPTIONS)
    def derivatives(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        blocks: wp.int32,
        vertices: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        face: wp.array(dtype=wp.int32),
        stride: wp.int32,
        clip: wp.array(dtype=vec4),
        attributes: wp.array(dtype=row_type),
        barycentric: wp.array(dtype=weights),
        result: wp.array(dtype=slopes),
    ):
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * height + row) * width + column
                f = face[p]
                if f >= 0:
                    ids = faces[f]
                    c0 = clip[tile[0] * vertices + ids[0]]
                    c1 = clip[tile[0] * vertices + ids[1]]
                    c2 = clip[tile[0] * vertices + ids[2]]
                    v0 = flat(c0)
                    v1 = flat(c1)
                    v2 = flat(c2)
                    n0 = wp.cross(v1, v2)
                    n1 = wp.cross(v2, v0)
                    n2 = wp.cross(v0, v1)
                    n = n0 + n1 + n2
                    scale = one / wp.dot(n, vec3(centre_x(column, width), centre_y(row, height), one))
                    sx = real(two * scale / wp.float64(width))
                    sy = real(-two * scale / wp.float64(height))
                    b = barycentric[p]
                    slope = slopes()
                    a0 = attributes[tile[0] * stride + ids[0]]
                    a1 = attributes[tile[0] * stride + ids[1]]
                    a2 = attributes[tile[0] * stride + ids[2]]
                    x0 = (real(n0[0]) - b[0] * real(n[0])) * sx
                    x1 = (real(n1[0]) - b[1] * real(n[0])) * sx
                    x2 = (real(n2[0]) - b[2] * real(n[0])) * sx
                    y0 = (real(n0[1]) - b[0] * real(n[1])) * sy
                    y1 = (real(n1[1]) - b[1] * real(n[1])) * sy
                    y2 = (real(n2[1]) - b[2] * real(n[1])) * sy
                    for c in range(channels):
                        slope[2 * c] = x0 * a0[c] + x1 * a1[c] + x2 * a2[c]
                        slope[2 * c + 1] = y0 * a0[c] + y1 * a1[c] + y2 * a2[c]
                    result[p] = slope

    return forward, adjoint, derivatives
