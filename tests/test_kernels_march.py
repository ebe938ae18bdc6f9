"""Marching against a loop over candidates in Python floats, and against geometry."""

import math

import pytest
import torch
from torch import Tensor

from dreamkit.kernels.composite import composite
from dreamkit.kernels.march import (
    Samples,
    cell_points,
    contract,
    march,
    resample,
    uncontract,
    update_occupancy,
    visible,
)

BACKENDS = ["reference", "warp"]


def by_loop(origin, direction, occupancy: Tensor, step: float, jitter: float, near: float) -> tuple[list[float], bool]:
    """The samples of one ray, and whether some candidate was too close to a face of a cell to be sure of."""
    t_in, t_out, size = near, math.inf, len(occupancy)
    for o, d in zip(origin, direction, strict=True):
        if d == 0 and abs(o) > 1:
            return [], False
        if d != 0:
            t_in, t_out = max(t_in, min((-1 - o) / d, (1 - o) / d)), min(t_out, max((-1 - o) / d, (1 - o) / d))
    found, unsure, i = [], False, 0
    while (t := t_in + (i + jitter) * step) < t_out + 1e-5:
        place = [(o + d * t + 1) / 2 * size for o, d in zip(origin, direction, strict=True)]
        # Over the rounding of float32 at distances of some units, in cells; the cube's own faces cut nothing off.
        unsure |= abs(t - t_out) < 1e-5 or any(abs(p - round(p)) < 1e-5 * size and 0 < round(p) < size for p in place)
        if t < t_out and occupancy[tuple(min(max(math.floor(p), 0), size - 1) for p in place)]:
            found.append(t)
        i += 1
    return found, unsure


