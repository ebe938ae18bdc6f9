"""Gaussians to pictures: colour, opacity, depth and normals by splatting (`dreamkit.kernels.splat`)."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.images import Images, on_background
from dreamkit.kernels.splat import Splats, reference, splat


def render_splats(
    cameras: Cameras,
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    sh: Tensor,
    *,
    background: Tensor,
    normals: bool = False,
    antialiased: bool = False,
    absolute: bool = False,
    backend: str = "auto",
) -> tuple[Images, Splats]:
    """Pictures [B, C, H, W] of Gaussians on a background, and what the kernel returned (its `screen`, for densifying).

    Depth is what images.py says: each Gaussian lies in the plane through its mean across the camera's axis, and a
    pixel's ray meets that plane at z |ray| / z(ray). Colour is not cut off at 1.

    Args:
        means, quaternions, scales, opacities: as `splat` takes them.
        sh: [N, (degree + 1)^2, 3] spherical harmonics of degree 0 to 3; the colour is max(0, 0.5 + their sum).
        background: colour [B, 3], or pictures [B, 3, H, W].
        normals: also make `Images.normal`, from the axes of `facing_normals`.
        antialiased, absolute, backend: as in `splat`.

    Differentiable as `splat` is; which axis is the shortest, and its sign, are taken as constant. Raises ValueError
    for a background of another shape, and what `splat` raises.
    """
    degree = {1: 0, 4: 1, 9: 2, 16: 3}.get(sh.shape[1])
    if degree is None:
        raise ValueError(f"spherical harmonics have 1, 4, 9 or 16 coefficients; got sh {tuple(sh.shape)}")
    features = sh
    if normals:
        everyone = means.new_ones(len(cameras), len(means))
        colours = reference.colour(means, sh, cameras.positions, degree, everyone)
        features = torch.cat([colours, facing_normals(means, quaternions, scales, cameras.positions)], -1)
    seen = splat(
        means,
        quaternions,
        scales,
        opacities,
        features,
        cameras,
        sh_degree=None if normals else degree,
        antialiased=antialiased,
        absolute=absolute,
        backend=backend,
    )
    # How much longer a pixel's ray is than its way along the camera's axis.
    flat = replace(cameras, camera_to_world=torch.eye(3, 4).to(cameras.camera_to_world).expand(len(cameras), 3, 4))
    longer = -1 / flat.rays()[1][..., 2]
    depth = seen.depth[:, None] * longer[:, None].to(seen.alpha)
    rgb, normal = seen.features[:, :3], seen.features[:, 3:] if normals else None
    return on_background(rgb, seen.alpha[:, None], depth, normal, background), seen


def facing_normals(means: Tensor, quaternions: Tensor, scales: Tensor, positions: Tensor) -> Tensor:
    """[B, N, 3] unit: each Gaussian's shortest axis, turned towards cameras at `positions` [B, 3]."""
    shortest = scales.argmin(1)
    axis = rotations(quaternions)[torch.arange(len(means), device=means.device), :, shortest]
    away = ((positions[:, None] - means) * axis).sum(-1, keepdim=True).detach() < 0
    return torch.where(away, -axis, axis)


def rotations(quaternions: Tensor) -> Tensor:
    """[N, 4] quaternions (w, x, y, z) of any length -> [N, 3, 3] rotations I + 2 w V + 2 V V, with V v = (x, y, z) x v
    of the quaternion made a unit; one of length 0 is no rotation."""
    unit = F.normalize(quaternions, dim=-1)
    eye = torch.eye(3, dtype=unit.dtype, device=unit.device)
    across = torch.linalg.cross(unit[:, 1:, None].expand(-1, 3, 3), eye.expand(len(unit), 3, 3), dim=1)
    return eye + 2 * unit[:, :1, None] * across + 2 * across @ across
