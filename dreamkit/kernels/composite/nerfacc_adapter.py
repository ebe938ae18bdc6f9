"""Compositing by nerfacc (github.com/nerfstudio-project/nerfacc), 0.5.3 and later. The contract is in the package.

For CUDA and float32 only, so it is exercised only where CUDA is; elsewhere the tests see no more of it than that the
arrays are handed over as nerfacc documents them. nerfacc gives the sums along packed rays, with their adjoint; the
weights are made from them here, because its own lose the digits of thin samples (1 - exp, not expm1), and the
distortion, which no release has. Sums per ray are atomic adds, so the last bits may change between runs.
"""

import nerfacc
import torch
from torch import Tensor

from dreamkit.kernels.choose import need_compiled, need_cuda_float32, need_version
from dreamkit.kernels.packed import places

need_version("nerfacc", nerfacc.__version__, (0, 5, 3))


def composite(
    density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[S] ... -> features [R, C], alpha [R], depth [R], weight [S]."""
    need_cuda_float32("nerfacc", density, features, t, length)
    need_compiled("nerfacc")
    rays, (ray, _) = len(offsets) - 1, places(offsets, len(density))
    packed = _packed(offsets)
    depth = density * length.detach()
    before = nerfacc.exclusive_sum(depth, packed_info=packed)
    weight = torch.exp(-before) * -torch.expm1(-depth)

    def along_rays(values: Tensor | None, weight: Tensor) -> Tensor:
        sums: Tensor = nerfacc.accumulate_along_rays(weight, values=values, ray_indices=ray, n_rays=rays)
        return sums

    alpha = -torch.expm1(-along_rays(None, depth).squeeze(-1))
    return along_rays(features, weight), alpha, along_rays(t.detach()[:, None], weight).squeeze(-1), weight


def distortion(weight: Tensor, t: Tensor, length: Tensor, offsets: Tensor) -> Tensor:
    """[S] ... -> [R]."""
    need_cuda_float32("nerfacc", weight, t, length)
    need_compiled("nerfacc")
    ray, number = places(offsets, len(t))
    t = t.detach() - t.detach()[torch.arange(len(t), device=t.device) - number]  # since the ray's first: keeps digits
    packed = _packed(offsets)
    before = nerfacc.exclusive_sum(weight, packed_info=packed)
    moment = nerfacc.exclusive_sum(weight * t, packed_info=packed)
    terms = weight * (2 * (t * before - moment) + weight * length.detach() / 3)
    loss: Tensor = nerfacc.accumulate_along_rays(terms, values=None, ray_indices=ray, n_rays=len(offsets) - 1)
    return loss.squeeze(-1)


def _packed(offsets: Tensor) -> Tensor:
    """[R, 2] int64: the first sample of each ray, and how many it has."""
    return torch.stack([offsets[:-1], offsets.diff()], dim=-1).long()
