"""Seams: what a cut does to a texture is measured, and what `bake` leaves there is bounded."""

import numpy as np
import pytest
import torch
import trimesh

from dreamkit.assets.bake import bake
from dreamkit.assets.unwrap import grid_atlas, unwrap
from dreamkit.meshes import Mesh
from dreamkit.metrics.seams import seams

SQUARE = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])


def cut_square(texture: np.ndarray) -> Mesh:
    """Two triangles that share a diagonal, the first laid over the left half of the texture, the second the right."""
    vertices = SQUARE[[0, 1, 2, 0, 2, 3]]
    left = np.float32([[0.1, 0.1], [0.4, 0.1], [0.4, 0.9]])
    right = np.float32([[0.6, 0.1], [0.9, 0.9], [0.6, 0.9]])
    return Mesh(vertices, np.int32([[0, 1, 2], [3, 4, 5]]), uv=np.concatenate([left, right]), texture=texture)


def halves(left: int, right: int) -> np.ndarray:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[:, :8, 1], picture[:, 8:, 1] = left, right
    return picture


def test_a_known_difference_is_found() -> None:
    found = seams(cut_square(halves(51, 102)))
    assert found.length == pytest.approx(2**0.5)
    assert found.mean == pytest.approx(0.2, abs=1e-6)
    assert found.largest == pytest.approx(0.2, abs=1e-6)


def test_equal_sides_and_no_seams_differ_by_nothing() -> None:
    assert seams(cut_square(halves(7, 7))).largest == 0
    whole = Mesh(SQUARE, np.int32([[0, 1, 2], [0, 2, 3]]), uv=SQUARE[:, :2], texture=halves(0, 255))
    assert seams(whole).length == 0
    with pytest.raises(ValueError, match="the mesh has none"):
        seams(Mesh(SQUARE, np.int32([[0, 1, 2]])))


@pytest.mark.parametrize("method", ["xatlas", "grid"])
def test_what_bake_leaves_at_seams_is_bounded_by_the_texels(method: str) -> None:
    size, slope = 256, 3.0
    sphere = trimesh.creation.icosphere(subdivisions=2)
    plain = Mesh(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32))
    mesh = grid_atlas(plain, size) if method == "grid" else unwrap(plain, size, 60.0).mesh
    baked = bake(mesh, lambda p: 0.5 + 0.5 * torch.sin(slope * p), size)
    found = seams(baked)
    assert found.length > 1
    # Each side mixes texels whose centres are at most sqrt(2) texels away; one outside of the face holds the colour at
    # the face's point nearest to it, which is no farther. The field climbs by at most slope / 2 a unit.
    bound = 2 * (slope / 2) * 2**0.5 * world_units_a_texel(mesh, size) + 1 / 255
    assert found.mean < bound / 4
    assert found.largest < bound


def world_units_a_texel(mesh: Mesh, size: int) -> float:
    """Along the most stretched edge."""
    assert mesh.uv is not None
    ends = np.concatenate([mesh.faces[:, [i, (i + 1) % 3]] for i in range(3)])
    length, texels = (np.linalg.norm(p[ends[:, 0]] - p[ends[:, 1]], axis=-1) for p in (mesh.vertices, mesh.uv * size))
    return float((length / texels).max())


def test_a_shifted_texture_is_seen() -> None:
    """The bound can fail: the same texture, moved by 4 texels, breaks it many times over."""
    sphere = trimesh.creation.icosphere(subdivisions=2)
    mesh = grid_atlas(Mesh(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32)), 256)
    baked = bake(mesh, lambda p: 0.5 + 0.5 * torch.sin(3 * p), 256)
    moved = Mesh(baked.vertices, baked.faces, uv=baked.uv, texture=np.roll(baked.texture, 4, axis=1))
    assert seams(moved).mean > 4 * seams(baked).mean
