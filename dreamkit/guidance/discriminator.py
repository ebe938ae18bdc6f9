"""Rules of another divergence than VSD's: a discriminator says where the prior has more than the scene.

Descending D_f(p || q), with p the prior's pictures and q the scene's, both noised, gives VSD's direction times

    h(r) = f''(r) r^2,   r = p(z) / q(z)

sample by sample (f-distill, arXiv:2502.15681; Uni-Instruct, arXiv:2505.20755). VSD itself is the reverse
Kullback-Leibler divergence, h = 1. The ratio is exp(D(z)) of a discriminator that is trained beside the student to
tell pictures drawn from the prior from the scene's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dreamkit.diffusion import Level, add_noise, over, preserved
from dreamkit.guidance.networks import LEVEL_NUMBERS, ConvNet, Trained, conditioning
from dreamkit.guidance.rule import Post, Probe
from dreamkit.guidance.student import anywhere
from dreamkit.priors.prior import CAMERA_NUMBERS, Prior
from dreamkit.priors.sample import sample
from dreamkit.streams import Streams

Kind = Literal[
    "reverse_kl", "forward_kl", "jensen_shannon", "jeffreys", "softened_kl", "squared_hellinger", "neyman_chi2"
]
WEIGHTS: dict[Kind, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "jensen_shannon": lambda r: r / (1 + r),
    "jeffreys": lambda r: 1 + r,
    "softened_kl": lambda r: 1 / (1 + r),
    "squared_hellinger": torch.sqrt,
    "neyman_chi2": lambda r: 1 / r,
}
"""h(r) of each divergence, up to a constant factor."""


@dataclass(frozen=True)
class Divergence(Post):
    """Each sample's gradient times h(r) / mean of h over the batch.

    The ratio is exp of the discriminator's logit held in [-10, 10], held in [0.1, 20], over the mean ratio at that
    noise level: of ten equal bins of the schedule, each remembers its own. A batch of one is always weighted 1.

    Known code (f-distill's, for images) forgets at once (`memory` 0), which only a large batch allows; it reads the
    discriminator off features of the teacher, where here it is a small network that sees z, so that any prior will do;
    and it adds a term that pulls through the discriminator, which is left out here. How Uni-Instruct makes 3D is not
    confirmed.

    kind      the divergence
    memory    share of a bin's remembered mean that stays at each step
    rate      AdamW's learning rate
    bank      pictures drawn from the prior, a batch at every step until there are as many
    steps, scale    of the sampler that draws them
    width     channels inside the network
    """

    part_name: ClassVar[str] = "discriminator"

    kind: Kind = "jensen_shannon"
    memory: float = 0.9
    rate: float = 1e-3
    bank: int = 16
    steps: int = 10
    scale: float = 7.5
    width: int = 32

    def __call__(self, gradient: Tensor, probe: Probe) -> Tensor:
        part = probe.part("discriminator", DiscriminatorPart)
        weights = WEIGHTS[self.kind](part.ratio(probe.z(), probe.levels["main"]))
        return over(weights / weights.mean(), gradient) * gradient

    def part(self, prior: Prior, streams: Streams) -> "DiscriminatorPart":
        return DiscriminatorPart(self, prior, streams)


class DiscriminatorPart(Trained):
    """The discriminator, the pictures from the prior that it knows, and the mean ratios at ten levels."""

    bins = 10

    def __init__(self, spec: Divergence, prior: Prior, streams: Streams):
        channels = (prior.channels, spec.width, spec.width, 1)
        numbers = LEVEL_NUMBERS + CAMERA_NUMBERS
        self.net = ConvNet(channels, (1, 2, 2), numbers, 1.0, streams, prior.device)
        super().__init__(self.net.weights, spec.rate)
        self.spec, self.prior = spec, prior
        self.real = torch.zeros(0, *prior.shape, device=prior.device)
        self.means = torch.ones(self.bins, dtype=torch.float64)

    def logits(self, z: Tensor, level: Level) -> Tensor:
        """D(z) [B]: log of how much likelier the prior makes z than the scene. Differentiable in z and the weights."""
        return self.net(preserved(z, level), conditioning(level, None, z)).flatten(1).mean(1)

    def ratio(self, z: Tensor, level: Level) -> Tensor:
        """r [B], float64 on the CPU, over its mean at the level."""
        raw, bins, means = self._measured(z, level)
        return raw / means[bins]

    def train(self, probe: Probe) -> float:
        _, _, self.means = self._measured(probe.z(), probe.levels["main"])
        streams = probe.streams.within("discriminator")
        fake = probe.x.detach()
        if len(self.real) < self.spec.bank:
            told, untold = (probe.conditions[name] for name in ("prompt", "null"))
            drawn = sample(self.prior, told, untold, streams, steps=self.spec.steps, scale=self.spec.scale)
            self.real = torch.cat([self.real, drawn[drawn.flatten(1).isfinite().all(1)].to(self.real)])
        if not len(self.real):
            return math.nan
        pick = (streams.uniform("pick", (len(fake),)) * len(self.real)).long().to(self.real.device)
        level, noise = anywhere(self.prior, fake, streams)
        other = streams.normal("noise/real", tuple(fake.shape), like=fake)
        with torch.enable_grad():
            loss = softplus(self.logits(add_noise(fake, noise, level), level))
            loss = loss + softplus(-self.logits(add_noise(self.real[pick].to(fake), other, level), level))
            return self.learn(loss.mean())

    def state(self) -> dict[str, Any]:
        return super().state() | {"real": self.real, "means": self.means}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self.real, self.means = state["real"].to(self.real), state["means"].to(self.means)

    def _measured(self, z: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Ratios [B], their bins [B], and what the bins' means become with them."""
        raw = self.logits(z, level).detach().double().cpu().clamp(-10, 10).exp().clamp(0.1, 20)
        raw = torch.where(raw.isfinite(), raw, 1.0)  # a sample that is broken weighs nothing on the others
        share = self.prior.schedule.index(level.k) / self.prior.schedule.steps
        bins, means = (share * self.bins).long().clamp(0, self.bins - 1), self.means.clone()
        for number in set(bins.tolist()):
            means[number] *= self.spec.memory
            means[number] += (1 - self.spec.memory) * raw[bins == number].mean()
        return raw, bins, means
