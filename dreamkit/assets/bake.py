"""A colour field becomes a texture."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dreamkit.meshes import Mesh

Field = Callable[[Tensor], Tensor]
"""Positions [N, 3] in world units -> values: colours [N, 3] in [0, 1], or densities [N]."""


READ = 2**0.5
"""Texels: how far from a point are the centres of those that a bilinear lookup there mixes, at most."""
FRONT, BACK, SAMPLES = 0.05, 0.3, 35
"""World units before and behind a volume's surface in which its light is sought, and samples along that."""
LAYERS = 4
"""Depths at which the colour of a volume is taken: of fewer, those of neighbouring texels fall on different things, and
the surface is blotched."""


@torch.no_grad()
def bake(
    mesh: Mesh,
    colour: Field,
    size: int = 1024,
    *,
    density: Field | None = None,
    device: torch.device | str = "cpu",
    chunk: int = 1 << 18,
) -> Mesh:
    """The mesh with a texture of size x size texels that holds the field's colour on the surface.

    Each texel whose centre lies in a face, or so near that a bilinear lookup in the face reads it, takes the colour at
    the nearest point of the nearest face; all others take that of the nearest filled one, so that no mip level meets an
    unfilled texel. With `density`, the colour is the mean over LAYERS points, moved to where a camera in front of the
    surface sees the light come from (`seen_depths`): the colour of a volume lies under its level surface, not on it.

    Args:
        mesh: with texture coordinates.
        density: optional, the field's density per world unit.
        chunk: at most so many positions a call of a field.

    Raises ValueError without texture coordinates.
    """
    if mesh.uv is None:
        raise ValueError("bake needs texture coordinates: unwrap the mesh first")
    layers = mesh.vertices.astype(np.float32)[None]
    if density is not None:
        normals = vertex_normals(mesh)
        layers = layers - normals * seen_depths(mesh.vertices, normals, density, device, chunk).T[..., None]
    texture = np.zeros((size * size, 3), np.uint8)
    filled = np.zeros(size * size, bool)
    for texel, face, weight in texels(mesh, size):
        places = ((points[mesh.faces[face]] * weight[..., None]).sum(1) for points in layers)
        texture[texel] = to_bytes(np.mean([_evaluate(colour, points, device, chunk) for points in places], axis=0))
        filled[texel] = True
    picture = spread(texture.reshape(size, size, 3), filled.reshape(size, size))
    return replace(mesh, texture=picture, colours=None)


@torch.no_grad()
def seen_depths(
    points: np.ndarray,
    normals: np.ndarray,
    density: Field,
    device: torch.device | str = "cpu",
    chunk: int = 1 << 18,
    layers: int = LAYERS,
) -> np.ndarray:
    """How deep under the surface [N, layers] the light comes from, for a camera that looks straight at it.

    Along the inward normal, from FRONT before the surface to BACK behind it, light is emitted and absorbed: up to the
    depth d the camera sees 1 - exp(-integral of the density) (NeRF, arXiv:2003.08934, eq. 3). Each of the depths stands
    for an equal share of all that it sees: the mean of the colours there is the colour of the ray. Where it sees less
    than 1 %, 0.
    """
    delta = (FRONT + BACK) / SAMPLES
    middles = (np.arange(SAMPLES, dtype=np.float32) + 0.5) * delta - FRONT
    rays = points[:, None] - normals[:, None] * middles[:, None]
    optical = _evaluate(density, rays.reshape(-1, 3), device, chunk).reshape(len(points), SAMPLES) * delta
    optical = np.maximum(np.nan_to_num(optical.astype(np.float64)), 0)
    seen = np.zeros((len(points), SAMPLES + 1))  # up to the beginning of each sample, and the end of the last
    seen[:, 1:] = -np.expm1(-np.cumsum(optical, axis=1))
    shares = seen[:, -1:] * (np.arange(layers) + 0.5) / layers
    after = (seen[:, 1:, None] < shares[:, None]).sum(1).clip(max=SAMPLES - 1)  # the sample in which each share is met
    low, high = (np.take_along_axis(seen, after + i, axis=1) for i in (0, 1))
    found = (after + (shares - low) / np.maximum(high - low, 1e-12)) * delta - FRONT
    return np.where(seen[:, -1:] > 0.01, found, 0).astype(np.float32)


