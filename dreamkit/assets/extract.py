"""A density field becomes a triangle surface: sample it on a grid, choose the level, cut.

A grid is a tensor [X, Y, Z] of values at nodes spread evenly over the cube [-1, 1]^3, the first and last nodes on its
faces; value[i, j, k] belongs to (x_i, y_j, z_k). Inside is where the value is above the level.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.errors import RunError
from dreamkit.kernels import tets
from dreamkit.meshes import Mesh

LOWEST, HIGHEST = 1e-2, 1e4
"""Densities per world unit beyond which differences cannot be seen: 2 % opaque through the whole cube, and opaque in
less than a thousandth of it."""
PIXELS = 1 << 16
FLOOR = math.log(LOWEST) + 1e-4  # the logarithm of "empty", with room for float32 rounding


@torch.no_grad()
def density_grid(
    density: Callable[[Tensor], Tensor],
    resolution: int,
    device: torch.device | str = "cpu",
    chunk: int = 1 << 18,
) -> Tensor:
    """The density at every node of a grid, [R, R, R] float32 on `device`.

    Args:
        density: positions [N, 3] in [-1, 1] -> densities [N] (or [N, 1]), per unit length.
        resolution: R, nodes along each edge, at least 2.
        chunk: at most so many positions a call, which bounds the memory.
    """
    if resolution < 2:
        raise ValueError(f"a density grid needs a resolution of at least 2; got {resolution}")
    along = torch.linspace(-1, 1, resolution, device=device)
    values = torch.empty(resolution**3, device=device)
    for start in range(0, len(values), chunk):
        node = torch.arange(start, min(start + chunk, len(values)), device=device)
        i, j, k = node // resolution**2, node // resolution % resolution, node % resolution
        positions = torch.stack([along[i], along[j], along[k]], dim=-1)
        values[start : start + chunk] = density(positions).reshape(-1).float()
    return values.reshape(resolution, resolution, resolution)


def marching_cubes(grid: Tensor, level: float) -> Mesh:
    """The surface where `grid` crosses `level`, closed and facing outward (towards lower values).

    Where the inside reaches the border of the cube, the surface is closed flat on the cube's face. Vertices are
    interpolated linearly along grid edges. Empty if nothing lies above the level. Not differentiable.

    Args:
        grid: [X, Y, Z], each at least 2; values that are not finite count as empty.
        level: in the units of the grid.
    """
    grid = grid.detach().float()
    vertices, faces = tets.marching_cubes(torch.where(grid.isfinite(), grid, level - 1.0), level)
    return Mesh(vertices.cpu().numpy(), faces.int().cpu().numpy())


def signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """The volume inside a closed surface, positive if it faces outward (divergence theorem), in cubic world units."""
    a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


@dataclass(frozen=True)
class Level:
    """A density level, and the agreement of its silhouettes with the pictures (intersection over union, 1 is best)."""

    density: float
    iou: float


def density_surface(grid: Tensor, level: float) -> Mesh:
    """The surface where a grid of densities crosses `level`, interpolated in the logarithm of the density.

    A field's density grows about exponentially into the object; between nodes of 0.01 and 1000 a linear crossing of 10
    would sit on the empty node, and the surface would be a staircase. See `marching_cubes`.
    """
    return marching_cubes(log_density(grid), math.log(max(level, LOWEST)))


def log_density(grid: Tensor) -> Tensor:
    """log(density), between LOWEST and HIGHEST; what is not a number counts as empty."""
    return grid.float().nan_to_num(0.0, posinf=HIGHEST).clamp(LOWEST, HIGHEST).log()


@torch.no_grad()
def match_level(grid: Tensor, alpha: Tensor, cameras: Cameras, *, opaque: float = 0.5, slack: float = 0.002) -> Level:
    """The density level whose surface has the silhouettes that the scene's renders show.

    A ray meets the region above a level if and only if the largest density along the ray is above it. So one pass,
    which finds that largest density for every pixel, gives the silhouettes of all levels at once, and sorting the
    pixels by it gives every level's intersection over union with {alpha > opaque}: the search is exact over all levels
    (for rays sampled at least once a cell). Hard objects have a broad plateau of equally good levels; of the levels
    around the best that lose no more than `slack`, the geometric middle is taken.

    Args:
        grid: [R, R, R] densities over [-1, 1]^3, interpolated as in `density_surface`.
        alpha: [B, 1, H, W] rendered opacity.
        cameras: [B], of the same picture size.
        opaque: the opacity above which a pixel shows the object, between 0 and 1.

    Raises RunError if the pictures, or the grid, show nothing.
    """
    if alpha.shape != (len(cameras), 1, cameras.height, cameras.width):
        raise ValueError(
            f"match_level expects alpha [{len(cameras)}, 1, {cameras.height}, {cameras.width}] like its cameras; "
            f"got {tuple(alpha.shape)}"
        )
    # Enough pixels to place a level; every other one, or third, of larger pictures.
    every = math.ceil((alpha.numel() / PIXELS) ** 0.5)
    seen = alpha[:, 0, ::every, ::every].to(grid.device).reshape(-1) > opaque
    peak = _peak_along_rays(log_density(grid), cameras, every)
    if not bool(seen.any()) or float(peak.max()) <= FLOOR:
        raise RunError(
            f"There is no object to export: the largest opacity in {len(cameras)} views is {float(alpha.max()):.3f} "
            f"(a surface needs {opaque:g}), and the largest density is {float(grid.max()):.3g}. The scene is empty or "
            "fog: look at the run's images, then train longer, or from another seed, or with a weaker sparsity loss."
        )
    return _best_cut(peak, seen, slack)


def _best_cut(peak: Tensor, seen: Tensor, slack: float) -> Level:
    """The level at which {peak > level} and {seen} agree best. peak [N] log densities and seen [N], one a pixel."""
    peak, order = peak.double().sort(descending=True)
    inside = seen[order].long().cumsum(0).double()  # pixels of the object among the n + 1 with the highest peaks
    taken = torch.arange(1, len(peak) + 1, device=peak.device, dtype=torch.float64)
    iou = inside / (taken + float(seen.sum()) - inside)
    # A level lies between two peaks: below peak[n], at or above peak[n + 1]. Equal peaks cannot be told apart.
    lower = torch.cat([peak[1:], peak.new_full((1,), FLOOR)])
    iou = torch.where(peak > lower.clamp(min=FLOOR), iou, -1.0)
    best = int(iou.argmax())
    # The neighbours on both sides that are as good, up to the slack; what cannot be cut (-1) is passed over.
    bad = (iou < iou[best] - slack) & (iou >= 0)
    before, after = bad[:best].nonzero().flatten(), bad[best + 1 :].nonzero().flatten()
    first = int(before[-1]) + 1 if len(before) else 0
    last = best + int(after[0]) if len(after) else len(peak) - 1
    return Level(math.exp(float(peak[first] + lower[last]) / 2), float(iou[best]))


def _peak_along_rays(grid: Tensor, cameras: Cameras, every: int, chunk: int = 1 << 14) -> Tensor:
    """The largest log density along the ray of every `every`-th pixel of every such row, inside the cube (the lowest
    if it misses it)."""
    origins, directions = (r[:, ::every, ::every].reshape(-1, 3).to(grid) for r in cameras.rays())
    # Where each ray crosses the three pairs of planes; a ray along a plane gives +-inf, which min and max carry.
    a, b = (-1 - origins) / directions, (1 - origins) / directions
    near = torch.minimum(a, b).amax(-1).clamp(min=0)
    far = torch.maximum(a, b).amin(-1)
    # One a cell along the longest chord, the diagonal 2 sqrt(3); closer on all others.
    samples = int(3**0.5 * (max(grid.shape) - 1)) + 1
    fraction = torch.linspace(0, 1, samples, device=grid.device)
    volume = grid.permute(2, 1, 0)[None, None]  # grid_sample wants [z, y, x]
    peak = torch.full((len(origins),), math.log(LOWEST), device=grid.device)
    hit = (far > near).nonzero().flatten()
    for part in hit.split(chunk):
        length = near[part, None] + (far - near)[part, None] * fraction
        points = origins[part, None] + directions[part, None] * length[..., None]
        values = torch.nn.functional.grid_sample(volume, points[None, None], align_corners=True, padding_mode="border")
        peak[part] = values[0, 0, 0].amax(-1)
    return peak
