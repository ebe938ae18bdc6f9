"""Where a ray is worth looking at: samples in the cells of a grid, those that are not hidden, those that count most.

`march` makes samples at equal steps inside the cube [-1,1]^3, only in cells that are not empty; `visible` drops those
that others hide; `resample` puts new ones where the weights of old ones are. `contract` brings all of space into the
cube.
"""

import math
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

    Memory: 12 bytes a sample and 4 a ray, in float32.
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
        backend:    "auto", "warp", "reference", or "nerfacc" (CUDA and float32 only).

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
        run = choose.implementation(__name__, "march", backend, origins)
        found: Samples = run(origins, directions, occupancy, step, jitter, near)
        return found


def visible(samples: Samples, depth: Tensor, *, least: float = 1e-3, backend: str = "auto") -> tuple[Samples, Tensor]:
    """The samples that are not hidden: those reached by more than the share `least` of the light.

    Sample i stays while exp(-sum_{j<i} depth_j) >= least, j over the samples before it on its ray: early termination
    (Instant-NGP, arXiv:2201.05989, appendix E.1). Every ray keeps a first part of its samples. A NaN hides nothing,
    nor does what comes after it: it must stay and be seen.

    Args:
        samples: S of them.
        depth:   [S] optical depth of each, density times length, or less than that if only a bound is known; >= 0.
        least:   in (0, 1).
        backend: "auto", "warp" or "reference".

    Returns the kept Samples, and [K] int64 the places of the kept among the S, rising. Not differentiable. Backends
    may disagree on a sample within rounding of `least`.

    Raises ValueError for wrong shapes, dtypes, devices or `least`; InputError for a backend that is not there.
    """
    if depth.shape != samples.t.shape or depth.dtype != samples.t.dtype or depth.device != samples.t.device:
        raise ValueError(
            f"visible expects depth like samples.t, {tuple(samples.t.shape)} {samples.t.dtype} on {samples.t.device}; "
            f"got {tuple(depth.shape)} {depth.dtype} on {depth.device}"
        )
    if not 0 < least < 1:
        raise ValueError(f"visible expects 0 < least < 1; got {least}")
    with torch.no_grad():
        run = choose.implementation(__name__, "visible", backend, depth)
        offsets, chosen = run(depth.detach(), samples.offsets, -math.log(least))
        ray, t, length = (values.index_select(0, chosen) for values in (samples.ray, samples.t, samples.length))
        return Samples(ray, t, length, offsets), chosen


def resample(samples: Samples, weight: Tensor, count: int, *, jitter: Tensor, backend: str = "auto") -> Samples:
    """`count` new samples on every ray that has any, more of them where the weight is: by the inverse of its sum.

    A sample stands for the stretch of `length` around its t; there the weight is spread evenly, and between stretches
    there is none. Let C(t) be the share of the ray's weight before t. The new samples and their borders lie at

        C(t_k) = (k + jitter) / count,   C(b_k) = k / count,   k = 0, ..., count - 1

    (NeRF, arXiv:2003.08934, section 5.2, with one jitter a ray: Mip-NeRF 360, arXiv:2111.12077, section 3.1), so
    they are sorted. A new length is how much of the old stretches lies between its borders, and their sum is that of
    the old lengths. Where all weights of a ray are 0, the lengths take their place: uniform samples.

    Args:
        samples: on R rays; the stretches of a ray must not overlap.
        weight:  [S], for example Composite.weight, or that plus a little, so that no place is ever lost. What is
                 negative or not finite counts as 0.
        count:   new samples a ray, > 0.
        jitter:  [R] in [0, 1); 0.5 puts a sample at its share's middle.
        backend: "auto", "warp" or "reference".

    Not differentiable: gradients reach the proposals by a loss on their weights, not by where samples are.

    Raises ValueError for wrong shapes, dtypes, devices or count; InputError for a backend that is not there.
    """
    t, rays = samples.t, len(samples.offsets) - 1
    if weight.shape != t.shape or jitter.shape != (rays,):
        raise ValueError(
            f"resample expects weight [S] and jitter [R], here {tuple(t.shape)} and ({rays},); "
            f"got {tuple(weight.shape)} and {tuple(jitter.shape)}"
        )
    if not t.dtype == weight.dtype == jitter.dtype or not t.device == weight.device == jitter.device:
        raise ValueError(
            f"resample expects all on one device and of one dtype; got samples {t.dtype} on {t.device}, "
            f"weight {weight.dtype} on {weight.device}, jitter {jitter.dtype} on {jitter.device}"
        )
    if count < 1:
        raise ValueError(f"resample expects count > 0; got {count}")
    with torch.no_grad():
        run = choose.implementation(__name__, "resample", backend, t)
        some = (samples.offsets.diff() > 0).int()
        offsets = torch.nn.functional.pad(torch.cumsum(some, 0, dtype=torch.int32) * count, (1, 0))
        rows = some.nonzero().squeeze(-1)
        weight = torch.where(torch.isfinite(weight) & (weight > 0), weight, 0.0)
        new_t, new_length = run(t, samples.length, samples.offsets, weight, count, jitter, rows)
        return Samples(rows.int().repeat_interleave(count), new_t, new_length, offsets)


def contract(points: Tensor) -> Tensor:
    """All of space into the ball of radius 1, inside the cube [-1,1]^3: [..., 3] -> [..., 3].

        contract(x) = x / 2 where |x| <= 1, else (1 - 1 / (2 |x|)) x / |x|

    Mip-NeRF 360 (arXiv:2111.12077, eq. 10) times 1/2. Differentiable everywhere, by autograd. The Jacobian: 1/2 times
    the identity inside the unit ball; outside, with r = |x|, 1 / (2 r^2) along x and (2 r - 1) / (2 r^2) across it.
    So a field that is read at contract(x) keeps its density per unit of *world* length and is composited with world
    lengths, without a factor; only its gradient, and a normal made of it, must be taken through contract: with
    respect to the world's x.
    """
    squared = (points * points).sum(-1, keepdim=True)
    radius = torch.where(squared > 1, squared, 1.0).sqrt()  # not sqrt(0) inside: its derivative is infinite
    return points * (radius - 0.5) / radius.square()


def uncontract(points: Tensor) -> Tensor:
    """The inverse of `contract`: from the open ball of radius 1 back to space, [..., 3] -> [..., 3].

    Points on the unit sphere or outside it have no place in space; they are put in their direction as far away as the
    dtype's precision tells from infinity, 1 / (2 eps). Differentiable by autograd.
    """
    squared = (points * points).sum(-1, keepdim=True)
    radius = torch.where(squared > 0.25, squared, 0.25).sqrt()
    left = (1 - radius).clamp(min=torch.finfo(points.dtype).eps)
    return points / (2 * radius * left)


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
