"""Numbers that change while a stage runs.

A recipe may hold a `Schedule` wherever it may hold a float. Progress is the fraction of the stage that is done, so a
recipe means the same at 300 steps and at 10,000. `resolve` turns a whole tree of frozen dataclasses into plain numbers.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dreamkit.errors import InputError


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in a straight line over progress [begin, until]; constant outside."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * _fraction(progress, self.begin, self.until)


@dataclass(frozen=True)
class Geometric:
    """From `start` to `end` by a constant factor per step over progress [begin, until]; both > 0."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.end > 0):
            raise InputError(f"Geometric goes between numbers > 0, as no factor leads to 0; got {self}.")

    def at(self, progress: float) -> float:
        return self.start * (self.end / self.start) ** _fraction(progress, self.begin, self.until)


@dataclass(frozen=True)
class Sqrt:
    """From `start` to `end` with the square root of progress (HiFA, arXiv:2305.18766): fast first, slow later."""

    start: float
    end: float

    def at(self, progress: float) -> float:
        return self.start + (self.end - self.start) * math.sqrt(_fraction(progress, 0.0, 1.0))


@dataclass(frozen=True)
class Sigmoid:
    """From `start` to `end` along a logistic curve, the steeper in the middle the larger `speed`."""

    start: float
    end: float
    speed: float = 5.0

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise InputError(f"Sigmoid needs speed > 0; got {self}.")

    def at(self, progress: float) -> float:
        # The logistic curve's part over [-speed, speed], stretched to [0, 1]; as tanh, which does not overflow.
        share = math.tanh(self.speed * (_fraction(progress, 0.0, 1.0) - 0.5)) / math.tanh(self.speed / 2)
        return self.start + (self.end - self.start) * (1 + share) / 2


@dataclass(frozen=True)
class Switch:
    """`before` until progress reaches `at_progress`, then `after` (ProlificDreamer's schedule of levels)."""

    before: float
    after: float
    at_progress: float

    def at(self, progress: float) -> float:
        return self.before if progress < self.at_progress else self.after


@dataclass(frozen=True)
class Polyline:
    """Straight lines through points (progress, value), whose progress grows; constant before the first, after the last.

    >>> Polyline(((0.0, 1.0), (0.5, 0.0))).at(0.25)
    0.5
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points or any(len(point) != 2 for point in self.points):
            raise InputError(f"Polyline goes through one or more points (progress, value); got {self.points}.")
        if any(one[0] > two[0] for one, two in itertools.pairwise(self.points)):
            raise InputError(f"the progress of a Polyline's points grows; got {self.points}.")

    def at(self, progress: float) -> float:
        lines = itertools.pairwise(self.points)
        line = next((pair for pair in lines if progress < pair[1][0]), (self.points[-1],) * 2)
        (begin, start), (until, end) = line
        return start + (end - start) * _fraction(progress, begin, until)


@dataclass(frozen=True)
class DreamTime:
    """Fractions of the noise schedule from high to low, slow where they matter (DreamTime, arXiv:2306.12422).

    The share of steps spent at u is proportional to exp(-(u - high)^2 / (2 spread_high^2)) above `high`, 1 between
    `low` and `high`, and exp(-(u - low)^2 / (2 spread_low^2)) below: at(progress) has that share of them above it.
    """

    high: float = 0.8
    low: float = 0.5
    spread_high: float = 0.3
    spread_low: float = 0.1

    def at(self, progress: float) -> float:
        above = self._tail(self.high, 1.0, self.spread_high)
        below = self._tail(1 - self.low, 1.0, self.spread_low)
        mass = min(max(progress, 0.0), 1.0) * (above + (self.high - self.low) + below)
        if mass < above:  # the two tails by bisection: their mass has no inverse in closed form
            return _solve(lambda u: above - self._tail(self.high, u, self.spread_high), mass, 1.0, self.high)
        if mass < above + self.high - self.low:
            return self.high - (mass - above)
        rest = mass - above - (self.high - self.low)
        return 1 - _solve(lambda v: self._tail(1 - self.low, v, self.spread_low), rest, 1 - self.low, 1.0)

    @staticmethod
    def _tail(start: float, end: float, spread: float) -> float:
        """The mass of the bell round `start` between `start` and `end`."""
        return math.sqrt(math.pi / 2) * spread * math.erf((end - start) / (spread * math.sqrt(2)))


def _solve(mass: Callable[[float], float], wanted: float, first: float, last: float) -> float:
    """Where a mass that grows from 0 at `first` to `last` reaches what is wanted."""
    for _ in range(60):
        middle = (first + last) / 2
        first, last = (middle, last) if mass(middle) < wanted else (first, middle)
    return (first + last) / 2


Schedule = Linear | Geometric | Sqrt | Sigmoid | Switch | Polyline | DreamTime
Number = float | Schedule


def fixed(value: Number) -> float:
    """The number that `value` is. Raises ValueError for a schedule: somebody forgot to resolve it."""
    if isinstance(value, Schedule):
        raise ValueError(f"{value} is still a schedule: resolve() what holds it first")
    return float(value)


def resolve(value: Any, progress: float) -> Any:
    """`value` with every Schedule in it, at any depth of dataclasses and tuples, replaced by its number at `progress`.

    Values without schedules come back as the same object.

    >>> resolve((Linear(0.0, 10.0), "kept"), 0.5)
    (5.0, 'kept')
    """
    if isinstance(value, Schedule):
        return value.at(progress)
    if isinstance(value, tuple):
        items = tuple(resolve(item, progress) for item in value)
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        new = {f.name: resolve(getattr(value, f.name), progress) for f in dataclasses.fields(value) if f.init}
        changed = {name: item for name, item in new.items() if item is not getattr(value, name)}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def _fraction(progress: float, begin: float, until: float) -> float:
    if until <= begin:
        return 0.0 if progress < begin else 1.0
    return min(max((progress - begin) / (until - begin), 0.0), 1.0)


def check_rates(spec: Any) -> None:
    """Raise InputError if a learning rate of a specification, a field whose name ends in "rate", is below 0, at the
    beginning, in the middle or at the end of its stage."""
    for name in (field.name for field in dataclasses.fields(spec) if field.name.endswith("rate")):
        rate = getattr(spec, name)
        rates = [rate] if isinstance(rate, int | float) else [resolve(rate, progress) for progress in (0.0, 0.5, 1.0)]
        if not all(value >= 0 for value in rates):
            raise InputError(f"{type(spec).__name__}.{name} is a learning rate of at least 0; got {rate}.")