def rays(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Origins in and around the cube, directions mostly towards it, jitters; exact in float32."""
    draw = torch.Generator().manual_seed(seed)
    origins = torch.randn(count, 3, generator=draw) * 1.5
    directions = torch.randn(count, 3, generator=draw) - origins
    return origins, torch.nn.functional.normalize(directions, dim=1), torch.rand(count, generator=draw)


def on(device: str, dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    return [x.to(device, dtype) for x in tensors]


def assert_packed(samples: Samples, count: int) -> None:
    """What every result promises, whatever it holds."""
    offsets = samples.offsets.tolist()
    assert samples.ray.dtype == samples.offsets.dtype == torch.int32
    assert len(offsets) == count + 1
    assert (offsets[0], offsets[-1]) == (0, len(samples.t))
    want = [ray for ray in range(count) for _ in range(offsets[ray + 1] - offsets[ray])]
    assert samples.ray.tolist() == want


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("size", "share", "step", "near"), [(7, 0.3, 0.06, 0.0), (16, 0.03, 0.11, 0.8), (1, 1.0, 0.5, 0)]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_match_a_loop(device, backend, dtype, size, share, step, near):
    origins, directions, jitter = rays(120)
    occupancy = torch.rand(size, size, size, generator=torch.Generator().manual_seed(1)) < share
    o, d, j = on(device, dtype, origins, directions, jitter)
    got = march(o, d, occupancy.to(device), step=step, jitter=j, near=near, backend=backend)
    assert_packed(got, 120)
    sure = 0
    for ray in range(120):
        want, unsure = by_loop(
            origins[ray].tolist(), directions[ray].tolist(), occupancy, step, jitter[ray].item(), near
        )
        if unsure:
            continue
        sure += 1
        t = got.t[got.offsets[ray] : got.offsets[ray + 1]].cpu().double()
        torch.testing.assert_close(t, torch.tensor(want).double(), rtol=1e-6, atol=2e-6)  # float32 at a few units
    assert sure > 100  # the loop has had its say
    assert (got.length == torch.tensor(step, dtype=dtype)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaps_over_empty_space_lose_nothing(device, backend):
    """Single occupied cells in a large empty grid, at every distance from the blocks that are leapt over."""
    origins, directions, jitter = on(device, torch.float64, *rays(3000, seed=3))
    occupancy = torch.rand(37, 37, 37, generator=torch.Generator().manual_seed(2)).to(device) < 0.004
    arguments = {"step": 0.003, "jitter": jitter, "backend": backend}
    got = march(origins, directions, occupancy, **arguments)
    every = march(origins, directions, torch.ones_like(occupancy), **arguments)
    i, j, k = ((every.positions(origins, directions) + 1) * 18.5).floor().clamp(0, 36).long().unbind(1)
    keep = occupancy[i, j, k]
    assert len(got.t) > 1000
    assert torch.equal(got.t, every.t[keep])
    assert torch.equal(got.ray, every.ray[keep])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_grid_gives_the_length_of_the_chord(device, backend):
    origins, directions, _ = on(device, torch.float64, *rays(500))
    jitter = torch.full((500,), 0.5, dtype=torch.float64, device=device)
    full = torch.ones(4, 4, 4, dtype=torch.bool, device=device)
    got = march(origins, directions, full, step=0.01, jitter=jitter, backend=backend)
    measured = torch.zeros(500, dtype=torch.float64, device=device).index_add(0, got.ray.long(), got.length)
    low, high = (-1 - origins) / directions, (1 - origins) / directions
    chord = (torch.maximum(low, high).amin(1) - torch.minimum(low, high).amax(1).clamp(min=0)).clamp(min=0)
    assert (chord > 0).sum() > 200
    assert ((measured - chord).abs() <= 0.005 + 1e-9).all()  # midpoints: right to half a step
    inside = got.positions(origins, directions).abs().amax()
    assert inside <= 1 + 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_grid_gives_none(device, backend):
    o, d, j = on(device, torch.float32, *rays(50))
    got = march(o, d, torch.zeros(9, 9, 9, dtype=torch.bool, device=device), step=0.01, jitter=j, backend=backend)
    assert_packed(got, 50)
    assert len(got.t) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rays(device, backend):
    o, d, j = on(device, torch.float32, *rays(0))
    got = march(o, d, torch.ones(2, 2, 2, dtype=torch.bool, device=device), step=0.1, jitter=j, backend=backend)
    assert_packed(got, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rays_along_axes_beside_the_cube_and_nan(device, backend):
    nan = math.nan
    cases = [  # origin, direction, samples with step 0.5 at midpoints
        ((-3, 0.2, 0.2), (1, 0, 0), 4),  # through the middle
        ((-3, 1.2, 0.2), (1, 0, 0), 0),  # beside the cube
        ((0.3, -0.7, 0.0), (0, 0, -1), 2),  # from the inside: what lies behind does not count
        ((0.0, 0.0, 5.0), (0, 0, 1), 0),  # away from it
        ((nan, 0.0, 0.0), (1, 0, 0), 0),
        ((0.0, 0.0, 0.0), (nan, 0, 1), 0),
        ((nan, nan, nan), (0, 0, 1), 0),
        ((0.0, 0.0, 0.0), (0, 0, 0), 0),  # no direction: it never leaves
        ((1.0, 0.1, -3.0), (0, 0, 1), 4),  # in the very face
    ]
    o, d = (torch.tensor([c[n] for c in cases], dtype=torch.float32, device=device) for n in (0, 1))
    full = torch.ones(8, 8, 8, dtype=torch.bool, device=device)
    got = march(o, d, full, step=0.5, jitter=torch.full((len(cases),), 0.5, device=device), backend=backend)
    assert got.offsets.diff().tolist() == [c[2] for c in cases]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_is_found_where_its_index_says(device, backend):
    """x is the first index, y the second, z the third."""
    occupancy = torch.zeros(4, 4, 4, dtype=torch.bool, device=device)
    occupancy[3, 1, 0] = True  # x in 0.5..1, y in -0.5..0, z in -1..-0.5
    o = torch.tensor([[-2.0, -0.25, -0.75]], device=device)
    d = torch.tensor([[1.0, 0.0, 0.0]], device=device)
    got = march(o, d, occupancy, step=0.25, jitter=torch.full((1,), 0.5, device=device), backend=backend)
    assert got.t.tolist() == [2.625, 2.875]
    centre = cell_points(4).reshape(4, 4, 4, 3)[3, 1, 0]
    assert centre.tolist() == [0.75, -0.25, -0.75]


def test_threads_do_not_change_a_bit_and_two_runs_agree():
    threads = torch.get_num_threads()
    origins, directions, jitter = rays(300)
    occupancy = torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.2
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(march(origins, directions, occupancy, step=0.05, jitter=jitter, backend="warp"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(vars(results[0]).values(), vars(other).values(), strict=True))


def test_occupancy_fades_and_is_found_again(device):
    density = torch.zeros(2, 2, 2, device=device)
    seen = torch.zeros(2, 2, 2, device=device)
    seen[0, 1, 0] = 1.0
    density, occupied = update_occupancy(density, seen, threshold=0.5, decay=0.9)
    assert occupied.nonzero().tolist() == [[0, 1, 0]]
    for _ in range(6):  # 0.9^6 = 0.53 is the last above one half
        density, occupied = update_occupancy(density, torch.zeros_like(seen), threshold=0.5, decay=0.9)
    assert occupied[0, 1, 0]
    density, occupied = update_occupancy(density, torch.full_like(seen, math.nan), threshold=0.5, decay=0.9)
    assert not occupied.any()
    assert math.isclose(density[0, 1, 0].item(), 0.9**7, rel_tol=1e-6)  # float32


def test_wrong_input_is_named():
    o, d, j = rays(2)
    cells = torch.ones(2, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"occupancy \[G, G, G\] bool; got \(2, 2, 2\) torch.float32"):
        march(o, d, cells.float(), step=0.1, jitter=j)
    with pytest.raises(ValueError, match=r"jitter \[R\]; got \(2, 3\), \(2, 3\), \(1,\)"):
        march(o, d, cells, step=0.1, jitter=j[:1])
    with pytest.raises(ValueError, match="step > 0; got -1"):
        march(o, d, cells, step=-1.0, jitter=j)


def packed(counts: list[int], device: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Samples:
    """Stretches of random length with random gaps between them, on rays with those numbers of samples."""
    draw = torch.Generator().manual_seed(seed)
    total = sum(counts)
    length = torch.rand(total, generator=draw).double() + 0.1
    gap = torch.rand(total, generator=draw).double() * (torch.rand(total, generator=draw) < 0.4)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    ends = torch.cat([part.cumsum(0) for part in (length + gap).tensor_split(offsets[1:-1])]) if total else length
    ray = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).int()
    values = [x.to(device, dtype) for x in (ends - length / 2, length)]
    return Samples(ray.to(device), *values, offsets.int().to(device))


COUNTS = [4, 0, 9, 1, 7, 0, 30]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_visible_samples_match_a_loop(device, backend, dtype):
    samples = packed(COUNTS, device, dtype=dtype)
    depth = torch.rand(51, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    got, chosen = visible(samples, depth, least=0.2, backend=backend)
    want = []
    for begin, end in zip(samples.offsets[:-1].tolist(), samples.offsets[1:].tolist(), strict=True):
        through = 1.0
        for i in range(begin, end):
            if through >= 0.2:
                want.append(i)
            through *= math.exp(-depth[i].item())
    assert chosen.tolist() == want
    assert 10 < len(want) < 45  # both kinds
    assert_packed(got, len(COUNTS))
    for name in ("ray", "t", "length"):
        assert torch.equal(getattr(got, name), getattr(samples, name)[chosen])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_dropped_weighs_little(device, backend):
    samples = packed([50] * 20, device)
    density = torch.rand(1000, generator=torch.Generator().manual_seed(3)).double().to(device)
    every = composite(density, samples.t[:, None], samples.t, samples.length, samples.offsets)
    kept, chosen = visible(samples, density * samples.length, least=1e-3, backend=backend)
    some = composite(density[chosen], kept.t[:, None], kept.t, kept.length, kept.offsets)
    assert len(chosen) < 700
    assert ((every.alpha - some.alpha) >= 0).all()
    assert ((every.alpha - some.alpha) <= 1e-3).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_and_a_wall_hide_as_they_should(device, backend):
    samples = packed([3, 3, 0, 3], device)
    depth = torch.tensor([math.inf, 0, 0, math.nan, 99, 0, 0, 0, 99], device=device, dtype=torch.float64)
    got, chosen = visible(samples, depth, backend=backend)
    assert chosen.tolist() == [0, 3, 4, 5, 6, 7, 8]
    assert got.offsets.tolist() == [0, 1, 4, 4, 7]


def resample_by_loop(samples: Samples, weight: list[float], count: int, jitter: list[float]) -> list[list[float]]:
    """Ray by ray: t by bisection of the weight before t, and the lengths between borders found in the same way."""
    rows = []
    for ray, (begin, end) in enumerate(zip(samples.offsets[:-1].tolist(), samples.offsets[1:].tolist(), strict=True)):
        mine = range(begin, end)
        if begin == end:
            continue
        low = {i: samples.t[i].item() - samples.length[i].item() / 2 for i in mine}
        size = {i: samples.length[i].item() for i in mine}
        mass = {i: weight[i] if any(weight[i] for i in mine) else size[i] for i in mine}
        total = sum(mass.values())

        def before(t: float, held: dict[int, float], low=low, size=size) -> float:
            return sum(held[i] * min(max((t - low[i]) / size[i], 0), 1) for i in held)

        def place(share: float, mine=mine, low=low, size=size, mass=mass, total=total, before=before) -> float:
            a, b = low[mine[0]], low[mine[-1]] + size[mine[-1]]
            for _ in range(100):
                a, b = (a, (a + b) / 2) if before((a + b) / 2, mass) > share * total else ((a + b) / 2, b)
            return b

        borders = [low[begin], *(place(k / count) for k in range(1, count)), math.inf]
        covered = [before(b, size) for b in borders]
        rows += [[place((k + jitter[ray]) / count), covered[k + 1] - covered[k]] for k in range(count)]
    return rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("backend", BACKENDS)
def test_resampling_matches_a_loop(device, backend, count, dtype):
    samples = packed(COUNTS, device, dtype=dtype)
    draw = torch.Generator().manual_seed(5)
    weight, jitter = torch.rand(51, generator=draw), torch.rand(7, generator=draw)
    weight[:2] = 0  # the first two of a ray, and all but one of another, hold nothing
    weight[14:20] = 0
    got = resample(samples, weight.to(device, dtype), count, jitter=jitter.to(device, dtype), backend=backend)
    assert_packed(got, 7)
    assert got.offsets.diff().tolist() == [count if n else 0 for n in COUNTS]
    want = torch.tensor(resample_by_loop(samples, weight.tolist(), count, jitter.tolist()), dtype=torch.float64)
    # float32: t up to 30 and rounded by 2e-6, divided by the smallest weight of a stretch, about a hundredth.
    tolerance = {"rtol": 0, "atol": 2e-4 if dtype == torch.float32 else 1e-11}
    torch.testing.assert_close(got.t.cpu().double(), want[:, 0], **tolerance)
    torch.testing.assert_close(got.length.cpu().double(), want[:, 1], **tolerance)


@pytest.mark.parametrize("weight", [0.0, 0.3, math.nan, -1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_even_weights_give_even_samples(device, backend, weight):
    t = (torch.arange(8, dtype=torch.float64, device=device) + 0.5) / 8
    one = Samples(t.int() * 0, t, torch.full_like(t, 1 / 8), torch.tensor([0, 8], device=device).int())
    half = torch.full((1,), 0.5, dtype=torch.float64, device=device)
    got = resample(one, torch.full_like(t, weight), 20, jitter=half, backend=backend)
    want = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    torch.testing.assert_close(got.t.cpu(), want, rtol=0, atol=1e-14)
    torch.testing.assert_close(got.length.cpu(), torch.full_like(want, 1 / 20), rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_samples_repeat_the_weights(device, backend):
    samples = packed([12], device)
    weight = torch.rand(12, generator=torch.Generator().manual_seed(1)).double().to(device)
    half = torch.full((1,), 0.5, dtype=torch.float64, device=device)
    got = resample(samples, weight, 10_000, jitter=half, backend=backend)
    low = samples.t - samples.length / 2
    found = torch.searchsorted(low, got.t, right=True) - 1
    assert (got.t <= (low + samples.length)[found] + 1e-12).all()  # none in a gap
    share = torch.bincount(found, minlength=12) / 10_000
    torch.testing.assert_close(share.double(), weight / weight.sum(), rtol=0, atol=1.01e-4)  # one sample of 10,000
    assert (got.t.diff() >= 0).all()
    torch.testing.assert_close(got.length.sum(), samples.length.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_resample_or_to_see(device, backend):
    samples = packed([0, 0], device)
    none = samples.t
    got = resample(samples, none, 3, jitter=torch.zeros(2, dtype=torch.float64, device=device), backend=backend)
    assert_packed(got, 2)
    seen, chosen = visible(samples, none, backend=backend)
    assert_packed(seen, 2)
    assert len(got.t) == len(chosen) == 0


def test_threads_do_not_change_what_is_seen_and_resampled():
    threads = torch.get_num_threads()
    samples = packed(COUNTS * 20, "cpu", dtype=torch.float32)
    draw = torch.Generator().manual_seed(5)
    weight, jitter = torch.rand(len(samples.t), generator=draw), torch.rand(140, generator=draw)
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            seen, chosen = visible(samples, weight, backend="warp")
            new = resample(samples, weight, 7, jitter=jitter, backend="warp")
            results.append([chosen, *vars(seen).values(), *vars(new).values()])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results for a, b in zip(results[0], other, strict=True))


def test_contraction_is_the_papers_halved_and_has_an_inverse(device):
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(500, 3, generator=draw, dtype=torch.float64) * torch.logspace(-2, 4, 500)[:, None]
    points = points.to(device)
    radius = points.norm(dim=1, keepdim=True)
    want = torch.where(radius <= 1, points, (2 - 1 / radius) * points / radius) / 2
    got = contract(points)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-16)
    assert (got.norm(dim=1) < 1).all()
    # The way back loses the digits that 1 - |y| = 1 / (2 r) lost: a few units of 1e-16, times 2 r.
    error = (uncontract(got) - points).norm(dim=1) / radius.squeeze()
    assert (error <= 1e-15 * (5 + 2 * radius.squeeze())).all()
    assert contract(points[:, None].float()).shape == (500, 1, 3)


def test_contraction_stretches_as_its_docstring_says(device):
    for r in (0.0, 0.4, 0.9999, 1.0001, 3.0, 100.0):
        x = torch.tensor([0.0, 0.0, r], dtype=torch.float64, device=device)
        jacobian = torch.autograd.functional.jacobian(contract, x)
        across, along = (0.5, 0.5) if r <= 1 else ((2 * r - 1) / (2 * r * r), 1 / (2 * r * r))
        want = torch.diag(torch.tensor([across, across, along], dtype=torch.float64))
        torch.testing.assert_close(jacobian.cpu(), want, rtol=1e-12, atol=1e-14)
        back = torch.autograd.functional.jacobian(uncontract, contract(x))
        torch.testing.assert_close((back @ jacobian).cpu(), torch.eye(3).double(), rtol=0, atol=1e-10)


def test_what_lies_beyond_space_is_put_far_away(device):
    y = torch.tensor([[1.0, 0.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 0.0]], device=device)
    x = uncontract(y).cpu()
    assert x.isfinite().all()
    assert x[0, 0] > 1e6
    assert x[1, 1] < -1e6
    assert x[2].tolist() == [0.0, 0.0, 0.0]


def test_wrong_input_to_visible_and_resample_is_named():
    samples = packed([2, 3], "cpu")
    jitter = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"depth like samples.t, \(5,\) torch.float64 on cpu; got \(5,\) torch.float32"
    ):
        visible(samples, samples.t.float())
    with pytest.raises(ValueError, match="0 < least < 1; got 0"):
        visible(samples, samples.t, least=0)
    with pytest.raises(ValueError, match=r"jitter \[R\], here \(5,\) and \(2,\); got \(4,\) and \(2,\)"):
        resample(samples, samples.t[1:], 3, jitter=jitter)
    with pytest.raises(ValueError, match=r"all on one device and of one dtype.*jitter torch.float32"):
        resample(samples, samples.t, 3, jitter=jitter.float())
    with pytest.raises(ValueError, match="count > 0; got 0"):
        resample(samples, samples.t, 0, jitter=jitter)
