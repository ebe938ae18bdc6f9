"""Marching against a loop over candidates in Python floats, and against geometry."""

import math

import pytest
import torch
from torch import Tensor

from dreamkit.kernels.march import Samples, cell_points, march, update_occupancy

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
