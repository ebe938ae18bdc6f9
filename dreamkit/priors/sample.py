"""Pictures drawn from a prior, without a scene: what it knows before anything is distilled from it."""

import itertools

import torch
from torch import Tensor

from dreamkit.diffusion import Level, add_noise, cfg, ddim, over
from dreamkit.priors.prior import Condition, Prior
from dreamkit.streams import Streams


@torch.no_grad()
def sample(
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
    """One sample x [B, *prior.shape] for each of B conditions, by deterministic guided DDIM (arXiv:2010.02502).

    The levels are the fractions strength * (1, 1 - 1/steps, ..., 1/steps) of the prior's own schedule ("trailing"
    spacing, Lin et al., arXiv:2305.08891, table 2), and then none: the last step goes to x0. It begins at noise, or at
    pictures `start` [B, *prior.shape] noised to the first level (SDEdit, arXiv:2108.01073); the noise is the stream
    "sample". Each step asks with `prompt` and `null` together and mixes as `diffusion.cfg` says: `steps` calls of 2 B
    samples; at scale 1 `null` changes nothing and is not asked, B samples.

    Raises ValueError for fewer than one step, or a strength outside (0, 1].
    """
    if steps < 1 or not 0 < strength <= 1:
        raise ValueError(f"sampling takes at least one step and a strength in (0, 1]; got {steps} and {strength}")
    count = len(prompt)
    conditions = [prompt] if scale == 1 else [prompt, null]
    levels = [prior.level(torch.full((count,), strength * (1 - i / steps))) for i in range(steps)]
    first = levels[0]
    like = torch.zeros(count, *prior.shape, device=prior.device) if start is None else start
    noise = streams.normal("sample", tuple(like.shape), like=like)
    if start is None:  # at the length that z has there: one, unless the schedule does not preserve variance
        z = noise * over((first.alpha**2 + first.sigma**2).sqrt(), noise)
    else:
        z = add_noise(start, noise, first)
    for level, to in itertools.pairwise([*levels, Level.clean(count)]):
        said = prior.predict(z, level, conditions)
        z = ddim(z, said[0] if scale == 1 else cfg(said[0], said[1], scale), level, to)
    return z
