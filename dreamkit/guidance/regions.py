"""Boxes of the world with prompts of their own: what each stands for is drawn where its surface is seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from dreamkit.cameras import Cameras
from dreamkit.diffusion import cfg
from dreamkit.errors import InputError
from dreamkit.guidance.geometry import Geometry
from dreamkit.guidance.rule import Ask, Estimate, Post, Probe
from dreamkit.priors.prior import Condition, Prior
from dreamkit.prompts import with_view
from dreamkit.schedule import Number, fixed

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Region:
    """A box of the world, and what stands in it; without a prompt, what the run is asked for."""

    prompt: str = ""
    low: Point = (-2.0, -2.0, -2.0)
    high: Point = (2.0, 2.0, 2.0)

    @property
    def centre(self) -> Point:
        x, y, z = ((a + b) / 2 for a, b in zip(self.low, self.high, strict=True))
        return x, y, z


def masks(geometry: Geometry, regions: tuple[Region, ...], like: Tensor, grow: int) -> Tensor:
    """Which cells of the latents `like` [B, C, h, w] show which region: [B, K, h, w] of 0 and 1, in their dtype.

    A cell belongs to the first region that holds the middle of its surface. Every region then grows by `grow` cells to
    all sides, into cells that belong to no region only (SemanticSDS, arXiv:2410.09009, dilates by 5 x 5).
    """
    corners, shown = geometry.cells(like.shape[-2], like.shape[-1])
    middle = (corners[:, :-1, :-1] + corners[:, 1:, :-1] + corners[:, 1:, 1:] + corners[:, :-1, 1:]) / 4
    found, free = [], shown
    for region in regions:
        low, high = (middle.new_tensor(point) for point in (region.low, region.high))
        mine = free & ((middle >= low) & (middle <= high)).all(-1)
        found.append(mine)
        free = free & ~mine
    own = torch.stack(found, 1).to(like)
    empty = 1 - own.sum(1, keepdim=True)
    return torch.maximum(own, empty * max_pool2d(own, 2 * grow + 1, stride=1, padding=grow))


@dataclass(frozen=True)
class Regions(Estimate):
    """(1 / K) sum_k M_k (guided_k - noise): SDS of K prompts, each where its region is seen; see `masks` for M_k.

    The mean over K is the published one and makes steps smaller the more regions there are; with `total` it is the sum,
    which is SDS where the regions share out the picture. View words are chosen for each region by where the camera
    stands round its middle. A region's prompt replaces the whole prompt. One prediction a region and one under the null
    prompt, which all share.
    """

    mixes: ClassVar[bool] = True

    scale: Number
    regions: tuple[Region, ...] = (Region(),)
    total: bool = False
    grow: int = 2

    def __post_init__(self) -> None:
        if not self.regions:
            raise InputError("Regions needs at least one Region.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"region{number}" for number in range(len(self.regions)))

    def conditions(
        self, prior: Prior, prompt: str, cameras: Cameras, words: bool, worded: Mapping[str, str] | None = None
    ) -> dict[str, Condition]:
        made = {}
        for name, region in zip(self.names, self.regions, strict=True):
            text, own = region.prompt or prompt, {} if region.prompt else worded or {}
            views = prior.view_words.of(cameras.about(region.centre))
            told = [with_view(own.get(view, text), view) for view in views] if words else [text] * len(cameras)
            made[name] = prior.condition(told)
        return made

    def asks(self) -> tuple[Ask, ...]:
        return (*(Ask(name) for name in self.names), Ask("null"))

    def __call__(self, probe: Probe) -> Tensor:
        *prompts, null = (probe.eps(ask.condition) for ask in self.asks())
        where = masks(probe.geometry, self.regions, null, self.grow)
        total = torch.zeros_like(null)
        for number, prompt in enumerate(prompts):
            total = total + where[:, number, None] * (cfg(prompt, null, fixed(self.scale)) - probe.noise)
        return total if self.total else total / len(prompts)


@dataclass(frozen=True)
class Only(Post):
    """The gradient of the cells that show a region, and nothing of the others: to change a part of a scene."""

    region: Region
    grow: int = 0

    def __call__(self, gradient: Tensor, probe: Probe) -> Tensor:
        return gradient * masks(probe.geometry, (self.region,), probe.x, self.grow)
