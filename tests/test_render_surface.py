"""The surface renderer: values by ray casting and closed forms, gradients by finite differences in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamkit.cameras import Cameras, orbit
from dreamkit.kernels.raster import edge_neighbours
from dreamkit.kernels.tets import marching_tetrahedra, tet_grid
from dreamkit.meshes import Mesh
from dreamkit.render.mesh import render_mesh
from dreamkit.render.surface import Fragments, render_surface
from dreamkit.triangles import directions, face_normals, unique_edges, vertex_normals

VIEWS = orbit([20.0, 140.0, 250.0], [15.0, -10.0, 70.0], size=(40, 44))
BLACK = torch.zeros(3, 3)


def ball(resolution=6, radius=0.7, device="cpu", dtype=torch.float64):
    """A ball, cut out of a tetrahedral grid: vertices and faces."""
    grid = tet_grid(resolution, dtype=dtype, device=device)
    surface = marching_tetrahedra(grid.vertices, grid.vertices.norm(dim=1) - radius, grid.tets)
    return surface.vertices, surface.faces


def where(seen: Fragments):
    """Colours that say where each point is."""
    return 0.5 + 0.5 * seen.position


def exact(cameras: Cameras, device="cpu") -> Cameras:
    cameras = cameras.to(device)
    return replace(cameras, camera_to_world=cameras.camera_to_world.double(), fov_degrees=cameras.fov_degrees.double())


def test_pictures_are_those_of_rays_cast(device):
    vertices, faces = ball(8, device=device)
    background = torch.tensor([[0.2, 0.5, 0.9]], device=device).double().expand(3, 3)
    got = render_surface(vertices, faces, VIEWS, where, background=background, normals=True)
    colours = (0.5 + 0.5 * vertices).float().cpu().numpy()
    mesh = Mesh(vertices.float().cpu().numpy(), faces.int().cpu().numpy(), colours)
    want = render_mesh(mesh, VIEWS, background=(0.2, 0.5, 0.9), supersample=8, device=device)
    # Exact inside but for the 8 x 8 rays, which take the mean over a pixel; at the outline both err, in different ways.
    for name, inside, mean in (("rgb", 0.01, 2e-3), ("alpha", 0, 2e-3), ("depth", 0.05, 6e-3)):
        # What depth a pixel of the outline has, is not told where the other has none: weighted by alpha.
        weights = (got.alpha, want.alpha) if name == "depth" else (1, 1)
        difference = (getattr(got, name) * weights[0] - getattr(want, name) * weights[1]).abs()
        full = (want.alpha == 1).expand_as(difference) & (got.alpha == 1)
        assert difference[full].max() <= inside, name
        assert difference.mean() < mean, name
    covered = float(want.alpha.sum())
    assert float(got.alpha.sum()) == pytest.approx(covered, rel=2e-3)  # 64 rays a pixel, 400 pixels outline


def test_inside_everything_is_that_of_a_sphere(device):
    vertices, faces = ball(12, device=device)
    cameras = exact(VIEWS, device)
    images = render_surface(vertices, faces, cameras, where, background=BLACK.to(device).double(), normals=True)
    origins, rays = cameras.rays()
    along = -(origins * rays).sum(-1)
    chord = (0.7**2 - origins.square().sum(-1) + along**2).clamp(min=0).sqrt()
    hit = chord > 0.3  # well inside
    depth, position = along - chord, origins + (along - chord)[..., None] * rays
    # Edges of 1/6 sag by edge^2 / (8 r) = 5e-3, seen at a slant of up to 0.7 / 0.3. Normals err by a few degrees.
    assert (images.depth[:, 0] - depth)[hit].abs().max() < 0.012
    assert (images.rgb.permute(0, 2, 3, 1) - (0.5 + 0.5 * position))[hit].abs().max() < 0.006
    cosine = (images.normal.permute(0, 2, 3, 1) * position / 0.7).sum(-1)
    assert cosine[hit].min() > math.cos(math.radians(6))
    assert torch.equal(images.alpha[:, 0][hit], torch.ones_like(depth[hit]))


def test_fragments_say_what_each_pixel_sees(device):
    vertices, faces = ball(5, device=device)
    cameras, found = exact(VIEWS, device), []

    def keep(seen):
        found.append(seen)
        return where(seen)

    images = render_surface(vertices, faces, cameras, keep, background=BLACK.to(device).double())
    (seen,) = found
    assert len(seen) == int((images.alpha > 0.5).sum()) == len(seen.camera)
    corners = vertices[faces[seen.face]]
    torch.testing.assert_close((corners * seen.barycentric[..., None]).sum(1), seen.position)
    assert torch.equal(seen.face_normal, face_normals(vertices, faces)[seen.face])
    mixed = (vertex_normals(vertices, faces)[faces[seen.face]] * seen.barycentric[..., None]).sum(1)
    torch.testing.assert_close(seen.normal, directions(mixed))
    torch.testing.assert_close(seen.view, directions(cameras.positions[seen.camera] - seen.position))
    assert ((seen.face_normal * seen.view).sum(-1) > 0).all()  # outside faces the camera
    assert seen.uv is None
    assert seen.footprint is None


def test_texture_coordinates_are_per_corner_and_a_seam_is_no_silhouette(device):
    vertices, faces = ball(5, device=device)
    cameras, found = exact(VIEWS, device), []
    apart = torch.arange(faces.numel(), device=device).view(-1, 3)  # every face has its own corner of the texture
    uv = torch.rand(len(faces), 3, 2, generator=torch.Generator().manual_seed(0)).double().to(device)
    rest = {"background": BLACK.to(device).double()}
    images = render_surface(vertices, faces, cameras, lambda seen: found.append(seen) or where(seen), uv=uv, **rest)
    seen = found[0]
    torch.testing.assert_close(seen.uv, (uv[seen.face] * seen.barycentric[..., None]).sum(1))
    assert torch.equal(images.rgb, render_surface(vertices, faces, cameras, where, **rest).rgb)
    # Cut along every edge it is the same surface, but each face blends with its neighbours.
    torn = render_surface(vertices[faces].reshape(-1, 3), apart, cameras, where, **rest)
    assert not torch.equal(torn.rgb, images.rgb)
    # Neighbouring pixels of one face, one apart in a row: the footprint is their difference, up to perspective.
    together = (seen.face[1:] == seen.face[:-1]) & (seen.camera[1:] == seen.camera[:-1])
    step = (seen.uv[1:] - seen.uv[:-1])[together]
    near = (seen.footprint[1:, :, 0] + seen.footprint[:-1, :, 0])[together] / 2
    level = step.norm(dim=-1) > 0
    error = (step - near)[level].norm(dim=-1) / step[level].norm(dim=-1)
    assert error.median() < 0.01


@pytest.mark.parametrize("what", ["rgb", "alpha", "depth", "normal"])
def test_gradients_in_the_vertices_match_finite_differences(device, what):
    vertices, faces = ball(3, device=device)
    cameras = exact(orbit([20.0, 140.0], [15.0, 50.0], size=24), device)
    background = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1)).double().to(device)

    def shade(seen):  # depends on all that depends on the vertices
        lit = (seen.face_normal * seen.view).sum(-1, keepdim=True)
        return torch.sigmoid(3 * seen.position + seen.normal * lit)

    def value(moved):
        images = render_surface(moved, faces, cameras, shade, background=background, normals=True)
        mix = torch.randn(getattr(images, what).shape, generator=torch.Generator().manual_seed(2)).to(background)
        # Depth is divided by alpha, and curves too much for differences where alpha is almost nothing.
        return (getattr(images, what) * mix * (images.alpha > 0.1)).sum()

    leaf = vertices.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    draw = torch.Generator().manual_seed(3)
    for _ in range(6):
        direction = torch.randn(vertices.shape, generator=draw).double().to(device)
        small = 1e-7
        with torch.no_grad():
            slope = (value(vertices + small * direction) - value(vertices - small * direction)) / (2 * small)
        # The difference is good to about 1e-13 * 1000 / 1e-7; a curvature of 1e3 adds 1e3 * 1e-14.
        assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-3)


def test_the_area_of_a_growing_silhouette_grows_by_its_outline(device):
    """alpha's gradient is that of the covered area: for a square face-on, twice its side a unit of width."""
    side = torch.tensor(1.0, dtype=torch.float64, device=device, requires_grad=True)
    corners = torch.tensor([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1.0]], device=device).double() * side * 0.613
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], device=device)
    cameras = exact(orbit([0.0], 0.0, size=64), device)
    images = render_surface(corners, faces, cameras, where, background=BLACK[:1].to(device).double())
    (slope,) = torch.autograd.grad(images.alpha.sum(), side)
    pixels = 2 * 0.613 / (2 * 3 * math.tan(math.radians(18))) * 64  # the side in pixels
    assert images.alpha.sum().item() == pytest.approx(pixels**2, rel=1e-3)
    assert float(slope) == pytest.approx(2 * pixels**2, rel=0.03)  # but for the four corners


