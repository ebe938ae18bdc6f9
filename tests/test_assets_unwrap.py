"""Texture coordinates: every face has a place of its own, whichever method made it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dreamkit.assets import unwrap as room
from dreamkit.assets.bake import texels
from dreamkit.assets.unwrap import Unwrapped, grid_atlas, unwrap, uv_areas
from dreamkit.meshes import Mesh

SIZE = 256


def knot(subdivisions: int = 2) -> Mesh:
    """A ball with a dent, so that charts differ; colours say where a vertex was."""
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.7)
    vertices = (sphere.vertices * (1 - 0.4 * (sphere.vertices[:, :1] > 0.4))).astype(np.float32)
    return Mesh(vertices, sphere.faces.astype(np.int32), colours=(vertices + 1) / 2)


@pytest.fixture(scope="module", params=["xatlas", "grid"])
def unwrapped(request: pytest.FixtureRequest) -> Unwrapped:
    made = unwrap(knot(), SIZE, time_limit_s=60 if request.param == "xatlas" else 0)
    assert made.method == request.param, made.note
    return made


def test_coordinates_lie_in_the_square_and_faces_keep_their_area(unwrapped: Unwrapped) -> None:
    mesh = unwrapped.mesh
    assert mesh.uv is not None
    assert mesh.uv.dtype == np.float32
    assert mesh.uv.min() >= 0
    assert mesh.uv.max() <= 1
    # Half a texel: a face smaller than that would have no colour of its own.
    assert np.abs(uv_areas(mesh.uv, mesh.faces)).min() * SIZE**2 > 0.5


def test_the_surface_is_the_same_face_by_face(unwrapped: Unwrapped) -> None:
    before = knot()
    after = unwrapped.mesh
    np.testing.assert_array_equal(after.vertices[after.faces], before.vertices[before.faces])
    assert after.colours is not None
    np.testing.assert_array_equal(after.colours, (after.vertices + 1) / 2)


def test_no_two_faces_share_texels(unwrapped: Unwrapped) -> None:
    owner = np.full(SIZE * SIZE, -1)
    owned = np.zeros(SIZE * SIZE, int)
    for texel, face, weight in texels(unwrapped.mesh, SIZE, reach=0):
        inner = weight.min(1) > 1e-6  # a centre on a common edge belongs to both neighbours
        np.add.at(owned, texel[inner], 1)
        owner[texel[inner]] = face[inner]
    assert (owner >= 0).sum() > 0.3 * SIZE * SIZE
    assert owned.max() == 1


def test_charts_keep_apart(unwrapped: Unwrapped) -> None:
    # Faces that share no texture vertex chain belong to different charts; a free texel lies between any two.
    from scipy.ndimage import maximum_filter

    from dreamkit.assets.clean import components

    chart = components(unwrapped.mesh)
    field = np.full(SIZE * SIZE, -1)
    for texel, face, _ in texels(unwrapped.mesh, SIZE, reach=0):
        field[texel] = chart[face]
    field = field.reshape(SIZE, SIZE)
    nearby = maximum_filter(field, size=3)
    assert (nearby[field >= 0] == field[field >= 0]).all()


def test_the_grid_turns_longest_edges_to_the_hypotenuse() -> None:
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 1, 0], [0, 0, 2]], np.float32)
    for corners in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        mesh = grid_atlas(Mesh(vertices, np.array([corners], np.int32)), 64)
        assert mesh.uv is not None
        right_angle = mesh.uv[corners.index(0)]  # vertex 0 faces the longest edge
        assert right_angle == pytest.approx(mesh.uv.min(0))
        assert uv_areas(mesh.uv, mesh.faces)[0] > 0  # not mirrored


@pytest.mark.parametrize("faces", [1, 2, 3, 8, 9, 1000])
def test_the_grid_holds_any_number_of_faces(faces: int) -> None:
    mesh = Mesh(np.eye(3, dtype=np.float32), np.tile(np.array([[0, 1, 2]], np.int32), (faces, 1)))
    uv = grid_atlas(mesh, 64).uv
    assert uv is not None
    corners = uv.reshape(-1, 3, 2)
    assert (corners >= 0).all()
    assert (corners <= 1).all()
    middles = corners.mean(1)
    assert len(np.unique(middles.round(5), axis=0)) == faces


def test_the_grid_keeps_a_texel_round_every_face() -> None:
    mesh = Mesh(np.eye(3, dtype=np.float32), np.tile(np.array([[0, 1, 2]], np.int32), (8, 1)))
    uv = grid_atlas(mesh, 64).uv
    assert uv is not None
    texel = uv.reshape(-1, 3, 2).astype(np.float64) * 64 % 32  # four cells of 32 texels
    # float32 coordinates are good to 64 * 6e-8 texels.
    assert texel.min() == pytest.approx(1, abs=1e-5)
    assert texel.max() == pytest.approx(31, abs=1e-5)
    # The hypotenuses lie on x + y = const; a square whose side is half the difference of the constants fits between
    # them, corner to corner: the square of texels that a lookup on one reads ends where that of the other begins.
    lower, upper = texel[0::2].sum(2).max(1), texel[1::2].sum(2).min(1)
    np.testing.assert_allclose((upper - lower) / 2, 2, atol=1e-5)


def test_time_over_means_the_grid_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _replace_worker(monkeypatch, tmp_path, "import time; time.sleep(60)")
    made = unwrap(knot(1), SIZE, time_limit_s=0.5)
    assert made.method == "grid"
    assert "did not finish 80 faces in 0.5 s" in made.note


def test_a_crash_means_the_grid_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _replace_worker(monkeypatch, tmp_path, "raise RuntimeError('no atlas today')")
    made = unwrap(knot(1), SIZE)
    assert made.method == "grid"
    assert "no atlas today" in made.note


def test_an_atlas_without_room_for_the_faces_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _replace_worker(
        monkeypatch,
        tmp_path,
        "import sys, numpy as np; m = np.load(sys.argv[1]); n = len(m['vertices'])\n"
        "np.savez(sys.argv[2], origin=np.arange(n), faces=m['faces'], uv=np.zeros((n, 2)), charts=1)",
    )
    made = unwrap(knot(1), SIZE)
    assert made.method == "grid"
    assert "80 of 80 faces got no area" in made.note


def test_a_mesh_without_faces_is_refused() -> None:
    with pytest.raises(ValueError, match="without faces"):
        unwrap(Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)))


def _replace_worker(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Let unwrap.py believe that it lies beside another worker."""
    Path(folder, "xatlas_worker.py").write_text(program)
    monkeypatch.setattr(room, "__file__", str(folder / "unwrap.py"))
    assert sys.executable
