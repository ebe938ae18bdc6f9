"""Textures: the right colour at the right texel, and no texel left empty."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from dreamkit.assets.bake import (
    BACK,
    FRONT,
    LAYERS,
    SAMPLES,
    bake,
    seen_depths,
    spread,
    texels,
    to_bytes,
    vertex_normals,
    weld,
)
from dreamkit.assets.unwrap import grid_atlas
from dreamkit.kernels.texture import sample
from dreamkit.meshes import Mesh


def ball(subdivisions: int = 2) -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=0.7)
    return Mesh(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32))


def quad() -> Mesh:
    """The square [-1, 1]^2 at z = 0, x to the right and y up in the texture, exactly filling it."""
    vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]], np.int32), uv=(vertices[:, :2] + 1) / 2)


def test_each_texel_holds_the_colour_of_its_point_of_the_surface(device: str) -> None:
    baked = bake(quad(), lambda p: torch.stack([(p[:, 0] + 1) / 2, (p[:, 1] + 1) / 2, p[:, 2]], -1), 16, device=device)
    assert baked.texture is not None
    middle = (np.arange(16) + 0.5) / 16
    # Row 0 is the top, v = 1. Half a step of rounding.
    np.testing.assert_allclose(baked.texture[:, :, 0] / 255, np.tile(middle, (16, 1)), atol=0.51 / 255)
    np.testing.assert_allclose(baked.texture[:, :, 1] / 255, np.tile(middle[::-1, None], (1, 16)), atol=0.51 / 255)
    assert (baked.texture[:, :, 2] == 0).all()


def test_texels_agree_with_a_loop_over_all() -> None:
    mesh = grid_atlas(ball(1), 32)
    assert mesh.uv is not None
    got = {(int(t), int(f)): w for batch in texels(mesh, 32, 50, reach=0) for t, f, w in zip(*batch, strict=True)}
    want = {}
    for f, (a, b, c) in enumerate(mesh.uv[mesh.faces].astype(np.float64)):
        for row in range(32):
            for column in range(32):
                point = np.array([(column + 0.5) / 32, 1 - (row + 0.5) / 32])
                second, third = np.linalg.solve(np.stack([b - a, c - a], axis=1), point - a)
                weight = np.array([1 - second - third, second, third])
                if weight.min() >= 1e-7:
                    want[row * 32 + column, f] = weight
    # The grid's edges pass through texel centres, where both answers are right.
    clear = {k: w for k, w in got.items() if w.min() >= 1e-7}
    assert clear.keys() == want.keys()
    for k, w in want.items():
        np.testing.assert_allclose(clear[k], w, atol=1e-9)


def test_large_faces_in_strips_are_the_same_texels() -> None:
    mesh = quad()

    def owned(at_once: int) -> dict[int, tuple[int, tuple[float, ...]]]:
        found, most = {}, 0
        for texel, face, weight in texels(mesh, 64, at_once):
            most = max(most, len(texel))
            found |= {int(t): (int(f), tuple(w)) for t, f, w in zip(texel, face, weight, strict=True)}
        assert most <= 2 * max(at_once, 64)
        return found

    whole = owned(1 << 20)
    assert len(whole) > 1500
    assert owned(100) == owned(1) == whole


def test_faces_without_area_or_outside_the_square_do_no_harm() -> None:
    uv = np.array([[0.1, 0.1], [0.9, 0.9], [0.5, 0.5], [5, 5], [6, 5], [5, 6]], np.float32)
    mesh = Mesh(np.random.default_rng(0).random((6, 3), np.float32), np.array([[0, 1, 2], [3, 4, 5]], np.int32), uv=uv)
    assert sum(len(t) for t, _, _ in texels(mesh, 64)) == 0
    assert (bake(mesh, lambda p: torch.ones_like(p), 64).texture == 0).all()


def test_the_texture_shows_the_field_all_over_the_surface() -> None:
    field = lambda p: 0.5 + 0.5 * torch.sin(3 * p)  # noqa: E731
    mesh = bake(grid_atlas(ball(), 512), field, 512)
    assert mesh.uv is not None
    assert mesh.texture is not None
    rng = np.random.default_rng(0)
    face = rng.integers(0, len(mesh.faces), 4000)
    weight = rng.dirichlet((1, 1, 1), 4000).astype(np.float32)
    points = torch.tensor((mesh.vertices[mesh.faces[face]] * weight[..., None]).sum(1))
    uv = torch.tensor((mesh.uv[mesh.faces[face]] * weight[..., None]).sum(1))
    error = (sample(torch.tensor(mesh.texture).float() / 255, uv) - field(points)).abs()
    # A leg has 33 texels for an edge of 0.22: a texel is 0.0067, and the field's slope is 1.5. A lookup mixes colours
    # of points of the face at most sqrt(2) texels away; within the face their errors cancel.
    assert error.mean() < 0.002
    assert error.max() < 0.015


def test_every_mip_level_sees_only_filled_texels() -> None:
    mesh = bake(grid_atlas(ball(1), 128), lambda p: torch.full_like(p, 0.8), 128)
    assert mesh.texture is not None
    assert (mesh.texture == 204).all()


def test_spread_takes_the_nearest() -> None:
    picture = np.zeros((1, 7, 1), np.uint8)
    picture[0, [0, 5], 0] = [10, 20]
    filled = picture[:, :, 0] > 0
    assert spread(picture, filled)[0, :, 0].tolist() == [10, 10, 10, 20, 20, 20, 20]
    empty = np.zeros((2, 2, 3), np.uint8)
    assert spread(empty, np.zeros((2, 2), bool)) is empty


def test_seams_do_not_show_in_normals() -> None:
    split = grid_atlas(ball(3))
    assert len(weld(split)[0]) == len(ball(3).vertices)
    normals = vertex_normals(split)
    # An icosphere of 1280 faces: area weights put normals within a degree of the radius.
    np.testing.assert_allclose((normals * split.vertices).sum(1) / 0.7, 1, atol=1e-3)


def test_light_comes_from_where_the_volume_becomes_opaque() -> None:
    points, normals = np.zeros((1, 3), np.float32), np.array([[0, 0, 1]], np.float32)
    step = (FRONT + BACK) / SAMPLES
    for wall in (-0.03, 0.0, 0.05, 0.2):  # a hard wall at that depth under the surface
        found = seen_depths(points, normals, lambda p, w=wall: torch.where(p[:, 2] < -w, 1e4, 0.0))
        np.testing.assert_allclose(found, wall, atol=step)
    fog = seen_depths(points, normals, lambda p: torch.full((len(p),), 20.0), layers=5)
    # Up to depth d a camera sees 1 - exp(-20 (d + FRONT)); a fifth each, in their middles, of what is seen in all.
    shares = (np.arange(5) + 0.5) / 5 * (1 - np.exp(-20 * (FRONT + BACK)))
    # The line between two samples is off by at most an eighth of step^2 times the curvature, over the slope.
    np.testing.assert_allclose(fog[0], -np.log(1 - shares) / 20 - FRONT, atol=20 * step**2 / 8 * 1.2)
    for nothing in (0.0, float("nan")):
        assert not seen_depths(points, normals, lambda p, n=nothing: torch.full((len(p),), n)).any()


def test_colours_of_layers_that_are_seen_are_mixed() -> None:
    """A veil that lets half of the light through, red, over an opaque blue wall."""

    def density(p: torch.Tensor) -> torch.Tensor:
        radius = p.norm(dim=-1)
        veil = (radius > 0.66) & (radius < 0.68)
        return torch.where(radius < 0.6, 1e4, torch.where(veil, math.log(2) / 0.02, 0.0))

    def colour(p: torch.Tensor) -> torch.Tensor:
        red = (p.norm(dim=-1) > 0.63).float()
        return torch.stack([red, 0 * red, 1 - red], -1)

    baked = bake(grid_atlas(ball(3)), colour, 128, density=density)
    assert baked.texture is not None
    # The mean, within half of the share that one of the LAYERS is: samples meet the veil's rims off by half of one.
    assert abs(baked.texture.mean((0, 1)) / 255 - [0.5, 0.0, 0.5]).max() < 1 / LAYERS / 2


def test_with_a_density_the_colour_is_taken_under_the_surface() -> None:
    # Blue skin that is transparent over a red core at radius 0.65, 0.05 under the mesh.
    def radius(p: torch.Tensor) -> torch.Tensor:
        return p.norm(dim=-1)

    def colour(p: torch.Tensor) -> torch.Tensor:
        red = (radius(p) < 0.66).float()
        return torch.stack([red, torch.zeros_like(red), 1 - red], -1)

    mesh = grid_atlas(ball(3))
    density = lambda p: torch.where(radius(p) < 0.65, 1e3, 0.0)  # noqa: E731
    for baked, want in ((bake(mesh, colour, 256), 2), (bake(mesh, colour, 256, density=density), 0)):
        assert baked.texture is not None
        assert baked.texture[..., want].mean() > 250


def test_bytes_are_rounded_and_never_wrap() -> None:
    assert to_bytes(np.array([-1.0, 0.0, 0.5, 1.0, 7.0, np.nan, np.inf])).tolist() == [0, 0, 128, 255, 255, 0, 255]


def test_a_mesh_without_coordinates_is_refused() -> None:
    with pytest.raises(ValueError, match="unwrap the mesh first"):
        bake(replace(quad(), uv=None), lambda p: p)
