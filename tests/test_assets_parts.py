"""Several materials become one mesh: no colour moves, nothing overlaps, one material stays to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.assets import parts as room
from dreamkit.assets.conventions import of_one_size, sampled
from dreamkit.assets.parts import Part, inside, merge, shelves
from dreamkit.meshes import Mesh

SQUARE = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
TWO = np.int32([[0, 1, 2], [0, 2, 3]])


def silent(text: str) -> None:
    """Notes that nobody asked about."""


def square(at: float = 0.0, uv: np.ndarray | None = None, **rest: object) -> Mesh:
    return Mesh(SQUARE + np.float32([0, 0, at]), TWO, uv=SQUARE[:, :2] if uv is None else uv, **rest)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def at_corners(mesh: Mesh, weights: np.ndarray, name: str = "texture") -> np.ndarray:
    """The values [F, N, ...] of a picture at N points of every face, by barycentric weights [N, 3], nearest texel."""
    assert mesh.uv is not None
    uv = np.einsum("nk,fkc->fnc", weights, mesh.uv[mesh.faces].astype(np.float64))
    return sampled(mesh.maps[name], uv.reshape(-1, 2)).reshape(*uv.shape[:2], *mesh.maps[name].shape[2:])


POINTS = np.random.default_rng(5).dirichlet([1, 1, 1], 40)


def texel_of(wrap: str, place: np.ndarray, size: int) -> np.ndarray:
    """Which texel a renderer reads at a place along one axis, counted in pictures (glTF 2.0, 3.8.4.2)."""
    if wrap == "clamp":
        place = place.clip(0, 1 - 1e-9)
    if wrap == "mirror":
        place = 1 - np.abs(place % 2 - 1)
    return np.minimum((place % 1 if wrap != "mirror" else place) * size, size - 1e-6).astype(int)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*2 * [st.sampled_from(["repeat", "mirror", "clamp"])]),
    st.lists(st.floats(-2.5, 2.5, width=32), min_size=8, max_size=8),
)
def test_a_picture_that_is_repeated_is_read_as_before(wrap: tuple[str, str], corners: list[float]) -> None:
    picture = noise(5, 7, 3)
    uv = np.float32(corners).reshape(4, 2)
    mesh = inside(Part(square(uv=uv, texture=picture), wrap), silent)
    assert mesh.uv is not None
    assert mesh.uv.min() >= 0
    assert mesh.uv.max() <= 1
    before = np.einsum("nk,fkc->fnc", POINTS, uv[TWO].astype(np.float64))
    # Points within rounding of a texel's edge may read either side of it: float32 coordinates up to 2.5.
    cells = before * [7, 5]
    clear = (np.abs(cells - np.rint(cells)) > 1e-4).all(-1)
    column = texel_of(wrap[0], before[..., 0], 7)
    row = 4 - texel_of(wrap[1], before[..., 1], 5)
    np.testing.assert_array_equal(at_corners(mesh, POINTS)[clear], picture[row, column][clear])


def test_faces_in_other_repeats_cost_no_texels() -> None:
    picture = noise(4, 4, 3)
    far = np.concatenate([SQUARE[:, :2], SQUARE[:, :2] + [5, -3]]).astype(np.float32)
    mesh = Mesh(np.concatenate([SQUARE, SQUARE]), np.concatenate([TWO, TWO + 4]), uv=far, texture=picture)
    found = inside(Part(mesh), silent)
    np.testing.assert_array_equal(found.texture, picture)
    assert found.uv is not None
    np.testing.assert_allclose(found.uv[found.faces], np.tile(SQUARE[:, :2][TWO], (2, 1, 1)))
    np.testing.assert_array_equal(found.vertices[found.faces], mesh.vertices[mesh.faces])


def test_one_material_stays_to_the_last_bit() -> None:
    mesh = square(texture=noise(8, 8, 3), roughness=noise(4, 4), metallic=noise(2, 2), normal_map=noise(8, 4, 3))
    found = merge([Part(mesh)], silent)
    for name in ("vertices", "faces", "uv", "texture", "roughness", "metallic", "normal_map"):
        np.testing.assert_array_equal(getattr(found, name), getattr(mesh, name))


def test_several_materials_keep_every_map() -> None:
    first = square(0, texture=noise(8, 6, 3, seed=1), roughness=noise(8, 6, seed=2))
    second = square(1, texture=noise(3, 5, 3, seed=3), metallic=noise(3, 5, seed=4))
    third = Mesh(SQUARE, TWO, colours=np.full((4, 3), 0.2, np.float32))
    said: list[str] = []
    whole = merge([Part(first), Part(second), Part(third)], said.append)
    assert any("3 materials" in text for text in said)
    assert whole.colours is None
    for i, mesh in enumerate((first, second)):
        part = replace(whole, faces=whole.faces[2 * i : 2 * i + 2])
        for name in mesh.maps:
            np.testing.assert_array_equal(at_corners(part, POINTS, name), at_corners(mesh, POINTS, name))
    of = {i: replace(whole, faces=whole.faces[2 * i : 2 * i + 2]) for i in range(3)}
    assert (at_corners(of[2], POINTS) == 51).all()
    assert (at_corners(of[1], POINTS, "roughness") == 230).all()  # what a mesh without the map says: 0.9
    assert (at_corners(of[2], POINTS, "metallic") == 0).all()


def test_vertex_colours_stay_vertex_colours_where_there_are_no_pictures() -> None:
    red = replace(square(), uv=None, colours=np.tile(np.float32([1, 0, 0]), (4, 1)))
    whole = merge([Part(red), Part(replace(square(1), uv=None))], silent)
    assert whole.colours is not None
    assert whole.colours.tolist() == [[1, 0, 0]] * 4 + [[1, 1, 1]] * 4
    # With a roughness, still: coordinates and a small picture, but no texture.
    rough = replace(square(2), roughness=np.full((1, 1), 40, np.uint8))
    whole = merge([Part(red), Part(rough)], silent)
    assert whole.texture is None
    assert whole.colours is not None
    assert (at_corners(replace(whole, faces=whole.faces[2:]), POINTS, "roughness") == 40).all()
    assert (at_corners(replace(whole, faces=whole.faces[:2]), POINTS, "roughness") == 230).all()


def test_vertex_colours_beside_a_texture_become_texels() -> None:
    colours = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    painted = Mesh(SQUARE, TWO, colours)
    whole = merge([Part(square(texture=noise(64, 64, 3))), Part(painted)], silent)
    found = at_corners(replace(whole, faces=whole.faces[2:]), POINTS) / 255
    wanted = np.einsum("nk,fkc->fnc", POINTS, colours[TWO])
    # The grid has cells of 16 texels for these two triangles, so a texel spans 1 / 11 of a side at most.
    assert np.abs(found - wanted).max() < 0.2
    assert np.abs(found - wanted).mean() < 0.04


def test_an_atlas_too_large_is_made_smaller_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LARGEST", 64)
    plain = [square(i, texture=np.full((50, 50, 3), 40 * i, np.uint8)) for i in range(4)]
    said: list[str] = []
    whole = merge([Part(mesh) for mesh in plain], said.append)
    assert whole.texture is not None
    assert max(whole.texture.shape) <= 64
    assert any("made smaller" in text for text in said)
    values = at_corners(whole, POINTS).reshape(4, -1)
    assert [np.unique(v).tolist() for v in values] == [[0], [40], [80], [120]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12))
def test_shelves_do_not_overlap(sizes: list[tuple[int, int]]) -> None:
    places, (height, width) = shelves(sizes)
    taken = np.zeros((height, width), int)
    for (h, w), (top, left) in zip(sizes, places, strict=True):
        assert top + h <= height
        assert left + w <= width
        taken[top : top + h, left : left + w] += 1
    assert taken.max() == 1
    # Rows as wide as a square of their area; the loss is a row's end, and its lower pictures.
    assert height * width <= 4 * max(sum(h * w for h, w in sizes), 40 * 40)


def test_pictures_of_different_sizes_are_repeated_exactly() -> None:
    small, large = noise(2, 3), noise(4, 6)
    first, second = of_one_size(small, large)
    np.testing.assert_array_equal(first[::2, ::2], small)
    np.testing.assert_array_equal(second, large)
    assert [p.shape for p in of_one_size(noise(2, 3, 3), noise(3, 2, 3))] == [(3, 3, 3), (3, 3, 3)]
