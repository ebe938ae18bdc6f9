"""3D Gaussian splatting (3DGS, arXiv:2308.04079): Gaussians in the world -> pictures, differentiable."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.kernels import choose

BLUR = 0.3  # pixels^2 added to the covariance on the screen: no Gaussian is thinner than a pixel
LEAST_ALPHA = 1 / 255  # what is fainter is left out
MOST_ALPHA = 0.999  # what is denser is cut, and has no gradient there
DARK = 1e-4  # a pixel is finished before its transmittance falls below this
MARGIN = 1.3  # the projection is linearised no further out than this many half fields of view

# Real spherical harmonics of degree 0 to 3: the numbers of 3DGS, signs and order included, as in its files.
SH0 = math.sqrt(1 / (4 * math.pi))
SH1 = math.sqrt(3 / (4 * math.pi))
SH2 = (math.sqrt(15 / (4 * math.pi)), math.sqrt(5 / (16 * math.pi)), math.sqrt(15 / (16 * math.pi)))
SH3 = (
    math.sqrt(35 / (32 * math.pi)),
    math.sqrt(105 / (4 * math.pi)),
    math.sqrt(21 / (32 * math.pi)),
    math.sqrt(7 / (16 * math.pi)),
    math.sqrt(105 / (16 * math.pi)),
)


class Splats(NamedTuple):
    """What B cameras see of N Gaussians. Pictures are channels first, rows from the top.

    features [B, C, H, W] weighted sum of the features, over the background if one was given
    alpha    [B, H, W] sum of the weights, in [0, 1]
    depth    [B, H, W] weighted sum of the distance along the camera's axis, not divided by alpha
    radii    [B, N] pixels: 3 standard deviations along the longer axis; 0 where a Gaussian is not seen
    screen   [B, N, 2] pixels: x to the right, y down, from the upper left corner; 0 where not seen. In the graph:
             call `screen.retain_grad()` before the backward pass to get dL/d(screen) for densification
    spread   [B, N, 2] zeros. A leaf: after the backward pass its `grad` is the sum over the pixels of
             |dL_pixel/d(screen)|, the homodirectional gradient of AbsGS (arXiv:2404.10484, eq. 10); None unless
             asked for
    """

    features: Tensor
    alpha: Tensor
    depth: Tensor
    radii: Tensor
    screen: Tensor
    spread: Tensor | None


class Scene(NamedTuple):
    """What backends project: Gaussians as in `splat`, opacities in [0, 1], and B cameras.

    frames [B, 4, 3] world directions to the right, down and ahead in the picture, and the position
    focal  [B] pixels
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    frames: Tensor
    focal: Tensor


class Projected(NamedTuple):
    """What backends project to, and draw. All are 0 for what is not seen.

    screen  [B, N, 2] centres, pixels
    conics  [B, N, 3] (a, b, c) is [[a, b], [b, c]], the inverse of the covariance on the screen
    opacity [B, N]
    depth   [B, N] along the camera's axis
    extent  [B, N, 2] half the width and height of the box outside which alpha is below 1/255
    radii   [B, N] as in `Splats`
    """

    screen: Tensor
    conics: Tensor
    opacity: Tensor
    depth: Tensor
    extent: Tensor
    radii: Tensor


