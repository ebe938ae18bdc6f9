"""Where a ray is worth looking at: uniform samples inside the cube [-1,1]^3, only in cells that are not empty."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.kernels import choose


@dataclass(frozen=True)
class Samples:
    """The samples of R rays, packed: one ray after the other, each from near to far.

    ray     [S] int32, the ray of each sample, sorted
    t       [S] distance from the ray's origin
    length  [S] the length of ray that a sample stands for
    offsets [R+1] int32, ray r owns the samples offsets[r] to offsets[r+1] - 1
    """

    ray: Tensor
    t: Tensor
    length: Tensor
    offsets: Tensor

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """[S, 3] where the samples lie, for the rays [R, 3] they were marched along. Differentiable in the rays."""
        ray = self.ray.long()
        return origins[ray] + directions[ray] * self.t[:, None]


def march(
    origins: Tensor,
    directions: Tensor,
    occupancy: Tensor,
    *,
    step: float,
    jitter: Tensor,
    near: float = 0.0,
    backend: str = "auto",
) -> Samples:
    """Samples at equal steps along rays inside the cube [-1,1]^3, those in empty cells left out.

    A ray enters the cube at t_in (at least `near`) and leaves it at t_out. Its candidates are

        t_i = t_in + (i + jitter) * step,   i = 0, 1, ...,   t_i < t_out

    and a candidate is a sample if its cell, floor((position + 1) / 2 * G) on each axis, is occupied. Every sample
    stands for a length of `step`. Skipping empty cells follows Instant-NGP (arXiv:2201.05989, appendix E.1).

    Args:
        origins:    [R, 3], float32 or float64.
        directions: [R, 3] of length 1, the same dtype.
        occupancy:  [G, G, G] bool; cell [i, j, k] is the i-th along x, j-th along y, k-th along z, from -1 to 1.
        step:       distance between candidates, > 0.
        jitter:     [R] in [0, 1), the place of the samples within their step; 0.5 is the midpoint rule.
        near:       no sample closer to the origin than this.
        backend:    "auto", "warp" or "reference".

    Returns Samples; t and length have the dtype of `origins`. A ray that misses the cube, holds a NaN or
    has a direction of length 0 has none.
    Not differentiable. Backends may disagree on a candidate within rounding of a cell face or of t_out.

    Raises ValueError for wrong shapes, dtypes, devices or step; InputError for a backend that is not there.
    """
    rays = len(origins)
    if origins.shape != (rays, 3) or directions.shape != (rays, 3) or jitter.shape != (rays,):
        raise ValueError(
            f"march expects origins [R, 3], directions [R, 3], jitter [R]; "
            f"got {tuple(origins.shape)}, {tuple(directions.shape)}, {tuple(jitter.shape)}"
        )
    if occupancy.ndim != 3 or len(set(occupancy.shape)) != 1 or occupancy.dtype != torch.bool or not len(occupancy):
        raise ValueError(f"march expects occupancy [G, G, G] bool; got {tuple(occupancy.shape)} {occupancy.dtype}")
    if not origins.dtype == directions.dtype == jitter.dtype or origins.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"march expects float32 or float64, the same for all; "
            f"got origins {origins.dtype}, directions {directions.dtype}, jitter {jitter.dtype}"
        )
    if len({tensor.device for tensor in (origins, directions, occupancy, jitter)}) != 1:
        raise ValueError("march expects origins, directions, occupancy and jitter on one device")
    if not step > 0:
        raise ValueError(f"march expects step > 0; got {step}")
    with torch.no_grad():
        return choose.backend(__name__, backend).march(origins, directions, occupancy, step, jitter, near)


def cell_points(size: int, jitter: Tensor | None = None) -> Tensor:
    """[size^3, 3] one point in each cell of the cube [-1,1]^3, in the order of occupancy.flatten().

    Args:
        size:   cells per axis.
        jitter: [size^3, 3] in [0, 1), the place within each cell; its centre if None.
    """
    axis = torch.arange(size, device=None if jitter is None else jitter.device)
    cells = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    return (cells + (0.5 if jitter is None else jitter)) * (2 / size) - 1


def update_occupancy(
    density: Tensor, seen: Tensor, *, threshold: float | Tensor, decay: float = 0.95
) -> tuple[Tensor, Tensor]:
    """A grid of remembered densities after new ones were seen, and which of its cells are occupied.

        density' = max(decay * density, seen),   occupied = density' > threshold

    (Instant-NGP, arXiv:2201.05989, appendix E.2). A cell so stays occupied for a while after it emptied. With
    threshold = min(something, density.mean()) a young scene, thin everywhere, cannot be emptied all at once.

    Args:
        density: [G, G, G] remembered, >= 0.
        seen:    [G, G, G] seen now; a NaN counts as not seen.

    Returns the new density [G, G, G] and occupied [G, G, G] bool. Not differentiable.
    """
    if density.ndim != 3 or density.shape != seen.shape:
        raise ValueError(
            f"update_occupancy expects two grids [G, G, G]; got {tuple(density.shape)} and {tuple(seen.shape)}"
        )
    with torch.no_grad():
        density = torch.fmax(density * decay, seen)
        return density, density > threshold
