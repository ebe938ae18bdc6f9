"""Gaussian splatting in Warp, forward and adjoint, for CPU threads and CUDA. The contract is in the package.

1. `project`, `colour`: one item per Gaussian, which goes through the views, so that its gradients have one owner.
2. `rasterise` sorts each view by depth, and lists for every tile of pixels the Gaussians that can reach it. On a CPU
   by counting: runs of Gaussians count what they bring to each tile, a prefix sum gives each run its places, and the
   runs fill them, nearest first. On CUDA by a stable sort of the tiles' numbers.
3. The pixels. An item goes through the list of its tile. On a CPU it is the whole tile: a row of pixels is one vector
   (`lane`), and what pixels decide is arithmetic on masks of 0 and 1, so that the compiler makes vector instructions
   of it. On CUDA the same kernel is made for one pixel: a tile of 1 x 1 in vectors of 1.
4. Backwards, each entry of a tile's list has its own row of sums (a slot), and then each Gaussian adds its slots up in
   the order of the tiles.
"""

from typing import Any, NamedTuple

import torch
import warp as wp
from torch import Tensor
from torch.autograd.function import once_differentiable

from dreamkit.kernels.launch import array, large_pages, launch, scalar, vectors
from dreamkit.kernels.splat import Projected, Scene
from dreamkit.kernels.splat.warp_project import colour_kernels, project_kernels
from dreamkit.kernels.splat.warp_raster import SHAPE, TILE, list_kernels, raster_kernels, slot_length

RUNS = 32  # on a CPU, the pieces in which a view's Gaussians are counted: the same for any number of threads
BLOCK = 256  # Gaussians that share one sum of the cameras' gradients on a CPU


def project(scene: Scene, size: tuple[int, int], near: float, antialiased: bool) -> Projected:
    """As in the reference."""
    inputs = (tensor.contiguous() for tensor in scene)
    return Projected(*_Project.apply(size, near, antialiased, *inputs))


def colour(means: Tensor, coefficients: Tensor, positions: Tensor, degree: int, radii: Tensor) -> Tensor:
    """[N, (degree + 1)^2, 3] spherical harmonics seen from [B, 3] positions -> [B, N, 3], 0 where radii are 0."""
    inputs = [tensor.contiguous() for tensor in (means, coefficients, positions, radii)]
    result: Tensor = _Colour.apply(*inputs, degree)
    return result


