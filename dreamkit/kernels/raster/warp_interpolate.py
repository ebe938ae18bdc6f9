"""Attributes of vertices over the pixels: values, adjoint, and derivatives across the picture."""

import functools
from typing import Any, no_type_check

import warp as wp

from dreamkit.kernels.launch import OPTIONS
from dreamkit.kernels.raster.warp_tiles import Frame, adding, centre_x, centre_y, flattening, ints, ints3, tile_of, vec3


@functools.cache
@no_type_check
def interpolation(real: Any, channels: int) -> tuple[wp.Kernel, wp.Kernel, wp.Kernel]:
    """Interpolation, its adjoint, and its derivatives across the picture."""
    vec4, weights, row_type, slopes = (wp.types.vector(n, real) for n in (4, 3, channels, 2 * channels))
    reals4, reals3, rows = (wp.array(dtype=of) for of in (vec4, weights, row_type))
    one, two = wp.float64(1.0), wp.float64(2.0)
    (add, slot_of), (_, corners) = adding(channels, real), flattening(real)

    @wp.func
    def at_corners(attributes: rows, base: wp.int32, ids: wp.vec3i):
        """The attributes of the three corners of a face."""
        return attributes[base + ids[0]], attributes[base + ids[1]], attributes[base + ids[2]]

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32, frame: Frame, faces: ints3, face: ints, attributes: rows, barycentric: reals3, result: rows
    ):
        tile = tile_of(start + wp.tid(), frame)
        base = tile[0] * frame.stride
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * frame.height + row) * frame.width + column
                value = row_type()
                if face[p] >= 0:
                    a0, a1, a2 = at_corners(attributes, base, faces[face[p]])
                    b = barycentric[p]
                    value = b[0] * a0 + b[1] * a1 + b[2] * a2
                result[p] = value

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32, frame: Frame, faces: ints3, face: ints, attributes: rows, to_result: rows,
        barycentric: reals3, to_barycentric: reals3, where: ints, sums: rows,
    ):  # fmt: skip
        tile = tile_of(start + wp.tid(), frame)
        slot = slot_of(start + wp.tid(), frame, sums)
        base = tile[0] * frame.stride
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * frame.height + row) * frame.width + column
                f = face[p]
                of_b = weights()
                if f >= 0:
                    ids = faces[f]
                    g = to_result[p]
                    a0, a1, a2 = at_corners(attributes, base, ids)
                    of_b = weights(wp.dot(g, a0), wp.dot(g, a1), wp.dot(g, a2))
                    if sums.shape[0] > 0:
                        b = barycentric[p]
                        add(sums, where, frame, slot, 3 * p, tile[0], ids[0], b[0] * g)
                        add(sums, where, frame, slot, 3 * p + 1, tile[0], ids[1], b[1] * g)
                        add(sums, where, frame, slot, 3 * p + 2, tile[0], ids[2], b[2] * g)
                to_barycentric[p] = of_b

    @wp.kernel(**OPTIONS)
    def derivatives(
        start: wp.int32, frame: Frame, faces: ints3, face: ints, clip: reals4, attributes: rows,
        barycentric: reals3, result: wp.array(dtype=slopes),
    ):  # fmt: skip
        tile = tile_of(start + wp.tid(), frame)
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * frame.height + row) * frame.width + column
                f = face[p]
                if f >= 0:
                    v0, v1, v2, _z = corners(clip, tile[0] * frame.vertices, faces[f])
                    n0 = wp.cross(v1, v2)
                    n1 = wp.cross(v2, v0)
                    n2 = wp.cross(v0, v1)
                    n = n0 + n1 + n2
                    at = vec3(centre_x(column, frame.width), centre_y(row, frame.height), one)
                    scale = one / wp.dot(n, at)
                    sx = real(two * scale / wp.float64(frame.width))
                    sy = real(-two * scale / wp.float64(frame.height))
                    b = barycentric[p]
                    slope = slopes()
                    a0, a1, a2 = at_corners(attributes, tile[0] * frame.stride, faces[f])
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
