"""Marching by nerfacc (github.com/nerfstudio-project/nerfacc), 0.5.3 and later. The contract is in the package.

For CUDA and float32 only, so it is exercised only where CUDA is; elsewhere the tests see no more of it than that the
arrays are handed over as nerfacc documents them. nerfacc walks from a ray's near plane in steps and keeps the steps
whose middle lies in an occupied cell. So that these middles are the candidates of the contract, a ray's near plane is
put (jitter - 1/2) steps behind its entry; and because nerfacc adds step to step, each t is computed anew from its
number. It has no counterpart to `visible` and `resample` that keeps their contracts.
"""

import nerfacc
import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.kernels.choose import need_compiled, need_cuda_float32, need_version
from dreamkit.kernels.march import Samples
from dreamkit.kernels.march.reference import cube

need_version("nerfacc", nerfacc.__version__, (0, 5, 3))


def march(origins: Tensor, directions: Tensor, occupancy: Tensor, step: float, jitter: Tensor, near: float) -> Samples:
    """[R, 3] rays -> Samples."""
    need_cuda_float32("nerfacc", origins, directions, jitter)
    need_compiled("nerfacc")
    t_in, t_out = cube(origins, directions, near)
    rows = ((t_in < t_out) & torch.isfinite(t_out) & torch.isfinite(origins).all(1)).nonzero().squeeze(-1)
    ray, t = rows, origins.new_empty(0)
    if bool((t_out[rows] + step / 4 == t_out[rows]).any()):  # nerfacc would add step to t for ever
        raise InputError(f"backend 'nerfacc' cannot march in steps of {step:g} so far from an origin. Use 'warp'.")
    if len(rows):  # nerfacc has no end on a NaN, and cannot do with no rays
        _, found, _ = nerfacc.traverse_grids(
            origins[rows],
            directions[rows],
            occupancy[None],
            torch.tensor([[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]], device=origins.device),
            near_planes=t_in[rows] + (jitter[rows] - 0.5) * step,
            step_size=step,
        )
        ray = rows[found.ray_indices.long()]
        number = ((found.vals - t_in[ray]) / step - jitter[ray]).round()
        t = t_in[ray] + (number + jitter[ray]) * step
        keep = (number >= 0) & (t < t_out[ray])  # not candidates that only rounding puts inside
        ray, t = ray[keep], t[keep]
    offsets = torch.searchsorted(ray, torch.arange(len(origins) + 1, device=ray.device))
    return Samples(ray.int(), t, torch.full_like(t, step), offsets.int())