def texels(
    mesh: Mesh, size: int, at_once: int = 1 << 20, reach: float = READ
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The texels of faces, in batches: texel numbers [T] (row * size + column, row 0 on top), the face [T] each belongs
    to, and the barycentric weights [T, 3] of the point of the face that is nearest to its centre.

    A texel belongs to the nearest face, in the texture, if that is at most `reach` texels away (0: its centre lies in
    the face). One that comes again in a later batch belongs to what is said there. Faces without area in the texture
    have none.
    """
    assert mesh.uv is not None
    nearest = np.full(size * size, np.inf)
    # Texture space in texels, y downwards; the centre of texel (row, column) is (column + 0.5, row + 0.5).
    uv = mesh.uv.astype(np.float64)
    place = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=-1) * size
    corners = place[mesh.faces]  # [F, 3, 2]
    first = np.clip(np.ceil(corners.min(1) - reach - 0.5), 0, size - 1).astype(np.int64)
    last = np.clip(np.floor(corners.max(1) + reach - 0.5), -1, size - 1).astype(np.int64)
    extent = np.maximum(last - first + 1, 0)
    owner, above, count = _strips(extent, at_once)
    batch = np.cumsum(count) // at_once
    for number in np.unique(batch):
        strips = np.flatnonzero((batch == number) & (count > 0))
        strip = np.repeat(strips, count[strips])
        inside = np.arange(len(strip)) - np.repeat(np.cumsum(count[strips]) - count[strips], count[strips])
        face = owner[strip]
        column = first[face, 0] + inside % extent[face, 0]
        row = first[face, 1] + above[strip] + inside // extent[face, 0]
        weight, away = _nearest_point(corners, face, np.stack([column, row], axis=-1) + 0.5)
        texel = row * size + column
        good = np.flatnonzero((away <= reach) & (away < nearest[texel]))  # NaN (no area) is not
        order = good[np.lexsort((face[good], away[good], texel[good]))]
        best = order[np.diff(texel[order], prepend=-1) > 0]
        nearest[texel[best]] = away[best]
        yield texel[best], face[best], weight[best]


def _strips(extent: np.ndarray, at_once: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [F, 2] of texels, width and height, cut into strips of rows with at most `at_once` texels each, or one row:
    the box of each strip, the rows of the box above it, and its texels."""
    rows = np.maximum(at_once // np.maximum(extent[:, 0], 1), 1)
    strips = -(-extent[:, 1] // rows)
    owner = np.repeat(np.arange(len(extent)), strips)
    above = (np.arange(len(owner)) - np.repeat(np.cumsum(strips) - strips, strips)) * rows[owner]
    return owner, above, extent[owner, 0] * np.minimum(rows[owner], extent[owner, 1] - above)


def _nearest_point(corners: np.ndarray, face: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For points [T, 2], the barycentric weights [T, 3] of the nearest points of faces [T] with corners [F, 3, 2], and
    how far away [T] they are; NaN for faces without area."""
    weight = _barycentric(corners[face], point)
    inside = (weight >= -1e-9).all(1)
    away = np.where(np.isnan(weight[:, 0]), np.nan, 0.0)
    outside = np.flatnonzero(~inside & ~np.isnan(away))
    best = np.full(len(outside), np.inf)
    for i in range(3):
        j = (i + 1) % 3
        a, b = corners[face[outside], i], corners[face[outside], j]
        edge, to = b - a, point[outside] - a
        share = ((edge * to).sum(1) / np.maximum((edge * edge).sum(1), 1e-30)).clip(0, 1)
        distance = np.linalg.norm(to - share[:, None] * edge, axis=1)
        nearer = distance < best
        best = np.minimum(best, distance)
        rows = outside[nearer]
        weight[rows] = 0
        weight[rows, i], weight[rows, j] = 1 - share[nearer], share[nearer]
    away[outside] = best
    return weight, away


def _barycentric(corners: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Barycentric weights [T, 3] of points [T, 2] in triangles [T, 3, 2]; NaN for triangles without area."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, ac, ap = b - a, c - a, point - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    area = np.where(np.abs(area) > 1e-12, area, np.nan)
    second = (ap[:, 0] * ac[:, 1] - ap[:, 1] * ac[:, 0]) / area
    third = (ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]) / area
    return np.stack([1 - second - third, second, third], axis=-1)


def spread(picture: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """The picture [H, W, C] with every texel that is not `filled` [H, W] replaced by the nearest that is."""
    from scipy.ndimage import distance_transform_edt

    if filled.all() or not filled.any():
        return picture
    row, column = distance_transform_edt(~filled, return_distances=False, return_indices=True)
    return picture[row, column]


def weld(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """The distinct positions [W, 3], and the number [V] of each vertex's own: seams double vertices, this undoes it."""
    # + 0.0 makes -0.0 equal to 0.0, which differ as bytes.
    keys = np.ascontiguousarray(mesh.vertices.astype(np.float32) + 0.0).view([("", np.float32)] * 3).ravel()
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    return mesh.vertices[first], number.reshape(-1)


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """[V, 3] unit normals, the mean of the faces at a position weighted by area, the same on both sides of a seam;
    +z where no face gives one."""
    positions, number = weld(mesh)
    a, b, c = (mesh.vertices[mesh.faces[:, i]].astype(np.float64) for i in range(3))
    normal = np.cross(b - a, c - a)  # as long as twice the area
    total = np.zeros((len(positions), 3))
    for i in range(3):
        np.add.at(total, number[mesh.faces[:, i]], normal)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    unit = np.where(length > 1e-20, total / np.maximum(length, 1e-20), np.array([0.0, 0.0, 1.0]))
    return unit[number].astype(np.float32)


def to_bytes(colour: np.ndarray) -> np.ndarray:
    """Colours in [0, 1] as rounded uint8; NaN becomes 0."""
    return np.rint(np.nan_to_num(colour, nan=0.0).clip(0, 1) * 255).astype(np.uint8)


def _evaluate(field: Field, points: np.ndarray, device: torch.device | str, chunk: int) -> np.ndarray:
    """The field at points [N, 3], a chunk at a time, as float32."""
    parts = torch.as_tensor(np.ascontiguousarray(points, dtype=np.float32)).split(chunk)
    return np.concatenate([field(p.to(device)).float().cpu().numpy() for p in parts])
