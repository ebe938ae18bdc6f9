"""What all kernels of the rasteriser share: tiles of pixels, pixel centres, and sums over the pixels of a vertex."""

import functools
from typing import Any, no_type_check

import warp as wp

vec3 = wp.vec3d
tile_type = wp.types.vector(5, wp.int32)
ints: Any = wp.array(dtype=wp.int32)
ints3: Any = wp.array(dtype=wp.vec3i)


@wp.struct
@no_type_check  # annotations are values that Warp reads
class Frame:
    """The numbers that all kernels take.

    height, width    of a picture
    strips, blocks   into which its rows and its columns are cut: a tile is one of each
    vertices         of a view: rows from one view's positions, or sums, to the next one's
    stride           rows from one view's attributes to the next one's
    parts            strips of a picture with sums of their own; 0 where summands are written down, see `adding`
    """

    height: wp.int32
    width: wp.int32
    strips: wp.int32
    blocks: wp.int32
    vertices: wp.int32
    stride: wp.int32
    parts: wp.int32


def frame_of(height: int, width: int, strips: int, blocks: int, vertices: int, stride: int = 0, parts: int = 0) -> Any:
    """A Frame as a kernel argument."""
    frame: Any = Frame()
    frame.height, frame.width, frame.strips, frame.blocks = height, width, strips, blocks
    frame.vertices, frame.stride, frame.parts = vertices, stride, parts
    return frame


@wp.func
@no_type_check
def tile_of(item: wp.int32, frame: Frame) -> tile_type:
    """A tile's view, first row, end of rows, first column, end of columns."""
    block = item % frame.blocks
    strip = (item // frame.blocks) % frame.strips
    view = item // (frame.blocks * frame.strips)
    return tile_type(
        view,
        frame.height * strip // frame.strips,
        frame.height * (strip + 1) // frame.strips,
        frame.width * block // frame.blocks,
        frame.width * (block + 1) // frame.blocks,
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
def flattening(real: Any) -> tuple[wp.Function, wp.Function]:
    """A position, and the corners of a face, without what the picture does not depend on."""
    vec4 = wp.types.vector(4, real)

    @wp.func
    def flat(v: vec4) -> vec3:
        """The homogeneous place in the picture (x, y, w) of a clip-space position."""
        return vec3(wp.float64(v[0]), wp.float64(v[1]), wp.float64(v[3]))

    @wp.func
    def corners(clip: wp.array(dtype=vec4), base: wp.int32, ids: wp.vec3i):
        """The places of the three corners of a face, and their z."""
        c0 = clip[base + ids[0]]
        c1 = clip[base + ids[1]]
        c2 = clip[base + ids[2]]
        return flat(c0), flat(c1), flat(c2), vec3(wp.float64(c0[2]), wp.float64(c1[2]), wp.float64(c2[2]))

    return flat, corners


@functools.cache
@no_type_check
def adding(width: int, real: Any) -> tuple[wp.Function, wp.Function]:
    """How a tile adds up rows for the vertices of its view."""
    row = wp.types.vector(width, real)
    rows = wp.array(dtype=row)

    @wp.func
    def slot_of(item: wp.int32, frame: Frame, sums: rows) -> wp.int32:
        """Which sums a tile adds to: its own if there are parts, else its view's. Its own are cleared."""
        slot = item
        if frame.parts <= 1:
            slot = item // (frame.blocks * frame.strips)
        if frame.blocks == 1 and frame.strips == frame.parts:  # these sums are this tile's alone
            for i in range(slot * frame.vertices, wp.min((slot + 1) * frame.vertices, sums.shape[0])):
                sums[i] = row()
        return slot

    @wp.func
    def add(
        sums: rows, where: ints, frame: Frame, slot: wp.int32, summand: wp.int32, view: wp.int32, vertex: wp.int32,
        value: row,
    ):  # fmt: skip
        """Add to a vertex in the sums of one part; or, without parts, write down what is to be added."""
        if frame.parts > 0:
            wp.atomic_add(sums, slot * frame.vertices + vertex, value)
        else:
            sums[summand] = value
            where[summand] = view * frame.vertices + vertex

    return add, slot_of
