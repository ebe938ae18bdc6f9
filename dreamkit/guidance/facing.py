"""Guidance that knows where each camera stands: Perp-Neg between the views of a prompt.

A view of an object that the prior often draws, its front, shows up where it should not: the Janus problem. Here every
camera is guided towards what lies between the two views next to it, and away from the front and the side as far as it
stands from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.diffusion import over, perp_neg
from dreamkit.errors import InputError
from dreamkit.guidance.rule import Ask, Estimate, Probe
from dreamkit.priors.prior import Condition, Prior
from dreamkit.prompts import OVERHEAD, ViewWords, with_view
from dreamkit.schedule import Number, fixed

Decay = tuple[float, float, float]
"""(a, b, c) of the weight -(a exp(-b r) + c)."""


@dataclass(frozen=True)
class PerpNegViews(Estimate):
    """Perp-Neg (arXiv:2304.04968) between the views of the prompt, by the camera's azimuth; threestudio's form.

        eps_null + scale (e + w_front e_front^perp + w_side e_side^perp),  e of a prompt that lies between two views

    With u the angle from the front over 90 degrees, the weights are -(a exp(-b r) + c):

                           r of the front, its (a, b, c)    r of the side, its (a, b, c)
        u < 1              1 - u, `towards`                 u, `towards`
        u >= 1             2 - u, `front`                   2 - u, `side`

    and 0 above 60 degrees of elevation, where the prompt says "overhead". The prompt in between is a mix of what two
    prompts with neighbouring view words of the prior (`Prior.view_words`) mean, in number by number; the front and the
    side are its words for azimuths 0 and +-90 at that height. With DreamFusion's four words that is threestudio's rule.
    """

    mixes: ClassVar[bool] = True

    scale: Number
    towards: Decay = (4.0, 0.5, -2.426)
    front: Decay = (1.0, 0.5, 0.967)
    side: Decay = (1.0, 0.5, -0.606)

    @property
    def names(self) -> tuple[str, ...]:
        return ("between", "front", "side")

    def conditions(
        self, prior: Prior, prompt: str, cameras: Cameras, words: bool, worded: Mapping[str, str] | None = None
    ) -> dict[str, Condition]:
        if not words:
            raise InputError("this rule turns prompts by their view words: leave Stage.view_words true for it.")
        lists: dict[str, list[str]] = {"first": [], "second": [], "front": [], "side": []}
        shares = []
        stand = torch.stack([cameras.azimuth_degrees, cameras.elevation_degrees], 1)
        for azimuth, elevation in stand.tolist():
            say, height = prior.view_words.at, min(elevation, OVERHEAD)
            first, second, share = _neighbours(azimuth, elevation, prior.view_words)
            side = say(90.0 if azimuth % 360 < 180 else -90.0, height)
            views = {"first": first, "second": second, "front": say(0.0, height), "side": side}
            shares.append(share)
            for name, view in views.items():
                lists[name].append(with_view((worded or {}).get(view, prompt), view))
        made = {name: prior.condition(prompts) for name, prompts in lists.items()}
        between = Condition.mix(made["first"], made["second"], torch.tensor(shares, dtype=torch.float64))
        return {"between": between, "front": made["front"], "side": made["side"]}

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("between"), Ask("null"), Ask("front"), Ask("side"))

    def __call__(self, probe: Probe) -> Tensor:
        between, null, front, side = (probe.eps(ask.condition) for ask in self.asks())
        cameras = probe.geometry.cameras
        weights = self.weights(cameras.azimuth_degrees.double(), cameras.elevation_degrees.double())
        pairs = [(over(weight, null), eps) for weight, eps in zip(weights, (front, side), strict=True)]
        return perp_neg(between, null, pairs, fixed(self.scale))

    def weights(self, azimuth: Tensor, elevation: Tensor) -> tuple[Tensor, Tensor]:
        """Of the front and of the side, each [B], for azimuths and elevations [B] in degrees."""
        u = ((azimuth + 180) % 360 - 180).abs() / 90
        front = torch.where(u < 1, _decay(1 - u, self.towards), _decay(2 - u, self.front))
        side = torch.where(u < 1, _decay(u, self.towards), _decay(2 - u, self.side))
        low = (elevation <= OVERHEAD).to(u)
        return front * low, side * low


def _decay(r: Tensor, of: Decay) -> Tensor:
    a, b, c = of
    return -(a * torch.exp(-b * r) + c)


def _neighbours(azimuth: float, elevation: float, words: ViewWords) -> tuple[str, str, float]:
    """The view words on both sides of a camera, and how far it stands from the first towards the second, in [0, 1)."""
    sector = 360 / len(words.directions)
    place = azimuth % 360 / sector
    first = int(place)
    share = 0.0 if elevation > OVERHEAD else place - first
    return words.at(first * sector, elevation), words.at((first + 1) * sector, elevation), share
