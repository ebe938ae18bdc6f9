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
        backend:  "auto", "warp", "reference", or "nerfacc" (CUDA and float32 only).

    Normals, and whatever else is a mean along the ray, are features like colours: concatenate them.

    Differentiable once in density and features, through all four results; not in t or length. Thin samples keep
    their digits (expm1), and fog in front of an opaque wall is not lost to rounding. On Warp every sum has one order,
    on CUDA too. Memory, in numbers of the tensors' dtype: 1 a sample for the weight; C + 1 a sample in the backward
    pass.

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
    _check("composite", offsets, density, features, t, length)
    run = choose.implementation(__name__, "composite", backend, density)
    return Composite(*run(density, features, t, length, offsets))


def distortion(weight: Tensor, t: Tensor, length: Tensor, offsets: Tensor, *, backend: str = "auto") -> Tensor:
    """How far the weights of each ray lie apart: small where a ray sees one thin surface. [R]

        loss = sum_{i,j} weight_i weight_j |t_i - t_j| + 1/3 sum_i weight_i^2 length_i

    with i and j over the samples of the ray: Mip-NeRF 360 (arXiv:2111.12077, eq. 15), by running sums, in time
    proportional to the samples (as in DVGO v2, arXiv:2206.05085). It has the unit of t: where rays are of very
    different lengths, divide t and length by their ray's, or take them in the paper's disparity.

    Args:
        weight:  [S] of every sample (Composite.weight), >= 0; float32 or float64, like the next two.
        t:       [S] the middle of what a sample stands for; must not decrease along a ray.
        length:  [S] the length of what it stands for.
        offsets: [R+1] int32, as in `composite`. A ray without samples has a loss of 0.
        backend: "auto", "warp", "reference", or "nerfacc" (CUDA and float32 only).

    Differentiable once in weight, not in t or length. Memory: on Warp nothing beyond the results.

    Raises ValueError for wrong shapes, dtypes or devices; InputError for a backend that is not there.

    >>> half = torch.tensor([0.5, 0.5])
    >>> distortion(half, torch.tensor([1.0, 3.0]), torch.zeros(2), torch.tensor([0, 2]).int()).item()
    1.0
    """
    if not weight.shape == t.shape == length.shape == (len(weight),):
        raise ValueError(
            f"distortion expects weight [S], t [S], length [S]; "
            f"got {tuple(weight.shape)}, {tuple(t.shape)}, {tuple(length.shape)}"
        )
    _check("distortion", offsets, weight, t, length)
    result: Tensor = choose.implementation(__name__, "distortion", backend, weight)(weight, t, length, offsets)
    return result


def _check(name: str, offsets: Tensor, *values: Tensor) -> None:
    """ValueError unless offsets and dtypes and devices are as both functions want them."""
    if offsets.ndim != 1 or len(offsets) < 1 or offsets.dtype != torch.int32:
        raise ValueError(f"{name} expects offsets [R+1] int32; got {tuple(offsets.shape)} {offsets.dtype}")
    dtypes = {tensor.dtype for tensor in values}
    if len(dtypes) != 1 or values[0].dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} expects float32 or float64, the same for all; got {sorted(map(str, dtypes))}")
    if len({tensor.device for tensor in (offsets, *values)}) != 1:
        raise ValueError(f"{name} expects all its tensors on one device")
