"""Rasterisation in Warp, forward and adjoint, for CPU threads and CUDA. The contract is in the package's docstring.

Every kernel runs over tiles of the pictures: a view's rows are cut into `strips`, its columns into `blocks`. On a CPU a
tile is a few whole rows, on CUDA one pixel; the drawing of faces also cuts the list of faces: one run on a CPU, where
every strip walks all of them, single faces on CUDA, where several strips of one pixel meet by an atomic minimum.

Sums over the pixels of a vertex: on a CPU a view has a fixed number of strips, each with sums of its own, which are
added in their order. So no two threads add to one address, and the number of threads changes nothing. On CUDA: atomic
adds, or, where an order is wanted, every summand is written out and torch adds them in order.
"""

import functools
import math
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.launch import OPTIONS, array, launch, launch_in_turn, scalar, threads, vectors
from dreamkit.kernels.raster import DEPTH_STEPS, WALK

PARTS = 4  # strips with sums of their own, of all views together (one view has at least one)
FACE_STRIPS = 8  # strips on CUDA for the drawing of one face
SMALL = 32  # pixels of a face's box that are tried one by one; in larger boxes every row looks where it meets the face
LIGHT = 2**16  # pixels of a light kernel worth a thread of their own


def rasterize(clip: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, V, 4] -> face [B, H, W], barycentric [B, H, W, 3], depth [B, H, W]."""
    face, barycentric, depth = _Rasterize.apply(clip.contiguous(), faces.contiguous(), height, width)
    return face, barycentric, depth


def interpolate(attributes: Tensor, face: Tensor, barycentric: Tensor, faces: Tensor) -> Tensor:
    """[V, C] or [B, V, C] -> [B, H, W, C]."""
    inputs = (tensor.contiguous() for tensor in (attributes, face, barycentric, faces))
    result: Tensor = _Interpolate.apply(*inputs)
    return result


def antialias(picture: Tensor, face: Tensor, depth: Tensor, clip: Tensor, faces: Tensor, neighbours: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, H, W, C]."""
    inputs = (tensor.contiguous() for tensor in (picture, face, depth, clip, faces, neighbours))
    result: Tensor = _Antialias.apply(*inputs)
    return result


