"""Small scenes of Gaussians for tests, and steps that change them."""

import torch

from dreamkit.cameras import orbit
from dreamkit.representations.gaussians import Gaussians
from dreamkit.representations.representation import PlainColour
from dreamkit.streams import Streams
from tests.training import descend, redness

SMALL = Gaussians(count=40, opacity=0.5, strategy=None, background=PlainColour((0.0, 0.0, 0.0)))
VIEWS = orbit([10.0, 130.0], 20.0, size=20)


def scene(device="cpu", spec=SMALL, rough=0.5):
    """A scene, no longer a grey ball of round Gaussians."""
    built = spec.build(device, Streams(7, 0))
    draw = Streams(8, 0)
    with torch.no_grad():
        for name, tensor in built.cloud.tensors().items():
            if name != "means":
                tensor += rough * draw.normal(name, tuple(tensor.shape), like=tensor)
    built._keep_limits()
    return built


def train(built, optimiser, steps):
    """Steps towards a red picture, as the loop takes them; returns the optimiser."""
    return descend(built, steps, VIEWS, lambda seen: redness(seen).sum() + seen.alpha.sum(), optimiser, built.spec, 20)


def adam(built):
    return torch.optim.Adam([dict(group) for group in built.parameters()], eps=1e-15)


def scales_of(built):
    return built.cloud.scales.detach()