def test_backgrounds_show_through_and_get_their_gradient(device):
    vertices, faces = ball(4, device=device)
    background = torch.rand(3, 3, 40, 44, generator=torch.Generator().manual_seed(0)).double().to(device)
    background.requires_grad_()
    images = render_surface(vertices, faces, exact(VIEWS, device), where, background=background)
    empty = (images.alpha == 0).expand_as(background)
    assert torch.equal(images.rgb[empty], background[empty])
    (gradient,) = torch.autograd.grad(images.rgb.sum(), background)
    torch.testing.assert_close(gradient, (1 - images.alpha).expand_as(gradient))


def test_an_empty_surface_is_background_and_can_be_differentiated(device):
    vertices = torch.zeros(0, 3, device=device, requires_grad=True)
    scale = torch.ones((), device=device, requires_grad=True)
    faces = torch.zeros(0, 3, dtype=torch.int64, device=device)
    background = torch.tensor([[0.1, 0.2, 0.3]], device=device).expand(3, 3)
    images = render_surface(
        vertices, faces, VIEWS, lambda seen: scale * seen.position, background=background, normals=True
    )
    assert torch.equal(images.rgb, background[:, :, None, None].expand(3, 3, 40, 44))
    assert images.alpha.abs().max() == images.depth.abs().max() == images.normal.abs().max() == 0
    (images.rgb.sum() + images.depth.sum() + images.normal.sum()).backward()
    assert scale.grad == 0


