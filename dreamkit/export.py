"""Export: a scene becomes files, and the files are checked against the scene.

Sample the density on a grid; choose the level whose silhouettes match the scene's own pictures; cut, clean, decimate;
unwrap, bake; write. A scene that is a surface itself gives that one, and keeps the texture it has. Then the first file
is read back, rendered from the cameras the scene was rendered from, and compared with it: what is reported is true of
the file, not of something in memory.

A canvas, which has no surface, is written as a picture.
"""

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamkit.assets.bake import bake
from dreamkit.assets.clean import clean
from dreamkit.assets.compare import Comparison, compare
from dreamkit.assets.extract import density_grid, density_surface, match_level
from dreamkit.assets.files import read, write
from dreamkit.assets.unwrap import unwrap
from dreamkit.cameras import Cameras, orbit
from dreamkit.disk import write_whole
from dreamkit.images import png
from dreamkit.meshes import Mesh
from dreamkit.recipe import Export
from dreamkit.render.mesh import render_mesh
from dreamkit.representations.canvas import CanvasScene
from dreamkit.representations.mesh import MeshScene
from dreamkit.representations.representation import Solid, Volume

BACKGROUND = (1.0, 1.0, 1.0)
SMALLEST_PART = 0.02
"""Components below this share of the largest one's area are floaters."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it agrees with the scene."""

    files: tuple[Path, ...]
    mesh: Mesh
    """As read back from the first file, in the scene's place and size."""
    level: float | None
    """Density of the surface, per world unit; None for a scene that is a surface itself."""
    faces: int
    unwrapped: str
    """How the texture coordinates were made."""
    agreement: Comparison
    """The scene's pictures against those of the file."""
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.faces} faces; against the scene: {self.agreement}"

    def facts(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "files": [path.name for path in self.files],
            "level": None if self.level is None else round(self.level, 4),
            "faces": self.faces,
            "unwrapped": self.unwrapped,
            "psnr": round(self.agreement.psnr, 2),
            "silhouette_iou": round(self.agreement.iou, 4),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


@dataclass(frozen=True)
class Picture:
    """What was written of a canvas."""

    files: tuple[Path, ...]
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.size[1]} x {self.size[0]} pixels"

    def facts(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {"files": [path.name for path in self.files], "size": list(self.size)}


def export_picture(scene: CanvasScene, folder: Path, history: Path | None = None) -> Picture:
    """Write a canvas as `picture.png`, and the pictures of a folder, in order of their names, as `history.gif`."""
    with torch.no_grad():
        rgb = torch.sigmoid(scene.logits)
    write_whole(folder / "picture.png", png(rgb))
    films = [write_film(history, folder / "history.gif")] if history and [*history.glob("step_*.png")] else []
    return Picture((folder / "picture.png", *films), (rgb.shape[1], rgb.shape[2]))


def write_film(history: Path, path: Path, seconds: float = 0.2) -> Path:
    """The step_*.png of a folder as an endless GIF, `seconds` each."""
    import imageio.v3 as imageio

    frames = [imageio.imread(file) for file in sorted(history.glob("step_*.png"))]
    film = io.BytesIO()
    imageio.imwrite(film, np.stack(frames), extension=".gif", duration=1000 * seconds, loop=0)
    write_whole(path, film.getvalue())
    return path


def export(
    scene: Volume | Solid,
    spec: Export,
    folder: Path,
    provenance: dict[str, Any],
    device: torch.device | str = "cpu",
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write the scene as `mesh.<format>` for every format of the specification, and compare.

    Args:
        provenance: kept in the files: prompt, system, seed, versions.
        note: told what is being done.

    Raises RunError for a scene with nothing in it; then nothing is written.
    """
    clock = _Clock(note)
    cameras = check_cameras()
    level = None
    with clock("surface"), torch.no_grad():
        images = scene.render(cameras, shading="albedo", background=BACKGROUND)
        if isinstance(scene, Solid):
            mesh = scene.mesh()
        else:
            grid = density_grid(scene.density, spec.grid_resolution, device)
            level = match_level(grid, images.alpha, cameras).density
            mesh = density_surface(grid, level)
    textured, note_on_uv = mesh, "as the scene has it"
    if mesh.texture is None:
        textured, note_on_uv = _textured(scene, mesh, spec, device, clock)
    # A mesh that came from a file goes back to its place and size.
    placed = scene.to_source(textured) if isinstance(scene, MeshScene) else textured
    with clock("write"):
        files = []
        for suffix in spec.formats:
            files += write(placed, folder / f"mesh.{suffix}", provenance)
    with clock("compare"):
        back = read(files[0])
        back = scene.to_scene(back) if isinstance(scene, MeshScene) else back
        agreement = compare(images, render_mesh(back, cameras, background=BACKGROUND))
    return Exported(tuple(files), back, level, len(back.faces), note_on_uv, agreement, clock.seconds)


def _textured(
    scene: Volume | Solid, raw: Mesh, spec: Export, device: torch.device | str, clock: "_Clock"
) -> tuple[Mesh, str]:
    """The surface, cleaned, decimated, unwrapped and baked; and how it was unwrapped."""
    with clock("clean"):
        mesh = clean(raw, spec.face_budget, keep=SMALLEST_PART)
    with clock("unwrap"):
        unwrapped = unwrap(mesh, spec.texture_size, spec.unwrap_seconds)
    with clock("bake"):
        # The colour of a volume lies under its surface.
        density = scene.density if isinstance(scene, Volume) else None
        textured = bake(unwrapped.mesh, scene.colour, spec.texture_size, density=density, device=device)
    return textured, unwrapped.note


def check_cameras() -> Cameras:
    """Twelve views that see an object from all round: eight at eye level, four from above."""
    azimuth = [45.0 * i for i in range(8)] + [45.0 + 90.0 * i for i in range(4)]
    return orbit(azimuth, [15.0] * 8 + [50.0] * 4, size=128)


class _Clock:
    def __init__(self, note: Callable[[str], None]) -> None:
        self.note, self.seconds = note, dict[str, float]()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.note(part)
        began = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - began
