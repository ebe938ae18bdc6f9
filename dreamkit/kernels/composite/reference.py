"""Compositing in plain torch: the packed rays are laid out as rows of a rectangle. The contract is in the package."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamkit.kernels.packed import places, rectangle


def composite(
    density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[S] ... -> features [R, C], alpha [R], depth [R], weight [S]."""
    ray, column = places(offsets, len(density))
    depth = density * length.detach()  # optical depth of each sample
    row = rectangle(depth, offsets)
    # What lies in front of a sample. Shifted, not subtracted: cumsum - depth forgets the fog in front of a wall.
    before = F.pad(torch.cumsum(row, dim=1), (1, 0))
    weight = torch.exp(-before[ray, column]) * -torch.expm1(-depth)  # expm1: thin samples would round to 0

    def along_rays(values: Tensor) -> Tensor:
        return values.new_zeros(len(row), *values.shape[1:]).index_add(0, ray, values)

    return (
        along_rays(weight[:, None] * features),
        -torch.expm1(-row.sum(1)),
        along_rays(weight * t.detach()),
        weight,
    )


def distortion(weight: Tensor, t: Tensor, length: Tensor, offsets: Tensor) -> Tensor:
    """[S] ... -> [R]."""
    w, t, length = (rectangle(values, offsets) for values in (weight, t.detach(), length.detach()))
    t = t - t[:, :1]  # the sums below lose fewer digits
    before = torch.cumsum(w, 1) - w
    moment = torch.cumsum(w * t, 1) - w * t
    return (w * (2 * (t * before - moment) + w * length / 3)).sum(1)
