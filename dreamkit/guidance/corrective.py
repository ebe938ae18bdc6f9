"""A learned copy of what one-step denoising does to a clean picture (SDS with Learned Manifold Corrective).

SDS pulls x towards the prior's clean estimate; but even a perfect picture comes out of one step of denoising blurred,
the more the noisier the level, and SDS takes that blur for a direction. A shallow network b(x, level) that sees neither
noise nor prompt learns the blur, and what it blurs too is left alone (arXiv:2401.05293). In clean pictures

    G = w [ -(g - 1) (x0_prompt - x0_null) + b(x, level) - x0_prompt ],

SDS at scale g with b(x, level) in the place of the clean x.

Not confirmed: there is no public code, and this follows from the published decomposition. There the network is trained
once and beforehand on many natural pictures. Here it is trained beside the scene, on the prior's own guided clean
estimates and never on the scene's pictures, whose blur, once learnt, would average the pull to the prior away; its size
and rate are guesses. It begins as b = x, so the first step is SDS.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import Level, add_noise, cfg, over, x0_of
from dreamkit.guidance.networks import LEVEL_NUMBERS, ConvNet, Trained, conditioning
from dreamkit.guidance.rule import Ask, Estimate, Probe
from dreamkit.guidance.student import anywhere
from dreamkit.priors.prior import CAMERA_NUMBERS, Condition, Prior
from dreamkit.schedule import Number, fixed
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Corrected(Estimate):
    """The noise that z would hold if its clean picture were b(x, level): n + (x - b) / k.

    b = x + f(x, level) with a convolutional network f of `layers` layers, trained after every step: on the guided clean
    estimates y of this step, at levels and noise of its own, it descends the mean of |b(y, level) - x0_prompt(z')|^2
    with z' = alpha y + sigma n'. That costs one prediction more.

    scale   guidance of the clean estimates it is trained on, best that of the rule
    rate    AdamW's learning rate
    """

    part_name: ClassVar[str] = "corrective"
    mixes: ClassVar[bool] = True

    scale: Number
    rate: float = 1e-4
    width: int = 64
    layers: int = 5

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"), Ask("null"))

    def __call__(self, probe: Probe) -> Tensor:
        part = probe.part("corrective", CorrectivePart)
        level, eps = probe.levels["main"], cfg(probe.eps("prompt"), probe.eps("null"), fixed(self.scale))
        part.pictures = x0_of(probe.z(), eps, level)
        return probe.noise + (probe.x - part.blurred(probe.x, level)) / over(level.k, probe.x)

    def part(self, prior: Prior, streams: Streams) -> "CorrectivePart":
        return CorrectivePart(prior, (self.width,) * (self.layers - 1), self.rate, streams)


class CorrectivePart(Trained):
    """The network b and its optimiser."""

    def __init__(self, prior: Prior, inner: tuple[int, ...], rate: float, streams: Streams):
        channels, strides = (prior.channels, *inner, prior.channels), (1,) * (len(inner) + 1)
        self.net = ConvNet(channels, strides, LEVEL_NUMBERS + CAMERA_NUMBERS, 0.0, streams, prior.device)
        self.prior, self.pictures = prior, torch.empty(0)
        super().__init__(self.net.weights, rate)

    def blurred(self, x: Tensor, level: Level) -> Tensor:
        """b(x, level), differentiable in the weights alone."""
        return x.detach() + self.net(x.detach(), conditioning(level, None, x))

    def train(self, probe: Probe) -> float:
        """One step on the clean estimates of this look."""
        return self.fit(self.pictures, probe.conditions["prompt"], probe.streams.within("corrective"))

    def fit(self, pictures: Tensor, condition: Condition, streams: Streams) -> float:
        """One step on clean pictures [B, ...] at levels and noise of its own; returns the loss."""
        level, noise = anywhere(self.prior, pictures, streams)
        z = add_noise(pictures, noise, level)
        wanted = x0_of(z, self.prior.eps(z, level, condition), level)
        with torch.enable_grad():
            return self.learn((self.blurred(pictures, level) - wanted).square().mean())
