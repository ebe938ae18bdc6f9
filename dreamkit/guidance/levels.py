"""At which noise levels to look. Bounds are fractions u of the prior's native schedule, and may be Schedules."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from dreamkit.diffusion import Level
from dreamkit.guidance.rule import Levels
from dreamkit.priors.prior import Prior
from dreamkit.schedule import Number, fixed
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Uniform(Levels):
    """One index per sample (or one for the batch), uniform over floor(T low) .. floor(T high), both included.

    With the default bounds and T = 1000 that is 20..980 (DreamFusion, arXiv:2209.14988). An annealed range is
    `Uniform(0.02, Linear(0.98, 0.3))`; ProlificDreamer's is `Uniform(0.02, Switch(0.98, 0.5, 0.2))`.
    """

    low: Number = 0.02
    high: Number = 0.98
    per: Literal["sample", "batch"] = "sample"

    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        steps = prior.schedule.steps
        first, last = _index(fixed(self.low), steps), _index(fixed(self.high), steps)
        if last < first:
            raise ValueError(f"{self}: the range of levels is empty")
        count = batch if self.per == "sample" else 1
        draw = streams.uniform("level", (count,), like=torch.zeros((), dtype=torch.float64))
        index = first + (draw * (last - first + 1)).long().clamp(max=last - first)
        return {"main": prior.level_at(index.expand(batch))}


@dataclass(frozen=True)
class At(Levels):
    """The level at fraction u for every sample: with a Schedule, a monotone anneal such as `At(Linear(0.98, 0.25))`."""

    u: Number

    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        return {"main": prior.level(torch.full((batch,), fixed(self.u), dtype=torch.float64))}


def _index(u: float, steps: int) -> int:
    """floor(T u) inside 0..T-1; the nudge keeps 0.29 * 100 from being 28."""
    return min(max(math.floor(u * steps + 1e-9), 0), steps - 1)
