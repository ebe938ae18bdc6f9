"""Prompts: view words, and lists of prompts in files.

View-dependent prompting (DreamFusion, arXiv:2209.14988, section 3.2): the prompt gets a suffix by where the camera
stands. Later rules win: side, then front, then back, then overhead.
"""

from pathlib import Path

from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.errors import InputError

VIEWS = ("front", "side", "back", "overhead")


def view_of(azimuth_degrees: float, elevation_degrees: float) -> str:
    """The view word of a camera: front within 45 degrees of +x, back within 45 of -x, overhead above 60, else side."""
    azimuth = (azimuth_degrees + 180.0) % 360.0 - 180.0
    view = "side"
    if -45.0 < azimuth < 45.0:
        view = "front"
    if azimuth > 135.0 or azimuth < -135.0:
        view = "back"
    if elevation_degrees > 60.0:
        view = "overhead"
    return view


def views_of(cameras: Cameras) -> list[str]:
    """The view word of every camera of a batch."""

    def numbers(values: Tensor) -> list[float]:
        return values.tolist()

    pairs = zip(numbers(cameras.azimuth_degrees), numbers(cameras.elevation_degrees), strict=True)
    return [view_of(azimuth, elevation) for azimuth, elevation in pairs]


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
