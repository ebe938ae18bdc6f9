"""With which noise to look.

A piece that makes its samples by walking the prior's own path returns them, with the predictions it paid for on the
way. Noise that stays the same all through a run is drawn from the run's seed alone, so there is nothing to save.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import Level, add_noise, cfg, ddim, ddpm_deviation, eps_of, over
from dreamkit.guidance.levels import drawn
from dreamkit.guidance.rule import Ask, Noise, Noised, Probe
from dreamkit.schedule import Number, fixed


@dataclass(frozen=True)
class Fresh(Noise):
    """Independent N(0, 1) noise, new at every step and for every sample; shared by all levels and images of a step."""

    def __call__(self, probe: Probe) -> Noised:
        return Noised(probe.streams.normal("noise", tuple(probe.x.shape), like=probe.x))


@dataclass(frozen=True)
class Kept(Noise):
    """One N(0, 1) picture for the whole run, the same at every step and for every view."""

    def __call__(self, probe: Probe) -> Noised:
        one = probe.streams.still().normal("noise", tuple(probe.x.shape[1:]), like=probe.x)
        return Noised(one.expand_as(probe.x))


@dataclass(frozen=True)
class EulerStep(Noise):
    """`Kept` noise at the main level, and at "lower" the sample that one guided DDIM step leads to.

    In z / alpha that is one Euler step of the probability-flow ODE by the guided prediction at the main level
    (Consistent3D, arXiv:2401.09050). `scale` is its guidance, best that of the rule.
    """

    mixes: ClassVar[bool] = True

    scale: Number

    def __call__(self, probe: Probe) -> Noised:
        noise = Kept()(probe).noise
        main = probe.levels["main"]
        z = add_noise(probe.x, noise, main)
        eps, answers = _guided(probe, z, "main", main, fixed(self.scale))
        return Noised(noise, {("lower", "x"): ddim(z, eps, main, probe.levels["lower"])}, answers)


@dataclass(frozen=True)
class Inverted(Noise):
    """The noise that deterministic sampling would have started from to reach x: x carried up by DDIM inversion.

    From index 0, in strides of the schedule's fraction `stride` and in at most `steps` of them, to the level "lower"
    if the rule has one, from there in one step each to "middle" and to the main level; else to the main level itself.
    The noise is kappa = (z - alpha x) / sigma at the main level. Predictions under the null prompt that were made on
    the way are answers, so a rule that subtracts one of them pays nothing more.

    scale      guidance of the inversion: 0 is the null prompt alone; else prompt and null are asked (SDI, arXiv:
               2405.15891, inverts with -7.5).
    start      whether x gets the little noise of index 0 at the start (LucidDreamer, arXiv:2311.11284), or none.
    eta        fresh noise of eta times the DDPM deviation after every step (SDI: 0.3).
    beyond     walk on to as much as this fraction above the main level, uniformly at random, and take kappa from there
               (SDI: 0.1); the sample is made anew at the main level.

    Levels may differ from sample to sample: a sample that has arrived takes steps of no length until all have.
    """

    stride: float = 0.2
    steps: int | None = 5
    scale: Number = 0.0
    start: bool = True
    eta: Number = 0.0
    beyond: float = 0.0

    def __call__(self, probe: Probe) -> Noised:
        x, main = probe.x, probe.levels["main"]
        goal = probe.levels.get("lower") or main
        last = goal if "lower" in probe.levels else self._beyond(probe, main)
        grid = self.grid(probe, goal, last)
        first = probe.streams.normal("start", tuple(x.shape), like=x) if self.start else torch.zeros_like(x)
        z = add_noise(x, first, grid[0])
        for number, (level, to) in enumerate(itertools.pairwise(grid)):
            eps, _ = _guided(probe, z, "", level, fixed(self.scale))
            z = ddim(z, eps, level, to)
            if fixed(self.eta) != 0:
                fresh = probe.streams.normal(f"eta{number}", tuple(x.shape), like=x)
                z = z + fixed(self.eta) * over(ddpm_deviation(to.k, level.k, to), z) * fresh
        if "lower" not in probe.levels:
            return Noised(eps_of(z, x, last))
        return self._fork(probe, z)

    def grid(self, probe: Probe, goal: Level, last: Level) -> Sequence[Level]:
        """The levels of the walk: those from index 0 that lie below `goal`, and then `last`."""
        prior = probe.prior
        end = prior.schedule.index(goal.k)
        stride = self.stride * prior.schedule.steps
        count = int(torch.ceil(end / stride).max())
        if self.steps is not None:
            count = min(count, self.steps)
        nodes = [prior.level_at(torch.full_like(end, round(i * stride))) for i in range(count)]
        return [*(Level.where(node.k < goal.k, node, last) for node in nodes), last]

    def _beyond(self, probe: Probe, main: Level) -> Level:
        if self.beyond == 0:
            return main
        prior = probe.prior
        draw = drawn(probe.streams, "beyond", len(main), prior.views)
        index = prior.schedule.index(main.k) + (draw * self.beyond * prior.schedule.steps).floor()
        return prior.level_at(index.round().clamp(max=prior.schedule.steps - 1))

    def _fork(self, probe: Probe, z: Tensor) -> Noised:
        """From the sample at "lower" under the null prompt to "middle" and to the main level, one step each."""
        lower, main, middle = probe.levels["lower"], probe.levels["main"], probe.levels.get("middle")
        eps, answers = _guided(probe, z, "lower", lower, 0.0)
        samples = {("lower", "x"): z, ("main", "x"): ddim(z, eps, lower, main)}
        if middle is not None:
            samples["middle", "x"] = ddim(z, eps, lower, middle)
            if torch.equal(middle.k, lower.k):
                answers[Ask("null", "middle")] = eps
        return Noised(eps_of(samples["main", "x"], probe.x, main), samples, answers)


@dataclass(frozen=True)
class Simulated(Noise):
    """The noise that a sampler sees at the level "upper" on its way down from one kept noise picture.

    DDIM from the last index by `steps` even strides, guided by `scale`, down to "upper"; the noise is the guided
    prediction there (Diverse Score Distillation, arXiv:2412.06780). So the seed chooses the object.
    """

    mixes: ClassVar[bool] = True

    scale: Number
    steps: int = 10

    def __call__(self, probe: Probe) -> Noised:
        prior, upper = probe.prior, probe.levels["upper"]
        nodes = torch.linspace(prior.schedule.steps - 1, 0, self.steps + 1, dtype=torch.float64).round()
        levels = [prior.level_at(node.expand(len(upper))) for node in nodes]
        # The first always: from it the noise comes, even where nothing is left to walk.
        noisier = [levels[0], *(level for level in levels[1:] if bool((level.k > upper.k).any()))]
        grid = [Level.where(level.k > upper.k, level, upper) for level in noisier]
        # Noise of one at the first level, in the units of a variance-preserving path.
        z = Kept()(probe).noise * over(grid[0].alpha * (1 + grid[0].k ** 2).sqrt(), probe.x)
        for level, to in zip(grid, [*grid[1:], upper], strict=True):
            z = ddim(z, _guided(probe, z, "", level, fixed(self.scale))[0], level, to)
        return Noised(_guided(probe, z, "", upper, fixed(self.scale))[0])


def _guided(probe: Probe, z: Tensor, name: str, level: Level, scale: float) -> tuple[Tensor, dict[Ask, Tensor]]:
    """The guided prediction at z, and the predictions it is made of, as answers at the level called `name`."""
    names = ("null",) if scale == 0 else ("prompt", "null")
    found = probe.prior.predict(z, level, [probe.conditions[condition] for condition in names])
    answers = {Ask(condition, name): eps for condition, eps in zip(names, found, strict=True)} if name else {}
    return found[0] if scale == 0 else cfg(found[0], found[1], scale), answers
