"""What all kernels of the rasteriser share: tiles of pixels, pixel centres, and sums over the pixels of a vertex."""

import functools
from typing import Any, no_type_check

import warp as wp

from dreamkit.kernels.launch import OPTIONS

vec3 = wp.vec3d
tile_type = wp.types.vector(5, wp.int32)


@wp.func
@no_type_check
def tile_of(item: wp.int32, height: wp.int32, width: wp.int32, strips: wp.int32, blocks: wp.int32) -> tile_type:
    """A tile's view, first row, end of rows, first column, end of columns."""
    block = item % blocks
    strip = (item // blocks) % strips
    view = item // (blocks * strips)
    return tile_type(
        view,
        height * strip // strips,
        height * (strip + 1) // strips,
        width * block // blocks,
        width * (block + 1) // blocks,
    )


@wp.func
@no_type_check
def centre_x(column: wp.int32, width: wp.int32) -> wp.float64:
    return wp.float64(2 * column + 1) * (wp.float64(1.0) / wp.float64(width)) - wp.float64(1.0)


@wp.func
@no_type_check
def centre_y(row: wp.int32, height: wp.int32) -> wp.float64:
    return wp.float64(1.0) - wp.float64(2 * row + 1) * (wp.float64(1.0) / wp.float64(height))


@functools.cache
@no_type_check
def flattening(real: Any) -> wp.Function:
    vec4 = wp.types.vector(4, real)

    @wp.func
    def flat(v: vec4) -> vec3:
        """The homogeneous place in the picture (x, y, w) of a clip-space position."""
        return vec3(wp.float64(v[0]), wp.float64(v[1]), wp.float64(v[3]))

    return flat


@functools.cache
@no_type_check
def adding(width: int, real: Any) -> wp.Function:
    row = wp.types.vector(width, real)

    @wp.func
    def add(
        sums: wp.array(dtype=row),
        where: wp.array(dtype=wp.int32),
        parts: wp.int32,
        slot: wp.int32,
        summand: wp.int32,
        view: wp.int32,
        vertices: wp.int32,
        vertex: wp.int32,
        value: row,
    ):
        """Add to a vertex in the sums of one part; or, without parts, write down what is to be added."""
        if parts > 0:
            wp.atomic_add(sums, slot * vertices + vertex, value)
        else:
            sums[summand] = value
            where[summand] = view * vertices + vertex

    return add


@wp.func
@no_type_check
def slot_of(item: wp.int32, view: wp.int32, parts: wp.int32) -> wp.int32:
    """Which sums a tile adds to: its own if there are parts, else its view's."""
    if parts > 1:
        return item
    return view


@functools.cache
@no_type_check
def collecting(real: Any, width: int) -> wp.Kernel:
    """The sum of the parts."""
    row = wp.types.vector(width, real)

    @wp.kernel(**OPTIONS)
    def collect(
        start: wp.int32,
        parts: wp.int32,
        vertices: wp.int32,
        sums: wp.array(dtype=row),
        total: wp.array(dtype=row),
    ):
        item = start + wp.tid()
        first = item // vertices * parts * vertices + item % vertices
        value = sums[first]
        for part in range(1, parts):
            value += sums[first + part * vertices]
        total[item] = value

    return collect
