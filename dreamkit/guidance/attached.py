"""Noise attached to the object, so that all views see the same (Consistent Flow Distillation, arXiv:2501.05445).

The object stands in noise textures: round the origin, 6 charts (one for each half axis) times SHELLS radial shells. A
cell of x sees a patch of the surface; the patch, laid flat on its chart, covers texels, and the cell's noise is

    sum of the covered texels / sqrt(their number),

N(0, 1) whatever the patch. Two cells of two views are correlated as much as their patches overlap: the covariance is
(texels shared) / sqrt(texels of one * texels of the other).

A chart is Lambert's equal-area map of the sphere of directions about its half axis,
(X, Y) = (x, y) sqrt(2 / (1 + z)) for the unit direction (x, y, z) with z along the half axis: [-1, 1]^2 of it, up to
60 degrees off the axis. A cell lies on the chart whose half axis its centre is nearest to, and on the shell of its
centre's radius. The patches of one view are rasterised together, every texel owned by one cell at most, so that within
a view the noise is exactly independent.

Derived: the size of the textures, which charts and which shells; the published ones are 2048 x 2048 texels on 6 planes
and 4 shells.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dreamkit.diffusion import over
from dreamkit.guidance.geometry import Geometry
from dreamkit.guidance.noise import Fresh, Kept
from dreamkit.guidance.rule import Noise, Noised, Part, Probe
from dreamkit.kernels.raster import rasterize
from dreamkit.priors.prior import Prior
from dreamkit.schedule import Number, fixed
from dreamkit.streams import Streams
from dreamkit.triangles import summed

PLANES = 6
SHELLS = 4
"""Of equal thickness up to radius 1; what is farther out lies on the last."""


@dataclass(frozen=True)
class Attached(Noise):
    """Noise attached to the surfaces that the pictures show, the same all through a run: it hangs on the seed alone.

    A cell that shows nothing, that sees more of the directions than a chart holds, or whose patch covers no texel gets
    background noise.

    background  "kept": one picture for all views and steps; "fresh": new at every step and in every view
    share       of the variance that is attached; the rest is fresh
    texels      side of a chart, in sides of x: 4 make textures of 384 texels for every cell of x
    """

    background: Literal["kept", "fresh"] = "kept"
    share: Number = 1.0
    texels: int = 4

    def __call__(self, probe: Probe) -> Noised:
        height, width = probe.x.shape[-2:]
        side = self.texels * max(height, width)
        textures = self.textures(probe, PLANES * SHELLS * side**2)
        behind = (Kept() if self.background == "kept" else Fresh())(probe).noise
        found = [_seen(textures, owner, height * width) for owner in owners(probe.geometry, height, width, side)]
        noise = torch.stack([values.T.reshape(probe.x.shape[1:]) for values, _ in found])
        covered = torch.stack([covers.reshape(1, height, width) for _, covers in found])
        noise, share = torch.where(covered, noise, behind), fixed(self.share)
        if share != 1:
            noise = share**0.5 * noise + (1 - share) ** 0.5 * probe.streams.normal("mixed", noise.shape, like=noise)
        return Noised(noise)

    def textures(self, probe: Probe, count: int) -> Tensor:
        """The textures of this step [count, C]."""
        return _drawn(probe.streams.still(), count, probe.x.shape[1], probe.x.dtype, probe.x.device)


@dataclass(frozen=True)
class Drifting(Attached):
    """Attached noise that slowly becomes another: after every step T <- sqrt(1 - rate) T + sqrt(rate) N(0, 1).

    The published rates are 1e-4, or 0.01 falling to that. The textures are a part of the run's state: mind the size of
    its checkpoints, 4 bytes * 384 * the numbers in x (25 MB for four channels of 64 x 64, 19 MB for the toybox).
    """

    part_name: ClassVar[str] = "textures"

    rate: Number = 1e-4

    def textures(self, probe: Probe, count: int) -> Tensor:
        part = probe.part("textures", Textures)
        if len(part.value) != count:
            raise ValueError(f"the part named 'textures' does not hold {count} texels")
        part.rate = fixed(self.rate)
        return part.value.to(probe.x)

    def part(self, prior: Prior, streams: Streams) -> "Textures":
        channels, height, width = prior.shape
        count = PLANES * SHELLS * (self.texels * max(height, width)) ** 2
        return Textures(streams.normal("textures", (count, channels)).to(prior.device))


class Textures(Part):
    """Textures that drift."""

    def __init__(self, value: Tensor):
        self.value, self.rate = value, 0.0

    def train(self, probe: Probe) -> float:
        """One step of drift; returns the mean square of the texels, which stays at 1."""
        if self.rate:
            new = probe.streams.normal("drift", tuple(self.value.shape), like=self.value)
            self.value = (1 - self.rate) ** 0.5 * self.value + self.rate**0.5 * new
        return float(self.value.square().mean())

    def state(self) -> dict[str, Any]:
        return {"value": self.value}

    def load(self, state: dict[str, Any]) -> None:
        if state["value"].shape != self.value.shape:
            raise ValueError(f"textures of {tuple(self.value.shape)} cannot take over {tuple(state['value'].shape)}")
        self.value = state["value"].to(self.value)


def owners(geometry: Geometry, height: int, width: int, side: int) -> Tensor:
    """Which of the height x width cells of each view owns each texel: [B, PLANES * SHELLS * side^2], -1 for none.

    Cells are counted row by row, texels too, in a picture of the charts: a row of them for every half axis, a column
    for every shell.
    """
    corners, shown = geometry.cells(height, width)
    quads = torch.stack([corners[:, :-1, :-1], corners[:, 1:, :-1], corners[:, 1:, 1:], corners[:, :-1, 1:]], dim=3)
    centre = quads.mean(3)
    axis = centre.abs().argmax(-1)
    below = centre.gather(-1, axis[..., None])[..., 0] < 0
    flat = _lambert(quads, axis[..., None], below[..., None])
    kept = shown & (flat.abs() <= 1).flatten(3).all(-1)
    shell = (centre.norm(dim=-1) * SHELLS).long().clamp(max=SHELLS - 1)
    column = (shell[..., None] + (flat[..., 0] + 1) / 2) / SHELLS
    row = (2 * axis[..., None] + below[..., None] + (flat[..., 1] + 1) / 2) / PLANES
    clip = torch.stack([2 * column - 1, 1 - 2 * row, torch.zeros_like(row), torch.ones_like(row)], dim=-1)
    clip = torch.where(kept[..., None, None], clip, torch.nan).flatten(1, 3)  # what is not finite is not drawn
    first = torch.arange(0, 4 * height * width, 4, device=clip.device, dtype=torch.int32)[:, None, None]
    faces = (first + torch.tensor([[0, 1, 2], [0, 2, 3]], device=clip.device, dtype=torch.int32)).flatten(0, 1)
    # One view at a time: the raster of the charts is the largest thing here.
    seen = [rasterize(view[None], faces, (PLANES * side, SHELLS * side)).face for view in clip]
    return torch.cat(seen).flatten(1).div(2, rounding_mode="floor")


def _lambert(points: Tensor, axis: Tensor, below: Tensor) -> Tensor:
    """Positions [..., 3] on the charts about the half axes `axis` (0, 1, 2; negative where `below`): [..., 2].

    Of the origin and of what lies opposite to the half axis, not finite.
    """
    along = torch.stack([axis, (axis + 1) % 3, (axis + 2) % 3], dim=-1).expand(*points.shape[:-1], 3)
    z, x, y = torch.nn.functional.normalize(points, dim=-1, eps=0).gather(-1, along).unbind(-1)
    return torch.stack([x, y], dim=-1) * (2 / (1 + torch.where(below, -z, z))).sqrt()[..., None]


def _seen(textures: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The noise of `count` cells [count, C], from textures [T, C] and the cell that owns each texel [T]; and which of
    them own any [count]."""
    texel = (owner >= 0).nonzero()[:, 0]
    cell = owner[texel].long()
    total = summed(textures[texel], cell, count)  # the same bits again, also on CUDA
    number = torch.bincount(cell, minlength=count)
    return total * over(number.clamp(min=1).double().rsqrt(), total), number > 0


@lru_cache(maxsize=8)  # for steps on several GPUs at once
def _drawn(streams: Streams, count: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Textures that the seed alone says; the last ones are kept at hand."""
    return streams.normal("textures", (count, channels)).to(dtype=dtype, device=device)
