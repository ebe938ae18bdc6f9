"""Compositing in plain torch: the packed rays are laid out as rows of a rectangle. The contract is in the package."""

import torch
from torch import Tensor
from torch.nn import functional as F


def composite(
    density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[S] ... -> features [R, C], alpha [R], depth [R], weight [S]."""
    rays = len(offsets) - 1
    counts = offsets.diff().long()
    ray = torch.repeat_interleave(torch.arange(rays, device=counts.device), counts, output_size=len(density))
    column = torch.arange(len(density), device=ray.device) - offsets.long()[ray]
    most = int(counts.max()) if len(density) else 0

    depth = density * length.detach()  # optical depth of each sample
    row = depth.new_zeros(rays, most).index_put((ray, column), depth)
    # What lies in front of a sample. Shifted, not subtracted: cumsum - depth forgets the fog in front of a wall.
    before = F.pad(torch.cumsum(row, dim=1), (1, 0))
    weight = torch.exp(-before[ray, column]) * -torch.expm1(-depth)  # expm1: thin samples would round to 0

    def along_rays(values: Tensor) -> Tensor:
        return values.new_zeros(rays, *values.shape[1:]).index_add(0, ray, values)

    return (
        along_rays(weight[:, None] * features),
        -torch.expm1(-row.sum(1)),
        along_rays(weight * t.detach()),
        weight,
    )
