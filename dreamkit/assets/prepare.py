"""Somebody's mesh becomes one that can be painted: of known size and place, with usable texture coordinates."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dreamkit.assets.bake import spread, texels, to_bytes
from dreamkit.assets.unwrap import unwrap, uv_areas
from dreamkit.errors import InputError
from dreamkit.kernels.texture import sample
from dreamkit.meshes import Mesh


@dataclass(frozen=True)
class Placement:
    """How a mesh was brought into the scene: scene = (source - centre) / scale, worked out in float64."""

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In the source's units."""
    scale: float = 1.0
    """Of the source's units in one of the scene's."""

    def to_scene(self, vertices: np.ndarray) -> np.ndarray:
        """[V, 3] positions in the scene, float32."""
        return ((vertices.astype(np.float64) - self.centre) / self.scale).astype(np.float32)

    def to_source(self, vertices: np.ndarray) -> np.ndarray:
        """[V, 3] positions in the source, float32: the way back, up to rounding."""
        return (vertices.astype(np.float64) * self.scale + self.centre).astype(np.float32)


def place(mesh: Mesh, radius: float, name: str = "the mesh") -> Placement:
    """Where a mesh stands so that the middle of its box is the origin and it just fits a ball of `radius`.

    Raises InputError for a mesh without faces, without extent, or with positions that are not finite.
    """
    if not len(mesh.faces):
        raise InputError(f"{name} holds no triangles")
    points = mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise InputError(f"{name} has {bad} vertices whose position is not a finite number. Repair it first.")
    centre = (points.min(0) + points.max(0)) / 2
    reach = float(np.linalg.norm(points - centre, axis=1).max())
    if not reach > 1e-6 * float(np.abs(centre).max()):  # less than a few steps of float32 between its vertices
        where = ", ".join(f"{x:g}" for x in centre)
        raise InputError(
            f"{name} has no extent: it fits a ball of radius {reach:g} about ({where}). Move it to the origin, or "
            "scale it up, before it is saved."
        )
    return Placement((float(centre[0]), float(centre[1]), float(centre[2])), reach / radius)


def with_texture_coordinates(mesh: Mesh, size: int, time_limit_s: float = 20.0) -> tuple[Mesh, np.ndarray]:
    """The mesh itself if its texture coordinates can be painted on, else unwrapped anew for `size` texels; and which
    vertex [V'] of the given mesh each vertex is.

    They can if they lie in the unit square, hardly any face is without area there, and not more area is used than
    there is. When the mesh is unwrapped, its maps are read at the old coordinates (outside of the square they repeat)
    and written at the new ones, but for a normal map, whose directions lie along the old ones; vertex colours are
    carried along.
    """
    number = np.arange(len(mesh.vertices))
    if _paintable(mesh):
        return mesh, number
    # The unwrap carries vertex colours along: here they are the vertices' numbers.
    carried = unwrap(Mesh(mesh.vertices, mesh.faces, _columns(number)), size, time_limit_s).mesh
    assert carried.colours is not None
    origin = (carried.colours.astype(np.int64) * [1, 4096, 0]).sum(axis=1)
    new = replace(carried, colours=None if mesh.colours is None else mesh.colours[origin])
    if mesh.uv is None or not mesh.maps:
        return new, origin
    uv = torch.from_numpy(painted(new, size, mesh.uv[origin]))
    maps = {}
    for name, pixels in mesh.maps.items():
        if name == "normal_map":
            continue  # its x and y are along the old coordinates, which lie otherwise in every new chart
        layers = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).float() / 255
        found = sample(layers, uv, border="wrap").numpy()
        maps[name] = to_bytes(found[..., 0] if pixels.ndim == 2 else found)
    return replace(new, **maps), origin


def _columns(number: np.ndarray) -> np.ndarray:
    """Whole numbers as three columns of float32, each exact."""
    return np.stack([number % 4096, number // 4096, 0 * number], axis=-1).astype(np.float32)


def painted(mesh: Mesh, size: int, values: np.ndarray) -> np.ndarray:
    """[size, size, C] float32: values [V, C] of the vertices, interpolated over the faces as they lie in the texture.

    Texels outside of all faces take the nearest one's inside.
    """
    picture = np.zeros((size * size, values.shape[1]), np.float32)
    filled = np.zeros(size * size, bool)
    for texel, face, weight in texels(mesh, size):
        picture[texel] = (values[mesh.faces[face]] * weight[..., None]).sum(1)
        filled[texel] = True
    return spread(picture.reshape(size, size, -1), filled.reshape(size, size))


def _paintable(mesh: Mesh) -> bool:
    if mesh.uv is None or not np.isfinite(mesh.uv).all() or mesh.uv.min() < -1e-4 or mesh.uv.max() > 1 + 1e-4:
        return False
    areas = np.abs(uv_areas(mesh.uv, mesh.faces))
    return bool((areas > 0).mean() > 0.95 and areas.sum() <= 1.01)


def cube_sphere(cells: int, radius: float) -> Mesh:
    """A sphere of 12 cells^2 faces: a cube blown up, with texture coordinates that show its sides 3 by 2.

    The grid lines of a side stand at equal angles, so that the faces are of about one size.
    """
    along = np.tan(np.linspace(-1, 1, cells + 1) * np.pi / 4)
    along = (along - along[::-1]) / 2  # symmetric to the last bit: sides that meet share their vertices
    right, up = (grid.reshape(-1) for grid in np.meshgrid(along, along))
    i, j = (grid.reshape(-1) for grid in np.meshgrid(np.arange(cells), np.arange(cells)))
    corner = i + j * (cells + 1)
    square = np.stack([corner, corner + 1, corner + cells + 2, corner + cells + 1], axis=-1)
    faces = np.concatenate([square[:, [0, 1, 2]], square[:, [0, 2, 3]]])
    place_u, place_v = (np.linspace(0.03, 0.97, cells + 1)[grid] for grid in _grid(cells + 1))
    vertices, uv = [], []
    for side in range(6):
        axis, sign = side // 2, 1.0 if side % 2 == 0 else -1.0
        points = np.empty((len(right), 3))
        # (axis, next, next but one) is a right-handed frame: mirrored with the sign, the faces still face outward.
        points[:, axis], points[:, (axis + 1) % 3], points[:, (axis + 2) % 3] = sign, sign * right, up
        vertices.append(radius * points / np.sqrt((points * points).sum(1, keepdims=True)))
        uv.append(np.stack([(side % 3 + place_u) / 3, (side // 3 + place_v) / 2], axis=-1))
    count = len(right)
    return Mesh(
        np.concatenate(vertices).astype(np.float32),
        np.concatenate([faces + side * count for side in range(6)]).astype(np.int32),
        uv=np.concatenate(uv).astype(np.float32),
    )


def _grid(count: int) -> tuple[np.ndarray, np.ndarray]:
    column, row = np.meshgrid(np.arange(count), np.arange(count))
    return column.reshape(-1), row.reshape(-1)