def rasterise(
    found: Projected, features: Tensor, size: tuple[int, int], spread: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, ...] -> features [B, C, H, W], alpha [B, H, W], depth [B, H, W]."""
    inputs = (tensor.contiguous() for tensor in found)
    seen, alpha, far = _Rasterise.apply(size, spread, features.contiguous(), *inputs)
    return seen, alpha, far


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, size: tuple[int, int], near: float, antialiased: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
        scene = Scene(*inputs)
        means = scene.means
        views, count = len(scene.frames), len(means)
        screen, extent = (means.new_empty(views, count, 2) for _ in range(2))
        conics = means.new_empty(views, count, 3)
        opacity, depth, radii = (means.new_empty(views, count) for _ in range(3))
        ctx.settings = (views, count, *map(float, size), float(near))
        ctx.kernels = project_kernels(scalar(means), antialiased)
        arrays = [vectors(screen, 2), vectors(conics, 3), vectors(extent, 2)]
        arrays += [_flat(tensor) for tensor in (opacity, depth, radii)]
        launch(ctx.kernels[0], count, [*ctx.settings, *_arrays(scene), *arrays], means.device)
        ctx.save_for_backward(*inputs, radii)
        ctx.mark_non_differentiable(extent, radii)
        return screen, conics, opacity, depth, extent, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arrived: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, radii = ctx.saved_tensors
        scene = Scene(*inputs)
        means, frames = scene.means, scene.frames
        count, block = len(means), BLOCK if means.device.type == "cpu" else 1
        blocks = -(-count // block)
        of_frames = ctx.needs_input_grad[7]
        results = [torch.empty_like(tensor) for tensor in scene[:4]]
        sums = means.new_empty(len(frames), blocks, 4, 3) if of_frames else means.new_empty(0)
        to_screen, to_conics, to_opacity, to_depth = (g.contiguous() for g in arrived[:4])
        arrays = [_flat(radii), vectors(to_screen, 2), vectors(to_conics, 3), _flat(to_opacity), _flat(to_depth)]
        arrays += [*(vectors(g, g.shape[1]) for g in results[:3]), _flat(results[3])]
        launch(
            ctx.kernels[1],
            blocks,
            [*ctx.settings, *_arrays(scene), *arrays, block, blocks, vectors(sums, 3)],
            means.device,
        )
        return None, None, None, *results, sums.sum(1) if of_frames else None, None


def _arrays(scene: Scene) -> list[Any]:
    """The inputs of the projection as kernel arguments."""
    rows = [vectors(scene.means, 3), vectors(scene.quaternions, 4), vectors(scene.scales, 3), _flat(scene.opacities)]
    return [*rows, vectors(scene.frames, 3), _flat(scene.focal)]


def _flat(tensor: Tensor) -> Any:
    """`tensor`, which must be contiguous, as a kernel argument with one index."""
    return array(tensor.view(-1), wp.dtype_from_torch(tensor.dtype))


def _pairs(tensor: Tensor) -> Any:
    return array(tensor, wp.types.vector(2, wp.int32))


class _Colour(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means: Tensor, coefficients: Tensor, positions: Tensor, radii: Tensor, degree: int) -> Tensor:
        ctx.save_for_backward(means, coefficients, positions, radii)
        ctx.degree = degree
        result = means.new_empty(*radii.shape, 3)
        scene = [vectors(tensor, 3) for tensor in (means, coefficients, positions)]
        arguments = [*radii.shape, _flat(radii), *scene, vectors(result, 3)]
        launch(colour_kernels(scalar(means), degree)[0], len(means), arguments, means.device)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        means, coefficients, positions, radii = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_coefficients = torch.empty_like(coefficients)
        to_direction = means.new_empty(*radii.shape, 3)
        scene = [vectors(tensor, 3) for tensor in (means, coefficients, positions)]
        results = [vectors(tensor, 3) for tensor in (gradient, to_coefficients, to_direction)]
        arguments = [*radii.shape, _flat(radii), *scene, *results]
        launch(colour_kernels(scalar(means), ctx.degree)[1], len(means), arguments, means.device)
        to_positions = -to_direction.sum(1) if ctx.needs_input_grad[2] else None
        return to_direction.sum(0), to_coefficients, to_positions, None, None


class _Lists(NamedTuple):
    """Which Gaussians every tile meets, nearest first.

    order    [B * N] int64: the Gaussians of each view by depth; a position in it is called a place
    first    [B * N + 1] int32: the entries of place p are first[p] to first[p + 1] - 1, in the order of the tiles
    ends     [tiles + 1] int32: tile t owns the pairs ends[t] to ends[t + 1] - 1
    pairs    [entries, 2] int32: place and entry
    shapes   [B * N, SHAPE] by place, see the kernel `count`
    rows     [B * N, C + 1] by place: features and depth
    """

    order: Tensor
    first: Tensor
    ends: Tensor
    pairs: Tensor
    shapes: Tensor
    rows: Tensor


class _Rasterise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, size: tuple[int, int], spread: Tensor | None, features: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        views, _, width = features.shape
        down, across = (-(-side // TILE) for side in size)
        lists = _bin(Projected(*inputs), features, down, across)
        seen = features.new_empty(views, width, down * TILE, across * TILE)
        alpha, far, through, last = features.new_empty(4, views, down * TILE, across * TILE).unbind()
        ctx.size, ctx.shape, ctx.grid = size, features.shape, (down, across)
        _draw(0, lists, ctx.grid, width, False, [seen, far, alpha, through, last])
        ctx.save_for_backward(*lists, through, last)
        ctx.set_materialize_grads(False)
        return _crop(seen, size), _crop(alpha, size), _crop(far, size)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_seen: Tensor | None, to_alpha: Tensor | None, to_far: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *saved, through, last = ctx.saved_tensors
        lists = _Lists(*saved)
        views, count, width = ctx.shape
        absolute = ctx.needs_input_grad[1]
        if len(lists.pairs) * slot_length(width, absolute) >= 2**31:
            raise ValueError(
                f"splat: the Gaussians meet {len(lists.pairs):,} tiles, whose gradients are more than 2^31 numbers: "
                f"draw fewer views at a time, or smaller pictures"
            )
        slots = large_pages(through.new_empty(len(lists.pairs), slot_length(width, absolute)))
        if _per_pixel(through.device):
            slots.zero_()
        arrived = [_pad(gradient, ctx.size, through) for gradient in (to_seen, to_far, to_alpha)]
        _draw(1, lists, ctx.grid, width, absolute, [*arrived, through, last, slots])
        to_screen = through.new_empty(views, count, 2)
        to_conics = through.new_empty(views, count, 3)
        to_opacity, to_depth = through.new_empty(2, views, count).unbind()
        to_features = through.new_empty(ctx.shape)
        to_spread = through.new_empty(views, count, 2) if absolute else through.new_empty(0)
        real = scalar(through)
        vector_results = [vectors(to_screen, 2), vectors(to_conics, 3), vectors(to_spread, 2)]
        results = [*vector_results, *(_flat(t) for t in (to_opacity, to_features, to_depth))]
        listed = [_flat(lists.order), _flat(lists.first), vectors(lists.shapes, SHAPE)]
        launch(
            raster_kernels(real, width, absolute, False, native=False)[2],
            views * count,
            [count, *listed, _flat(slots), *results],
            through.device,
        )
        spread = to_spread if absolute else None
        return None, spread, to_features, to_screen, to_conics, to_opacity, to_depth, None, None


def _crop(picture: Tensor, size: tuple[int, int]) -> Tensor:
    return picture[..., : size[0], : size[1]].contiguous()


def _pad(gradient: Tensor | None, size: tuple[int, int], like: Tensor) -> Tensor:
    """The gradient of a picture on whole tiles; without elements where none came."""
    if gradient is None:
        return like.new_empty(0)
    if gradient.shape[-2:] == like.shape[-2:]:
        return gradient.contiguous()
    padded = gradient.new_zeros(*gradient.shape[:-2], *like.shape[-2:])
    padded[..., : size[0], : size[1]] = gradient
    return padded


def _by_counting(device: torch.device) -> bool:
    """Whether the tiles' lists are made by counting: on a CPU. On CUDA that has too few items; sorting has many."""
    return device.type == "cpu"