def splat(
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    cameras: Cameras,
    *,
    background: Tensor | None = None,
    sh_degree: int | None = None,
    antialiased: bool = False,
    absolute: bool = False,
    near: float = 0.01,
    backend: str = "auto",
) -> Splats:
    """Draw Gaussians, nearest first, each one's opacity spread over the screen as a 2D Gaussian.

        C(pixel) = sum_i alpha_i c_i prod_{j<i} (1 - alpha_j),   alpha_i = min(0.999, o_i exp(-d^T K_i d / 2))

    (3DGS, arXiv:2308.04079, eq. 3) with d from the Gaussian's centre on the screen to the centre of the pixel, and
    K_i the inverse of J W Sigma W^T J^T + 0.3 I, where Sigma = R S S^T R^T (eq. 5 and 6), W turns the world into the
    camera and J is the Jacobian of the projection at the mean, with x/z and y/z kept within 1.3 half fields of view.
    An alpha below 1/255 counts as 0; a pixel ends before the Gaussian that would take its transmittance under 1e-4.
    Equal depths are drawn in the order of the index.

    Args:
        means:       [N, 3] world; float32 or float64, like all that follow. N may be 0.
        quaternions: [N, 4] (w, x, y, z), of any length; of length 0 is no rotation.
        scales:      [N, 3] standard deviations along the axes, >= 0, world units (not logarithms).
        opacities:   [N] in [0, 1]; what is outside is moved to the nearer end.
        features:    [N, C], C >= 1, anything: colours, normals, a latent; or [B, N, C], others in every view. With
                     `sh_degree`: [N, (degree + 1)^2, 3] coefficients of spherical harmonics in the direction from the
                     camera to the mean, and the colour is max(0, 0.5 + their sum).
        cameras:     B views. Pixels are square; the centre of the first is at (0.5, 0.5).
        background:  [B, C], what lies behind; None is black.
        sh_degree:   0 to 3, or None for plain features.
        antialiased: multiply each opacity by sqrt(det before / det after the 0.3 is added), so that what is smaller
                     than a pixel becomes fainter instead of larger (Mip-Splatting, arXiv:2311.16493, eq. 9).
        absolute:    also sum the absolute screen gradients (`Splats.spread`).
        near:        Gaussians whose mean is not farther than this along the axis of the camera are not seen.
        backend:     "auto", "warp", "reference", or "gsplat" (CUDA, float32).

    Differentiable once in means, quaternions, scales, opacities, features, background and cameras.camera_to_world,
    through features, alpha and depth. The order, and which Gaussians count, are taken as constant.

    Memory (warp, float32), beside the pictures: 8 bytes for every tile of 16 x 16 pixels that a Gaussian meets, 4 (7 +
    C) more while the gradients are made; about 130 + 12 C for every Gaussian and view; with `absolute` 8 more each.

    On a CPU the result does not depend on the number of threads. On CUDA the gradients of one Gaussian in one tile
    are summed by atomic adds, whose order, and so the last bits, may change between runs;
    `torch.use_deterministic_algorithms(True)` puts a whole tile on one thread instead, without atomics, slower.

    Raises ValueError for wrong shapes, dtypes or devices and for inputs that are not finite; InputError for a backend
    that is not there.

    >>> from dreamkit.cameras import orbit
    >>> at, turn, size = torch.zeros(1, 3), torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2)
    >>> seen = splat(at, turn, size, torch.tensor([0.8]), torch.ones(1, 1), orbit([0.0], 0.0, size=(32, 33)))
    >>> tuple(seen.features.shape), f"{seen.alpha.max().item():.2f}", f"{seen.screen[0, 0].tolist()}"
    ((1, 1, 32, 33), '0.79', '[16.5, 16.0]')
    """
    _check(means, quaternions, scales, opacities, features, cameras, background, sh_degree)
    if sh_degree is not None and not 0 <= sh_degree <= 3:
        raise ValueError(f"splat knows spherical harmonics of degree 0 to 3; got sh_degree={sh_degree}")
    if not near > 0:
        raise ValueError(f"splat expects near > 0; got {near}")
    run = choose.backend(__name__, backend, means)
    frames = _frames(cameras)
    focal = cameras.height / 2 / torch.tan(torch.deg2rad(cameras.fov_degrees.detach().to(means)) / 2)
    size = cameras.height, cameras.width
    scene = Scene(means, quaternions, scales, opacities.clamp(0, 1), frames, focal)
    found = run.project(scene, size, near, antialiased)
    if sh_degree is None:
        rows = features.expand(len(cameras), -1, -1)
    else:
        rows = run.colour(means, features, frames[:, 3], sh_degree, found.radii)
    spread = torch.zeros_like(found.screen, requires_grad=True) if absolute else None
    pictures, alpha, far = run.rasterise(found, rows, size, spread)
    if background is not None:
        pictures = pictures + (1 - alpha)[:, None] * background[:, :, None, None]
    return Splats(pictures, alpha, far, found.radii, found.screen, spread)


def _frames(cameras: Cameras) -> Tensor:
    """[B, 4, 3]: the world directions to the right, down and ahead in the picture, and the position."""
    columns = cameras.camera_to_world.transpose(1, 2)
    return columns * columns.new_tensor([1.0, -1.0, -1.0, 1.0])[:, None]


def _check(
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    cameras: Cameras,
    background: Tensor | None,
    sh_degree: int | None,
) -> None:
    count, views = len(means), len(cameras)
    wanted = {
        "means": (means, "[N, 3]", (count, 3)),
        "quaternions": (quaternions, "[N, 4]", (count, 4)),
        "scales": (scales, "[N, 3]", (count, 3)),
        "opacities": (opacities, "[N]", (count,)),
        "cameras.camera_to_world": (cameras.camera_to_world, "[B, 3, 4]", (views, 3, 4)),
    }
    if sh_degree is None:
        channels, each = features.shape[-1] if features.ndim in (2, 3) else 0, (views,) if features.ndim == 3 else ()
        wanted["features"] = (features, "[N, C] or [B, N, C], C >= 1,", (*each, count, max(channels, 1)))
    else:
        channels, terms = 3, (sh_degree + 1) ** 2
        wanted["features"] = (features, f"[N, {terms}, 3] for sh_degree={sh_degree},", (count, terms, 3))
    if background is not None:
        wanted["background"] = (background, "[B, C]", (views, channels))
    for name, (tensor, letters, shape) in wanted.items():
        if tensor.shape != shape:
            raise ValueError(
                f"splat expects {name} {letters} with N = {count} means and B = {views} cameras; "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.dtype != means.dtype or tensor.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"splat expects float32 or float64, the same for all; got means {means.dtype}, {name} {tensor.dtype}"
            )
        if tensor.device != means.device:
            raise ValueError(
                f"splat expects all its tensors on one device; got means on {means.device}, {name} on {tensor.device}"
            )
        if not _finite(tensor.detach()):
            raise ValueError(f"splat expects finite inputs; {name} holds NaN or infinite values")


def _finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    # A sum is one pass and makes no second tensor; it may overflow, so it only raises the suspicion. By numpy, on one
    # thread: torch's would still spin when the kernels' threads start.
    with np.errstate(all="ignore"):
        total = tensor.numpy().sum() if tensor.device.type == "cpu" else tensor.sum().item()
    return math.isfinite(total) or bool(tensor.isfinite().all())
