"""Prompts: view words, two things in one prompt, and lists of prompts in files.

View-dependent prompting (DreamFusion, arXiv:2209.14988, section 3.2): the prompt gets a suffix by where the camera
stands, in the words that the prior knows (`Prior.view_words`).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.errors import InputError, nearest

FOUR = ("front", "side", "back", "side")
"""DreamFusion's words, which most priors know."""
EIGHT = ("front", "front left", "left side", "back left", "back", "back right", "right side", "front right")
"""Words that tell an object's left side (towards +y) from its right."""
OVERHEAD = 60.0
"""Degrees of elevation above which a view is "overhead", from whatever side."""

JOINTS = {"next to": ("next to", "beside", "and"), "on top of": ("on top of", "on")}
"""How two things can stand to each other, and how each relation is said: the first is to the left of the second, seen
from the front, or on it."""


@dataclass(frozen=True)
class ViewWords:
    """The words for where a camera stands: "overhead", or a direction, such as "front", said alone or with a height
    before it, such as "high front"."""

    directions: tuple[str, ...] = FOUR
    """Round the object in equal sectors, counter-clockwise seen from above, the first centred on its front."""
    heights: tuple[tuple[str, float], ...] = ()
    """Words, each with the degrees of elevation from which on it is said, ascending; the lowest is said of all that is
    below, too. Most priors know none."""

    def __post_init__(self) -> None:
        starts = [start for _, start in self.heights]
        if not self.directions or not all(a < b for a, b in pairwise([-math.inf, *starts, OVERHEAD])):
            raise InputError(
                f"view words are directions, and heights that begin in ascending order below {OVERHEAD:g} degrees; "
                f"got {self.directions} and {self.heights}"
            )

    def at(self, azimuth_degrees: float, elevation_degrees: float) -> str:
        """What is said of a camera."""
        if elevation_degrees > OVERHEAD:
            return "overhead"
        sector = 360.0 / len(self.directions)
        direction = self.directions[int((azimuth_degrees + sector / 2) // sector) % len(self.directions)]
        below = [word for word, start in self.heights if elevation_degrees >= start]
        height = below[-1:] or [word for word, _ in self.heights[:1]]
        return " ".join([*height, direction])

    def of(self, cameras: Cameras) -> list[str]:
        """What is said of every camera of a batch."""

        def numbers(values: Tensor) -> list[float]:
            return values.tolist()

        pairs = zip(numbers(cameras.azimuth_degrees), numbers(cameras.elevation_degrees), strict=True)
        return [self.at(azimuth, elevation) for azimuth, elevation in pairs]

    @property
    def every(self) -> tuple[str, ...]:
        """All that can be said."""
        heights = [f"{word} " for word, _ in self.heights] or [""]
        return ("overhead", *dict.fromkeys(height + direction for height in heights for direction in self.directions))


def with_view(prompt: str, view: str) -> str:
    """The prompt as the prior is asked for it from one side: "a red mug, front view"."""
    return f"{prompt}, {view} view"


@dataclass(frozen=True)
class Related:
    """Two things that a prompt asks for, each in its own words, and how they stand to each other: one of JOINTS."""

    first: str
    relation: str
    second: str

    def __post_init__(self) -> None:
        if self.relation not in JOINTS:
            raise InputError(f"things have no relation {self.relation!r}. {nearest(str(self.relation), JOINTS)}")


def related(prompt: str) -> Related | None:
    """The two things that a prompt asks for, such as "a red mug on top of a table"; None if it asks for something else.

    The relation is one of JOINTS in any of its words, said once. "on" and "and" say many other things, so behind them
    an indefinite article is wanted: "a red and white mug", "a mug on wheels" and "a mug on the left" are one thing. "A
    red and a blue mug" may be one as well, and a list of things are more than two: they are left as they are.
    """
    said = {words: relation for relation, ways in JOINTS.items() for words in ways}
    ways = "|".join(rf"{words}(?=\s(?:a|an|one)\s)" if words in ("on", "and") else words for words in said)
    parts = re.split(rf",?\s({ways})\s", " ".join(prompt.split()), flags=re.IGNORECASE)
    if len(parts) != 3 or not parts[0] or not parts[2] or "," in parts[0]:
        return None
    if parts[1].lower() == "and" and len(parts[0].split()) < len(parts[2].split()):
        return None
    return Related(parts[0], said[parts[1].lower()], parts[2])


Guess = Callable[[str], Mapping[str, float]]
"""How likely a language model finds "front", "side", "back" and "overhead" in the place of [MASK] in a text."""


def debiased(prompt: str, views: Iterable[str], guess: Guess, words: Iterable[int] | None = None) -> dict[str, str]:
    """The prompt for every view, without the words that argue against that view (D-SDS, arXiv:2303.15413).

    A language model guesses the view in "This image is depicting a [MASK] view of ..." with the whole prompt, P, and
    without one of its words, Q, each made to sum to one over the four views. A word of which P(v) < 0.95 (P(v) + Q(v))
    / 2 makes view v less likely than it is without it, and is left out there. `words` are the places, from 0, of those
    that may be left out; all by default. A prompt never loses its last word. A view of several words ("back left")
    counts as the one of the four that it holds, or else as the side.
    """
    spoken = prompt.split()
    whole, kept = _chances(prompt, guess), {view: list(range(len(spoken))) for view in views}
    for place in range(len(spoken)) if words is None else words:
        rest = _chances(" ".join(spoken[:place] + spoken[place + 1 :]), guess)
        for view, places in kept.items():
            seen = next((word for word in (*FOUR, "overhead") if word in view.split()), "side")
            if whole[seen] < 0.95 * (rest[seen] + whole[seen]) / 2 and len(places) > 1:
                places.remove(place)
    return {view: " ".join(spoken[place] for place in places) for view, places in kept.items()}


def _chances(prompt: str, guess: Guess) -> dict[str, float]:
    found = guess(f"This image is depicting a [MASK] view of {prompt}")
    total = sum(found[word] for word in {*FOUR, "overhead"})
    return {word: found[word] / total for word in {*FOUR, "overhead"}}


def read_list(path: str | Path) -> list[str]:
    """The prompts of a file, one a line, each once; blank lines and lines that start with # are skipped. Raises
    InputError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the prompt list {path}: {error}. Give a text file with one prompt a line."
        ) from error
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise InputError(
            f"the prompt list {path} holds no prompt. Write one a line; lines starting with # are skipped."
        )
    return list(dict.fromkeys(prompts))