def _per_pixel(device: torch.device) -> bool:
    """Whether an item is one pixel: sums of a tile are atomic then, and their order is not fixed."""
    return device.type != "cpu" and not torch.are_deterministic_algorithms_enabled()


def _native(device: torch.device) -> bool:
    """Whether rows of pixels are the vectors of a CPU's compiler."""
    return device.type == "cpu"


def _draw(which: int, lists: _Lists, grid: tuple[int, int], width: int, absolute: bool, images: list[Tensor]) -> None:
    """Launch the forward (0) or adjoint (1) kernel over all pixels."""
    per_pixel = _per_pixel(lists.shapes.device)
    real = scalar(lists.shapes)
    native = _native(lists.shapes.device)
    lanes = 1 if per_pixel else TILE
    tiles = len(lists.ends) - 1
    listed = [_flat(lists.ends), _pairs(lists.pairs), vectors(lists.shapes, SHAPE)]
    listed += [_flat(lists.rows)]
    pixels = images if which == 0 else images[:-1]
    arrays = [vectors(image, lanes) for image in pixels] + [_flat(slots) for slots in images[len(pixels) :]]
    launch(
        raster_kernels(real, width, absolute, per_pixel, native)[which],
        tiles * (TILE * TILE if per_pixel else 1),
        [*grid, *listed, *arrays],
        lists.shapes.device,
    )


