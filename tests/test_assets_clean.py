"""Cleaning, on spheres that are put together and on noise that is put on."""

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from dreamkit.assets import clean as room
from dreamkit.assets.clean import (
    clean,
    components,
    decimate,
    drop_degenerate,
    drop_enclosed,
    drop_floaters,
    smooth,
    winding_number,
)
from dreamkit.assets.extract import signed_volume
from dreamkit.errors import RunError
from dreamkit.meshes import Mesh, coloured, join


def ball(radius: float, centre: tuple[float, float, float] = (0, 0, 0), subdivisions: int = 2) -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Mesh((sphere.vertices + centre).astype(np.float32), sphere.faces.astype(np.int32))


def flipped(mesh: Mesh) -> Mesh:
    return replace(mesh, faces=np.ascontiguousarray(mesh.faces[:, ::-1]))


def volume(mesh: Mesh) -> float:
    return signed_volume(mesh.vertices, mesh.faces)


def test_components_are_counted_by_shared_vertices() -> None:
    label = components(join(ball(0.5), ball(0.1, (0.8, 0, 0)), ball(0.1, (-0.8, 0, 0))))
    assert np.bincount(label).tolist() == [320, 320, 320]
    assert len(components(Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)))) == 0


def test_floaters_go_and_parts_stay() -> None:
    # Areas relative to the largest: 0.16 and 0.01.
    mesh = join(ball(0.5), ball(0.2, (0.8, 0, 0)), ball(0.05, (-0.8, 0, 0)))
    kept = drop_floaters(mesh, 0.05)
    assert len(kept.faces) == 640
    assert len(kept.vertices) == 2 * 162
    assert kept.vertices[:, 0].min() > -0.51
    assert len(drop_floaters(mesh, 1.0).faces) == 320


def test_walls_of_cavities_and_what_floats_in_them_go() -> None:
    outer, wall, inside = ball(0.8), flipped(ball(0.6)), ball(0.3)
    beside = ball(0.3, (1.5, 0, 0))
    kept = drop_enclosed(join(inside, wall, outer, beside))
    assert len(kept.faces) == 640
    assert volume(kept) == pytest.approx(volume(outer) + volume(beside), rel=1e-5)


def test_the_winding_number_is_one_inside_and_zero_outside() -> None:
    mesh = ball(0.5, subdivisions=1)
    for point, want in (((0.1, 0.2, 0.1), 1), ((0.9, 0.2, 0.1), 0), ((0.44, 0, 0), 1)):
        # The identity is exact; float32 vertices leave about 1e-6.
        assert winding_number(mesh, mesh.faces, np.array(point)) == pytest.approx(want, abs=1e-5)
    assert winding_number(mesh, mesh.faces[:, ::-1], np.zeros(3)) == pytest.approx(-1, abs=1e-5)


def test_degenerate_faces_and_unused_vertices_go_and_colours_follow() -> None:
    vertices = np.array([[9, 9, 9], [0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0], [np.nan, 0, 0]], np.float32)
    faces = np.array([[1, 2, 3], [1, 2, 4], [1, 1, 3], [1, 2, 5]], np.int32)  # good, on a line, twice a corner, NaN
    kept = drop_degenerate(Mesh(vertices, faces, colours=np.arange(18, dtype=np.float32).reshape(6, 3) / 18))
    assert kept.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert kept.colours is not None
    np.testing.assert_allclose(kept.colours[:, 0], np.array([3, 6, 9]) / 18, rtol=1e-6)


def test_small_good_triangles_are_not_degenerate() -> None:
    tiny = np.array([[0, 0, 0], [1e-5, 0, 0], [0, 1e-5, 0]], np.float32)
    assert len(drop_degenerate(Mesh(tiny, np.array([[0, 1, 2]], np.int32))).faces) == 1


def test_smoothing_takes_out_noise_and_keeps_the_volume() -> None:
    round_ = ball(0.5, subdivisions=4)
    noise = np.random.default_rng(0).normal(0, 0.004, (len(round_.vertices), 1)).astype(np.float32)
    rough = replace(round_, vertices=round_.vertices * (1 + 2 * noise))
    smoothed = smooth(rough, 8)
    spread = [np.linalg.norm(m.vertices, axis=1).std() for m in (rough, smoothed)]
    assert spread[1] < 0.5 * spread[0]
    # Plain Laplacian smoothing of the same strength shrinks the ball by 1 %.
    assert volume(smoothed) == pytest.approx(volume(round_), rel=3e-3)


def test_decimation_meets_the_budget_and_keeps_shape_and_colours() -> None:
    fine = ball(0.5, subdivisions=5)
    colours = (fine.vertices + 0.5).astype(np.float32)
    coarse = decimate(replace(fine, colours=colours), 2000)
    assert 1500 < len(coarse.faces) <= 2000
    assert volume(coarse) == pytest.approx(volume(fine), rel=0.01)
    assert coarse.colours is not None
    # A colour comes from the nearest old vertex, at most an edge (0.02) away.
    np.testing.assert_allclose(coarse.colours, coarse.vertices + 0.5, atol=0.03)


def test_a_mesh_within_the_budget_is_left_alone() -> None:
    mesh = ball(0.5)
    assert decimate(mesh, 320) is mesh


def test_a_decimation_that_ruins_the_shape_is_refused_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import fast_simplification

    mesh = ball(0.5)
    half = (mesh.vertices[:, :], mesh.faces[mesh.vertices[mesh.faces].mean(1)[:, 0] > 0])
    monkeypatch.setattr(fast_simplification, "simplify", lambda *a, **k: half)
    with pytest.warns(UserWarning, match="would have damaged the shape"):
        assert decimate(mesh, 200) is mesh


def test_clean_does_it_all() -> None:
    mesh = join(ball(0.5, subdivisions=4), flipped(ball(0.3)), ball(0.03, (0.7, 0.7, 0.7)))
    done = clean(coloured(mesh, (1, 0, 0)), 1000)
    assert len(done.faces) <= 1000
    assert len(np.unique(components(done))) == 1
    assert volume(done) == pytest.approx(volume(ball(0.5, subdivisions=4)), rel=0.02)
    assert done.colours is not None
    assert (done.colours == [1, 0, 0]).all()


def test_an_empty_mesh_is_an_error_that_says_what_to_try() -> None:
    with pytest.raises(RunError, match=r"mesh is empty.*lower level.*train longer"):
        clean(Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)))


def test_a_textured_mesh_and_a_silly_budget_are_refused() -> None:
    mesh = ball(0.5)
    with pytest.raises(ValueError, match="clean before unwrapping"):
        clean(replace(mesh, uv=np.zeros((len(mesh.vertices), 2), np.float32)))
    with pytest.raises(ValueError, match="at least 4 faces"):
        room.decimate(mesh, 3)