def screen_derivatives(attributes: Tensor, face: Tensor, barycentric: Tensor, clip: Tensor, faces: Tensor) -> Tensor:
    """[V, C] or [B, V, C] -> [B, H, W, C, 2]."""
    attributes, face, barycentric, clip, faces = (
        tensor.contiguous() for tensor in (attributes, face, barycentric, clip, faces)
    )
    width = attributes.shape[-1]
    result = attributes.new_zeros(*face.shape, width, 2)
    rows = [vectors(clip, 4), vectors(attributes, width), vectors(barycentric, 3), vectors(result, width * 2)]
    arguments = [*_mesh(face, faces, clip.shape[1]), _stride(attributes), *rows]
    _run(face, (_interpolation(scalar(clip), width)[2], arguments))
    return result


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, clip: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        views, vertices = clip.shape[:2]
        face = faces.new_empty(views, height, width)
        barycentric, depth = clip.new_empty(*face.shape, 3), clip.new_empty(face.shape)
        draw, resolve, _ = _drawing(scalar(clip), clip.device.type == "cpu")
        mesh = [vertices, _triples(faces), vectors(clip, 4)]
        out = [array(face.view(-1), wp.int32), vectors(barycentric, 3), array(depth.view(-1), scalar(clip))]
        if clip.device.type == "cpu":  # every strip is drawn and then resolved by one thread
            count = threads(clip.device)
            strips, blocks, runs = min(count // math.gcd(count, max(views, 1)), height), 1, 1
            nearest = torch.empty(face.shape, dtype=torch.int64)
        else:
            strips, blocks, runs = min(FACE_STRIPS, height), width, max(len(faces), 1)
            nearest = torch.full(face.shape, torch.iinfo(torch.int64).max, device=clip.device)
        of_nearest = array(nearest.view(-1), wp.int64)
        drawing = [height, width, strips, runs, len(faces), *mesh, of_nearest]
        tiles = views * (strips if blocks == 1 else height) * blocks
        resolving = [height, width, strips if blocks == 1 else height, blocks, *mesh, of_nearest, *out]
        launch_in_turn([(draw, views * strips * runs, drawing), (resolve, tiles, resolving)], clip.device)
        ctx.mark_non_differentiable(face)
        ctx.save_for_backward(clip, faces, face, barycentric)
        ctx.set_materialize_grads(False)
        return face, barycentric, depth

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _: None, to_barycentric: Tensor | None, to_depth: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        clip, faces, face, barycentric = ctx.saved_tensors
        real = scalar(clip)
        none = clip.new_empty(0)
        to_barycentric, to_depth = (none if g is None else g.contiguous() for g in (to_barycentric, to_depth))
        to_clip = _Sums(clip, face, clip.shape[1], 4, 3)
        arguments = [*_mesh(face, faces, clip.shape[1]), vectors(clip, 4), vectors(barycentric, 3)]
        arguments += [vectors(to_barycentric, 3), array(to_depth.view(-1), real), *to_clip.arguments]
        _run(face, (_drawing(real, clip.device.type == "cpu")[2], arguments), sums=to_clip)
        return to_clip.total(), None, None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attributes: Tensor, face: Tensor, barycentric: Tensor, faces: Tensor) -> Tensor:
        width = attributes.shape[-1]
        result = attributes.new_empty(*face.shape, width)
        rows = [vectors(attributes, width), vectors(barycentric, 3), vectors(result, width)]
        arguments = [*_mesh(face, faces, attributes.shape[-2]), _stride(attributes), *rows]
        _run(face, (_interpolation(scalar(attributes), width)[0], arguments), light=True)
        ctx.save_for_backward(attributes, face, barycentric, faces)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_result: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        attributes, face, barycentric, faces = ctx.saved_tensors
        width, real, vertices = attributes.shape[-1], scalar(attributes), attributes.shape[-2]
        to_barycentric = torch.empty_like(barycentric)
        to_attributes = _Sums(attributes, face, vertices, width, 3, ctx.needs_input_grad[0])
        rows = [vectors(tensor.contiguous(), width) for tensor in (attributes, to_result)]
        rows += [vectors(tensor, 3) for tensor in (barycentric, to_barycentric)]
        arguments = [*_mesh(face, faces, vertices), _stride(attributes), *rows, *to_attributes.arguments]
        _run(face, (_interpolation(real, width)[1], arguments), sums=to_attributes)
        total = to_attributes.total(shared=attributes.ndim == 2)
        return total, None, to_barycentric, None


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, picture: Tensor, face: Tensor, depth: Tensor, clip: Tensor, faces: Tensor, neighbours: Tensor
    ) -> Tensor:
        width, real = picture.shape[-1], scalar(picture)
        edge = face.new_empty(*face.shape, 2)
        share = picture.new_empty(edge.shape)
        geometry = [clip.shape[1], _triples(faces), _triples(neighbours), vectors(clip, 4)]
        pixels = [array(face.view(-1), wp.int32), array(depth.view(-1), real)]
        found = [array(edge.view(-1, 2), wp.vec2i), vectors(share, 2)]
        _run(face, (_silhouettes(real, width)[0], [*geometry, *pixels, *found]))
        result = torch.empty_like(picture)
        rows = [vectors(share, 2), vectors(picture, width), vectors(result, width)]
        _run(face, (_blending(real, width)[0], rows), light=True)
        ctx.save_for_backward(picture, face, clip, faces, edge, share)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_result: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None, None]:
        picture, face, clip, faces, edge, share = ctx.saved_tensors
        width, real, vertices = picture.shape[-1], scalar(picture), clip.shape[1]
        to_result = to_result.contiguous()
        to_picture = torch.empty_like(picture)
        of_share, of_picture, of_result = (vectors(x, n) for x, n in ((share, 2), (picture, width), (to_result, width)))
        steps = [(_blending(real, width)[1], [of_share, of_result, vectors(to_picture, width)])]
        to_clip = _Sums(clip, face, vertices, 4, 4, ctx.needs_input_grad[3])
        if to_clip.wanted:
            found = [array(edge.view(-1, 2), wp.vec2i), of_share, of_result, of_picture]
            geometry = [vertices, _triples(faces), vectors(clip, 4)]
            steps += [(_silhouettes(real, width)[1], [*geometry, *found, *to_clip.arguments])]
        _run(face, *steps, sums=to_clip)
        return to_picture, None, None, to_clip.total(), None, None


