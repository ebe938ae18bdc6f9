"""Ray casting: both backends against solid geometry, and against each other."""

import math

import pytest
import torch

from dreamkit.errors import InputError
from dreamkit.kernels.query import surface

BACKENDS = ["reference", "warp"]
SQUARE = torch.tensor([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
TWO = torch.tensor([[0, 1, 2], [0, 2, 3]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rays_hit_a_square_where_geometry_says(backend, device):
    origins = torch.tensor([[0.5, -0.2, 2.0], [-0.5, 0.3, -1.0], [1.5, 0.0, 2.0], [0.2, 0.1, 2.0]], device=device)
    down, up, slanted = [0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, math.sin(0.3), -math.cos(0.3)]
    directions = torch.tensor([down, up, down, slanted], device=device)
    hits = surface(SQUARE.to(device), TWO.to(device), backend=backend).cast(origins, directions)
    # The first from above, the second from below, the third misses, the fourth at an angle; float32 rounding.
    want = torch.tensor([2.0, 1.0, math.inf, 2 / math.cos(0.3)])
    torch.testing.assert_close(hits.distance.cpu(), want, rtol=1e-6, atol=1e-6)
    assert hits.face.tolist() == [0, 1, -1, 1]
    corners = SQUARE[TWO[hits.face.cpu().clamp(min=0)]]
    points = (hits.barycentric.cpu()[..., None] * corners).sum(1)
    expected = (origins + hits.distance.nan_to_num(posinf=0)[:, None] * directions).cpu()
    found = hits.face.cpu() >= 0
    torch.testing.assert_close(points[found], expected[found], rtol=0, atol=1e-5)
    assert hits.barycentric[2].abs().sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearest_of_several_faces_is_hit(backend, device):
    shifted = [SQUARE + torch.tensor([0.0, 0.0, height]) for height in (0.0, 1.0, -1.0)]
    faces = torch.cat([TWO, TWO + 4, TWO + 8])
    ready = surface(torch.cat(shifted).to(device), faces.to(device), backend=backend)
    hits = ready.cast(torch.tensor([[0.1, 0.2, 5.0]], device=device), torch.tensor([[0.0, 0.0, -1.0]], device=device))
    assert hits.distance.item() == pytest.approx(4.0)
    assert hits.face.item() in (2, 3)


def test_backends_agree_on_random_triangles(device):
    draw = torch.Generator().manual_seed(0)
    vertices = torch.rand(150, 3, generator=draw).to(device) * 2 - 1
    faces = torch.arange(150).reshape(50, 3).to(device)
    origins = torch.nn.functional.normalize(torch.randn(4000, 3, generator=draw), dim=-1).to(device) * 3
    directions = torch.nn.functional.normalize(
        torch.rand(4000, 3, generator=draw).to(device) - 0.5 - origins / 3, dim=-1
    )
    one, two = (surface(vertices, faces, backend=name).cast(origins, directions) for name in BACKENDS)
    # A ray through an edge may go either way in float32: one in a thousand may differ.
    same = one.face == two.face
    assert same.float().mean() > 0.999
    torch.testing.assert_close(one.distance[same], two.distance[same], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.barycentric[same], two.barycentric[same], rtol=0, atol=1e-3)
    assert (one.face >= 0).float().mean() > 0.3  # the test must see hits


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_faces_and_no_rays(backend, device):
    empty = surface(SQUARE.to(device), TWO[:0].to(device), backend=backend)
    assert empty.cast(SQUARE.to(device), SQUARE.to(device)).face.tolist() == [-1] * 4
    full = surface(SQUARE.to(device), TWO.to(device), backend=backend)
    assert len(full.cast(SQUARE[:0].to(device), SQUARE[:0].to(device)).face) == 0


def cube(device) -> tuple[torch.Tensor, torch.Tensor]:
    import trimesh

    box = trimesh.creation.box((1.0, 2.0, 3.0))
    return torch.tensor(box.vertices, dtype=torch.float32, device=device), torch.tensor(box.faces, device=device)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_closest_place_on_a_box_is_the_clamped_point(backend, device):
    """Of points outside: each coordinate cut to the box; the distance to that."""
    draw = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) * 6 - 3
    half = torch.tensor([0.5, 1.0, 1.5])
    points = draw[(draw.abs() > half).any(1)].to(device)
    vertices, faces = cube(device)
    found = surface(vertices, faces, backend=backend).closest(points)
    want = torch.minimum(torch.maximum(points.cpu(), -half), half)
    places = (found.barycentric[..., None] * vertices[faces[found.face]]).sum(1).cpu()
    torch.testing.assert_close(places, want, rtol=0, atol=2e-6)  # float32 of numbers up to 3
    torch.testing.assert_close(found.distance.cpu(), (points.cpu() - want).norm(dim=1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_closest_place_from_inside_a_box_is_on_the_nearest_wall(backend, device):
    points = (torch.rand(300, 3, generator=torch.Generator().manual_seed(2)) - 0.5).to(device) * 0.98
    half = torch.tensor([0.5, 1.0, 1.5], device=device)
    found = surface(*cube(device), backend=backend).closest(points)
    torch.testing.assert_close(found.distance, (half - points.abs()).amin(1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inside_is_inside_the_box(backend, device):
    points = (torch.rand(2000, 3, generator=torch.Generator().manual_seed(3)) * 4 - 2).to(device)
    half = torch.tensor([0.5, 1.0, 1.5], device=device)
    clear = ((points.abs() - half).abs() > 1e-3).all(1)  # not on the surface, where either answer is right
    inside = surface(*cube(device), backend=backend).inside(points)
    assert torch.equal(inside[clear], (points.abs() < half).all(1)[clear])
    assert 0.05 < inside.float().mean() < 0.15  # the box is 6 of 64


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mesh_without_faces_has_no_closest_place_and_no_inside(backend, device):
    empty = surface(SQUARE.to(device), TWO[:0].to(device), backend=backend)
    assert empty.closest(SQUARE.to(device)).face.tolist() == [-1] * 4
    assert empty.inside(SQUARE.to(device)).tolist() == [False] * 4
    assert len(surface(SQUARE.to(device), TWO.to(device), backend=backend).closest(SQUARE[:0].to(device)).face) == 0


def test_a_wrong_shape_or_backend_is_said():
    with pytest.raises(ValueError, match="surface expects vertices"):
        surface(SQUARE[:, :2], TWO)
    with pytest.raises(InputError, match="backend 'cuda' is not known"):
        surface(SQUARE, TWO, backend="cuda")
