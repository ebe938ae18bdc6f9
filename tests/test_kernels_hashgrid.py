"""The hash encoding against ten lines of Python written from the paper, in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.kernels.hashgrid import HashGridShape, hashgrid

BACKENDS = ["reference", "warp"]
# Levels of 3 to 12 cells: 4^3 and 5^3 vertices fit into 2^7 entries, the finer ones are hashed.
SMALL = HashGridShape(levels=5, features=3, log2_entries=7, coarsest=3, finest=12)


def by_loop(points: Tensor, table: Tensor, shape: HashGridShape) -> Tensor:
    """Point by point, level by level, vertex by vertex."""
    rows = []
    for x in points:
        for level in range(shape.levels):
            r, total = shape.resolutions[level], 0
            cell = [min(int(float(c) * r), r - 1) for c in x]
            for corner in itertools.product((0, 1), repeat=3):
                i, j, k = (c + b for c, b in zip(cell, corner, strict=True))
                weight = math.prod(1 - abs(float(c) * r - v) for c, v in zip(x, (i, j, k), strict=True))
                row = i + j * (r + 1) + k * (r + 1) ** 2
                if (r + 1) ** 3 > 2**shape.log2_entries:
                    row = (i ^ (j * 2654435761) % 2**32 ^ (k * 805459861) % 2**32) % 2**shape.log2_entries
                total = total + weight * table[shape.offsets[level] + row]
            rows.append(total)
    return torch.stack(rows).reshape(len(points), -1)


def inputs(count: int, shape: HashGridShape = SMALL, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points, a table and a gradient for the features, float64 but exact in float32, so that no cell is in doubt."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 3, generator=draw)
    table = torch.randn(shape.total, shape.features, generator=draw)
    gradient = torch.randn(count, shape.width, generator=draw)
    return points.double(), table.double(), gradient.double()


def run(points: Tensor, table: Tensor, gradient: Tensor, shape: HashGridShape, backend: str) -> list[Tensor]:
    """Features, gradient of the table, gradient of the points."""
    points, table = points.clone().requires_grad_(), table.clone().requires_grad_()
    features = hashgrid(points, table, shape, backend=backend)
    features.backward(gradient)
    assert table.grad is not None
    assert points.grad is not None
    return [features.detach(), table.grad, points.grad]


def test_growth_is_geometric_from_coarsest_to_finest():
    shape = HashGridShape()
    assert shape.resolutions[0] == 16
    assert shape.resolutions[-1] == 256  # exactly: floor() of 255.99999 would lose a cell
    growth = 16 ** (1 / 11)
    assert all(abs(r - 16 * growth**level) <= 1 for level, r in enumerate(shape.resolutions))
    assert shape.total == sum(shape.entries) == shape.offsets[-1] + shape.entries[-1]
    assert HashGridShape(levels=1, coarsest=4, finest=4).resolutions == (4,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradient_of_the_table_match_a_loop(device, backend, dtype):
    points, table, gradient = inputs(40)
    points[0], points[1] = 0.0, 1.0  # the two ends: the last cell holds the point at 1
    table.requires_grad_()
    want = by_loop(points, table, SMALL)
    want.backward(gradient)
    got = run(*(x.detach().to(device, dtype) for x in (points, table, gradient)), SMALL, backend)
    # float32: a point times 12 cells is rounded by 12 * 6e-8, and a row is about 3.
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-13}
    torch.testing.assert_close(got[0].cpu().double(), want.detach(), **tolerance)
    torch.testing.assert_close(got[1].cpu().double(), table.grad, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_points_matches_finite_differences(device, backend):
    points, table, gradient = (x.to(device) for x in inputs(200, seed=1))
    got = run(points, table, gradient, SMALL, backend)[2]
    h, want = 1e-7, torch.zeros_like(points)
    for axis in range(3):
        shift = torch.zeros(3, dtype=torch.float64, device=device)
        shift[axis] = h
        up, down = (hashgrid(points + s, table, SMALL, backend=backend) for s in (shift, -shift))
        want[:, axis] = ((up - down) * gradient).sum(1) / (2 * h)
    # No point is within 1e-7 of a face of a cell (seed), and the patch is linear along an axis: only rounding is left.
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_table_that_holds_a_coordinate_gives_it_back(device, backend):
    shape = HashGridShape(levels=2, features=1, log2_entries=10, coarsest=4, finest=8)  # 5^3 and 9^3 rows: no hashing
    table = torch.cat([(torch.arange((r + 1) ** 3) // (r + 1) % (r + 1)) / r for r in shape.resolutions])[:, None]
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(2))
    got = hashgrid(points.to(device), table.to(device), shape, backend=backend)
    torch.testing.assert_close(got.cpu(), points[:, 1:2].expand(-1, 2), rtol=0, atol=1e-6)  # y, by rows of float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_point_outside_reads_the_nearest_face_and_feels_nothing_across_it(device, backend):
    points, table, gradient = (x.to(device) for x in inputs(3))
    points[:, 0] = torch.tensor([-0.5, 1.5, 0.5])
    got = run(points, table, gradient, SMALL, backend)
    want = run(points.clamp(0, 1), table, gradient, SMALL, "reference")
    torch.testing.assert_close(got[0], want[0], rtol=0, atol=1e-13)
    assert got[2][:2, 0].tolist() == [0.0, 0.0]
    assert (got[2][:, 1:] != 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_points_and_nan_points(device, backend):
    _, table, _ = (x.to(device).float() for x in inputs(0))
    table.requires_grad_()
    none = hashgrid(torch.zeros(0, 3, device=device), table, SMALL, backend=backend)
    assert none.shape == (0, 15)
    none.sum().backward()
    assert table.grad is not None
    assert not table.grad.any()
    assert hashgrid(torch.full((2, 3), torch.nan, device=device), table, SMALL, backend=backend).isnan().all()


def test_threads_do_not_change_a_bit_and_two_runs_agree():
    threads = torch.get_num_threads()
    points, table, gradient = (x.float() for x in inputs(3000))
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run(points, table, gradient, SMALL, "warp"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_wrong_shapes_and_unknown_backends_are_named():
    points, table, _ = inputs(2)
    with pytest.raises(ValueError, match=rf"table \[{SMALL.total}, 3\].*got \(2, 3\) and \(5, 3\)"):
        hashgrid(points, table[:5], SMALL)
    with pytest.raises(ValueError, match=r"got torch.float64, torch.float32"):
        hashgrid(points, table.float(), SMALL)
    with pytest.raises(InputError, match=r"'wrap' is not known\. Did you mean 'warp'"):
        hashgrid(points, table, SMALL, backend="wrap")


TINY = HashGridShape(levels=2, features=2, log2_entries=3, coarsest=1, finest=3)  # 2^3 vertices fit, 4^3 do not


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_second_derivatives_are_those_of_finite_differences(device, backend):
    points, table, _ = (x.to(device) for x in inputs(3, TINY, seed=3))
    points[0, 0], points[1, 2] = -0.5, 1.5  # outside, along one axis
    points, table = points.requires_grad_(), table.requires_grad_()

    def run(points: Tensor, table: Tensor) -> Tensor:
        return hashgrid(points, table, TINY, backend=backend)

    # Steps of 1e-6: no point is as near to a face of a cell (seed).
    assert torch.autograd.gradcheck(run, (points, table))
    assert torch.autograd.gradgradcheck(run, (points, table))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_on_normals_reaches_the_table(device, backend, dtype):
    """By differences of the loss itself, in float64; the reference by autograd of autograd."""
    points, table, mix = (x.to(device, dtype) for x in inputs(60, seed=4))
    table.requires_grad_()

    def loss(table: Tensor, backend: str, points: Tensor = points, mix: Tensor = mix) -> Tensor:
        points = points.clone().requires_grad_()
        density = (hashgrid(points, table, SMALL, backend=backend) * mix).sum(1).square()
        (normal,) = torch.autograd.grad(density.sum(), points, create_graph=True)
        return (torch.nn.functional.normalize(normal, dim=1)[:, 2] - 0.5).square().sum()

    loss(table, backend).backward()
    exact = table.detach().double().requires_grad_()
    way = torch.randn(exact.shape, generator=torch.Generator().manual_seed(5)).double().to(device)
    p, m = points.double(), mix.double()
    up, down = (loss((exact + h * way).detach(), "reference", p, m) for h in (1e-6, -1e-6))
    want = ((up - down) / 2e-6).item()
    got = (table.grad.double() * way).sum().item()
    # Differences over 2e-6 lose half the digits of float64. float32: sums over 60 points of terms of size one.
    assert math.isclose(got, want, rel_tol=2e-3 if dtype == torch.float32 else 1e-6), (got, want)


@pytest.mark.parametrize("name", ["points", "table", "both"])
def test_two_derivatives_do_not_depend_on_threads(name):
    threads = torch.get_num_threads()
    points, table, gradient = (x.float() for x in inputs(700))
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            p, t = (x.clone().requires_grad_(name in (n, "both")) for n, x in (("points", points), ("table", table)))
            g = gradient.clone().requires_grad_()
            out = hashgrid(p, t, SMALL, backend="warp")
            wanted = [x for x in (p, t) if x.requires_grad]
            first = torch.autograd.grad(out, wanted, g, create_graph=True)
            results.append(torch.autograd.grad([x.square().sum() for x in first], [*wanted, g], allow_unused=True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        same = zip(results[0], other, strict=True)
        assert all(a is b is None or torch.equal(a, b) for a, b in same)


def test_a_large_table_is_walked_otherwise_to_the_same_bits(monkeypatch):
    from dreamkit.kernels.hashgrid import warp_kernel

    threads = torch.get_num_threads()
    points, table, gradient = (x.float() for x in inputs(3000))
    want = run(points, table, gradient, SMALL, "warp")
    monkeypatch.setattr(warp_kernel, "LARGE_TABLE", 0)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            got = run(points, table, gradient, SMALL, "warp")
            assert all(torch.equal(a, b) for a, b in zip(want, got, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="on a CPU sums have one order anyway")
def test_deterministic_sums_on_cuda():
    points, table, gradient = (x.float().cuda() for x in inputs(3000))
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(points, table, gradient, SMALL, "warp") for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
