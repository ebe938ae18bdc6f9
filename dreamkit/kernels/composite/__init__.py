"""Accumulating along rays: packed samples -> one value per ray, by emission and absorption."""

from typing import NamedTuple

import torch
from torch import Tensor

from dreamkit.kernels import choose


class Composite(NamedTuple):
    """What R rays see.

    features [R, C] weighted sum of the samples' features, not on any background
    alpha    [R] sum of the weights, in [0, 1]
    depth    [R] weighted sum of t, not divided by alpha
    weight   [S] the weight of every sample
    """

    features: Tensor
    alpha: Tensor
    depth: Tensor
    weight: Tensor


def composite(
    density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor, *, backend: str = "auto"
) -> Composite:
    """Accumulate features, alpha and depth along rays: the emission-absorption quadrature.

        weight_i = T_i (1 - exp(-density_i length_i)),   T_i = exp(-sum_{j<i} density_j length_j)

    with j over the samples of the same ray (NeRF, arXiv:2003.08934, eq. 3).

    Args:
        density:  [S] per unit length, >= 0; float32 or float64, like the next three.
        features: [S, C] anything: linear radiance, normals, a latent. C >= 1.
        t:        [S] distance of the sample, increasing along a ray.
        length:   [S] length of ray that a sample stands for, >= 0.
        offsets:  [R+1] int32, ray r owns the samples offsets[r] to offsets[r+1] - 1 (as in march.Samples); from 0
                  to S, not decreasing. A ray may own none: it is transparent. S and R may be 0.
        backend:  "auto", "warp" or "reference".

    Differentiable once in density and features, through all four results; not in t or length. Thin samples keep
    their digits (expm1), and fog in front of an opaque wall is not lost to rounding.

    Raises ValueError for wrong shapes, dtypes or devices; InputError for a backend that is not there.

    >>> fog, wall = 0.7, 1e9
    >>> one = torch.ones(2)
    >>> seen = composite(torch.tensor([fog, wall]), torch.tensor([[1.0], [0.0]]), one, one, torch.tensor([0, 2]).int())
    >>> f"{seen.features.item():.3f} {seen.alpha.item():.3f}"
    '0.503 1.000'
    """
    samples = len(density)
    if (
        not density.shape == t.shape == length.shape == (samples,)
        or features.ndim != 2
        or len(features) != samples
        or features.shape[1] < 1
    ):
        raise ValueError(
            f"composite expects density [S], features [S, C], t [S], length [S]; "
            f"got {tuple(density.shape)}, {tuple(features.shape)}, {tuple(t.shape)}, {tuple(length.shape)}"
        )
    if offsets.ndim != 1 or len(offsets) < 1 or offsets.dtype != torch.int32:
        raise ValueError(f"composite expects offsets [R+1] int32; got {tuple(offsets.shape)} {offsets.dtype}")
    dtypes = {density.dtype, features.dtype, t.dtype, length.dtype}
    if len(dtypes) != 1 or density.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"composite expects float32 or float64, the same for all; got {sorted(map(str, dtypes))}")
    if len({tensor.device for tensor in (density, features, t, length, offsets)}) != 1:
        raise ValueError("composite expects all its tensors on one device")
    return Composite(*choose.backend(__name__, backend).composite(density, features, t, length, offsets))
