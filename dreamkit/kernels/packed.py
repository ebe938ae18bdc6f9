"""Packed rays in plain torch: samples that stand one ray after the other, laid out as the rows of a rectangle."""

import torch
from torch import Tensor


def places(offsets: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """[total] int64 each: the ray of every sample, and its number on that ray. Offsets [R+1] as in march.Samples."""
    rays = torch.arange(len(offsets) - 1, device=offsets.device)
    ray = torch.repeat_interleave(rays, offsets.diff().long(), output_size=total)
    return ray, torch.arange(total, device=ray.device) - offsets.long()[ray]


def rectangle(values: Tensor, offsets: Tensor) -> Tensor:
    """[S] -> [R, the most samples on a ray, but at least 1], filled up with 0. Differentiable."""
    most = max(int(offsets.diff().max()), 1) if len(values) else 1
    return values.new_zeros(len(offsets) - 1, most).index_put(places(offsets, len(values)), values)
