"""Rasterisation against loops over pixels, planes met by rays, areas of polygons and finite differences."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dreamkit.cameras import orbit
from dreamkit.kernels.query import surface
from dreamkit.kernels.raster import (
    Raster,
    antialias,
    edge_neighbours,
    interpolate,
    project,
    rasterize,
    screen_derivatives,
)

BACKENDS = ["reference", "warp"]


def soup(count: int = 25, views: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random triangles of all sizes in clip space, float64 that float32 can hold: some cross the camera's plane, one is
    behind it."""
    draw = torch.Generator().manual_seed(seed)
    clip = torch.randn(views, 3 * count, 4, generator=draw)
    clip[..., 3] = clip[..., 3].abs() + 0.8
    clip[..., :2] *= 0.9
    clip[..., 2] *= 0.3
    clip[:, :: 3 * 7, 3] *= -1
    clip[:, 3:6, 3] = -1.0
    return clip.double(), torch.arange(3 * count).view(-1, 3).int()


def ball(rings: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """A closed lumpy surface around the origin, vertices [V, 3] and faces."""
    columns = 2 * rings
    polar = torch.linspace(0, math.pi, rings + 1, dtype=torch.float64)[1:-1]
    around = torch.arange(columns).double() / columns * 2 * math.pi
    t, p = torch.meshgrid(polar, around, indexing="ij")
    rim = torch.stack([t.sin() * p.cos(), t.sin() * p.sin(), t.cos()], dim=-1).reshape(-1, 3)
    vertices = torch.cat([rim, torch.tensor([[0.0, 0, 1], [0, 0, -1]]).double()])
    vertices = vertices * (0.7 + 0.1 * torch.sin(5 * vertices[:, :1]) * torch.cos(3 * vertices[:, 1:2]))
    i = torch.arange((rings - 2) * columns)
    right = i // columns * columns + (i + 1) % columns
    first, last = torch.arange(columns), torch.arange(columns) + (rings - 2) * columns
    poles = [torch.full((columns,), len(vertices) - n) for n in (2, 1)]
    quads = [torch.stack([i, i + columns, right], 1), torch.stack([right, i + columns, right + columns], 1)]
    caps = [torch.stack([poles[0], first, first.roll(-1)], 1), torch.stack([poles[1], last.roll(-1), last], 1)]
    return vertices.to(dtype), torch.cat(quads + caps).int()


def flat(points: list[tuple[float, float]], size: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Clip positions [1, V, 4] of points given in pixels from the top left, at depth 0."""
    xy = torch.tensor(points, dtype=dtype) / torch.tensor([size[1], size[0]], dtype=dtype) * 2 - 1
    return torch.stack([xy[:, 0], -xy[:, 1], torch.zeros(len(xy)), torch.ones(len(xy))], dim=-1).to(dtype)[None]


def by_rays(clip: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """One view, pixel by pixel: the ray of points s (x, y, 1) through a pixel meets the plane of a face's corners
    (x, y, w) where sum_i b_i v_i = s (x, y, 1) and sum_i b_i = 1; it is on the face if no b_i < 0 and s > 0."""
    found = torch.full((height, width), -1)
    weights, depth = torch.zeros(height, width, 3).double(), torch.ones(height, width).double()
    corners = clip[faces.long()]
    matrix = torch.eye(4).double().repeat(len(faces), 1, 1)
    matrix[:, :3, :3] = corners[..., [0, 1, 3]].mT
    matrix[:, 3, :] = torch.tensor([1.0, 1, 1, 0])
    for row in range(height):
        for column in range(width):
            p = torch.tensor([(column + 0.5) / width * 2 - 1, 1 - (row + 0.5) / height * 2, 1], dtype=torch.float64)
            matrix[:, :3, 3] = -p
            b, s = torch.linalg.solve(matrix, torch.tensor([0.0, 0, 0, 1]).double()).split([3, 1], dim=1)
            z = (b * corners[..., 2]).sum(1) / s[:, 0]
            hit = (b >= 0).all(1) & (s[:, 0] > 0) & (z.abs() <= 1)
            if hit.any():
                face = int(torch.where(hit, z, torch.inf).argmin())
                found[row, column], weights[row, column], depth[row, column] = face, b[face], z[face]
    return found, weights, depth


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_seen_is_what_rays_meet(device, backend, dtype):
    clip, faces = soup()
    colours = torch.rand(clip.shape[1], 2, generator=torch.Generator().manual_seed(1)).double()
    raster = rasterize(clip.to(device, dtype), faces.to(device), (20, 31), backend=backend)
    picture = interpolate(colours.to(device, dtype), raster, faces.to(device), backend=backend)
    # float32 holds the weights to 6e-8; a face seen almost from its edge is not made worse, edges are float64.
    tolerance = {"rtol": 0, "atol": 1e-9 if dtype == torch.float64 else 3e-7}
    assert raster.face.dtype == torch.int32
    for view in range(len(clip)):
        face, weights, depth = by_rays(clip[view], faces, 20, 31)
        assert set(face.unique().tolist()) >= {-1, 0, 7, 14}, "faces 0, 7, 14 cross the camera's plane"
        assert torch.equal(raster.face[view].cpu().long(), face)
        torch.testing.assert_close(raster.barycentric[view].cpu().double(), weights, **tolerance)
        torch.testing.assert_close(raster.depth[view].cpu().double(), depth, **tolerance)
        want = (weights[..., None] * colours[faces.long()[face.clamp(min=0)]]).sum(-2)
        torch.testing.assert_close(picture[view].cpu().double(), want, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shared_edges_leave_no_gap_and_draw_nothing_twice(device, backend):
    # A fan of thin triangles fills a square from a point inside: many shared edges through pixel centres (its corners
    # and the point are pixel centres), and each face alone must cover what it owns of the whole.
    size = (16, 16)
    rim = [(0.5 + 15 * i / 10, 0.5) for i in range(10)]
    for _ in range(3):
        rim += [(16 - y, x) for x, y in rim[-10:]]
    for windings in ([0, 1, 2], [0, 2, 1]):
        for dtype in (torch.float32, torch.float64):
            clip = flat([(4.5, 7.5), *rim], size, dtype).to(device)
            clip = clip * 2.0 ** (torch.arange(41, device=device) % 3)[:, None].to(dtype)  # several w, and no rounding
            i = torch.arange(40)
            faces = torch.stack([torch.zeros(40).long(), i + 1, (i + 1) % 40 + 1], dim=1)[:, windings].int().to(device)
            once = torch.zeros(size, device=device)
            for face in faces.split(1):
                once += rasterize(clip, face, size, backend=backend).face[0] >= 0
            want = torch.zeros(size)
            want[:15, :15] = 1  # top-left: of the centres on the rim, those on the left and upper side
            assert torch.equal(once.cpu(), want)
            assert torch.equal((rasterize(clip, faces, size, backend=backend).face[0] >= 0).cpu(), want.bool())


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_meshes_are_watertight(device, backend):
    # A grid of random vertices over the whole picture, in perspective: every pixel is covered exactly once.
    side, size = 9, (64, 64)
    draw = torch.Generator().manual_seed(3)
    for dtype in (torch.float32, torch.float64):
        at = torch.stack(torch.meshgrid(*[torch.linspace(-1.2, 1.2, side)] * 2, indexing="xy"), dim=-1)
        at = (at + (torch.rand(side, side, 2, generator=draw) - 0.5) * 0.12).reshape(-1, 2).to(dtype)
        w = (1 + torch.rand(side * side, 1, generator=draw)).to(dtype)
        clip = torch.cat([at, torch.zeros_like(w), torch.ones_like(w)], dim=1)[None] * w
        i = (torch.arange(side - 1)[:, None] * side + torch.arange(side - 1)).reshape(-1)
        quads = [torch.stack([i, i + 1, i + side], 1), torch.stack([i + side + 1, i + 1, i + side], 1)]
        faces = torch.cat(quads).int()
        count = torch.zeros(size)
        for face in faces.split(1):
            count += (rasterize(clip.to(device), face.to(device), size, backend=backend).face[0] >= 0).cpu()
        assert torch.equal(count, torch.ones(size))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearest_is_seen_and_among_equals_the_lowest(device, backend):
    clip = flat([(0, 0), (8, 0), (0, 8)], (4, 4)).repeat(1, 3, 1)
    clip[0, 3:6, 2] = -0.25
    clip[0, 6:, 2] = -0.25
    faces = torch.arange(9).view(3, 3).int()
    assert (rasterize(clip.to(device), faces.to(device), (4, 4), backend=backend).face == 1).all()
    clip[0, 6:, 2] = -0.25 - 2**-28  # two steps of depth
    assert (rasterize(clip.to(device), faces.to(device), (4, 4), backend=backend).face == 2).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_near_and_far_planes_clip(device, backend):
    # A floor from below the camera to the horizon, crossing the camera's plane: seen from near to far exactly.
    near, far, size = 0.5, 4.0, 64
    vertices = torch.tensor([[-50.0, -50, -1], [50, -50, -1], [50, 50, -1], [-50, 50, -1]]).double()
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]]).int()
    cameras = orbit([0.0], 0.0, distance=0.0, fov_degrees=130.0, size=size)
    clip = project(vertices, cameras, near, far)
    raster = rasterize(clip.to(device), faces.to(device), (size, size), backend=backend)
    where = interpolate(vertices.to(device), raster, faces.to(device), backend=backend)[0].cpu()
    directions = cameras.rays()[1][0].double()
    along = directions @ -cameras.camera_to_world[0, :, 2].double()
    t = -1 / directions[..., 2]  # the ray meets z = -1
    seen = (directions[..., 2] < 0) & (t * along > near) & (t * along < far)
    assert 0.2 < seen.double().mean() < 0.8
    assert torch.equal((raster.face[0] >= 0).cpu(), seen)
    want = (directions * t[..., None])[seen]
    # Cameras are float32: directions good to 1e-7, times a t of at most 9.
    torch.testing.assert_close(where[seen], want, rtol=0, atol=5e-6)


def test_projection_agrees_with_the_rays_of_the_camera():
    cameras = orbit([10.0, 200.0], [20.0, -50.0], 3.0, [30.0, 50.0], size=(30, 40))
    origins, directions = (x.double() for x in cameras.rays())
    along = (directions * -cameras.camera_to_world[:, None, None, :, 2]).sum(-1)
    for view in range(2):
        points = (origins + 2.5 * directions)[view].reshape(-1, 3)
        clip = project(points, cameras, 1.0, 10.0)[view]
        ndc = clip[:, :3] / clip[:, 3:]
        columns = ((ndc[:, 0] + 1) / 2 * 40 - 0.5).view(30, 40)
        rows = ((1 - ndc[:, 1]) / 2 * 30 - 0.5).view(30, 40)
        # The cameras are float32, pixels number up to 40.
        torch.testing.assert_close(columns, torch.arange(40).double().expand(30, 40), rtol=0, atol=2e-5)
        torch.testing.assert_close(rows, torch.arange(30).double()[:, None].expand(30, 40), rtol=0, atol=2e-5)
        torch.testing.assert_close(clip[:, 3].view(30, 40), 2.5 * along[view], rtol=0, atol=1e-6)
    axis = -cameras.camera_to_world[:, :, 2].double()
    at = cameras.positions.double()
    for distance, z in ((1.0, -1.0), (10.0, 1.0)):  # the near plane is z/w = -1, the far one 1
        clip = project((at + distance * axis)[:1], cameras, 1.0, 10.0)[0, 0]
        assert float(clip[2] / clip[3]) == pytest.approx(z, abs=1e-6)  # float32 cameras


@pytest.mark.parametrize("backend", BACKENDS)
def test_silhouettes_are_those_of_ray_casting(device, backend):
    vertices, faces = ball(10, torch.float32)
    cameras = orbit([0.0, 77.0, 200.0], [10.0, 70.0, -40.0], size=(40, 56))
    raster = rasterize(project(vertices, cameras).to(device), faces.to(device), (40, 56), backend=backend)
    origins, directions = (x.reshape(-1, 3).contiguous() for x in cameras.rays())
    hits = surface(vertices, faces, backend="reference").cast(origins, directions)
    same = raster.face.cpu().reshape(-1) == hits.face
    assert (hits.face >= 0).any()
    assert (~same).sum() <= 3  # rays of float32 through an edge, of 6720
    where = interpolate(vertices.to(device), raster, faces.to(device), backend=backend).cpu().reshape(-1, 3)
    both = same & (hits.face >= 0)
    # float32 distances of about 3, seen slantingly
    torch.testing.assert_close(where[both], (origins + hits.distance[:, None] * directions)[both], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("per_view", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_finite_differences(device, backend, per_view, dtype):
    clip, faces = soup(12, seed=4)
    draw = torch.Generator().manual_seed(1)
    shape = (2, 36, 3) if per_view else (36, 3)
    colours = torch.rand(shape, generator=draw).double()
    size = (13, 18)
    to_picture, to_weights = (torch.randn(2, *size, 3, generator=draw).double() for _ in range(2))
    to_depth = torch.randn(2, *size, generator=draw).double()
    seen = rasterize(clip, faces, size, backend="reference").face

    def loss(clip: Tensor, colours: Tensor, backend: str = "reference", where: str = "cpu") -> Tensor:
        raster = rasterize(clip, faces.to(where), size, backend=backend)
        assert torch.equal(raster.face.cpu(), seen)  # the steps below are too small for a pixel to change its face
        picture = interpolate(colours, raster, faces.to(where), backend=backend)
        terms = ((picture, to_picture), (raster.barycentric, to_weights), (raster.depth, to_depth))
        return sum((value * gradient.to(value)).sum() for value, gradient in terms)

    leaves = [x.to(device, dtype).requires_grad_() for x in (clip, colours)]
    got = torch.autograd.grad(loss(*leaves, backend=backend, where=device), leaves)
    for number, of in enumerate(got):
        flat_got, step = of.detach().cpu().double().view(-1), 1e-7
        picked = torch.randperm(len(flat_got), generator=draw)[:60]
        want = torch.zeros_like(flat_got)
        for i in picked.tolist():
            sides = []
            for sign in (1, -1):
                inputs = [clip.clone(), colours.clone()]
                inputs[number].view(-1)[i] += sign * step
                sides.append(loss(*inputs))
            want[i] = (sides[0] - sides[1]) / (2 * step)
        # Differences of sums of some 500 terms of size 1 are good to 1e-13 / 1e-7; float32 sums to 1e-6 of their
        # largest terms, which grow without bound for faces seen from their edge.
        tolerance = {"rtol": 1e-5, "atol": 2e-5} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 2e-3}
        torch.testing.assert_close(flat_got[picked], want[picked], **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_screen_derivatives_are_differences_between_pixels(device, backend):
    # One face over the whole picture, in perspective: the same pixel of pictures moved by a little.
    size, step = (9, 14), 1e-5
    clip = flat([(-30, -20), (70, -10), (5, 60)], size) * torch.tensor([1.0, 2.5, 1.7]).double()[:, None]
    faces, colours = torch.tensor([[0, 1, 2]]).int(), torch.tensor([[0.0, 1], [2, 5], [-3, 1]]).double()

    def picture(dx: float, dy: float) -> Tensor:
        moved = clip.clone()
        moved[..., 0] -= 2 * dx / size[1] * clip[..., 3]
        moved[..., 1] += 2 * dy / size[0] * clip[..., 3]
        return interpolate(colours, rasterize(moved, faces, size, backend="reference"), faces, backend="reference")

    want = [(picture(*d) - picture(-d[0], -d[1])) / (2 * step) for d in ((step, 0), (0, step))]
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-5)):
        inputs = clip.to(device, dtype), faces.to(device)
        raster = rasterize(*inputs, size, backend=backend)
        got = screen_derivatives(colours.to(device, dtype), raster, *inputs, backend=backend)
        # float64: differences of 1e-15 / 1e-5, and a third derivative times 1e-10
        torch.testing.assert_close(got.cpu().double(), torch.stack(want, -1), rtol=tolerance, atol=tolerance)


def alpha_of(clip: Tensor, faces: Tensor, size: tuple[int, int], backend: str, neighbours: Tensor | None = None):
    """The smoothed coverage [B, H, W], white on black."""
    raster = rasterize(clip, faces, size, backend=backend)
    white = (raster.face >= 0).to(clip.dtype)[..., None]
    neighbours = edge_neighbours(faces) if neighbours is None else neighbours
    return antialias(white, raster, clip, faces, neighbours, backend=backend)[..., 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_straight_edges_are_covered_exactly(device, backend, dtype):
    # A rectangle: alpha of every pixel is the share of it that is covered, corners and all.
    size = (8, 9)
    left, right, top, bottom = 2.2, 6.9, 1.7, 5.4
    clip = flat([(left, top), (right, top), (right, bottom), (left, bottom)], size, dtype)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]]).int()
    x, y = torch.arange(9).double(), torch.arange(8).double()
    across = (torch.clamp(x + 1, max=right) - torch.clamp(x, min=left)).clamp(min=0)
    along = (torch.clamp(y + 1, max=bottom) - torch.clamp(y, min=top)).clamp(min=0)
    got = alpha_of(clip.to(device), faces.to(device), size, backend).cpu().double()[0]
    want = along[:, None] * across
    # The corner pixels' diagonal neighbours see no edge: they, at most 0.7 * 0.1, are left out.
    inner = torch.ones(8, 9, dtype=torch.bool)
    inner[[1, 1, 5, 5], [2, 6, 2, 6]] = False
    torch.testing.assert_close(got[inner], want[inner], rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("angle", [5.0, 20.0, 45.0, 70.0, 130.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_coverage_is_that_of_area(device, backend, angle):
    # Sum of alpha = area but for the ends of edges, and so for its derivative in the corners of a large square.
    size = (80, 80)
    turn = math.radians(angle)
    corners = [
        (30 * math.cos(turn + i * math.pi / 2) + 40.3, 30 * math.sin(turn + i * math.pi / 2) + 39.8) for i in range(4)
    ]
    clip = flat(corners, size) * torch.tensor([1.0, 2, 3, 2]).double()[:, None]  # in perspective
    faces = torch.tensor([[0, 1, 2], [2, 3, 0]]).int().to(device)
    clip = clip.to(device).requires_grad_()
    neighbours = edge_neighbours(faces)
    total = alpha_of(clip, faces, size, backend, neighbours).sum()
    assert float(total.detach()) == pytest.approx(1800.0, abs=1.5)
    (got,) = torch.autograd.grad(total, clip)

    def area(clip: Tensor) -> Tensor:
        x, y = (clip[0, :, 0] / clip[0, :, 3] + 1) * 40, (clip[0, :, 1] / clip[0, :, 3] + 1) * 40
        return (x * y.roll(-1) - x.roll(-1) * y).sum().abs() / 2

    (want,) = torch.autograd.grad(area(clip), clip)
    # An edge of 42 pixels meets 30 to 42 lines of centres: its two ends are off by up to a pixel each.
    torch.testing.assert_close(got, want, rtol=0, atol=0.08 * float(want.abs().max()))
    # And exactly: all edges' lines pushed outwards, as a finite difference of the smoothed coverage itself.
    direction = torch.zeros_like(clip)
    direction[0, :, :2] = clip.detach()[0, :, :2]
    moved = [alpha_of(clip.detach() + s * 1e-6 * direction, faces, size, backend, neighbours).sum() for s in (1, -1)]
    assert float((got * direction).sum()) == pytest.approx(float(moved[0] - moved[1]) / 2e-6, rel=1e-6)


def pictured(clip: Tensor, colours: Tensor, faces: Tensor, neighbours: Tensor, size: tuple[int, int], backend: str):
    raster = rasterize(clip, faces, size, backend=backend)
    picture = interpolate(colours, raster, faces, backend=backend)
    return raster, picture, antialias(picture, raster, clip, faces, neighbours, backend=backend)


def two_balls(rings: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """One ball in front of another: vertices, faces, colours."""
    vertices, faces = ball(rings)
    both = torch.cat([vertices * 0.6 + torch.tensor([0.6, 0.2, 0.1]), vertices])
    colours = torch.rand(len(both), 3, generator=torch.Generator().manual_seed(5)).double()
    return both, torch.cat([faces, faces + len(vertices)]).int(), colours


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_smoothing_equal_finite_differences(device, backend, dtype):
    vertices, faces, colours = two_balls()
    size, neighbours = (24, 20), edge_neighbours(faces)
    clip = project(vertices, orbit([0.0, 50.0], [10.0, -30.0], size=size))
    to_result = torch.randn(2, *size, 3, generator=torch.Generator().manual_seed(2)).double()
    raster, picture, _ = pictured(clip, colours, faces, neighbours, size, "reference")

    def loss(picture: Tensor, clip: Tensor, **backend: str) -> Tensor:
        where = [x.to(clip.device) for x in (faces, neighbours)]
        held = Raster(*(x.detach().to(clip.device, clip.dtype if x.is_floating_point() else None) for x in raster))
        result = antialias(picture, held, clip, *where, **backend)
        return (result * to_result.to(result)).sum()

    leaves = [x.detach().to(device, dtype).requires_grad_() for x in (picture, clip)]
    got = torch.autograd.grad(loss(*leaves, backend=backend), leaves)
    assert (got[1][..., 2] == 0).all()
    draw = torch.Generator().manual_seed(7)
    for number, of in enumerate(got):
        of = of.cpu().double()
        for _ in range(12):
            direction = torch.randn(of.shape, generator=draw).double()
            if number == 1:  # single vertices that matter
                keep = torch.rand(of.shape[:2], generator=draw) < 0.1
                direction = direction * (keep & of.abs().sum(-1).bool())[..., None]
            sides = []
            for sign in (1, -1):
                inputs = [picture.detach().clone(), clip.clone()]
                inputs[number] += sign * 1e-8 * direction
                sides.append(float(loss(*inputs, backend="reference")))
            want = (sides[0] - sides[1]) / 2e-8
            # Sums of 1000 terms of size 1, differences good to 1e-13 / 1e-8; float32 sums of hundreds of terms.
            close = {"rel": 1e-5, "abs": 1e-4} if dtype == torch.float64 else {"rel": 1e-3, "abs": 2e-3}
            assert float((of * direction).sum()) == pytest.approx(want, **close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_backends_agree(device, dtype):
    vertices, faces, colours = two_balls(9)
    size, neighbours = (37, 44), edge_neighbours(faces)
    draw = torch.Generator().manual_seed(3)
    gradients = [torch.randn(3, *size, n, generator=draw) for n in (3, 1)]
    results = []
    for backend, where in (("reference", "cpu"), ("warp", device)):
        leaves = [vertices.to(where, dtype).requires_grad_(), colours.to(where, dtype).requires_grad_()]
        cameras = orbit([0.0, 50.0, 170.0], [10.0, -30.0, 80.0], size=size)
        rest = [faces.to(where), neighbours.to(where), size, backend]
        clip = project(leaves[0].cpu(), cameras).to(where)  # the same numbers: an edge may pass by a pixel's centre
        raster, picture, smooth = pictured(clip, leaves[1], *rest)
        out = [smooth, raster.depth[..., None]]
        torch.autograd.backward(out, [g.to(where, dtype) for g in gradients])
        results.append([x.detach().cpu() for x in (*raster, picture, smooth, *(leaf.grad for leaf in leaves))])
    for a, b in zip(*results, strict=True):
        # The same formulas, sums in another order: gradients are sums of 100 terms of up to 1000 for slanting faces.
        close = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-3}
        torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("backend", BACKENDS)
def test_smoothing_keeps_to_silhouettes_and_to_the_range(device, backend):
    vertices, faces, _ = two_balls(16)
    size, neighbours = (40, 40), edge_neighbours(faces).to(device)
    faces = faces.to(device)
    clip = project(vertices, orbit([30.0], [20.0], size=size)).to(device)
    raster = rasterize(clip, faces, size, backend=backend)
    numbers = torch.where(raster.face < 0, 0.0, 1.0 + (raster.face >= len(faces) // 2))[..., None].double()
    smooth = antialias(numbers, raster, clip, faces, neighbours, backend=backend)
    assert smooth.min() >= 0
    assert smooth.max() <= 2
    same = torch.ones_like(numbers, dtype=torch.bool)  # pixels whose neighbours show the same thing
    for dim in (1, 2):
        change = numbers.diff(dim=dim) != 0
        for begin in (0, 1):
            same.narrow(dim, begin, size[0] - 1).masked_fill_(change, False)
    assert torch.equal(smooth[same], numbers[same])
    assert (smooth != numbers)[~same].double().mean() > 0.35  # one of two, where a pair's edge has its direction


@pytest.mark.parametrize("rings", [8, 40, 71])
@pytest.mark.parametrize("backend", BACKENDS)
def test_surfaces_finer_than_pixels_have_silhouettes(device, backend, rings):
    # Of 224, 6,240 and 19,880 faces on a thousand pixels. Growing by a share s covers an area (1 + s)^2 times as large.
    vertices, faces = (x.to(device) for x in ball(rings))
    cameras = orbit([30.0], 20.0, size=48).to(device)
    clip = project(vertices, cameras).requires_grad_()
    alpha = alpha_of(clip, faces, (48, 48), backend).sum()
    (gradient,) = torch.autograd.grad(alpha, clip)
    fine = replace(cameras, height=480, width=480)
    area = float((rasterize(project(vertices, fine), faces, (480, 480)).face >= 0).sum()) / 100
    growth = float((gradient * clip.detach())[..., :2].sum()) / 2
    assert float(alpha.detach()) == pytest.approx(area, rel=1e-3)
    assert growth == pytest.approx(area, rel=0.02)  # where pixel centres meet the outline: some 100 samples of it


def test_neighbours_are_found_across_edges():
    faces = torch.tensor([[0, 1, 2], [1, 3, 2], [4, 5, 6], [4, 5, 7], [5, 4, 8]]).int()
    # The edge 4-5 has three faces: none is the neighbour.
    assert edge_neighbours(faces).tolist() == [[1, -1, -1], [-1, 0, -1], [-1] * 3, [-1] * 3, [-1] * 3]
    closed = edge_neighbours(ball(7)[1])
    assert (closed >= 0).all()
    assert torch.bincount(closed.view(-1)).tolist() == [3] * len(closed)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_do_not_see_each_other(device, backend):
    vertices, faces, colours = (x.to(device) for x in two_balls())
    size, neighbours = (17, 23), edge_neighbours(faces)
    clip = project(vertices, orbit([0.0, 90.0, 180.0], 10.0, size=size).to(device))
    whole = clip.clone().requires_grad_()
    together = pictured(whole, colours, faces, neighbours, size, backend)[2]
    together.square().sum().backward()
    for view in range(3):
        one = clip[view : view + 1].clone().requires_grad_()
        alone = pictured(one, colours, faces, neighbours, size, backend)[2]
        alone.square().sum().backward()
        assert torch.equal(alone[0], together[view])
        torch.testing.assert_close(one.grad[0], whole.grad[view], rtol=1e-10, atol=1e-9)  # cut into other sums


def gradients_on_cpu(colour_width: int = 3) -> list[Tensor]:
    vertices, faces, colours = two_balls(12)
    size, neighbours = (50, 41), edge_neighbours(faces)
    clip = project(vertices.float(), orbit([20.0], 10.0, size=size)).requires_grad_()
    colours = colours.float().repeat(1, 4)[:, :colour_width].contiguous().requires_grad_()
    raster, picture, smooth = pictured(clip, colours, faces, neighbours, size, "warp")
    (smooth.square().sum() + raster.depth.square().sum()).backward()
    return [*raster, picture, smooth, clip.grad, colours.grad]


def test_threads_do_not_change_a_bit_and_two_runs_agree():
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(gradients_on_cpu())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_sums_in_order_are_the_same_sums(monkeypatch):
    from dreamkit.kernels.raster import warp_kernel

    want = gradients_on_cpu(5)
    monkeypatch.setattr(warp_kernel, "in_order", lambda device: True)
    for a, b in zip(gradients_on_cpu(5), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-2)  # float32, gradients of up to 5000


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_drawn_is_left_out(device, backend):
    good = flat([(1, 1), (7, 1), (1, 7)], (8, 8)).float()[0]
    nan, huge = good.clone(), good.clone()
    nan[1, 0], huge[0, 2] = torch.nan, torch.inf
    line = good[[0, 1, 1]]
    behind = -good
    point = torch.zeros(3, 4)
    wide = good * torch.tensor([1e30, 1e30, 0, 1.0])  # drawn, over a quarter of the picture and far beyond it
    clip = torch.cat([nan, huge, line, behind, point, good, wide])[None].to(device)
    faces = torch.arange(clip.shape[1]).view(-1, 3).int().to(device)
    raster = rasterize(clip, faces[:-1], (8, 8), backend=backend)
    alone = rasterize(clip, faces[5:6], (8, 8), backend=backend)
    assert set(raster.face.unique().tolist()) == {-1, 5}
    assert torch.equal(raster.face >= 0, alone.face >= 0)
    assert torch.isfinite(raster.barycentric).all()
    assert (rasterize(clip, faces[-1:], (8, 8), backend=backend).face >= 0).any()
    smooth = antialias(raster.barycentric, raster, clip, faces, edge_neighbours(faces), backend=backend)
    assert torch.isfinite(smooth).all()


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_draw_is_background(device, backend, views):
    clip = torch.zeros(views, 0, 4, device=device, requires_grad=True)
    faces = torch.zeros(0, 3, dtype=torch.int32, device=device)
    colours = torch.zeros(0, 3, device=device, requires_grad=True)
    raster, _, smooth = pictured(clip, colours, faces, edge_neighbours(faces), (3, 5), backend)
    assert smooth.shape == (views, 3, 5, 3)
    assert not smooth.any()
    assert (raster.face == -1).all()
    assert (raster.depth == 1).all()
    (smooth.sum() + raster.depth.sum()).backward()
    assert not screen_derivatives(colours, raster, clip, faces, backend=backend).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 2)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_small_pictures(device, backend, size):
    clip, faces = (x.to(device) for x in soup(8))
    clip = clip.float().requires_grad_()
    colours = torch.ones(24, 3, device=device)
    raster, _, smooth = pictured(clip, colours, faces, edge_neighbours(faces), size, backend)
    smooth.sum().backward()
    assert (raster.face >= 0).any()
    assert torch.isfinite(clip.grad).all()


def test_wrong_inputs_are_named():
    clip, faces = soup()
    colours = torch.ones(clip.shape[1], 3).double()
    raster = rasterize(clip, faces, (4, 4))
    picture = interpolate(colours, raster, faces)
    with pytest.raises(ValueError, match=r"rasterize expects clip \[B, V, 4\].*got \(75, 4\)"):
        rasterize(clip[0], faces, (4, 4))
    with pytest.raises(ValueError, match=r"rasterize expects faces \[F, 3\] int32.*torch.int64"):
        rasterize(clip, faces.long(), (4, 4))
    with pytest.raises(ValueError, match="rasterize: faces name vertices 0 to 74, but there are 70"):
        rasterize(clip[:, :70], faces, (4, 4))
    with pytest.raises(ValueError, match="rasterize: faces name vertices -1 to 73, but there are 75"):
        rasterize(clip, faces - 1, (4, 4))
    with pytest.raises(ValueError, match="at least 1 pixel"):
        rasterize(clip, faces, (0, 4))
    with pytest.raises(ValueError, match=r"interpolate expects attributes \[V, C\].*got \(3, 75, 3\)"):
        interpolate(colours.expand(3, -1, -1), raster, faces)
    with pytest.raises(ValueError, match=r"interpolate expects attributes like raster.barycentric, torch.float64"):
        interpolate(colours.float(), raster, faces)
    with pytest.raises(ValueError, match="interpolate: faces name vertices 0 to 74, but there are 60"):
        interpolate(colours[:60], raster, faces)
    with pytest.raises(ValueError, match=r"antialias expects picture \[B, H, W, C\].*got \(2, 4, 4\)"):
        antialias(picture[..., 0], raster, clip, faces, faces)
    with pytest.raises(ValueError, match=r"antialias expects neighbours = edge_neighbours.*torch.int64"):
        antialias(picture, raster, clip, faces, edge_neighbours(faces).long())
    with pytest.raises(ValueError, match="0 < near < far"):
        project(clip[0, :, :3], orbit([0.0], 0.0), 2.0, 1.0)
