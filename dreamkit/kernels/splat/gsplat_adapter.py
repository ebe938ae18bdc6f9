"""Splatting by gsplat (github.com/nerfstudio-project/gsplat), 1.5. The contract is in the package.

For CUDA and float32 only, so it is exercised only where CUDA is; elsewhere the tests see no more of it than that the
arrays are handed over as gsplat documents them. Blur, limits of alpha, end of a pixel, limit of the Jacobian and
spherical harmonics are those of the contract. What differs:

- A pixel ends when its transmittance would be exactly 1e-4, too; and exponentials are those of CUDA's fast math.
- Seen is what has a box, in whole pixels, that meets the picture: also what ends up to a pixel outside of it.
- Determinants on the screen are differences, where the contract's lose no digits. At 100 by 0.5 pixels the conic, and
  with it the radius, is good to some 1e-3. The factor of `antialiased`, for a flat Gaussian of 100 pixels seen from
  its edge, may be 0.03 instead of 0; and its gradient has 1e-6 added to the factor that it is divided by.
- The gradients are sums by atomic adds, of which gsplat has no deterministic version: they are refused where
  torch.use_deterministic_algorithms is on.
- `absolute` is for at most 32 channels. More are drawn 32 or 33 at a time, each time with the alphas anew.
- With `sh_degree`, the coefficients are copied for every view.
"""

import importlib
import math
from collections.abc import Callable
from typing import Any

import gsplat
import torch
from torch import Tensor
from torch.nn import functional as F

from dreamkit.errors import InputError
from dreamkit.kernels.choose import need_compiled, need_cuda_float32, need_version
from dreamkit.kernels.splat import BLUR, Projected, Scene, reference

TILE = 16  # pixels along a side
CHANNELS = 33  # at a time, the depth being one: gsplat has this number built in, and its gradient fits every device

need_version("gsplat", gsplat.__version__, (1, 5), (1, 6))  # 1.6 limits alpha to 0.99, and takes other arguments
try:
    importlib.import_module("gsplat.cuda._constants")
except ImportError:
    pass
else:
    raise ImportError(f"gsplat says it is {gsplat.__version__}, but its source is of 1.6: install a release of 1.5")


def project(scene: Scene, size: tuple[int, int], near: float, antialiased: bool) -> Projected:
    """As the reference; but the extent is whole pixels, [B, N, 2] int32."""
    means, quaternions, scales, opacities, frames, focal = scene
    need_cuda_float32("gsplat", means, quaternions, scales, opacities, frames)
    need_compiled("gsplat")
    if torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled():
        raise InputError("backend 'gsplat' has no deterministic gradients, and torch is set to want them. Use 'warp'.")
    views, (height, width) = len(frames), size
    if not len(means) * views:  # gsplat divides by their number
        return reference.project(scene, size, near, antialiased)
    # The frames are right, down, ahead: OpenCV's camera, which is gsplat's. Not by a matrix product: it may be in TF32.
    turn, last = frames[:, :3], frames.new_tensor([[[0.0, 0.0, 0.0, 1.0]]]).expand(views, 1, 4)
    view = torch.cat([torch.cat([turn, -(turn * frames[:, 3:]).sum(-1, keepdim=True)], 2), last], 1)
    lens = torch.eye(3).to(focal).repeat(views, 1, 1)
    lens[:, 0, 0] = lens[:, 1, 1] = focal
    lens[:, 0, 2], lens[:, 1, 2] = width / 2, height / 2
    turns = F.normalize(quaternions, dim=-1)
    none = turns.new_tensor([1.0, 0.0, 0.0, 0.0])  # gsplat makes NaN of a quaternion of length 0
    boxes, screen, depth, conics, factor = gsplat.fully_fused_projection(
        means,
        None,
        torch.where((turns == 0).all(-1, keepdim=True), none, turns),
        scales,
        view,
        lens,
        width,
        height,
        eps2d=BLUR,
        near_plane=near,
        far_plane=math.inf,
        calc_compensations=antialiased,
        opacities=opacities,
    )
    # What gsplat does not see it leaves uninitialised, boxes excepted.
    seen = (boxes > 0).all(-1) & (depth > near) & conics.isfinite().all(-1)

    def only(values: Tensor) -> Tensor:
        return torch.where(seen if values.ndim == 2 else seen[..., None], values, 0)

    opacity = opacities.expand(views, -1)
    if antialiased:
        opacity = opacity * only(factor)  # masked before: the opacity's gradient would be 0 times anything
    return Projected(*(only(x) for x in (screen, conics, opacity, depth, boxes, _radii(conics.detach()))))


