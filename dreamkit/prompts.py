"""Prompts: view words, and lists of prompts in files.

View-dependent prompting (DreamFusion, arXiv:2209.14988, section 3.2): the prompt gets a suffix by where the camera
stands. The words for the directions are the prior's (`Prior.directions`): a tuple of them goes round the object in
equal sectors, counter-clockwise seen from above, the first centred on its front.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.errors import InputError

FOUR = ("front", "side", "back", "side")
"""DreamFusion's words, which most priors know."""
EIGHT = ("front", "front left", "left side", "back left", "back", "back right", "right side", "front right")
"""Words that tell an object's left side (towards +y) from its right."""


def view_of(azimuth_degrees: float, elevation_degrees: float, directions: Sequence[str] = FOUR) -> str:
    """The view word of a camera: "overhead" above 60 degrees, else the direction whose sector it stands in."""
    if elevation_degrees > 60.0:
        return "overhead"
    sector = 360.0 / len(directions)
    return directions[int((azimuth_degrees + sector / 2) // sector) % len(directions)]


def views_of(cameras: Cameras, directions: Sequence[str] = FOUR) -> list[str]:
    """The view word of every camera of a batch."""

    def numbers(values: Tensor) -> list[float]:
        return values.tolist()

    pairs = zip(numbers(cameras.azimuth_degrees), numbers(cameras.elevation_degrees), strict=True)
    return [view_of(azimuth, elevation, directions) for azimuth, elevation in pairs]


def with_view(prompt: str, view: str) -> str:
    """The prompt as the prior is asked for it from one side: "a red mug, front view"."""
    return f"{prompt}, {view} view"


def read_list(path: str | Path) -> list[str]:
    """The prompts of a file, one a line; blank lines and lines that start with # are skipped. Raises InputError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the prompt list {path}: {error}. Give a text file with one prompt a line."
        ) from error
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise InputError(
            f"the prompt list {path} holds no prompt. Write one a line; lines starting with # are skipped."
        )
    return prompts
