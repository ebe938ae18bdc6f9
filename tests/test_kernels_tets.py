"""Tetrahedral grids, and surfaces cut out of them, against volumes, areas and Euler numbers that are known."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.kernels.tets import Surface, TetGrid, marching_cubes, marching_tetrahedra, subdivide, tet_grid
from dreamkit.kernels.tets.cases import EDGES, triangles

BACKENDS = ["reference", "warp"]
PAIRS, TRIPLES = ([*itertools.combinations(range(4), n)] for n in (2, 3))
CENTRE = torch.tensor([0.07, -0.11, 0.05], dtype=torch.float64)  # no grid point is special


def volumes(vertices: Tensor, tets: Tensor) -> Tensor:
    corners = vertices.double()[tets]
    return torch.linalg.det(corners[:, 1:] - corners[:, :1]) / 6


def angles(grid: TetGrid) -> Tensor:
    """[T, 6] dihedral angles in degrees."""
    corners, found = grid.vertices.double()[grid.tets], []
    for i, j in PAIRS:
        along = torch.nn.functional.normalize(corners[:, j] - corners[:, i], dim=1)
        sides = [corners[:, k] - corners[:, i] for k in range(4) if k not in (i, j)]
        a, b = (torch.nn.functional.normalize(s - (s * along).sum(1, keepdim=True) * along, dim=1) for s in sides)
        found.append((a * b).sum(1).clamp(-1, 1).acos().rad2deg())
    return torch.stack(found, 1)


def unique(simplices: Tensor) -> tuple[Tensor, Tensor]:
    return simplices.sort(-1).values.unique(dim=0, return_counts=True)  # type: ignore[return-value]


def check_conforming(grid: TetGrid) -> None:
    """Every inner triangle in two tetrahedra, every other on the cube; edges complete."""
    triples, counts = unique(torch.cat([grid.tets[:, t] for t in TRIPLES]))
    assert counts.max() <= 2
    border = grid.vertices[triples[counts == 1]]
    on = (border == border[:, :1]) & (border.abs() == 1)
    assert on.all(1).any(1).all()
    a, b, c = border.double().unbind(1)
    assert torch.linalg.cross(b - a, c - a).norm(dim=1).sum() / 2 == pytest.approx(24)
    assert torch.equal(unique(torch.cat([grid.tets[:, p] for p in PAIRS]))[0], grid.edges)


def volume(vertices: Tensor, faces: Tensor) -> Tensor:
    """Enclosed by a closed surface, positive if it faces outward."""
    a, b, c = vertices[faces].unbind(1)
    return (a * torch.linalg.cross(b, c)).sum() / 6


def area(vertices: Tensor, faces: Tensor) -> Tensor:
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a).norm(dim=1).sum() / 2


def euler(faces: Tensor) -> int:
    """The Euler number of a closed, oriented surface; fails if it is not one: every edge must belong to two faces, once
    in each direction, every vertex to faces that make one ring around it, and no face may use a vertex twice."""
    assert (faces[:, 0] != faces[:, 1]).all()
    directed = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).tolist()
    assert len({tuple(e) for e in directed}) == len(directed)
    assert {(a, b) for a, b in directed} == {(b, a) for a, b in directed}
    following: dict[int, dict[int, int]] = {}
    for corners in faces.tolist():
        for i in range(3):
            following.setdefault(corners[i], {})[corners[i - 2]] = corners[i - 1]
    for ring in following.values():
        start = next(iter(ring))
        at, steps = ring[start], 1
        while at != start:
            at, steps = ring[at], steps + 1
        assert steps == len(ring)
    assert sorted(following) == list(range(len(following)))  # no vertex without a face
    return len(following) - len(directed) // 2 + len(faces)


def ball(grid: TetGrid, radius: float = 0.7) -> Tensor:
    return (grid.vertices - CENTRE.to(grid.vertices)).norm(dim=1) - radius


@pytest.mark.parametrize("resolution", [1, 2, 5])
def test_a_grid_fills_the_cube_with_equal_conforming_tetrahedra(device, resolution):
    grid = tet_grid(resolution, dtype=torch.float64, device=device)
    grid = TetGrid(*(x.cpu() for x in grid))
    assert grid.vertices.shape == ((resolution + 1) ** 3 + resolution**3, 3)
    assert grid.tets.shape == (12 * resolution**3, 4)
    assert grid.tets.unique().tolist() == list(range(len(grid.vertices)))
    part = torch.full((len(grid.tets),), 8 / (12 * resolution**3), dtype=torch.float64)
    torch.testing.assert_close(volumes(grid.vertices, grid.tets), part, rtol=1e-12, atol=0)
    check_conforming(grid)


def test_the_shapes_are_those_of_the_documentation():
    found = angles(tet_grid(4))
    assert found.min() == pytest.approx(45, abs=1e-3)
    assert found.max() == pytest.approx(120, abs=1e-3)
    inner = found[(found > 59).all(1) & (found < 91).all(1)]
    assert len(inner) == 12 * 4**2 * 3  # all but those at the border: 4 for each of the 3 R^2 (R - 1) inner faces
    want = torch.tensor([60.0, 60, 60, 60, 90, 90]).double().expand(len(inner), 6)
    torch.testing.assert_close(inner.sort(1).values, want, rtol=0, atol=1e-3)  # degrees, from float32 positions


def test_a_finer_grid_keeps_volumes_values_and_shapes():
    grid = tet_grid(2, dtype=torch.float64)
    values = grid.vertices @ torch.tensor([1.0, -2.0, 0.5]).double()
    for _ in range(2):
        finer = subdivide(grid)
        values = torch.cat([values, values[grid.edges].mean(1)])
        part = (volumes(grid.vertices, grid.tets)[:1] / 8).expand(8 * len(grid.tets))
        torch.testing.assert_close(volumes(finer.vertices, finer.tets), part, rtol=1e-12, atol=0)
        torch.testing.assert_close(values, finer.vertices @ torch.tensor([1.0, -2.0, 0.5]).double())
        check_conforming(finer)
        assert angles(finer).min() == pytest.approx(45, abs=1e-6)
        assert angles(finer).max() == pytest.approx(120, abs=1e-6)
        grid = finer


@pytest.mark.parametrize("code", range(16))
def test_each_case_cuts_the_right_edges_and_faces_away_from_the_inside(code):
    corners = torch.tensor([[0.1, 0.2, 0.0], [1.0, 0.1, 0.1], [0.2, 1.3, 0.0], [0.1, 0.1, 0.9]]).double()
    assert torch.linalg.det(corners[1:] - corners[:1]) > 0
    sign = torch.tensor([-1.0 if code >> i & 1 else 1.0 for i in range(4)]).double()
    cut = {i for i, (a, b) in enumerate(EDGES) if sign[a] != sign[b]}
    assert {edge for triangle in triangles(code) for edge in triangle} == cut
    # The gradient of the linear function with these values at the corners points outward.
    slope = torch.linalg.solve(corners[1:] - corners[:1], sign[1:] - sign[0])
    for triangle in triangles(code):
        a, b, c = ((corners[i] + corners[j]) / 2 for i, j in (EDGES[e] for e in triangle))
        assert torch.linalg.cross(b - a, c - a) @ slope > 0.1


def slice_by_hand(corners: Tensor, sdf: Tensor) -> Tensor:
    """The area vector of {sdf = 0} in one tetrahedron: its cut edges, sorted by angle around the gradient, fanned."""
    slope = torch.linalg.solve(corners[1:] - corners[:1], sdf[1:] - sdf[0])
    normal = slope / slope.norm()
    points = [(corners[i] * sdf[j] - corners[j] * sdf[i]) / (sdf[j] - sdf[i]) for i, j in PAIRS if sdf[i] * sdf[j] < 0]
    if not points:
        return torch.zeros(3).double()
    middle = torch.stack(points).mean(0)
    first = torch.nn.functional.normalize(points[0] - middle, dim=0)
    second = torch.linalg.cross(normal, first)
    points.sort(key=lambda p: math.atan2(float((p - middle) @ second), float((p - middle) @ first)))
    fan = [torch.linalg.cross(p - middle, q - middle) for p, q in zip(points, points[1:] + points[:1], strict=True)]
    return torch.stack(fan).sum(0) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_cut_of_a_tetrahedron_matches_one_by_hand(device, backend, dtype):
    draw = torch.Generator().manual_seed(0)
    for _ in range(40):
        vertices, sdf = torch.randn(4, 3, generator=draw).double(), torch.randn(4, generator=draw).double()
        order = [0, 1, 2, 3] if volumes(vertices, torch.arange(4)[None]) > 0 else [0, 1, 3, 2]
        tets = torch.tensor([order], device=device)
        found = marching_tetrahedra(vertices.to(device, dtype), sdf.to(device, dtype), tets, backend=backend)
        a, b, c = found.vertices.cpu().double()[found.faces.cpu()].unbind(1)
        got = torch.linalg.cross(b - a, c - a).sum(0) / 2
        # float32: vertices of about 3, rounded by 2e-7, and divided by differences of sdf down to 0.1.
        tolerance = 1e-4 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(got, slice_by_hand(vertices, sdf), rtol=0, atol=tolerance)
        assert len(found.faces) == {0: 0, 1: 1, 2: 2, 3: 1, 4: 0}[int((sdf < 0).sum())]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sphere_is_closed_faces_outward_and_converges(device, backend):
    errors = []
    for resolution in (8, 16, 32):
        grid = tet_grid(resolution, dtype=torch.float64, device=device)
        found = marching_tetrahedra(grid.vertices, ball(grid), grid.tets, backend=backend)
        if resolution < 32:
            assert euler(found.faces.cpu()) == 2
        off = (found.vertices - CENTRE.to(device)).norm(dim=1) - 0.7
        assert (
            off.abs().max() < (2 / resolution) ** 2 / (8 * 0.7) * 1.01
        )  # of a linear interpolant on edges of length h
        exact = 4 / 3 * math.pi * 0.7**3, 4 * math.pi * 0.7**2
        errors.append(
            [float(f(found.vertices, found.faces)) / e - 1 for f, e in zip((volume, area), exact, strict=True)]
        )
    for k in range(2):  # second order: a quarter with every halving
        assert abs(errors[0][k]) < 0.05
        for coarse, fine in itertools.pairwise(e[k] for e in errors):
            assert coarse / fine == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_torus_has_a_hole(device, backend):
    grid = tet_grid(14, dtype=torch.float64, device=device)
    around = grid.vertices[:, :2].norm(dim=1) - 0.55
    found = marching_tetrahedra(
        grid.vertices, (around**2 + (grid.vertices[:, 2] - 0.03) ** 2).sqrt() - 0.25, grid.tets, backend=backend
    )
    assert euler(found.faces.cpu()) == 0
    # The chords of the tube, cells of 0.14 across a radius of 0.25, lose a few percent.
    assert volume(found.vertices, found.faces).item() == pytest.approx(2 * math.pi**2 * 0.55 * 0.25**2, rel=0.06)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["noise", "zeros", "zero and one"])
def test_any_signs_give_a_closed_manifold(device, backend, kind):
    grid = tet_grid(5, dtype=torch.float64, device=device)
    sdf = torch.randn(len(grid.vertices), generator=torch.Generator().manual_seed(1)).double().to(device)
    if kind != "noise":
        sdf = sdf.round() if kind == "zeros" else -(sdf > 0).double()  # zeros exactly at vertices
    sdf[(grid.vertices.abs() == 1).any(1)] = 1.0
    sdf.requires_grad_()
    found = marching_tetrahedra(grid.vertices, sdf, grid.tets, backend=backend)
    euler(found.faces.cpu())
    assert found.vertices.isfinite().all()
    volume(found.vertices, found.faces).backward()
    assert sdf.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_counts_as_outside_and_the_vertex_lies_on_it(device, backend):
    grid = tet_grid(2, device=device)
    sdf = torch.zeros(len(grid.vertices), device=device)
    assert len(marching_tetrahedra(grid.vertices, sdf, grid.tets, backend=backend).faces) == 0
    centre = int((grid.vertices == 0).all(1).nonzero()[0, 0])
    sdf[centre] = -1.0
    found = marching_tetrahedra(grid.vertices, sdf, grid.tets, backend=backend)
    assert euler(found.faces.cpu()) == 2
    other = torch.where(found.edges == centre, 0, found.edges).sum(1)
    assert torch.equal(found.vertices, grid.vertices[other])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_match_finite_differences(device, backend):
    grid = tet_grid(2, dtype=torch.float64, device=device)
    draw = torch.Generator().manual_seed(3)
    vertices = grid.vertices + 0.1 * torch.randn(grid.vertices.shape, generator=draw).double().to(device)
    sdf = ball(grid, 0.6) + 0.1 * torch.randn(len(vertices), generator=draw).double().to(device)
    assert sdf.abs().min() > 1e-3  # no sign changes within the step of 1e-6

    def enclosed(v: Tensor, s: Tensor) -> Tensor:
        found = marching_tetrahedra(v, s, grid.tets, backend=backend)
        return volume(found.vertices, found.faces)

    assert enclosed(vertices, sdf) > 0.2
    assert torch.autograd.gradcheck(enclosed, [vertices.requires_grad_(), sdf.requires_grad_()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_volume_of_a_ball_changes_by_its_area(device, backend):
    grid = tet_grid(24, dtype=torch.float64, device=device)
    sdf = ball(grid).requires_grad_()
    found = marching_tetrahedra(grid.vertices, sdf, grid.tets, backend=backend)
    (gradient,) = torch.autograd.grad(volume(found.vertices, found.faces), sdf)
    # A larger sdf everywhere is a smaller radius: dV = -area. Cells of 0.083 on a radius of 0.7 err by about (h / r)^2.
    assert gradient.sum().item() == pytest.approx(-4 * math.pi * 0.7**2, rel=0.015)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_at_the_grid_are_seen_on_the_surface(device, backend):
    grid = tet_grid(6, dtype=torch.float64, device=device)
    found = marching_tetrahedra(grid.vertices, ball(grid), grid.tets, backend=backend)
    assert isinstance(found, Surface)
    torch.testing.assert_close(found.interpolate(grid.vertices), found.vertices, rtol=0, atol=0)
    torch.testing.assert_close(found.interpolate(grid.vertices[:, 1]), found.vertices[:, 1], rtol=0, atol=1e-15)
    a, b = found.edges.unbind(1)
    assert (a < b).all()
    assert ((ball(grid)[a] < 0) != (ball(grid)[b] < 0)).all()
    assert (found.interpolate(ball(grid)).abs() < 1e-15).all()  # zero, which is what makes it the surface
    keys = a * len(grid.vertices) + b
    assert (keys.diff() > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_inside_everything_inside_and_no_grid(device, backend):
    grid = tet_grid(3, device=device)
    one = torch.ones(len(grid.vertices), device=device, requires_grad=True)
    for sdf in (one, -one):
        found = marching_tetrahedra(grid.vertices, sdf, grid.tets, backend=backend)
        assert found.vertices.shape == found.faces.shape == (0, 3)
        assert found.edges.shape == (0, 2)
        (found.vertices.sum() + found.weight.sum()).backward()
    assert not one.grad.any()
    empty = marching_tetrahedra(torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 4).long(), backend=backend)
    assert empty.vertices.shape == (0, 3)
    alone = torch.tensor([[0, 1, 2, 3]], device=device)
    found = marching_tetrahedra(grid.vertices, torch.arange(len(one), device=device) - 0.25, alone, backend=backend)
    assert len(found.faces) == 1  # open, where it leaves the grid


def test_backends_and_numbers_of_threads_agree_to_the_bit(device):
    threads = torch.get_num_threads()
    grid = tet_grid(9, device=device)
    sdf = torch.randn(len(grid.vertices), generator=torch.Generator().manual_seed(4)).to(device).requires_grad_()
    results = []
    try:
        for backend, count in (("reference", 1), ("warp", 1), ("warp", 2), ("warp", 3), ("warp", 3)):
            torch.set_num_threads(count)
            found = marching_tetrahedra(grid.vertices, sdf, grid.tets, backend=backend)
            (gradient,) = torch.autograd.grad((found.vertices**2).sum(), sdf)
            results.append([*found, gradient])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arguments_are_named(device, backend):
    grid = tet_grid(2, device=device)
    sdf = ball(grid)
    with pytest.raises(ValueError, match=r"vertices \[V, 3\], sdf \[V\].*got \(35, 3\), \(34,\), \(96, 4\)"):
        marching_tetrahedra(grid.vertices, sdf[1:], grid.tets, backend=backend)
    with pytest.raises(ValueError, match=r"got torch.float32, torch.float64, torch.int64"):
        marching_tetrahedra(grid.vertices, sdf.double(), grid.tets, backend=backend)
    with pytest.raises(ValueError, match=r"got torch.float32, torch.float32, torch.int32"):
        marching_tetrahedra(grid.vertices, sdf, grid.tets.int(), backend=backend)
    sdf[3], sdf[5] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="sdf has 2 of 35 that are NaN or infinite"):
        marching_tetrahedra(grid.vertices, sdf, grid.tets, backend=backend)
    with pytest.raises(ValueError, match="vertices has 105 of 105 that are NaN"):
        marching_tetrahedra(grid.vertices * torch.nan, ball(grid), grid.tets, backend=backend)
    for wrong in (-1, 35, 2**40):
        tets = grid.tets.clone()
        tets[7, 2] = wrong
        with pytest.raises(ValueError, match=rf"not there: \[.*{wrong}.*\] of 35 vertices"):
            marching_tetrahedra(grid.vertices, ball(grid), tets, backend=backend)
    with pytest.raises(InputError, match="'cubes' is not known"):
        marching_tetrahedra(grid.vertices, ball(grid), grid.tets, backend="cubes")
    with pytest.raises(ValueError, match="at least 1; got 0"):
        tet_grid(0)


def nodes(*shape: int) -> Tensor:
    return torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n).double() for n in shape), indexing="ij"), -1)


def test_marching_cubes_of_a_sphere_in_any_box(device):
    low, high = torch.tensor([-1.0, 0.0, 2.0]).double(), torch.tensor([1.0, 4.0, 3.0]).double()
    values = 5 - (nodes(31, 36, 41) - CENTRE).norm(dim=-1)  # level 4.3: a radius of 0.7
    vertices, faces = marching_cubes(values.to(device), 4.3, (tuple(low.tolist()), tuple(high.tolist())))
    vertices, faces = vertices.cpu(), faces.cpu()
    assert vertices.dtype == torch.float64
    assert euler(faces) == 2
    unit = (vertices - low) / (high - low) * 2 - 1
    assert ((unit - CENTRE).norm(dim=1) - 0.7).abs().max() < (2 / 30) ** 2 / (8 * 0.7) * 1.01
    assert volume(vertices, faces).item() == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=0.01)  # a box of 2 x 4 x 1 = 8


def test_marching_cubes_closes_on_the_border(device):
    vertices, faces = marching_cubes(torch.ones(3, 4, 5, device=device), 0.5, ((0, 0, 0), (2, 3, 4)))
    assert euler(faces.cpu()) == 2
    assert vertices.amin(0).tolist() == [0, 0, 0]
    assert vertices.amax(0).tolist() == [2, 3, 4]
    assert volume(vertices, faces).item() == pytest.approx(24, rel=0.01)  # edges are cut by a thousandth of a cell


def test_marching_cubes_passes_gradients_on(device):
    values = (0.6 - (nodes(6, 7, 6) - CENTRE).norm(dim=-1)).to(device)
    values += 0.05 * torch.randn(values.shape, generator=torch.Generator().manual_seed(5)).double().to(device)
    assert torch.autograd.gradcheck(lambda v: volume(*marching_cubes(v, 0.02)), [values.requires_grad_()])


def test_marching_cubes_of_nothing_and_of_numbers_that_are_not(device):
    values = torch.zeros(3, 3, 3, device=device)
    for level in (0.0, 1.0):  # on the level is not above it
        vertices, faces = marching_cubes(values, level)
        assert vertices.shape == faces.shape == (0, 3)
    with pytest.raises(ValueError, match=r"at least 2\^3 nodes.*got \(3, 3\)"):
        marching_cubes(values[0])
    with pytest.raises(ValueError, match="bounds"):
        marching_cubes(values, 0.0, ((0, 0, 0), (1, 0, 1)))
    values[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="values has 1 of 27 that are NaN or infinite"):
        marching_cubes(values)