def test_neighbours_given_are_neighbours_found(device):
    vertices, faces = ball(4, device=device)
    rest = {"background": BLACK.to(device).double()}
    found = render_surface(vertices, faces, VIEWS, where, **rest)
    given = render_surface(vertices, faces, VIEWS, where, neighbours=edge_neighbours(faces), **rest)
    assert torch.equal(found.rgb, given.rgb)


def test_any_number_of_channels(device):
    vertices, faces = ball(4, device=device)
    five = torch.arange(5.0, device=device).double()
    images = render_surface(
        vertices, faces, VIEWS, lambda seen: five.expand(len(seen), 5), background=five.expand(3, 5)
    )
    torch.testing.assert_close(images.rgb, five[None, :, None, None].expand(3, 5, 40, 44))


def test_bad_shapes_are_named():
    vertices, faces = ball(3)
    with pytest.raises(ValueError, match="background must be"):
        render_surface(vertices, faces, VIEWS, where, background=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"colours \[\d+, C\]"):
        render_surface(vertices, faces, VIEWS, lambda seen: seen.position[:-1], background=BLACK)
    with pytest.raises(ValueError, match="a row a face"):
        render_surface(vertices, faces, VIEWS, where, background=BLACK, uv=torch.zeros(3, 3, 2))


def test_normals_are_by_hand(device):
    vertices, faces = ball(3, device=device)
    want = torch.from_numpy(Mesh(vertices.cpu().numpy(), faces.int().cpu().numpy()).face_normals).to(device)
    torch.testing.assert_close(face_normals(vertices, faces), want)
    sums = np.zeros((len(vertices), 3))
    for face in faces.cpu().numpy():
        a, b, c = vertices.cpu().numpy()[face]
        for corner in face:
            sums[corner] += np.cross(b - a, c - a)
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    torch.testing.assert_close(vertex_normals(vertices, faces), torch.from_numpy(sums).to(device))


def test_what_has_no_direction_is_zero_with_a_gradient_of_zero():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]], requires_grad=True)
    faces = torch.tensor([[0, 1, 2]])
    normals = torch.cat([face_normals(vertices, faces), vertex_normals(vertices, faces)])
    assert normals.abs().max() == 0
    normals.sum().backward()
    assert vertices.grad.abs().max() == 0


def test_edges_come_once():
    _, faces = ball(3)
    pairs = {tuple(sorted((int(f[i]), int(f[i - 1])))) for f in faces for i in range(3)}
    edges = unique_edges(faces)
    assert sorted(pairs) == [tuple(e) for e in edges.tolist()]
    assert len(edges) == len(faces) * 3 // 2  # a closed surface
    assert unique_edges(faces[:0]).shape == (0, 2)