def _bin(found: Projected, features: Tensor, down: int, across: int) -> _Lists:
    """Sort the Gaussians of each view by depth, and the tiles' lists with them."""
    views, count, width = features.shape
    device, real = features.device, scalar(features)
    order = _by_depth(found.depth)
    counting = _by_counting(device)
    runs = min(RUNS, count) if counting else count
    shapes = large_pages(features.new_empty(views * count, SHAPE))
    rows = large_pages(features.new_empty(views * count, width + 1))
    touched = torch.empty(views * count, dtype=torch.int32, device=device)
    tally = torch.empty(views * runs if counting else 0, down * across, dtype=torch.int32, device=device)
    kernels = list_kernels(real, width, counting)
    sizes = [runs, count, down, across]
    gaussians = [vectors(found.screen, 2), vectors(found.conics, 3), vectors(found.extent, 2)]
    gaussians += [_flat(tensor) for tensor in (found.opacity, features, found.depth)]
    results = [vectors(shapes, SHAPE), _flat(rows), _flat(touched), _flat(tally)]
    launch(kernels[0], views * runs, [*sizes, _flat(order), *gaussians, *results], device)
    total = torch.cumsum(touched, 0)  # int64
    entries = int(total[-1]) if len(total) else 0
    if entries >= 2**31:
        raise ValueError(
            f"splat: {views} views of {count} Gaussians meet {entries:,} tiles, more than 2^31: draw fewer views at a "
            f"time, or smaller pictures"
        )
    first = torch.zeros(len(total) + 1, dtype=torch.int32, device=device)
    first[1:] = total
    listed = [*sizes, vectors(shapes, SHAPE), _flat(first)]
    pairs = large_pages(torch.empty(entries, 2, dtype=torch.int32, device=device))
    if counting:
        # By tile, then by run: where each run begins in each tile's list.
        by_tile = tally.view(views, runs, down * across).transpose(1, 2)
        begins = torch.zeros(by_tile.numel() + 1, dtype=torch.int64, device=device)
        torch.cumsum(by_tile.reshape(-1), 0, out=begins[1:])
        begins = begins.int()
        ends = begins[::runs].clone() if runs else begins.expand(views * down * across + 1).clone()
        cursor = begins[:-1].view(by_tile.shape).transpose(1, 2).clone(memory_format=torch.contiguous_format)
        launch(kernels[1], views * runs, [*listed, _flat(cursor), _pairs(pairs)], device)
        return _Lists(order, first, ends, pairs, shapes, rows)
    # What is not written is of no tile, behind all others.
    tile = torch.full((entries,), views * down * across, dtype=torch.int32, device=device)
    launch(kernels[1], views * runs, [*listed, _flat(tile), _pairs(pairs)], device)
    tile, entry = torch.sort(tile, stable=True)
    bounds = torch.arange(views * down * across + 1, dtype=torch.int32, device=device)
    ends = torch.searchsorted(tile, bounds, out_int32=True)
    return _Lists(order, first, ends, pairs[entry], shapes, rows)


def _by_depth(depth: Tensor) -> Tensor:
    """[B, N] -> [B * N] int64: the Gaussians of each view, nearest first, ties by index.

    Depths are not negative, so their bits, read as whole numbers, are in the same order; those sort by radix.
    """
    bits = depth.detach().view(torch.int32 if depth.dtype == torch.float32 else torch.int64)
    sorts = [torch.sort(row, stable=True).indices for row in bits]
    return torch.cat(sorts)
