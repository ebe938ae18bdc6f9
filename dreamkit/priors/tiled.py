"""Several views of one object as the tiles of one picture, for a prior of single pictures.

What the network makes of a tile depends on the others, so the views are denoised together without a network made for it
(BoostDream, arXiv:2401.16764). Multi-view SDS (`rules.MV_SDS`) under such a prior is SDS of the tiled picture.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.diffusion import Level
from dreamkit.errors import InputError
from dreamkit.priors.analytic import resized
from dreamkit.priors.prior import Condition, Prior, PriorSpec
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Tiled:
    """The prior `base`, shown `across` x `across` views of an object as one picture of the size it knows.

    Not confirmed: no code of BoostDream is known, and its ControlNet on the tiled normal maps is left out. Nothing else
    says that a picture is a sheet of views: a prior that has not seen such sheets draws one thing across all tiles, as
    the toybox does. The picture has one prompt, that of the object's first view, so set Stage.view_words=False;
    cameras.group is the number of views.
    """

    base: PriorSpec
    across: int = 2

    def load(self, device: torch.device | str) -> "TiledPrior":
        """The prior on a device. Raises InputError where `base` does, or if its pictures cannot be cut so."""
        return TiledPrior(self.base.load(device), self.across)


class TiledPrior(Prior):
    """A prior of tiles: x is a tile, and a batch is objects in a row of `views` tiles each. Made by `Tiled.load`."""

    capabilities: frozenset[str] = frozenset({"joint_views"})

    def __init__(self, base: Prior, across: int):
        super().__init__()
        channels, height, width = base.shape
        if across < 1 or height % across or width % across or base.views > 1:
            raise InputError(
                f"the prior {base.name!r}, which sees {base.views} at once of {height} x {width} numbers, cannot be "
                f"shown {across} x {across} views as one picture: across divides both, and it sees single pictures."
            )
        self.base, self.across, self.views = base, across, across**2
        self.name, self.space, self.parameterization = base.name, base.space, base.parameterization
        self.size, self.shape = base.size // across, (channels, height // across, width // across)
        self.schedule, self.device, self.view_words = base.schedule, base.device, base.view_words

    def encode(self, rgb: Tensor, streams: Streams | None = None) -> Tensor:
        """The tiles of what `base` makes of the tiled pictures. Raises ValueError for a part of an object."""
        return untiled(self.base.encode(tiled(resized(rgb, self.size), self.across), streams), self.across)

    def decode(self, x: Tensor) -> Tensor:
        """The tiles of the pictures that `base` makes of the tiled x."""
        return untiled(self.base.decode(tiled(x, self.across)), self.across)

    def check_prompt(self, prompt: str) -> None:
        """As `base` does."""
        self.base.check_prompt(prompt)

    def embed(self, prompt: str) -> Condition:
        """As `base` does."""
        return self.base.embed(prompt)

    def network(self, z: Tensor, level: Level, condition: Condition) -> Tensor:
        """The tiles of what `base` says of the tiled z, at one level and under one condition for each object.

        Raises ValueError for a part of an object, or views of one at several levels.
        """
        first = slice(None, None, self.views)
        together = tiled(z, self.across)
        if not torch.equal(level.k, level.k[first].repeat_interleave(self.views)):
            raise ValueError("the tiles of a picture share a noise level: draw levels per object or per batch")
        return untiled(self.base.network(together, level[first], condition[first]), self.across)

    def identity(self) -> dict[str, Any]:
        """That of `base`, and how it is cut."""
        return self.base.identity() | {"across": self.across}


def tiled(x: Tensor, across: int) -> Tensor:
    """[N across^2, C, h, w] -> [N, C, across h, across w], row by row. Raises ValueError for a part of a picture."""
    if len(x) % across**2:
        raise ValueError(f"{len(x)} views are not objects of {across**2}, tiles of a picture each")
    count, channels, height, width = len(x) // across**2, *x.shape[1:]
    cells = x.reshape(count, across, across, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(count, channels, across * height, across * width)


def untiled(x: Tensor, across: int) -> Tensor:
    """[N, C, across h, across w] -> [N across^2, C, h, w]: the way back."""
    count, channels, height, width = x.shape
    cells = x.reshape(count, channels, across, height // across, across, width // across).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(count * across**2, channels, height // across, width // across)