class _Sums:
    """Where the tiles of a picture add up the gradients [B, V, width] of vertices, up to `most` from a pixel."""

    def __init__(self, like: Tensor, face: Tensor, vertices: int, width: int, most: int, wanted: bool = True) -> None:
        views, height = face.shape[:2]
        self.shape, self.wanted = (views, vertices, width), wanted
        on_cpu = face.device.type == "cpu"
        self.parts = min(-(-PARTS // max(views, 1)), height) if on_cpu else 1
        if in_order(face.device):  # every pixel writes its own summands, and to which vertex they go
            self.parts = 0
        count = face.numel() * most if self.parts == 0 else views * self.parts * vertices
        make = like.new_empty if on_cpu and self.parts else like.new_zeros  # the kernels clear them on a CPU
        self.sums = make((count if wanted else 0, width))
        self.where = face.new_zeros(count if self.parts == 0 else 0)

    @property
    def arguments(self) -> list[Any]:
        return [self.parts, array(self.where, wp.int32), vectors(self.sums, self.shape[2])]

    def total(self, shared: bool = False) -> Tensor | None:
        """[B, V, width], or [V, width] over all views; None if it was not wanted."""
        if not self.wanted:
            return None
        views, vertices, width = self.shape
        if self.parts == 0:
            flat = self.sums.new_zeros(views * vertices, width).index_add_(0, self.where, self.sums)
            return flat.view(self.shape).sum(0) if shared else flat.view(self.shape)
        parts, groups = (self.parts * views, 1) if shared else (self.parts, views)
        if parts == 1:
            return self.sums.view(self.shape[1:] if shared else self.shape)
        total = self.sums.new_empty((vertices, width) if shared else self.shape)
        rows = [vectors(self.sums, width), vectors(total, width)]
        launch(_collecting(scalar(total), width), groups * vertices, [parts, vertices, *rows], total.device, slices=1)
        return total


def in_order(device: torch.device) -> bool:
    """Whether summands have to be written out, to be added in order."""
    return device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def _run(face: Tensor, *steps: tuple[wp.Kernel, list[Any]], sums: _Sums | None = None, light: bool = False) -> None:
    """Launch kernels over all pixels, in tiles. A light kernel on a small picture is not worth waking threads."""
    views, height, width = face.shape
    on_cpu = face.device.type == "cpu"
    strips, blocks = (sums.parts if sums and sums.parts else height, 1) if on_cpu else (height, width)
    slices = max(min(threads(face.device), face.numel() // LIGHT), 1) if light else None
    items, shape = views * strips * blocks, [height, width, strips, blocks]
    launch_in_turn([(kernel, items, [*shape, *arguments]) for kernel, arguments in steps], face.device, slices)


def _triples(faces: Tensor) -> Any:
    return array(faces.view(-1).view(-1, 3), wp.vec3i)  # by way of one dimension, as in `vectors`


def _mesh(face: Tensor, faces: Tensor, vertices: int) -> list[Any]:
    return [vertices, _triples(faces), array(face.view(-1), wp.int32)]


def _stride(attributes: Tensor) -> int:
    """Rows from one view's attributes to the next one's."""
    return 0 if attributes.ndim == 2 else attributes.shape[1]


vec3 = wp.vec3d
tile_type = wp.types.vector(5, wp.int32)
nowhere = wp.constant(wp.float64(1.0e300))


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


def _lines(real: Any) -> wp.Function:
    # A processor may fuse one of a cross product's two products with the difference, and then a x b is not -(b x a).
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


@wp.func
@no_type_check
def leaving(n: vec3, near: vec3, far: vec3, barred: wp.bool) -> wp.float64:
    """The share of the way from near to far at which an edge is crossed outwards, or a number that is none."""
    here = wp.dot(n, near)
    there = wp.dot(n, far)
    crosses = there < wp.float64(0.0) and here > there and not barred
    return wp.where(crosses, here / (here - there), nowhere)


@functools.cache
@no_type_check
def _flattening(real: Any) -> wp.Function:
    vec4 = wp.types.vector(4, real)

    @wp.func
    def flat(v: vec4) -> vec3:
        """The homogeneous place in the picture (x, y, w) of a clip-space position."""
        return vec3(wp.float64(v[0]), wp.float64(v[1]), wp.float64(v[3]))

    return flat


@functools.cache
@no_type_check
def _adding(width: int, real: Any) -> wp.Function:
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
def _collecting(real: Any, width: int) -> wp.Kernel:
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


@functools.cache
@no_type_check  # inside, annotations are values that Warp reads
def _drawing(real: Any, on_cpu: bool) -> tuple[wp.Kernel, wp.Kernel, wp.Kernel]:
    """Drawing the faces, resolving what was drawn, and its adjoint, for one scalar type."""
    vec4, weights = wp.types.vector(4, real), wp.types.vector(3, real)
    zero, one, two = wp.float64(0.0), wp.float64(1.0), wp.float64(2.0)
    margin, steps = wp.float64(1.0e-9), wp.float64(DEPTH_STEPS)
    low_half, nothing = wp.int64(0xFFFFFFFF), wp.int64(torch.iinfo(torch.int64).max)
    line, keep = _lines(real), keep_alone if on_cpu else keep_together
    add, flat = _adding(4, real), _flattening(real)

    @wp.func
    def fragment(
        f: wp.int32,
        column: wp.int32,
        row: wp.int32,
        width: wp.int32,
        height: wp.int32,
        n0: vec3,
        n1: vec3,
        n2: vec3,
        least: vec3,
        plane: vec3,
    ) -> wp.int64:
        """Depth and number of face f at a pixel centre, or `nothing` outside it. Without a branch: it would often be
        guessed wrong."""
        x = centre_x(column, width)
        y = centre_y(row, height)
        e0 = n0[0] * x + (n0[1] * y + n0[2])
        e1 = n1[0] * x + (n1[1] * y + n1[2])
        e2 = n2[0] * x + (n2[1] * y + n2[2])
        z = plane[0] * x + (plane[1] * y + plane[2]) + one
        inside = wp.min(wp.min(wp.min(e0 - least[0], e1 - least[1]), e2 - least[2]), wp.min(z, two - z)) >= zero
        key = (wp.int64(wp.clamp(z, zero, two) * steps) << wp.int64(32)) | wp.int64(f)
        return wp.where(inside, key, nothing)

    @wp.kernel(**OPTIONS)
    def draw(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        runs: wp.int32,
        count: wp.int32,
        vertices: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        clip: wp.array(dtype=vec4),
        nearest: wp.array(dtype=wp.int64),
    ):
        item = start + wp.tid()
        run = item % runs
        strip = (item // runs) % strips
        view = item // (runs * strips)
        top = height * strip // strips
        bottom = height * (strip + 1) // strips
        if runs == 1:  # nobody else draws on this strip
            for p in range((view * height + top) * width, (view * height + bottom) * width):
                nearest[p] = nothing
        length = (count + runs - 1) // runs
        for f in range(run * length, wp.min((run + 1) * length, count)):
            ids = faces[f]
            c0 = clip[view * vertices + ids[0]]
            c1 = clip[view * vertices + ids[1]]
            c2 = clip[view * vertices + ids[2]]
            v0 = flat(c0)
            v1 = flat(c1)
            v2 = flat(c2)
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
            plane = n0 * wp.float64(c0[2]) + n1 * wp.float64(c1[2]) + n2 * wp.float64(c2[2])
            plane = plane * (side / volume)
            if not wp.isfinite(volume) or not wp.isfinite(plane[0] + plane[1] + plane[2]):
                continue  # no area, or a corner that is not finite
            least = vec3(least_inside(n0), least_inside(n1), least_inside(n2))
            base = view * height * width
            if (row_end - row_begin) * (end - begin) <= SMALL:
                row = wp.int32(row_begin)
                column = wp.int32(begin)
                for _ in range((row_end - row_begin) * (end - begin)):
                    key = fragment(f, column, row, width, height, n0, n1, n2, least, plane)
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
                    key = fragment(f, column, row, width, height, n0, n1, n2, least, plane)
                    keep(nearest, base + row * width + column, key)

    @wp.kernel(**OPTIONS)
    def resolve(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        blocks: wp.int32,
        vertices: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        clip: wp.array(dtype=vec4),
        nearest: wp.array(dtype=wp.int64),
        face: wp.array(dtype=wp.int32),
        barycentric: wp.array(dtype=weights),
        depth: wp.array(dtype=real),
    ):
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        for row in range(tile[1], tile[2]):
            y = centre_y(row, height)
            for column in range(tile[3], tile[4]):
                p = (tile[0] * height + row) * width + column
                f = wp.int32(nearest[p] & low_half)
                face[p] = f
                b = weights()
                d = real(1.0)
                if f >= 0:
                    ids = faces[f]
                    c0 = clip[tile[0] * vertices + ids[0]]
                    c1 = clip[tile[0] * vertices + ids[1]]
                    c2 = clip[tile[0] * vertices + ids[2]]
                    v0 = flat(c0)
                    v1 = flat(c1)
                    v2 = flat(c2)
                    at = vec3(centre_x(column, width), y, one)
                    e0 = wp.dot(line(v1, v2, ids[1], ids[2]), at)
                    e1 = wp.dot(line(v2, v0, ids[2], ids[0]), at)
                    e2 = wp.dot(line(v0, v1, ids[0], ids[1]), at)
                    scale = one / (e0 + e1 + e2)
                    b = weights(real(e0 * scale), real(e1 * scale), real(e2 * scale))
                    z = e0 * wp.float64(c0[2]) + e1 * wp.float64(c1[2]) + e2 * wp.float64(c2[2])
                    d = real(z / (e0 * v0[2] + e1 * v1[2] + e2 * v2[2]))
                barycentric[p] = b
                depth[p] = d

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
        clip: wp.array(dtype=vec4),
        barycentric: wp.array(dtype=weights),
        to_barycentric: wp.array(dtype=weights),
        to_depth: wp.array(dtype=real),
        parts: wp.int32,
        where: wp.array(dtype=wp.int32),
        sums: wp.array(dtype=vec4),
    ):
        # With g_i the gradient that reaches b_i, w = sum b_i w_i and sum e_i = volume / w:
        #     dL/de_i = h_i = (g_i - sum_j g_j b_j) w / volume,   dL/dv_0 = p x (h_1 v_2 - h_2 v_1), and so round
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        slot = slot_of(start + wp.tid(), tile[0], parts)
        if blocks == 1 and strips == parts:  # these sums are this tile's alone
            for i in range(slot * vertices, wp.min((slot + 1) * vertices, sums.shape[0])):
                sums[i] = vec4()
        for row in range(tile[1], tile[2]):
            y = centre_y(row, height)
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
                    b = vec3(barycentric[p])
                    w = b[0] * v0[2] + b[1] * v1[2] + b[2] * v2[2]
                    g = vec3()
                    if to_barycentric.shape[0] > 0:
                        g = vec3(to_barycentric[p])
                    of_z = zero
                    of_w = zero
                    if to_depth.shape[0] > 0:
                        z3 = vec3(wp.float64(c0[2]), wp.float64(c1[2]), wp.float64(c2[2]))
                        of_z = wp.float64(to_depth[p]) / w
                        of_w = -of_z * wp.dot(b, z3) / w
                        g += of_z * z3 + of_w * vec3(v0[2], v1[2], v2[2])
                    mean = wp.dot(g, b)
                    scale = w / wp.dot(v0, wp.cross(v1, v2))
                    h = vec3((g[0] - mean) * scale, (g[1] - mean) * scale, (g[2] - mean) * scale)
                    at = vec3(centre_x(column, width), y, one)
                    t0 = wp.cross(at, h[1] * v2 - h[2] * v1)
                    t1 = wp.cross(at, h[2] * v0 - h[0] * v2)
                    t2 = wp.cross(at, h[0] * v1 - h[1] * v0)
                    s0 = vec4(real(t0[0]), real(t0[1]), real(of_z * b[0]), real(t0[2] + of_w * b[0]))
                    s1 = vec4(real(t1[0]), real(t1[1]), real(of_z * b[1]), real(t1[2] + of_w * b[1]))
                    s2 = vec4(real(t2[0]), real(t2[1]), real(of_z * b[2]), real(t2[2] + of_w * b[2]))
                    add(sums, where, parts, slot, 3 * p, tile[0], vertices, ids[0], s0)
                    add(sums, where, parts, slot, 3 * p + 1, tile[0], vertices, ids[1], s1)
                    add(sums, where, parts, slot, 3 * p + 2, tile[0], vertices, ids[2], s2)

    return draw, resolve, adjoint


@functools.cache
@no_type_check
def _interpolation(real: Any, channels: int) -> tuple[wp.Kernel, wp.Kernel, wp.Kernel]:
    """Interpolation, its adjoint, and its derivatives across the picture."""
    vec4, weights, row_type = (wp.types.vector(n, real) for n in (4, 3, channels))
    slopes = wp.types.vector(2 * channels, real)
    one, two = wp.float64(1.0), wp.float64(2.0)
    add, flat = _adding(channels, real), _flattening(real)

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


@functools.cache
@no_type_check
def _silhouettes(real: Any, channels: int) -> tuple[wp.Kernel, wp.Kernel]:
    """Where silhouettes cross between pixels, and the adjoint of that."""
    vec4, vec2, row_type = (wp.types.vector(n, real) for n in (4, 2, channels))
    zero, one, half = wp.float64(0.0), wp.float64(1.0), wp.float64(0.5)
    add, flat, (mixed, to_mixed) = _adding(4, real), _flattening(real), _mixing(real, channels)

    @wp.func
    def walk(
        near_face: wp.int32,
        far_face: wp.int32,
        near: vec3,
        far: vec3,
        upright: wp.bool,
        height: wp.int32,
        width: wp.int32,
        base: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        neighbours: wp.array(dtype=wp.vec3i),
        clip: wp.array(dtype=vec4),
    ):
        """From near on its face over the surface towards far on its face: the silhouette edge (3 face + number, or -1)
        where it ends, and at which share of the way."""
        f = wp.int32(near_face)
        came = wp.int32(-2)
        edge = wp.int32(-1)
        share = wp.float64(0.0)
        for _ in range(WALK):
            ids = faces[f]
            across = neighbours[f]
            v0 = flat(clip[base + ids[0]])
            v1 = flat(clip[base + ids[1]])
            v2 = flat(clip[base + ids[2]])
            n0 = wp.cross(v1, v2)
            n1 = wp.cross(v2, v0)
            n2 = wp.cross(v0, v1)
            side = wp.where(wp.dot(v0, n0) < zero, -one, one)
            t0 = leaving(n0 * side, near, far, across[0] == came)
            t1 = leaving(n1 * side, near, far, across[1] == came)
            t2 = leaving(n2 * side, near, far, across[2] == came)
            k = wp.where(t1 < t0, 1, 0)
            t = wp.min(t0, t1)
            n = wp.where(t1 < t0, n1, n0)
            k = wp.where(t2 < t, 2, k)
            n = wp.where(t2 < t, n2, n)
            t = wp.min(t, t2)
            if t == nowhere:
                break  # the other pixel lies in this face
            next = across[k]
            others = ids  # without a face there, this one, as if it lay on the same side
            if next >= 0:
                others = faces[wp.min(next, faces.shape[0] - 1)]
            other = others[0] + others[1] + others[2] - ids[(k + 1) % 3] - ids[(k + 2) % 3]
            # Clamped: neighbours of another mesh give nonsense, but read nothing that is not there.
            if wp.dot(n, flat(clip[wp.clamp(base + other, 0, clip.shape[0] - 1)])) * side >= zero:
                steep = wp.abs(n[0]) * wp.float64(height) >= wp.abs(n[1]) * wp.float64(width)
                if steep == upright:
                    edge = 3 * f + k
                    share = t
                break
            if next == far_face:
                break
            came = wp.int32(f)
            f = wp.min(next, faces.shape[0] - 1)
        return edge, share

    @wp.func
    def pair(
        p: wp.int32,
        q: wp.int32,
        at_p: vec3,
        at_q: vec3,
        upright: wp.bool,
        height: wp.int32,
        width: wp.int32,
        base: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        neighbours: wp.array(dtype=wp.vec3i),
        clip: wp.array(dtype=vec4),
        face: wp.array(dtype=wp.int32),
        depth: wp.array(dtype=real),
    ):
        """The silhouette between two pixels: 2 edge, and 1 more if q is the nearer, or -1; and p's share of q."""
        fp = face[p]
        fq = face[q]
        code = wp.int32(-1)
        share = zero
        if fp != fq:
            p_near = fq < 0
            if fp >= 0 and fq >= 0:
                p_near = depth[p] < depth[q] or (depth[p] == depth[q] and fp < fq)
            f = wp.where(p_near, fp, fq)
            other = wp.where(p_near, fq, fp)
            near = wp.where(p_near, at_p, at_q)
            far = wp.where(p_near, at_q, at_p)
            edge, t = walk(f, other, near, far, upright, height, width, base, faces, neighbours, clip)
            if edge >= 0:
                code = 2 * edge + wp.where(p_near, 0, 1)
                share = wp.where(p_near, half - t, t - half)
        return code, real(share)

    @wp.kernel(**OPTIONS)
    def cross(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        blocks: wp.int32,
        vertices: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        neighbours: wp.array(dtype=wp.vec3i),
        clip: wp.array(dtype=vec4),
        face: wp.array(dtype=wp.int32),
        depth: wp.array(dtype=real),
        edges: wp.array(dtype=wp.vec2i),
        shares: wp.array(dtype=vec2),
    ):
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        view = tile[0]
        for row in range(tile[1], tile[2]):
            y = centre_y(row, height)
            for column in range(tile[3], tile[4]):
                p = (view * height + row) * width + column
                at = vec3(centre_x(column, width), y, one)
                right = wp.int32(-1)
                down = wp.int32(-1)
                of_right = real(0.0)
                of_down = real(0.0)
                if column + 1 < width:
                    q = vec3(centre_x(column + 1, width), y, one)
                    right, of_right = pair(
                        p, p + 1, at, q, True, height, width, view * vertices, faces, neighbours, clip, face, depth
                    )
                if row + 1 < height:
                    q = vec3(at[0], centre_y(row + 1, height), one)
                    down, of_down = pair(
                        p, p + width, at, q, False, height, width, view * vertices, faces, neighbours, clip, face, depth
                    )
                edges[p] = wp.vec2i(right, down)
                shares[p] = vec2(of_right, of_down)

    @wp.func
    def to_edge(near: vec3, far: vec3, n: vec3) -> vec3:
        """The derivative of the share of the way from near to far at which the edge n is crossed."""
        here = wp.dot(n, near)
        there = wp.dot(n, far)
        return (here * far - there * near) / ((here - there) * (here - there))

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        blocks: wp.int32,
        vertices: wp.int32,
        faces: wp.array(dtype=wp.vec3i),
        clip: wp.array(dtype=vec4),
        edges: wp.array(dtype=wp.vec2i),
        shares: wp.array(dtype=vec2),
        to_result: wp.array(dtype=row_type),
        picture: wp.array(dtype=row_type),
        parts: wp.int32,
        where: wp.array(dtype=wp.int32),
        sums: wp.array(dtype=vec4),
    ):
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        slot = slot_of(start + wp.tid(), tile[0], parts)
        if blocks == 1 and strips == parts:  # these sums are this tile's alone
            for i in range(slot * vertices, wp.min((slot + 1) * vertices, sums.shape[0])):
                sums[i] = vec4()
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * height + row) * width + column
                codes = edges[p]
                for axis in range(2):
                    code = codes[axis]
                    if code >= 0:
                        of_share = real(0.0)
                        near = vec3(centre_x(column, width), centre_y(row, height), one)
                        far = near
                        if axis == 0:
                            q = p + 1
                            far[0] = centre_x(column + 1, width)
                            target = wp.where(shares[p][0] >= real(0.0), p, q)
                            g = to_mixed(to_result, shares, target, row, height, width)
                            of_share = wp.dot(g, picture[q] - picture[p])
                        else:
                            q = p + width
                            far[1] = centre_y(row + 1, height)
                            target = wp.where(shares[p][1] >= real(0.0), p, q)
                            g = to_result[target]
                            step = mixed(picture, shares, q, column, width) - mixed(picture, shares, p, column, width)
                            of_share = wp.dot(g, step)
                        of_t = -wp.float64(of_share)  # p's share of q is 1/2 - t if p is the nearer, t - 1/2 if q is
                        if code % 2 == 1:
                            of_t = -of_t
                            swap = near
                            near = far
                            far = swap
                        ids = faces[code // 6]
                        k = (code // 2) % 3
                        i = ids[(k + 1) % 3]
                        j = ids[(k + 2) % 3]
                        a = flat(clip[tile[0] * vertices + i])
                        b = flat(clip[tile[0] * vertices + j])
                        g3 = of_t * to_edge(near, far, wp.cross(a, b))
                        to_a = wp.cross(b, g3)
                        to_b = wp.cross(g3, a)
                        s_a = vec4(real(to_a[0]), real(to_a[1]), real(0.0), real(to_a[2]))
                        s_b = vec4(real(to_b[0]), real(to_b[1]), real(0.0), real(to_b[2]))
                        add(sums, where, parts, slot, 4 * p + 2 * axis, tile[0], vertices, i, s_a)
                        add(sums, where, parts, slot, 4 * p + 2 * axis + 1, tile[0], vertices, j, s_b)

    return cross, adjoint


@functools.cache
@no_type_check
def _mixing(real: Any, channels: int) -> tuple[wp.Function, wp.Function]:
    """A pixel mixed along its row; and what reaches it from the mixing along its column."""
    vec2, row_type = wp.types.vector(2, real), wp.types.vector(channels, real)
    zero = real(0.0)

    @wp.func
    def mixed(
        picture: wp.array(dtype=row_type), shares: wp.array(dtype=vec2), p: wp.int32, column: wp.int32, width: wp.int32
    ) -> row_type:
        value = picture[p]
        result = value
        share = shares[p][0]
        if share > zero:
            result += share * (picture[p + 1] - value)
        if column > 0:
            share = shares[p - 1][0]
            if share < zero:
                result += share * (value - picture[p - 1])
        return result

    @wp.func
    def to_mixed(
        gradient: wp.array(dtype=row_type), shares: wp.array(dtype=vec2), p: wp.int32, row: wp.int32, height: wp.int32,
        width: wp.int32,
    ) -> row_type:  # fmt: skip
        value = gradient[p]
        result = value
        share = shares[p][1]
        if share > zero:
            result -= share * value
        if share < zero:
            result -= share * gradient[p + width]
        if row > 0:
            share = shares[p - width][1]
            if share > zero:
                result += share * gradient[p - width]
            if share < zero:
                result += share * value
        return result

    return mixed, to_mixed


@functools.cache
@no_type_check
def _blending(real: Any, channels: int) -> tuple[wp.Kernel, wp.Kernel]:
    """Mixing pixels by their shares, along rows and then along columns, and its adjoint."""
    vec2, row_type = wp.types.vector(2, real), wp.types.vector(channels, real)
    zero = real(0.0)
    mixed, to_mixed = _mixing(real, channels)

    @wp.kernel(**OPTIONS)
    def forward(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        blocks: wp.int32,
        shares: wp.array(dtype=vec2),
        picture: wp.array(dtype=row_type),
        result: wp.array(dtype=row_type),
    ):
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * height + row) * width + column
                value = mixed(picture, shares, p, column, width)
                total = value
                share = shares[p][1]
                if share > zero:
                    total += share * (mixed(picture, shares, p + width, column, width) - value)
                if row > 0:
                    share = shares[p - width][1]
                    if share < zero:
                        total += share * (value - mixed(picture, shares, p - width, column, width))
                result[p] = total

    @wp.kernel(**OPTIONS)
    def adjoint(
        start: wp.int32,
        height: wp.int32,
        width: wp.int32,
        strips: wp.int32,
        blocks: wp.int32,
        shares: wp.array(dtype=vec2),
        to_result: wp.array(dtype=row_type),
        to_picture: wp.array(dtype=row_type),
    ):
        tile = tile_of(start + wp.tid(), height, width, strips, blocks)
        for row in range(tile[1], tile[2]):
            for column in range(tile[3], tile[4]):
                p = (tile[0] * height + row) * width + column
                value = to_mixed(to_result, shares, p, row, height, width)
                total = value
                share = shares[p][0]
                if share > zero:
                    total -= share * value
                if share < zero:
                    total -= share * to_mixed(to_result, shares, p + 1, row, height, width)
                if column > 0:
                    share = shares[p - 1][0]
                    if share > zero:
                        total += share * to_mixed(to_result, shares, p - 1, row, height, width)
                    if share < zero:
                        total += share * value
                to_picture[p] = total

    return forward, adjoint
