"""A guidance rule is a tableau, executed in one place.

    G = post( weight(k) * (trust - subtract) )        at a chosen level, with a chosen noise

`G` is a gradient: descend by x <- x - rate * G. It has the shape of x and no graph; the loop makes the loss
`(G * x).sum() / B`. Everything is detached and the network's Jacobian left out (DreamFusion, arXiv:2209.14988, eq. 3).

A rule of known pieces is a constant in `rules.py`. A new idea is a new piece: a frozen dataclass in its axis's file.

- Levels say at which noise levels to look. The main one is "main"; a rule that compares two levels names a second.
- Noise says with which noise. Samples z = alpha x + sigma noise follow from it; a piece that makes its samples another
  way (by inversion, by an Euler step) returns them, with whatever predictions it already paid for.
- Estimates (trust, subtract) declare the predictions they need, so that all of them run as one network call.
- Weight is a function of k alone, so that it means the same under every prior.
- Post comes last: clamps, normalisation.

A piece may train something beside the scene, a `Part`, such as VSD's student: the rule's step first reads it, then
trains it on the same pictures. Parts live in the run's state and in its checkpoints.

A numeric field of a piece may hold a Schedule; `gradient` turns it into a number before anything runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.diffusion import Level, add_noise, over
from dreamkit.errors import InputError
from dreamkit.guidance.geometry import Geometry
from dreamkit.priors.prior import CAPABILITIES, Condition, Prior
from dreamkit.schedule import resolve
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Ask:
    """One prediction: under which condition, at which level, of which image."""

    condition: str
    level: str = "main"
    image: str = "x"


@dataclass(frozen=True)
class Noised:
    """What a noise piece made: the noise, and where it went another way than z = alpha x + sigma noise, how."""

    noise: Tensor
    z: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    """Samples by (level, image) that are not alpha x + sigma noise."""
    answers: Mapping[Ask, Tensor] = field(default_factory=dict)
    """Predictions made on the way, which then cost nothing more."""
    levels: Mapping[str, Level] = field(default_factory=dict)
    """Levels that it put in the place of those drawn first."""


class Probe:
    """One look at the prior: the images, levels, noise and predictions of one step. Pieces read from it."""

    def __init__(
        self,
        prior: Prior,
        images: Mapping[str, Tensor],
        conditions: Mapping[str, Condition],
        levels: Mapping[str, Level],
        streams: Streams,
        parts: Mapping[str, "Part"],
        progress: float = 0.0,
        geometry: Geometry | None = None,
    ):
        self.prior, self.images, self.conditions, self.levels = prior, images, conditions, levels
        self.streams, self.parts, self.progress, self._geometry = streams, parts, progress, geometry
        self.noised: Noised | None = None
        self._answers: dict[Ask, Tensor] = {}

    @property
    def x(self) -> Tensor:
        return self.images["x"]

    @property
    def geometry(self) -> Geometry:
        """Where what the pictures show stands. Raises ValueError if nobody said."""
        if self._geometry is None:
            raise ValueError("this rule looks at the geometry behind the pictures: give gradient() a Geometry")
        return self._geometry

    @property
    def noise(self) -> Tensor:
        """The noise that z was made with: what SDS subtracts."""
        if self.noised is None:
            raise ValueError("a noise piece asked for the noise it is to make")
        return self.noised.noise

    def use(self, noised: Noised) -> None:
        """Take what the noise piece made."""
        self.noised = noised
        self.levels = {**self.levels, **noised.levels}
        self._answers.update(noised.answers)

    def z(self, level: str = "main", image: str = "x") -> Tensor:
        """The noised sample of an image at a level."""
        if self.noised is not None and (level, image) in self.noised.z:
            return self.noised.z[level, image]
        return add_noise(self.images[image], self.noise, self.levels[level])

    def part(self, name: str, kind: "type[AnyPart]") -> "AnyPart":
        """The part of that name. Raises KeyError if there is none, ValueError if it is not one of this kind."""
        found = self.parts[name]
        if not isinstance(found, kind):
            raise ValueError(f"the part named {name!r} is a {type(found).__name__}")
        return found

    def ask(self, asks: Iterable[Ask]) -> None:
        """Make every prediction in `asks` that is not known yet, all in one network call."""
        new = [ask for ask in dict.fromkeys(asks) if ask not in self._answers]
        if not new:
            return
        z = torch.cat([self.z(ask.level, ask.image) for ask in new])
        level = Level.cat([self.levels[ask.level] for ask in new])
        condition = Condition.cat([self.conditions[ask.condition] for ask in new])
        self._answers.update(zip(new, self.prior.eps(z, level, condition).chunk(len(new)), strict=True))

    def eps(self, condition: str, level: str = "main", image: str = "x") -> Tensor:
        """One prediction, asked for now if it was not declared."""
        ask = Ask(condition, level, image)
        self.ask([ask])
        return self._answers[ask]


class Part(ABC):
    """Something that a rule trains beside the scene, with an optimiser of its own."""

    @abstractmethod
    def train(self, probe: Probe) -> float:
        """One step of training on what the rule just looked at; returns the loss. The images have no graph."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Weights and optimiser, nested dictionaries of tensors and numbers; a part that loads it goes on exactly."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Take over a state. Raises ValueError or KeyError if it is not one of this part's."""