def _radii(conics: Tensor) -> Tensor:
    """[..., 3] inverse covariances -> [...] 3 standard deviations along the longer axis."""
    a, b, c = conics.double().unbind(-1)
    most = (a + c) / 2 + (((a - c) / 2).square() + b.square()).sqrt()
    least = torch.maximum((a * c - b * b) / most, 1e-12 * most)  # rounding may leave no positive one
    return (3 / least.sqrt()).to(conics)


def colour(means: Tensor, coefficients: Tensor, positions: Tensor, degree: int, radii: Tensor) -> Tensor:
    """As the reference."""
    if not radii.numel():
        return reference.colour(means, coefficients, positions, degree, radii)
    seen, rays = radii > 0, means - positions[:, None]
    sums = gsplat.spherical_harmonics(degree, rays, coefficients.expand(len(positions), -1, -1, -1), masks=seen)
    return torch.where(seen[..., None], (sums + 0.5).clamp(min=0), 0.0)


def rasterise(
    found: Projected, features: Tensor, size: tuple[int, int], spread: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As the reference."""
    screen, conics, opacity, depth, extent, _ = found
    if not screen.numel():
        return reference.rasterise(found, features, size, spread)
    height, width = size
    # The depth is one more channel, so that it is a sum of the same weights.
    parts = torch.cat([depth[..., None], features], -1).split(CHANNELS, dim=-1)
    if spread is not None and len(parts) > 1:
        raise InputError(
            f"backend 'gsplat' gives absolute gradients of at most {CHANNELS - 1} channels; got {features.shape[-1]}. "
            "Use 'warp'."
        )
    across, down = -(-width // TILE), -(-height // TILE)
    _, ids, order = gsplat.isect_tiles(screen, extent, depth, TILE, across, down)
    starts = gsplat.isect_offset_encode(ids, len(screen), across, down)

    def draw(part: Tensor, screen: Tensor, conics: Tensor, opacity: Tensor) -> tuple[Tensor, Tensor]:
        tiles = (width, height, TILE, starts, order)
        pair: tuple[Tensor, Tensor] = gsplat.rasterize_to_pixels(
            screen, conics, part, opacity, *tiles, absgrad=spread is not None
        )
        return pair

    if spread is None:
        drawn = [draw(part, screen, conics, opacity) for part in parts]
    else:
        drawn = [_WithSpread.apply(draw, spread, parts[0], screen, conics, opacity)]
    pictures = torch.cat([picture for picture, _ in drawn], -1).permute(0, 3, 1, 2)
    return pictures[:, 1:], drawn[0][1].squeeze(-1), pictures[:, 0]


class _WithSpread(torch.autograd.Function):
    """`draw`, and for the leaf `spread` the gradient that gsplat sets as an attribute of the centres."""

    @staticmethod
    def forward(
        ctx: Any, draw: Callable[..., tuple[Tensor, Tensor]], spread: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.inputs = [values.detach().requires_grad_() for values in inputs]
        with torch.enable_grad():
            ctx.outputs = draw(*ctx.inputs)
        return tuple(values.detach() for values in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # The graph is kept for whoever keeps the outer one; it goes with ctx.
        found = torch.autograd.grad(ctx.outputs, ctx.inputs, gradients, retain_graph=True)
        _, centres, _, _ = ctx.inputs
        return None, centres.absgrad, *found
