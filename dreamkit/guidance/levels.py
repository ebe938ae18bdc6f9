"""At which noise levels to look. Bounds are fractions u of the prior's native schedule, and may be Schedules.

A rule that compares two levels names the second: "upper" (noisier than the main one), "lower" or "middle".
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dreamkit.diffusion import Level
from dreamkit.guidance.rule import Levels
from dreamkit.priors.prior import Prior
from dreamkit.schedule import Number, fixed
from dreamkit.streams import Streams


class Single(Levels):
    """Levels with a main one only."""

    def within(self, base: Levels) -> Levels:
        return _single(base)


@dataclass(frozen=True)
class Double(Levels):
    """The main level, or another, from `base`, and further ones that stand by it."""

    base: Single

    def within(self, base: Levels) -> Levels:
        return replace(self, base=_single(self.base.within(base)))


def _single(levels: Levels) -> Single:
    if isinstance(levels, Double):
        return levels.base
    if isinstance(levels, Single):
        return levels
    raise ValueError(f"{levels} cannot lend its range to another rule")


@dataclass(frozen=True)
class Uniform(Single):
    """One index per sample (or one for the batch), uniform over floor(T low) .. floor(T high), both included.

    Samples that the prior sees together, as views of one object (`Prior.views`), share an index.

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
        draw = drawn(streams, "level", batch, batch if self.per == "batch" else prior.views)
        return {"main": prior.level_at(first + (draw * (last - first + 1)).long().clamp(max=last - first))}


@dataclass(frozen=True)
class At(Single):
    """The level at fraction u for every sample: with a Schedule, a monotone anneal such as `At(Linear(0.98, 0.25))`."""

    u: Number

    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        return {"main": prior.level(torch.full((batch,), fixed(self.u), dtype=torch.float64))}

    def within(self, base: Levels) -> Levels:
        """Itself: the order of the levels is what such a rule is about."""
        return self


@dataclass(frozen=True)
class Above(Double):
    """The main level of `base` and one above it, "upper", a gap away that grows with the main level.

    gap = floor(clamp(eta (t - T start), 0, T - 1 - t) r) indices, with r ~ U[0, 1) if `random`, else 1
    (ScaleDreamer, arXiv:2407.02040; its code's `plus_ratio` and `plus_random`). `start` is the lowest level of the base
    unless it is given; a base that is no range needs it. Views that are seen together share a gap.
    """

    start: Number | None = None
    eta: Number = 0.1
    random: bool = True

    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        main = self.base(prior, batch, streams)["main"]
        t, last = prior.schedule.index(main.k).round(), prior.schedule.steps - 1
        lowest = self.start if self.start is not None else self.base.low if isinstance(self.base, Uniform) else None
        if lowest is None:
            raise ValueError(f"{self}: say where the gap starts, as the base is no range of levels")
        gap = (fixed(self.eta) * (t - _index(fixed(lowest), last + 1))).clamp(min=0).minimum(last - t)
        if self.random:
            gap = gap * drawn(streams, "gap", batch, prior.views)
        return {"main": main, "upper": prior.level_at((t + gap.floor()).long().clamp(1, last))}


@dataclass(frozen=True)
class Below(Double):
    """The main level of `base`, one `gap` below it, "lower", and one between them, "middle".

    With s the index of "lower" and t that of the main one, middle = round(s + (t - s) sqrt(1 - gamma^2)): at gamma = 1
    it is the lower one, at 0 the main one (Dreamer XL, arXiv:2405.11252). Nothing goes below index 0.
    """

    gap: Number = 0.08
    gamma: Number = 1.0

    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        main = self.base(prior, batch, streams)["main"]
        t = prior.schedule.index(main.k).round()
        s = (t - round(fixed(self.gap) * prior.schedule.steps)).clamp(min=0)
        middle = (s + (t - s) * math.sqrt(1 - fixed(self.gamma) ** 2)).round()
        return {"main": main, "lower": prior.level_at(s.long()), "middle": prior.level_at(middle.long())}


@dataclass(frozen=True)
class StepAbove(Double):
    """The level of `base` as "lower", and the main one a random gap above it, another for each sample.

    gap uniform over `least` .. `most`, fractions of the schedule (Consistent3D, arXiv:2401.09050). The main level
    stays inside the schedule.
    """

    least: float = 0.1
    most: float = 0.3

    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        lower, steps = self.base(prior, batch, streams)["main"], prior.schedule.steps
        gap = (self.least + (self.most - self.least) * drawn(streams, "gap", batch, prior.views)) * steps
        main = (prior.schedule.index(lower.k).round() + gap.floor()).clamp(max=steps - 1)
        return {"main": prior.level_at(main.long()), "lower": lower}


def drawn(streams: Streams, name: str, count: int, views: int = 1) -> Tensor:
    """[count] uniform in [0, 1), one for every `views` in a row."""
    return streams.uniform(name, (count // views,), like=torch.zeros((), dtype=torch.float64)).repeat_interleave(views)


def _index(u: float, steps: int) -> int:
    """floor(T u) inside 0..T-1; the nudge keeps 0.29 * 100 from being 28. Raises ValueError outside [0, 1]."""
    if not 0 <= u <= 1:
        raise ValueError(f"a bound of levels is a fraction of the schedule, from 0 to 1; got {u:g}")
    return min(max(math.floor(u * steps + 1e-9), 0), steps - 1)
