"""Marching in plain torch: every candidate of every ray is written down, then the empty ones are thrown away."""

import math

import torch
from torch import Tensor

from dreamkit.kernels.march import Samples
from dreamkit.kernels.packed import places, rectangle


def march(origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor, near: float) -> Samples:
    """The contract is in the package's docstring. Memory: R * 2 sqrt(3) / step candidates."""
    t_in, t_out = cube(origins, directions, near)
    most = math.ceil(2 * math.sqrt(3) / step) + 1  # candidates along the longest diagonal
    t = t_in[:, None] + (torch.arange(most, device=t_in.device) + jitter[:, None]) * step  # [R, most]
    inside = (t < t_out[:, None]) & torch.isfinite(t_out[:, None])  # a direction of length 0 never leaves
    ray, index = torch.nonzero(inside, as_tuple=True)
    t = t[ray, index]
    size = len(occupancy)
    position = origins[ray] + directions[ray] * t[:, None]
    i, j, k = ((position + 1) * (size / 2)).floor().clamp(0, size - 1).long().unbind(1)
    keep = occupancy[i, j, k]
    ray, t = ray[keep], t[keep]
    offsets = torch.searchsorted(ray, torch.arange(len(origins) + 1, device=ray.device))
    return Samples(ray.int(), t, torch.full_like(t, step), offsets.int())


def cube(origins: Tensor, directions: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """[R] where each ray enters and leaves the cube [-1,1]^3: the slab method. A ray that misses has in > out."""
    a, b = (-1 - origins) / directions, (1 - origins) / directions
    first, last = torch.minimum(a, b), torch.maximum(a, b)
    # A ray parallel to a slab is in it for ever or never. Not left to 1/0: on the face itself that gives 0/0.
    parallel, within = directions == 0, origins.abs() <= 1
    first = torch.where(parallel, torch.where(within, -torch.inf, torch.inf), first)
    last = torch.where(parallel, torch.inf, last)
    return first.amax(1).clamp(min=near), last.amin(1)


def visible(depth: Tensor, offsets: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """[S] optical depths -> the new offsets [R+1] int32 and the places [K] int64 of the samples not behind `limit`."""
    ray, column = places(offsets, len(depth))
    before = torch.cumsum(rectangle(depth, offsets), 1)[ray, (column - 1).clamp(min=0)]
    keep = (column == 0) | ~(before > limit)  # not "<=": a NaN hides nothing
    kept = torch.nn.functional.pad(torch.cumsum(keep, 0, dtype=torch.int32), (1, 0))
    return kept[offsets.long()], keep.nonzero().squeeze(-1)


def resample(
    t: Tensor, length: Tensor, offsets: Tensor, weight: Tensor, count: int, jitter: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """[S] ... -> t and length [len(rows) * count] of the new samples, on the rays `rows`, which all own some."""
    begin, length, weight = (rectangle(x, offsets)[rows] for x in (t - length / 2, length, weight))
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, length)
    mass, gone = (torch.nn.functional.pad(torch.cumsum(x, 1), (1, 0)) for x in (weight, length))  # [rays, most + 1]
    total = mass[:, -1:]

    def place(share: Tensor) -> tuple[Tensor, Tensor]:
        """[rays, K] shares of the weight -> where they are reached: t, and the length of the stretches before."""
        target = share * total
        # The last stretch that begins at or before the target, but none behind the last that holds anything.
        index = torch.searchsorted(mass[:, 1:].contiguous(), target, right=True)
        last = (weight > 0).long().mul(torch.arange(weight.shape[1], device=t.device)).amax(1, keepdim=True)
        index = index.minimum(last)
        held = weight.gather(1, index)
        part = torch.where(held > 0, (target - mass.gather(1, index)) / held, 0.0).clamp(0, 1)
        part = part * length.gather(1, index)
        return begin.gather(1, index) + part, gone.gather(1, index) + part

    steps = torch.arange(count, dtype=t.dtype, device=t.device)
    new_t, _ = place((steps + jitter[rows, None]) / count)
    _, inner = place((steps[1:] / count).expand(len(rows), -1).contiguous())
    borders = torch.cat([torch.zeros_like(total), inner, gone[:, -1:]], dim=1)
    return new_t.reshape(-1), borders.diff(dim=1).reshape(-1)