AnyPart = TypeVar("AnyPart", bound=Part)


class Piece(ABC):  # noqa: B024  the axes below add what is abstract
    """What all pieces say about themselves."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Optional capabilities the prior must have (`priors.prior.CAPABILITIES`)."""
    mixes: ClassVar[bool] = False
    """Whether it mixes predictions by a guidance scale, as `diffusion.cfg` does: its field `scale`."""
    part_name: ClassVar[str] = ""
    """The name under which it finds its part in `Probe.parts`; none if it trains nothing."""

    @property
    def names(self) -> tuple[str, ...]:
        """The conditions that it makes itself; none if the usual ones are enough."""
        return ()

    def conditions(
        self, prior: Prior, prompt: str, cameras: Cameras, words: bool, worded: Mapping[str, str] | None = None
    ) -> dict[str, Condition]:
        """Those conditions, one for each camera. `words` says whether prompts get view words; `worded` holds the prompt
        for each of them where it is another one, as in `view_conditions`.

        Raises InputError for what the prior does not understand.
        """
        return {}

    def part(self, prior: Prior, streams: Streams) -> Part:
        """A fresh part. Only for pieces with a `part_name`; pieces that name the same one share it."""
        raise NotImplementedError


class Levels(Piece):
    """At which noise levels to look."""

    @abstractmethod
    def __call__(self, prior: Prior, batch: int, streams: Streams) -> dict[str, Level]:
        """Named levels, each for `batch` samples. "main" must be there. Random numbers from the stream "level"."""

    def within(self, base: "Levels") -> "Levels":
        """The same kind of levels in the range of `base`: how a rule takes over a system's levels."""
        return base


class Noise(Piece):
    """With which noise to look."""

    @abstractmethod
    def __call__(self, probe: Probe) -> Noised:
        """The noise, in the shape of probe.x. Random numbers from the stream "noise"."""


class Estimate(Piece):
    """A guess of the noise: what to trust, or what to subtract."""

    @abstractmethod
    def asks(self) -> tuple[Ask, ...]:
        """The predictions it needs; with those of the other estimate they run as one network call."""

    @abstractmethod
    def __call__(self, probe: Probe) -> Tensor:
        """The estimate, in the shape of probe.x."""


class Weight(Piece):
    """How much each level counts."""

    @abstractmethod
    def __call__(self, k: Tensor) -> Tensor:
        """Weights [B] for noise to signal k [B], float64."""


class Post(Piece):
    """What is done to the finished gradient."""

    @abstractmethod
    def __call__(self, gradient: Tensor, probe: Probe) -> Tensor:
        """The gradient [B, ...] after it; finite numbers in, finite numbers out."""


@dataclass(frozen=True)
class Rule:
    """gradient = post(weight(k) * (trust - subtract)) at `levels`, with `noise`."""

    levels: Levels
    noise: Noise
    trust: Estimate
    subtract: Estimate
    weight: Weight
    post: tuple[Post, ...] = ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """Every piece, also those that stand inside another."""
        own = (self.levels, self.noise, self.trust, self.subtract, self.weight, *self.post)
        return tuple(inner for piece in own for inner in _nest(piece))

    @property
    def needs(self) -> frozenset[str]:
        """The capabilities the prior must have."""
        return frozenset().union(*(piece.needs for piece in self.pieces))

    def parts(self, prior: Prior, streams: Streams) -> dict[str, Part]:
        """Fresh ones of everything that the rule trains, by name; of pieces that share one, the first makes it."""
        makers = {piece.part_name: piece for piece in reversed(self.pieces) if piece.part_name}
        return {name: piece.part(prior, streams.within(name)) for name, piece in makers.items()}

    def conditions(
        self, prior: Prior, prompt: str, cameras: Cameras, words: bool, worded: Mapping[str, str] | None = None
    ) -> dict[str, Condition]:
        """What its pieces name beside the usual conditions, for these cameras; see `Piece.conditions`."""
        made: dict[str, Condition] = {}
        for piece in self.pieces:
            made |= piece.conditions(prior, prompt, cameras, words, worded)
        return made

    @property
    def trains(self) -> bool:
        """Whether it has parts, so that a step depends on those before it by more than the scene."""
        return any(piece.part_name for piece in self.pieces)

    def asks(self) -> tuple[Ask, ...]:
        """Every prediction the estimates need, each once."""
        return tuple(dict.fromkeys((*self.trust.asks(), *self.subtract.asks())))

    @property
    def edits(self) -> bool:
        """Whether it compares with a source: the scene as it was at the start, or the prompt that says what that is."""
        return any("source" in (ask.condition, ask.image) for ask in self.asks())


