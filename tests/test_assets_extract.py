"""Density fields to surfaces, against spheres and boxes whose answers are known."""

import math

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from dreamkit.assets.extract import density_grid, density_surface, marching_cubes, match_level, signed_volume
from dreamkit.cameras import ring
from dreamkit.errors import RunError

RADIUS = 0.6
CENTRE = torch.tensor([0.1, -0.2, 0.05])  # off the origin, each axis its own, so that swapped axes show


def outside(points: Tensor) -> Tensor:
    return (points - CENTRE.to(points)).norm(dim=-1) - RADIUS


def ball(points: Tensor) -> Tensor:
    """Density 100 deep inside, 10 on the sphere, falling by e every 0.02 outside."""
    return (10 * torch.exp(-outside(points) / 0.02)).clamp(max=100.0)


def test_the_grid_samples_the_field_at_its_nodes(device: str) -> None:
    grid = density_grid(lambda p: p[:, 0] + 10 * p[:, 1] + 100 * p[:, 2], 5, device, chunk=7)
    nodes = [-1.0, -0.5, 0.0, 0.5, 1.0]
    want = torch.tensor([[[x + 10 * y + 100 * z for z in nodes] for y in nodes] for x in nodes])
    torch.testing.assert_close(grid.cpu(), want)


def test_a_sphere_comes_out_round_closed_and_facing_outward(device: str) -> None:
    mesh = marching_cubes(-density_grid(outside, 48, device), 0.0)
    radius = np.linalg.norm(mesh.vertices - CENTRE.numpy(), axis=1)
    # Linear interpolation of a distance errs by at most h^2 / (8 r) = 0.0004 for cells of h = 2 / 47.
    assert np.abs(radius - RADIUS).max() < 5e-4
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).is_watertight
    # The inscribed polyhedron lacks about (h / r)^2 / 4 of the volume; float sums add nothing visible.
    assert signed_volume(mesh.vertices, mesh.faces) == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=3e-3)
    centres = mesh.vertices[mesh.faces].mean(1) - CENTRE.numpy()
    facing = (mesh.face_normals * centres).sum(1) / np.linalg.norm(centres, axis=1)
    good = np.linalg.norm(mesh.face_normals, axis=1) > 0.5  # slivers have no normal
    assert facing[good].min() > 0.7


def test_what_reaches_the_border_is_closed_flat_on_the_cube() -> None:
    mesh = marching_cubes(torch.full((9, 9, 9), 5.0), 1.0)
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).is_watertight
    assert np.abs(mesh.vertices).max() == 1.0
    # Only the edges are cut, by a thousandth of a cell.
    assert signed_volume(mesh.vertices, mesh.faces) == pytest.approx(8.0, rel=1e-2)


def test_numbers_that_are_not_finite_are_empty() -> None:
    grid = torch.full((8, 8, 8), float("nan"))
    grid[2:5, 2:5, 2:5] = 3.0
    mesh = marching_cubes(grid, 1.0)
    assert len(mesh.faces)
    assert np.isfinite(mesh.vertices).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_nothing_above_the_level_is_an_empty_mesh(value: float) -> None:
    assert len(marching_cubes(torch.full((4, 4, 4), value), 1.0).faces) == 0


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="marching_cubes expects values"):
        marching_cubes(torch.zeros(shape), 1.0)


def test_exponential_densities_give_no_staircase() -> None:
    # In the logarithm this field is a distance: as exact as the sphere above, while a linear cut of the densities
    # lands near nodes and errs by up to a cell, 0.06.
    mesh = density_surface(density_grid(lambda p: 10 * torch.exp(-outside(p) / 0.02), 32), 10.0)
    radius = np.linalg.norm(mesh.vertices - CENTRE.numpy(), axis=1)
    assert np.abs(radius - RADIUS).max() < 2e-3


def silhouettes(radius: float, count: int = 3, size: int = 48) -> tuple[Tensor, object]:
    """Exact pictures of a ball around CENTRE: a ray hits it if it passes closer than the radius."""
    cameras = ring(count, elevation_degrees=20, size=size)
    origins, directions = cameras.rays()
    toward = CENTRE - origins
    along = (toward * directions).sum(-1, keepdim=True)
    return ((toward - along * directions).norm(dim=-1) < radius).float()[:, None], cameras


@pytest.mark.parametrize("radius", [0.5, 0.6, 0.7])
def test_the_level_is_that_of_the_surface_the_pictures_show(radius: float, device: str) -> None:
    alpha, cameras = silhouettes(radius)
    field = lambda p: 10 * torch.exp(-outside(p) / 0.05)  # noqa: E731
    level = match_level(density_grid(field, 48, device), alpha.to(device), cameras)  # type: ignore[arg-type]
    found = RADIUS - 0.05 * math.log(level.density / 10)  # the radius whose density it is
    # A pixel is 0.04 wide at the object; the circle's many border pixels place it to a fraction of one.
    assert found == pytest.approx(radius, abs=0.01)
    assert level.iou > 0.97


def test_what_is_fainter_than_opaque_is_not_the_object() -> None:
    """A ball of radius 0.5 that is seen through a fainter one of 0.7."""
    (inner, cameras), (outer, _) = silhouettes(0.5), silhouettes(0.7)
    grid = density_grid(lambda p: 10 * torch.exp(-outside(p) / 0.05), 48)
    for opaque, radius in ((0.5, 0.5), (0.25, 0.7)):
        level = match_level(grid, 0.3 * outer + 0.7 * inner, cameras, opaque=opaque)  # type: ignore[arg-type]
        assert RADIUS - 0.05 * math.log(level.density / 10) == pytest.approx(radius, abs=0.01)  # as above


def test_large_pictures_give_the_level_of_small_ones() -> None:
    grid = density_grid(lambda p: 10 * torch.exp(-outside(p) / 0.05), 48)
    levels = []
    for size in (64, 320):  # 320^2 * 2 pixels are more than are looked at
        alpha, cameras = silhouettes(0.6, count=2, size=size)
        levels.append(match_level(grid, alpha, cameras).density)  # type: ignore[arg-type]
    # A radius off by 0.005, a sixth of the small pictures' pixel, is a density off by 10 %.
    assert levels[1] == pytest.approx(levels[0], rel=0.1)
    assert levels[1] == pytest.approx(10, rel=0.1)


def test_a_hard_object_gets_the_middle_of_the_plateau() -> None:
    alpha, cameras = silhouettes(RADIUS)
    grid = density_grid(lambda p: torch.where(outside(p) < 0, 100.0, 0.0), 96)
    level = match_level(grid, alpha, cameras)  # type: ignore[arg-type]
    # Between 100 and the lowest density that counts, 0.01; rays that graze corners of cells move it a little.
    assert 0.1 < level.density < 20
    assert level.iou > 0.96


def test_a_scene_of_nothing_is_an_error_that_says_what_to_do() -> None:
    alpha, cameras = silhouettes(0.5)
    with pytest.raises(RunError, match=r"largest opacity in 3 views is 0\.200.*train longer"):
        match_level(torch.ones(8, 8, 8), alpha * 0.2, cameras)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="no object to export"):
        match_level(torch.zeros(8, 8, 8), alpha, cameras)  # type: ignore[arg-type]


def test_pictures_of_another_size_than_the_cameras_are_refused() -> None:
    with pytest.raises(ValueError, match="match_level expects alpha"):
        match_level(torch.ones(8, 8, 8), torch.ones(2, 1, 8, 8), ring(3, size=8))
