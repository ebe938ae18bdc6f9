"""Marching in plain torch: every candidate of every ray is written down, then the empty ones are thrown away."""

import math

import torch
from torch import Tensor

from dreamkit.kernels.march import Samples


def march(origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor, near: float) -> Samples:
    """The contract is in the package's docstring. Memory: R * 2 sqrt(3) / step candidates."""
    t_in, t_out = _cube(origins, directions, near)
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


def _cube(origins: Tensor, directions: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """[R] where each ray enters and leaves the cube [-1,1]^3: the slab method. A ray that misses has in > out."""
    a, b = (-1 - origins) / directions, (1 - origins) / directions
    first, last = torch.minimum(a, b), torch.maximum(a, b)
    # A ray parallel to a slab is in it for ever or never. Not left to 1/0: on the face itself that gives 0/0.
    parallel, within = directions == 0, origins.abs() <= 1
    first = torch.where(parallel, torch.where(within, -torch.inf, torch.inf), first)
    last = torch.where(parallel, torch.inf, last)
    return first.amax(1).clamp(min=near), last.amin(1)
