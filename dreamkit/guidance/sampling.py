"""Pictures drawn from the prior: what a rule shows to the networks it trains."""

import itertools

import torch
from torch import Tensor

from dreamkit.diffusion import add_noise, cfg, ddim, over, x0_of
from dreamkit.priors.prior import Condition, Prior
from dreamkit.streams import Streams


@torch.no_grad()
def draw(
    prior: Prior,
    prompt: Condition,
    null: Condition,
    streams: Streams,
    *,
    steps: int,
    scale: float,
    start: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor:
    """x [B, *shape] by guided DDIM in `steps` even strides down from the fraction `strength` of the schedule.

    From noise (stream "sample"), or from pictures `start` [B, *shape] with that noise (SDEdit, arXiv:2108.01073).
    Costs `steps` calls of 2 B samples.
    """
    count, last = len(prompt), round(strength * (prior.schedule.steps - 1))
    nodes = torch.linspace(last, 0, steps + 1, dtype=torch.float64)[:-1].round().long()
    grid = [prior.level_at(node.expand(count)) for node in nodes]
    like = torch.zeros(count, *prior.shape, device=prior.device) if start is None else start
    noise = streams.normal("sample", tuple(like.shape), like=like)
    if start is None:  # noise of one, in the units of a variance-preserving path
        z = noise * over(grid[0].alpha * (1 + grid[0].k ** 2).sqrt(), noise)
    else:
        z = add_noise(start, noise, grid[0])
    for level, to in itertools.pairwise([*grid, None]):
        assert level is not None
        told, untold = prior.predict(z, level, [prompt, null])
        eps = cfg(told, untold, scale)
        z = x0_of(z, eps, level) if to is None else ddim(z, eps, level, to)
    return z
