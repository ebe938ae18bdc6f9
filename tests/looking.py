"""Looking at a rule where all is said: at which level, with which noise, of which exact prior.

For the tests of guidance. A rule is looked at under pieces of the tests' own, `AtK` and `Given`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamkit.cameras import orbit
from dreamkit.diffusion import Level
from dreamkit.guidance import Rule, gradient, rules
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.geometry import Geometry
from dreamkit.guidance.rule import Levels, Noise, Noised, Probe, Weight
from dreamkit.guidance.weight import One
from dreamkit.priors import Bell, Condition, Gaussian, Mixture, Prior, view_conditions
from dreamkit.streams import Streams

RULES = {name: value for name, value in vars(rules).items() if isinstance(value, Rule)}

# The prior of the golden table: s = 0.7, null 0.3, prompt 1.1, negative -0.5, so at scale 7.5 the guided mean is 6.3.
BELLS = (Bell("", 0.3, 0.7), Bell("y", 1.1, 0.7), Bell("bad", -0.5, 0.7))
MODES = (Bell("y", 1.0, 0.3), Bell("bad", -1.0, 0.3))
S, G = 0.7, 7.5

PICTURES = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
COLOURS = (Bell("y", (1.0, 0.0, 0.2), 0.4), Bell("bad", (-0.3, 0.9, 0.1), 0.5))


@dataclass(frozen=True)
class AtK(Levels):
    """Named levels of given k, the same for every sample (or one k a sample)."""

    named: tuple[tuple[str, float | tuple[float, ...]], ...]

    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        return {name: prior.level_of_k(torch.tensor(k, dtype=torch.float64).expand(batch)) for name, k in self.named}


@dataclass(frozen=True, eq=False)
class Given(Noise):
    value: Tensor

    def __call__(self, probe: Probe) -> Noised:
        return Noised(self.value)


@dataclass(frozen=True)
class Times(Weight):
    weight: Weight
    factor: float

    def __call__(self, k: Tensor) -> Tensor:
        return self.factor * self.weight(k)


def at(rule: Rule, k: float | tuple[float, ...], noise: Tensor) -> Rule:
    """The rule at a given level with a given noise; a second level, where it has one, stands a fifth off."""
    others = {"upper": 1.2, "middle": 0.9, "lower": 0.8}
    ks = torch.tensor(k, dtype=torch.float64)
    named = tuple((name, tuple((ks * share).reshape(-1).tolist())) for name, share in others.items())
    return replace(rule, levels=AtK((("main", k), *named)), noise=Given(noise))


def batch(values: Tensor | list[float]) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1, 1, 1)


def prior_of(bells: tuple[Bell, ...] = BELLS, parameterization: str = "eps", size: int = 1, channels: int = 1) -> Prior:
    kind = Gaussian if any(bell.prompt == "" for bell in bells) else Mixture
    return kind(bells, parameterization, size, channels).load("cpu")


def colours(parameterization: str = "eps") -> Prior:
    return prior_of(COLOURS, parameterization, size=4, channels=3)


def conditions_of(prior: Prior, count: int) -> dict[str, Condition]:
    """The usual ones; an edit's source is what the null prompt means, and a layout says nothing."""
    usual = view_conditions(prior, "y", ["front"] * count, negative="bad") | {"source": prior.condition([""] * count)}
    return usual | {"layout": usual["prompt"], "layout_null": usual["null"], "layout_bare": usual["bare"]}


def ball(count: int, step: int = 0, radius: float = 0.6, size: int = 32, turn: float = 0.0) -> Geometry:
    """A ball round the origin, from cameras that all stand in one place, another at every step."""
    cameras = orbit([40.0 * step + turn] * count, 20.0, size=size)
    origins, directions = (value.double() for value in cameras.rays())
    towards = -(origins * directions).sum(-1)
    reach = radius**2 - (origins.square().sum(-1) - towards**2)
    depth = torch.where(reach > 0, towards - reach.clamp(min=0).sqrt(), 0.0)
    return Geometry(cameras, depth[:, None], (reach > 0).double()[:, None])


def guided(rule: Rule, prior: Prior, x: Tensor, images: dict[str, Tensor], step: int = 0, progress: float = 0.25):
    """What a rule says of x with all that any rule may look at."""
    parts, where = rule.parts(prior, Streams(0, -1)), ball(len(x), step)
    conditions = conditions_of(prior, len(x)) | rule.conditions(prior, "y", where.cameras, True)
    return gradient(rule, prior, x, conditions, Streams(0, step), progress, images, parts, where)


def look(rule: Rule, x: Tensor, prior: Prior, step: int = 0, progress: float = 0.25, **images: Tensor) -> Tensor:
    return guided(rule, prior, x, {"source": 0.3 * x.flip(-1) + 0.1, **images}, step, progress).gradient


def plain(rule: Rule, scale: float | None = None) -> Rule:
    """With weight one, and with the scale of the golden table."""
    return replace(rule, weight=One(), trust=rule.trust if scale is None else Guided(scale))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
