"""Samples of a prior, without a scene: to see what it knows before anything is distilled from it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dreamkit.diffusion import Level, cfg, ddim
from dreamkit.priors.prior import Prior
from dreamkit.streams import Streams


@torch.no_grad()
def sample(prior: Prior, prompts: Sequence[str], streams: Streams, steps: int = 30, scale: float = 3.0) -> Tensor:
    """One sample x [N, *prior.shape] a prompt, by deterministic DDIM from pure noise (arXiv:2010.02502).

    The levels are the fractions 1, 1 - 1/steps, ..., 1/steps of the prior's own schedule ("trailing" spacing, Lin et
    al., arXiv:2305.08891, table 2), and then none: the last step goes to x0. Each step asks with the prompt and, unless
    `scale` is 1, without, and mixes as `diffusion.cfg` says. The noise comes from the stream "sample".

    Raises InputError for a prompt that the prior does not know, ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"sampling takes at least one step; got {steps}")
    count = len(prompts)
    conditions = [prior.condition(prompts)] + ([prior.condition([""] * count)] if scale != 1 else [])
    z = streams.normal("sample", (count, *prior.shape)).to(prior.device)
    levels = [prior.level(torch.full((count,), 1 - i / steps)) for i in range(steps)]
    clean = torch.zeros(count, dtype=torch.float64)
    for level, to in zip(levels, [*levels[1:], Level(clean, clean + 1, clean)], strict=True):
        said = prior.predict(z, level, conditions)
        z = ddim(z, said[0] if scale == 1 else cfg(said[0], said[1], scale), level, to)
    return z
