"""Texture coordinates: every face gets a place of its own in the unit square.

xatlas cuts the surface into few large charts. It is native code that cannot be interrupted and whose time depends on
the mesh, so it runs in a process of its own that is ended at a time limit. Then, or when it fails, a plain grid of
triangles serves: many seams, but correct for every mesh.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamkit.meshes import Mesh


@dataclass(frozen=True)
class Unwrapped:
    """A mesh with texture coordinates, which method made them ("xatlas" or "grid"), and a sentence about it."""

    mesh: Mesh
    method: str
    note: str


def unwrap(mesh: Mesh, size: int = 1024, time_limit_s: float = 15.0) -> Unwrapped:
    """Texture coordinates for a square texture of `size` texels; vertices on seams are doubled.

    Charts keep a distance of size / 256 texels (at least 2), so that they stay apart for some mip levels.

    Args:
        mesh: not empty; vertex colours are carried along.
        time_limit_s: for xatlas, with the start of its process; 0 goes straight to the grid.
    """
    if not len(mesh.faces):
        raise ValueError("unwrap was given a mesh without faces")
    if time_limit_s <= 0:
        return Unwrapped(grid_atlas(mesh, size), "grid", "grid of triangles, as asked")
    try:
        return _xatlas(mesh, size, time_limit_s)
    except subprocess.TimeoutExpired:
        reason = f"xatlas did not finish {len(mesh.faces)} faces in {time_limit_s:g} s"
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        reason = f"xatlas failed ({_last_line(error)})"
    return Unwrapped(grid_atlas(mesh, size), "grid", f"grid of triangles, because {reason}")


def _xatlas(mesh: Mesh, size: int, time_limit_s: float) -> Unwrapped:
    """Run xatlas in a process of its own. Raises what `subprocess.run` raises, and ValueError for a bad answer."""
    worker = Path(__file__).with_name("xatlas_worker.py")
    with tempfile.TemporaryDirectory(prefix="dreamkit-unwrap-") as folder:
        asked, answer = Path(folder, "mesh.npz"), Path(folder, "atlas.npz")
        np.savez(asked, vertices=mesh.vertices, faces=mesh.faces.astype(np.uint32), size=size, padding=gutter(size))
        # -P: the worker's own folder must not shadow other modules.
        command = [sys.executable, "-P", str(worker), str(asked), str(answer)]
        subprocess.run(command, check=True, capture_output=True, timeout=time_limit_s)
        with np.load(answer) as found:
            origin, faces, uv, charts = (found[k] for k in ("origin", "faces", "uv", "charts"))
    if len(faces) != len(mesh.faces) or not np.isfinite(uv).all() or uv.min() < 0 or uv.max() > 1:
        raise ValueError(f"{len(faces)} faces for {len(mesh.faces)}, coordinates {uv.min():.3g} to {uv.max():.3g}")
    # Faces that xatlas could not place have no area in the texture: pictures would show one texel there.
    flat = int((np.abs(uv_areas(uv, faces)) == 0).sum())
    if flat > 0.01 * len(faces):
        raise ValueError(f"{flat} of {len(faces)} faces got no area")
    return Unwrapped(_with_uv(mesh, origin, faces, uv), "xatlas", f"xatlas, {int(charts)} charts")


def gutter(size: int) -> int:
    """Texels kept free between charts of a texture of this size."""
    return max(2, size // 256)


def grid_atlas(mesh: Mesh, size: int = 1024) -> Mesh:
    """Every face alone: two right triangles in each cell of a square grid, with a gutter round each.

    The longest edge of a face becomes the hypotenuse, which distorts least. The gutter is 1 texel (2 between faces), or
    an eighth of a cell where cells are small.
    """
    count = len(mesh.faces)
    cells = int(np.ceil(np.sqrt((count + 1) // 2)))
    free = min(cells / size, 1 / 8)  # the gutter, in cells
    leg = 1 - 3 * free  # so that the two hypotenuses are two gutters apart along each axis, as a lookup reads
    lower = np.array([[free, free], [leg, free], [free, leg]])
    places = np.stack([lower, 1 - lower])  # the upper triangle is the lower one turned by half a turn
    number = np.arange(count)
    corner = np.stack([number // 2 % cells, number // 2 // cells], axis=-1)[:, None, :]
    uv = (corner + places[number % 2]) / cells  # [F, 3, 2]
    # Which of the face's corners faces its longest edge: that one goes to the right angle.
    points = mesh.vertices[mesh.faces]
    opposite = np.linalg.norm(points[:, [2, 0, 1]] - points[:, [1, 2, 0]], axis=-1).argmax(1)
    turned = (np.arange(3)[None] - opposite[:, None]) % 3
    uv = np.take_along_axis(uv, turned[..., None].repeat(2, axis=-1), axis=1)
    return _with_uv(mesh, mesh.faces.reshape(-1), np.arange(3 * count).reshape(-1, 3), uv.reshape(-1, 2))


def uv_areas(uv: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """The signed area [F] of each face in the unit square; negative where a chart is mirrored."""
    a, b, c = (uv[faces[:, i]].astype(np.float64) for i in range(3))
    ab, ac = b - a, c - a
    return (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]) / 2


def _with_uv(mesh: Mesh, origin: np.ndarray, faces: np.ndarray, uv: np.ndarray) -> Mesh:
    """The mesh with new vertices, each a copy of vertex `origin` [V'], and their texture coordinates."""
    colours = None if mesh.colours is None else mesh.colours[origin]
    return Mesh(mesh.vertices[origin], faces.astype(np.int32), colours, uv.astype(np.float32))


def _last_line(error: Exception) -> str:
    said = error.stderr.decode(errors="replace").strip() if isinstance(error, subprocess.CalledProcessError) else ""
    return said.splitlines()[-1] if said else str(error)
