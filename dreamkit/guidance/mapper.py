"""Variational Distribution Mapping (DreamMapping, arXiv:2409.05099): a student that needs no diffusion network.

The scene's pictures are taken as worse copies of what the prior would make of them: x = M(x0), with x0 the prior's
clean estimate and M a small network that is trained while the scene changes. Its gradient passes through no UNet.

No code of the authors is public. The formulas below are derived from the abstract; not confirmed are the objective,
how the share grows with the level (their Distribution Coefficient Annealing), the network, its rate and the scale.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import eps_of, over, x0_of
from dreamkit.guidance.networks import LEVEL_NUMBERS, ConvNet, Trained, conditioning
from dreamkit.guidance.rule import Ask, Estimate, Probe, Weight
from dreamkit.guidance.weight import SigmaSquared
from dreamkit.priors.prior import CAMERA_NUMBERS, Prior
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Mapped(Estimate):
    """eta eps_M + (1 - eta) n, with eps_M = (z - alpha M(x0)) / sigma and eta = share(k).

    x0 is the clean estimate under the prompt, a prediction that the rule's guidance pays for anyway. M(x0) = x0 + f(x0,
    level, camera), where a fresh f says 0; it descends the mean of |M(x0) - x|^2 after every step. With a share of 0
    this is the drawn noise, so the rule SDS; with M as good as the truth it is too, and with M = x0 it is eps_prompt.

    share   how much of it is the mapper's, as a function of k; grows with the noise
    rate    AdamW's learning rate
    width   channels inside the network
    """

    part_name: ClassVar[str] = "mapper"

    share: Weight = field(default_factory=SigmaSquared)
    rate: float = 1e-3
    width: int = 32

    def asks(self) -> tuple[Ask, ...]:
        return (Ask("prompt"),)

    def __call__(self, probe: Probe) -> Tensor:
        part = probe.part("mapper", MapperPart)
        z, level = probe.z(), probe.levels["main"]
        eps = eps_of(z, part.mapped(probe), level)
        share = over(self.share(level.k), z)
        return share * eps + (1 - share) * probe.noise

    def part(self, prior: Prior, streams: Streams) -> "MapperPart":
        return MapperPart(prior, self.width, self.rate, streams)


class MapperPart(Trained):
    """The mapper and its optimiser."""

    def __init__(self, prior: Prior, width: int, rate: float, streams: Streams):
        channels = (prior.channels, width, width, prior.channels)
        self.net = ConvNet(channels, (1, 1, 1), LEVEL_NUMBERS + CAMERA_NUMBERS, 0.0, streams, prior.device)
        super().__init__(self.net.weights, rate)

    def mapped(self, probe: Probe) -> Tensor:
        """M(x0) of what the rule looks at; differentiable in the weights alone."""
        level = probe.levels["main"]
        x0 = x0_of(probe.z(), probe.eps("prompt"), level).detach()
        camera = probe.conditions.get("camera")
        facts = conditioning(level, None if camera is None else camera.tensors["camera"], x0)
        return x0 + self.net(x0, facts)

    def train(self, probe: Probe) -> float:
        with torch.enable_grad():
            return self.learn((self.mapped(probe) - probe.x.detach()).square().mean())
