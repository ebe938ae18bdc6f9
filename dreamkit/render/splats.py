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
) -> tuple[Images, list[Splats]]:
    """Pictures [B, C, H, W] of Gaussians on a background, and what the kernel returned (its `screen`, for densifying).

    Depth is what images.py says: each Gaussian lies in the plane through its mean across the camera's axis, and a
    pixel's ray meets that plane at z |ray| / z(ray). Colour is not cut off at 1.

    Args:
        means, quaternions, scales, opacities: as `splat` takes them.
        sh: [N, (degree + 1)^2, 3] spherical harmonics of degree 0 to 3; the colour is max(0, 0.5 + their sum).
        background: colour [B, 3], or pictures [B, 3, H, W].
        normals: also make `Images.normal`, from the axes of `facing_normals`. Views are then drawn one by one, since
            the normals are others in every view, and there is one `Splats` for each; otherwise one for all.
        antialiased, absolute, backend: as in `splat`.

    Differentiable as `splat` is; which axis is the shortest, and its sign, are taken as constant. Raises ValueError
    for a background of another shape, and what `splat` raises.
    """
    degree = {1: 0, 4: 1, 9: 2, 16: 3}.get(sh.shape[1])
    if degree is None:
        raise ValueError(f"spherical harmonics have 1, 4, 9 or 16 coefficients; got sh {tuple(sh.shape)}")

    def draw(features: Tensor, views: Cameras, sh_degree: int | None) -> Splats:
        shown = (means, quaternions, scales, opacities, features)
        settings = {"antialiased": antialiased, "absolute": absolute, "backend": backend}
        return splat(*shown, views, sh_degree=sh_degree, **settings)  # type: ignore[arg-type]

    if not normals:
        passes = [draw(sh, cameras, degree)]
    else:
        passes = []
        for b in range(len(cameras)):
            view = cameras[b : b + 1]
            colour = reference.colour(means, sh, view.positions, degree, torch.ones_like(means[None, :, 0]))[0]
            axes = facing_normals(means, quaternions, scales, view.positions[0])
            passes.append(draw(torch.cat([colour, axes], 1), view, None))
    return _images(passes, cameras, background), passes


def facing_normals(means: Tensor, quaternions: Tensor, scales: Tensor, position: Tensor) -> Tensor:
    """[N, 3] unit: each Gaussian's shortest axis, turned towards a camera at `position` [3]."""
    shortest = scales.argmin(1)
    axis = rotations(quaternions)[torch.arange(len(means), device=means.device), :, shortest]
    away = ((position - means) * axis).sum(1, keepdim=True).detach() < 0
    return torch.where(away, -axis, axis)


def rotations(quaternions: Tensor) -> Tensor:
    """[N, 4] quaternions (w, x, y, z) of any length -> [N, 3, 3] rotations I + 2 w V + 2 V V, with V v = (x, y, z) x v
    of the quaternion made a unit; one of length 0 is no rotation."""
    unit = F.normalize(quaternions, dim=-1)
    eye = torch.eye(3, dtype=unit.dtype, device=unit.device)
    across = torch.linalg.cross(unit[:, 1:, None].expand(-1, 3, 3), eye.expand(len(unit), 3, 3), dim=1)
    return eye + 2 * unit[:, :1, None] * across + 2 * across @ across


def _images(passes: list[Splats], cameras: Cameras, background: Tensor) -> Images:
    features = torch.cat([p.features for p in passes])
    alpha = torch.cat([p.alpha for p in passes])[:, None]
    # How much longer a pixel's ray is than its way along the camera's axis.
    flat = replace(cameras, camera_to_world=torch.eye(3, 4).to(cameras.camera_to_world).expand(len(cameras), 3, 4))
    longer = -1 / flat.rays()[1][..., 2]
    depth = torch.cat([p.depth for p in passes])[:, None] * longer[:, None].to(alpha)
    return on_background(features[:, :3], alpha, depth, features[:, 3:] if features.shape[1] > 3 else None, background)
