"""Steps of a scene towards a picture, as the loop takes them, for tests of representations."""

import torch

from dreamkit.schedule import resolve
from dreamkit.state import carried
from dreamkit.streams import Streams


def descend(built, steps, views, loss, optimiser=None, spec=None, end=1):
    """Take these steps down `loss` of the scene's pictures; the schedules of `spec`, if it has any, end at step `end`.

    Returns the optimiser, which is a new one where the scene got new rows.
    """
    optimiser = optimiser or torch.optim.Adam([dict(group) for group in built.parameters()], eps=1e-15)
    for step in steps:
        streams, now = Streams(1, step), None if spec is None else resolve(spec, step / end)
        images = built.render(views, streams, now=now)
        optimiser.zero_grad()
        loss(images).backward()
        optimiser.step()
        rows = built.after_step(step, streams)
        if rows is not None:
            optimiser = carried(optimiser, built.parameters(now), rows)
    return optimiser


def redness(images):
    """[B, 3, H, W]: the squared distance of every pixel to red."""
    return (images.rgb - torch.tensor([1.0, 0, 0], device=images.rgb.device)[:, None, None]) ** 2
