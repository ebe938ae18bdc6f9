"""Export: a scene becomes files, and the files are checked against the scene.

Find the surface (`representations/surface.py`), clean, decimate; unwrap, bake; write. A scene that is a surface itself
gives that one, and keeps the texture it has. Gaussian splats are written where they are asked for: a scene's own, or
some on the surface of another. Then the first file of each kind is read back, rendered from the cameras the scene was
rendered from, and compared with it: what is reported is true of the file, not of something in memory.

A canvas, which has no surface, is written as a picture.
"""

import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamkit.assets.files import read, write
from dreamkit.assets.splats import Splats, moved, read_splats, write_splats
from dreamkit.assets.unwrap import unwrap
from dreamkit.cameras import Cameras
from dreamkit.disk import write_whole
from dreamkit.images import Images, png
from dreamkit.meshes import Mesh
from dreamkit.metrics.compare import Comparison, compare
from dreamkit.recipe import Export
from dreamkit.render.mesh import render_mesh
from dreamkit.representations.canvas import CanvasScene
from dreamkit.representations.gaussians import Gaussians, GaussiansScene, as_they_are
from dreamkit.representations.mesh import MeshScene
from dreamkit.representations.representation import Solid, Volume
from dreamkit.representations.surface import baked, check_cameras, surface_of
from dreamkit.streams import Streams

BACKGROUND = (1.0, 1.0, 1.0)
SPLAT = "splat-"
"""What the names of formats for Gaussians begin with."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it agrees with the scene."""

    files: tuple[Path, ...]
    mesh: Mesh
    """As read back from the first file of one, in the scene's place and size; as it would be written if none was."""
    level: float | None
    """Density of the surface, per world unit; None for a scene that is a surface itself."""
    faces: int
    unwrapped: str
    """How the texture coordinates were made."""
    agreement: Comparison
    """The scene's pictures against those of this mesh."""
    splats: Comparison | None = None
    """The scene's pictures against those of the Gaussians, as read back from their first file, if there is one."""
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        drawn = f"; as splats: {self.splats}" if self.splats else ""
        return f"{self.faces} faces; against the scene: {self.agreement}{drawn}"

    def facts(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "files": [path.name for path in self.files],
            "level": None if self.level is None else round(self.level, 4),
            "faces": self.faces,
            "unwrapped": self.unwrapped,
            "psnr": _decibels(self.agreement.psnr),
            "silhouette_iou": round(self.agreement.iou, 4),
            "splats": self.splats
            and {
                "psnr": _decibels(self.splats.psnr),
                "silhouette_iou": round(self.splats.iou, 4),
            },
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def _decibels(value: float) -> float | None:
    """Two digits; none for equal pictures, as JSON has no inf."""
    return round(value, 2) if math.isfinite(value) else None


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


@dataclass(frozen=True)
class Several:
    """What was written of a run of particles: of each what is written of one, in a folder of its own."""

    each: tuple[Exported | Picture, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for one in self.each for file in one.files)

    def __str__(self) -> str:
        return "; ".join(f"{one.files[0].parent.name}: {one}" for one in self.each)

    def facts(self) -> dict[str, Any]:
        """The report as JSON values: all files, by folder and name, and what is known of each particle."""
        files = [f"{file.parent.name}/{file.name}" for file in self.files]
        return {"files": files, "particles": [one.facts() for one in self.each]}


def export_picture(scene: CanvasScene, folder: Path, history: Path | None = None) -> Picture:
    """Write a canvas as `picture.png`, and the pictures of a folder, in order of their names, as `history.gif`."""
    rgb = scene.picture.detach()
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


def export_scene(
    scene: Volume | Solid,
    spec: Export,
    folder: Path,
    provenance: dict[str, Any],
    device: torch.device | str = "cpu",
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write the scene as `mesh.<format>` and `points.<format>` (the formats splat-<format>), and compare.

    Args:
        provenance: kept in the files: prompt, system, seed, versions.
        note: told what is being done.

    Raises RunError for a scene with nothing in it; then nothing is written.
    """
    clock = _Clock(note)
    cameras = check_cameras()
    with clock("surface"), torch.no_grad():
        images = scene.render(cameras, shading="albedo", background=BACKGROUND)
        mesh, level = surface_of(scene, spec.face_budget, spec.grid_resolution, images)
    note_on_uv = "as the scene has it"
    if mesh.uv is not None and len(mesh.faces) > spec.face_budget:
        note(f"face_budget={spec.face_budget}: the scene is a textured mesh, which keeps its {len(mesh.faces)} faces")
    if mesh.texture is None:
        with clock("unwrap"):
            unwrapped = unwrap(mesh, spec.texture_size, spec.unwrap_seconds)
        with clock("bake"):
            mesh, note_on_uv = baked(scene, unwrapped.mesh, spec.texture_size, device), unwrapped.note
    splats = None
    if any(name.startswith("points") for name in file_names(spec)):
        with clock("splats"):
            splats = _splats(scene, spec, device)
    with clock("write"):
        files = _written(scene, mesh, splats, spec, folder, provenance)
    with clock("compare"):
        meshes = [file for file in files if file.stem == "mesh"]
        back = read(meshes[0]) if meshes else mesh
        back = scene.to_scene(back) if meshes and isinstance(scene, MeshScene) else back
        agreement = compare(images, render_mesh(back, cameras, background=BACKGROUND))
        points = [file for file in files if file.stem == "points"]
        drawn = compare(images, _drawn(scene, points[0], cameras, device)) if points else None
    return Exported(tuple(files), back, level, len(back.faces), note_on_uv, agreement, drawn, clock.seconds)


def file_names(spec: Export) -> list[str]:
    """The names of the files that an export writes, meshes first; an OBJ's own come beside it."""
    meshes = [f"mesh.{name}" for name in spec.formats if not name.startswith(SPLAT)]
    return meshes + [f"points.{name.removeprefix(SPLAT)}" for name in spec.formats if name.startswith(SPLAT)]


def _splats(scene: Volume | Solid, spec: Export, device: torch.device | str) -> Splats:
    """The scene's own Gaussians, or some that are put on its surface."""
    if not isinstance(scene, GaussiansScene):
        scene = Gaussians(count=spec.splats).from_scene(scene, device, Streams(0, -1))
    return scene.splats()


def _written(
    scene: Volume | Solid,
    mesh: Mesh,
    splats: Splats | None,
    spec: Export,
    folder: Path,
    provenance: dict[str, Any],
) -> list[Path]:
    """The files written, those of meshes first. What came from a file goes back to its place and size."""
    if isinstance(scene, MeshScene):
        mesh, where = scene.to_source(mesh), scene.placement
        splats = splats and moved(splats, where.scale, np.array(where.centre))
    files = []
    for name in file_names(spec):
        if splats is not None and name.startswith("points"):
            files += write_splats(splats, folder / name, provenance)
        else:
            files += write(mesh, folder / name, provenance)
    return files


def _drawn(scene: Volume | Solid, file: Path, cameras: Cameras, device: torch.device | str) -> Images:
    """The pictures of a file of Gaussians, brought back into the scene."""
    held = read_splats(file)
    if isinstance(scene, MeshScene):
        where = scene.placement
        held = moved(held, 1 / where.scale, -np.array(where.centre) / where.scale)
    own = scene.spec.antialiased if isinstance(scene, GaussiansScene) else False
    with torch.no_grad():
        return as_they_are(held, device, own).render(cameras, background=BACKGROUND)


class _Clock:
    def __init__(self, note: Callable[[str], None]) -> None:
        self.note, self.seconds = note, dict[str, float]()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        self.note(part)
        began = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - began