def _nest(piece: Piece) -> Iterator[Piece]:
    """A piece and the pieces in its fields."""
    yield piece
    names: list[str] = [item.name for item in fields(piece)] if is_dataclass(piece) else []
    for name in names:
        if isinstance(inner := getattr(piece, name), Piece):
            yield from _nest(inner)


@dataclass(frozen=True)
class Guidance:
    """What a rule says about one batch."""

    gradient: Tensor
    """G, in the shape of x, finite, without a graph."""
    figures: dict[str, Any]
    """For the log: mean "k", "norm" of G, "norms" per sample, "t" per sample, how many samples were "dropped", and the
    loss of each part."""


@torch.no_grad()
def gradient(
    rule: Rule,
    prior: Prior,
    x: Tensor,
    conditions: Mapping[str, Condition],
    streams: Streams,
    progress: float = 0.0,
    images: Mapping[str, Tensor] | None = None,
    parts: Mapping[str, Part] | None = None,
    geometry: Geometry | None = None,
) -> Guidance:
    """The rule's gradient for x [B, *prior.shape]: the one place where a rule is executed.

    Args:
        conditions: what the rule's estimates name, of B samples each; `view_conditions` makes the usual ones.
        streams: the randomness of this step; drawn from are "level", "noise" and what pieces name besides.
        progress: the fraction of the stage that is done; every Schedule in the rule becomes its number there.
        images: further images in the shape of x that estimates may name, such as "source" for an edit.
        parts: what `rule.parts` made, for a rule that trains something; trained by one step after the gradient is
            taken.
        geometry: where what the pictures show stands, for a rule that looks at it.

    A sample whose gradient is not finite gets zero instead and is counted in the figure "dropped".

    Raises ValueError for an empty range of levels, and for a rule that looks at a geometry it was not given; KeyError
    for a condition or a part that is missing.
    """
    rule = resolve(rule, progress)
    levels = rule.levels(prior, len(x), streams)
    probe = Probe(prior, {**(images or {}), "x": x}, conditions, levels, streams, parts or {}, progress, geometry)
    probe.use(rule.noise(probe))
    probe.ask(rule.asks())
    direction = rule.trust(probe) - rule.subtract(probe)
    result, dropped = _finite(over(rule.weight(probe.levels["main"].k), direction) * direction)
    for post in rule.post:
        result = post(result, probe)
    trained = {f"{name}_loss": part.train(probe) for name, part in probe.parts.items()}
    return Guidance(result, _figures(result, probe.levels["main"], dropped) | trained)


CONDITIONS = ("prompt", "bare", "null", "negative")
"""The conditions that every run has (`priors.prior.view_conditions`)."""


def check(rule: Rule, prior: Prior, conditions: Iterable[str] = CONDITIONS) -> None:
    """Raise InputError if the prior cannot serve the rule, before anything is spent."""
    missing = sorted(rule.needs - prior.capabilities)
    if missing:
        who = "; ".join(f"{name!r} ({CAPABILITIES.get(name, 'no known prior has it')})" for name in missing)
        has = ", ".join(sorted(prior.capabilities)) or "no optional capability"
        watched = "attention_maps" in missing and prior.views > 1  # which are not known by view
        alone = f" Shown single views it may serve: --prior {prior.name}." if watched else ""
        raise InputError(
            f"this rule needs of its prior {who}, but the prior {prior.name!r} has {has}. "
            f"Choose another rule, or another prior with --prior.{alone}"
        )
    known = set(conditions).union(*(piece.names for piece in rule.pieces))
    unknown = sorted({ask.condition for ask in rule.asks()} - known)
    if unknown:
        hint = " It edits: say what the scene is now with --source-prompt." if unknown == ["source"] else ""
        raise InputError(f"this rule asks for the conditions {unknown}, but there are only {sorted(known)}.{hint}")


def _finite(value: Tensor) -> tuple[Tensor, int]:
    """The batch with each sample that is not finite throughout set to zero, and how many there were."""
    good = value.isfinite().flatten(1).all(1)
    return torch.where(over(good, value) > 0, value, torch.zeros_like(value)), int((~good).sum())


def _figures(result: Tensor, level: Level, dropped: int) -> dict[str, Any]:
    norms = result.flatten(1).norm(dim=1)
    return {
        "k": float(level.k.mean()),
        "norm": float(norms.norm()),
        "norms": norms.tolist(),
        "t": level.t.tolist(),
        "dropped": dropped,
    }
