"""Rasterisation in Warp, forward and adjoint, for CPU threads and CUDA. The contract is in the package's docstring.

Every kernel runs over tiles of the pictures: a view's rows are cut into `strips`, its columns into `blocks`. On a CPU a
tile is a few whole rows, on CUDA one pixel; the drawing of faces also cuts the list of faces: one run on a CPU, where
every strip walks all of them, single faces on CUDA, where several strips of one pixel meet by an atomic minimum.

Sums over the pixels of a vertex: on a CPU a view has a fixed number of strips, each with sums of its own, which are
added in their order. So no two threads add to one address, and the number of threads changes nothing. On CUDA: atomic
adds, or, where an order is wanted, every summand is written out and torch adds them in order.
"""

import math
from typing import Any

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.launch import array, launch_in_turn, scalar, threads, vectors
from dreamkit.kernels.raster.warp_antialias import blending, silhouettes
from dreamkit.kernels.raster.warp_draw import drawing
from dreamkit.kernels.raster.warp_interpolate import interpolation
from dreamkit.kernels.raster.warp_tiles import frame_of

PARTS = 4  # strips with sums of their own, of all views together (one view has at least one)
FACE_STRIPS = 8  # strips on CUDA for the drawing of one face
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
    arguments = [*_mesh(face, faces), *rows]
    _run(face, clip.shape[1], (interpolation(scalar(clip), width)[2], arguments), stride=_stride(attributes))
    return result


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, clip: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        views, vertices = clip.shape[:2]
        face = faces.new_empty(views, height, width)
        barycentric, depth = clip.new_empty(*face.shape, 3), clip.new_empty(face.shape)
        draw, resolve, _ = drawing(scalar(clip), clip.device.type == "cpu")
        mesh = [_triples(faces), vectors(clip, 4)]
        out = [array(face.view(-1), wp.int32), vectors(barycentric, 3), array(depth.view(-1), scalar(clip))]
        if clip.device.type == "cpu":  # every strip is drawn and then resolved by one thread
            count = threads(clip.device)
            strips, blocks, runs = min(count // math.gcd(count, max(views, 1)), height), 1, 1
            nearest = torch.empty(face.shape, dtype=torch.int64)
        else:
            strips, blocks, runs = min(FACE_STRIPS, height), width, max(len(faces), 1)
            nearest = torch.full(face.shape, torch.iinfo(torch.int64).max, device=clip.device)
        of_nearest = array(nearest.view(-1), wp.int64)
        to_draw = [frame_of(height, width, strips, 1, vertices), runs, *mesh, of_nearest]
        rows = strips if blocks == 1 else height
        tiles = views * rows * blocks
        to_resolve = [frame_of(height, width, rows, blocks, vertices), *mesh, of_nearest, *out]
        launch_in_turn([(draw, views * strips * runs, to_draw), (resolve, tiles, to_resolve)], clip.device)
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
        arguments = [*_mesh(face, faces), vectors(clip, 4), vectors(barycentric, 3)]
        arguments += [vectors(to_barycentric, 3), array(to_depth.view(-1), real), *to_clip.arguments]
        _run(face, clip.shape[1], (drawing(real, clip.device.type == "cpu")[2], arguments), sums=to_clip)
        return to_clip.total(), None, None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attributes: Tensor, face: Tensor, barycentric: Tensor, faces: Tensor) -> Tensor:
        width = attributes.shape[-1]
        result = attributes.new_empty(*face.shape, width)
        rows = [vectors(attributes, width), vectors(barycentric, 3), vectors(result, width)]
        step = (interpolation(scalar(attributes), width)[0], [*_mesh(face, faces), *rows])
        _run(face, attributes.shape[-2], step, stride=_stride(attributes), light=True)
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
        step = (interpolation(real, width)[1], [*_mesh(face, faces), *rows, *to_attributes.arguments])
        _run(face, vertices, step, stride=_stride(attributes), sums=to_attributes)
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
        geometry = [_triples(faces), _triples(neighbours), vectors(clip, 4)]
        pixels = [array(face.view(-1), wp.int32), array(depth.view(-1), real)]
        found = [array(edge.view(-1, 2), wp.vec2i), vectors(share, 2)]
        _run(face, clip.shape[1], (silhouettes(real, width)[0], [*geometry, *pixels, *found]))
        result = torch.empty_like(picture)
        rows = [vectors(share, 2), vectors(picture, width), vectors(result, width)]
        _run(face, 0, (blending(real, width)[0], rows), light=True)
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
        steps = [(blending(real, width)[1], [of_share, of_result, vectors(to_picture, width)])]
        to_clip = _Sums(clip, face, vertices, 4, 4, ctx.needs_input_grad[3])
        if to_clip.wanted:
            found = [array(edge.view(-1, 2), wp.vec2i), of_share, of_result, of_picture]
            geometry = [_triples(faces), vectors(clip, 4)]
            steps += [(silhouettes(real, width)[1], [*geometry, *found, *to_clip.arguments])]
        _run(face, vertices, *steps, sums=to_clip)
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
        self.where = face.new_full((count if self.parts == 0 else 0,), -1)

    @property
    def arguments(self) -> list[Any]:
        return [array(self.where, wp.int32), vectors(self.sums, self.shape[2])]

    def total(self, shared: bool = False) -> Tensor | None:
        """[B, V, width], or [V, width] over all views; None if it was not wanted."""
        if not self.wanted:
            return None
        views, vertices, width = self.shape
        if self.parts == 0:
            used = (self.where >= 0).nonzero()[:, 0]
            flat = self.sums.new_zeros(views * vertices, width).index_add_(0, self.where[used], self.sums[used])
            return flat.view(self.shape).sum(0) if shared else flat.view(self.shape)
        parts, groups = (self.parts * views, 1) if shared else (self.parts, views)
        total = self.sums.view(groups, parts, vertices * width)
        if parts != 1 and total.device.type == "cpu":  # numpy adds part to part, in order, and wakes no threads
            total = torch.from_numpy(total.numpy().sum(axis=1))
        elif parts != 1:
            total = total.sum(1)
        return total.view((vertices, width) if shared else self.shape)


def in_order(device: torch.device) -> bool:
    """Whether summands have to be written out, to be added in order."""
    return device.type == "cuda" and torch.are_deterministic_algorithms_enabled()


def _run(
    face: Tensor,
    vertices: int,
    *steps: tuple[wp.Kernel, list[Any]],
    stride: int = 0,
    sums: _Sums | None = None,
    light: bool = False,
) -> None:
    """Launch kernels over all pixels, in tiles. A light kernel on a small picture is not worth waking threads."""
    views, height, width = face.shape
    on_cpu, parts = face.device.type == "cpu", sums.parts if sums else 0
    strips, blocks = (parts or height, 1) if on_cpu else (height, width)
    slices = max(min(threads(face.device), face.numel() // LIGHT), 1) if light else None
    items, frame = views * strips * blocks, frame_of(height, width, strips, blocks, vertices, stride, parts)
    launch_in_turn([(kernel, items, [frame, *arguments]) for kernel, arguments in steps], face.device, slices)


def _triples(faces: Tensor) -> Any:
    return array(faces.view(-1).view(-1, 3), wp.vec3i)  # by way of one dimension, as in `vectors`


def _mesh(face: Tensor, faces: Tensor) -> list[Any]:
    return [_triples(faces), array(face.view(-1), wp.int32)]


def _stride(attributes: Tensor) -> int:
    """Rows from one view's attributes to the next one's."""
    return 0 if attributes.ndim == 2 else attributes.shape[1]
