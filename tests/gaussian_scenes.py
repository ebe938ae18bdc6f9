"""Small scenes of Gaussians for tests, and steps that change them."""

import torch

from dreamkit.cameras import orbit
from dreamkit.representations.gaussians import Gaussians
from dreamkit.representations.representation import PlainColour
from dreamkit.schedule import resolve
from dreamkit.state import carried
from dreamkit.streams import Streams

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


def train(built, optimiser, steps, count=2):
    """Steps towards a red picture, as the loop takes them; returns the optimiser."""
    for step in steps:
        streams, now = Streams(1, step), resolve(built.spec, step / 20)
        images = built.render(VIEWS[:count], streams, now=now)
        red = torch.tensor([1.0, 0, 0], device=images.rgb.device)[:, None, None]
        optimiser.zero_grad()
        (((images.rgb - red) ** 2).sum() + images.alpha.sum()).backward()
        optimiser.step()
        rows = built.after_step(step, streams)
        if rows is not None:
            optimiser = carried(optimiser, built.parameters(now), rows)
    return optimiser


def adam(built):
    return torch.optim.Adam([dict(group) for group in built.parameters()], eps=1e-15)


def scales_of(built):
    return built.cloud.scales.detach()
