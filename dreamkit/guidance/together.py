"""Guidance of priors that see more than one picture of one prompt: depth beside the colours, another condition's score.

The toybox sees several views of an object together (`Diffusers("toybox", views=4)`), and `priors.tiled.Tiled` shows
them to any prior as one picture. What the others need no prior that ships has; they are refused by name (`rule.check`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, cat

from dreamkit.cameras import Cameras
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.rule import Ask, Estimate, Post, Probe
from dreamkit.priors.prior import Condition, Prior
from dreamkit.schedule import Number, fixed


@dataclass(frozen=True)
class Jointly(Guided):
    """`Guided`, of a prior that sees all views of an object at once (MVDream, arXiv:2308.16512).

    The samples of a batch are objects in a row, each of `Prior.views` views.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"joint_views"})


@dataclass(frozen=True)
class Halves(Post):
    """The gradient of x whose first half of the channels is the colours and the second the depth, weighted by `depth`.

    Both halves have one level and noise of their own (HumanGaussian, arXiv:2311.17061). The published weight is 0.5,
    with a loss that lacks a factor 1/2 of the other's: so both count the same.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"multimodal"})

    depth: Number = 1.0

    def __call__(self, gradient: Tensor, probe: Probe) -> Tensor:
        colours, depth = gradient.chunk(2, dim=1)
        return cat([colours, fixed(self.depth) * depth], dim=1)


@dataclass(frozen=True)
class Category(Estimate):
    """n + added (n - eps_category), to be subtracted: what the prior expects of any thing of this kind.

    `prompt` names the kind; without one it is what the run is asked for. Not confirmed (Sparse3D, arXiv:2308.14078, has
    no public code), two readings: with added = -1 it is eps_category itself, in the place of the noise; with added > 0
    the rule gains added (eps_category - n), SDS of the kind on top of the other.
    """

    prompt: str = ""
    added: Number = -1.0

    @property
    def names(self) -> tuple[str, ...]:
        return ("category",)

    def conditions(
        self, prior: Prior, prompt: str, cameras: Cameras, words: bool, worded: Mapping[str, str] | None = None
    ) -> dict[str, Condition]:
        return {"category": prior.condition([self.prompt or prompt] * len(cameras))}

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("category"),)

    def __call__(self, probe: Probe) -> Tensor:
        return probe.noise + fixed(self.added) * (probe.noise - probe.eps("category"))
