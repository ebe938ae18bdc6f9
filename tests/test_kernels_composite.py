"""Compositing against ten lines of Python written from the formula, in float64."""

import math

import pytest
import torch
from torch import Tensor

from dreamkit.kernels.composite import Composite, composite, distortion

BACKENDS = ["reference", "warp"]
NAMES = ("features", "alpha", "depth", "weight", "d/d density", "d/d features")


def by_loop(density: Tensor, features: Tensor, t: Tensor, length: Tensor, offsets: Tensor) -> Composite:
    """Ray by ray, sample by sample."""
    seen, alpha, depth, weights = [], [], [], []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        through, colour, far = torch.ones((), dtype=density.dtype), 0 * features[0], 0 * t[0]
        for i in range(begin, end):
            weight = through * (1 - torch.exp(-density[i] * length[i]))
            through = through * torch.exp(-density[i] * length[i])
            colour, far = colour + weight * features[i], far + weight * t[i]
            weights.append(weight)
        seen.append(colour), alpha.append(1 - through), depth.append(far)
    return Composite(torch.stack(seen), torch.stack(alpha), torch.stack(depth), torch.stack(weights))


def rays(width: int = 3, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and gradients for the four results, float64: 12 rays of 0 to 9 samples, some thin, one wall."""
    draw = torch.Generator().manual_seed(seed)
    counts = torch.tensor([4, 0, 9, 1, 7, 0, 3, 8, 2, 5, 6, 0])
    offsets = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
    total = int(offsets[-1])
    density = torch.rand(total, generator=draw).double() * 40
    density[::5] *= 1e-4
    density[10] = 1e6
    features = torch.randn(total, width, generator=draw).double()
    t = torch.rand(total, generator=draw).double() + 1
    length = torch.rand(total, generator=draw).double() * 0.1
    shapes = ((len(counts), width), (len(counts),), (len(counts),), (total,))
    return [density, features, t, length, offsets], [torch.randn(s, generator=draw).double() for s in shapes]


def run(function, inputs: list[Tensor], gradients: list[Tensor | None], device: str, dtype: torch.dtype, **backend):
    """The four results, then the gradients of density and features."""
    cast = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in inputs]
    density, features = (x.clone().requires_grad_() for x in cast[:2])
    out = function(density, features, *cast[2:], **backend)
    used = [(o, g.to(device, dtype)) for o, g in zip(out, gradients, strict=True) if g is not None]
    torch.autograd.backward([o for o, _ in used], [g for _, g in used])
    return [x.detach() for x in out] + [density.grad, features.grad]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", ["all", "features", "alpha", "depth", "weight"])
def test_values_and_gradients_match_a_loop(device, backend, dtype, which):
    inputs, gradients = rays()
    if which != "all":  # one result at a time: a loss rarely uses them all
        gradients = [g if name == which else None for name, g in zip(NAMES, gradients, strict=False)]
    want = run(by_loop, inputs, gradients, "cpu", torch.float64)
    got = run(composite, inputs, gradients, device, dtype, backend=backend)
    # float32: sums of at most 9 terms, of size 5 at most, each rounded by 6e-8.
    tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-12}
    for name, a, b in zip(NAMES, got, want, strict=True):
        b = torch.zeros_like(inputs[1]) if b is None else b
        if a is None:
            assert not b.any(), name
            continue
        torch.testing.assert_close(a.double().cpu(), b, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("width", [1, 4, 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_number_of_features(device, backend, width):
    inputs, gradients = rays(width)
    want = run(by_loop, inputs, gradients, "cpu", torch.float64)
    for a, b in zip(run(composite, inputs, gradients, device, torch.float64, backend=backend), want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-10, atol=1e-11)  # sums over 20 features


@pytest.mark.parametrize("backend", BACKENDS)
def test_cutting_a_sample_in_two_changes_nothing(device, backend):
    (density, features, t, length, offsets), _ = rays()
    twice = [x.repeat_interleave(2, 0) for x in (density, features, t, length / 2)]
    whole = composite(*(x.to(device) for x in (density, features, t, length, offsets)), backend=backend)
    cut = composite(*(x.to(device) for x in (*twice, offsets * 2)), backend=backend)
    for a, b in zip(whole[:3], cut[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("density", [1e4, 1e9, math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wall_behind_fog_is_opaque_and_dimmed(device, backend, density):
    fog = 0.7
    ones = torch.ones(3, device=device)
    sigma = torch.tensor([fog, density, 5.0], device=device).requires_grad_()
    seen = composite(
        sigma, torch.eye(3, device=device), ones, ones, torch.tensor([0, 3], device=device).int(), backend=backend
    )
    assert seen.alpha.item() == 1.0
    want = torch.tensor([1 - math.exp(-fog), math.exp(-fog), 0.0])
    torch.testing.assert_close(seen.features[0].detach().cpu(), want, rtol=0, atol=1e-7)  # one float32 rounding
    seen.features[0, 1].backward()  # the wall is seen through the fog: d/dfog exp(-fog) = -exp(-fog)
    assert sigma.grad is not None
    torch.testing.assert_close(sigma.grad.cpu(), torch.tensor([-math.exp(-fog), 0.0, 0.0]), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("dtype", "digit"), [(torch.float32, 6e-8), (torch.float64, 1.2e-16)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_thin_and_thick_samples_keep_their_digits(device, backend, dtype, digit):
    """Of what one sample absorbs, and of what it lets through to a wall behind it."""
    depth = torch.cat([torch.logspace(-12, 1.8, 3000), torch.linspace(0, 60, 3000)]).to(dtype)
    density = torch.stack([depth, torch.full_like(depth, 1e9)], 1).reshape(-1).to(device)
    one = torch.ones_like(density)
    offsets = torch.arange(0, 12001, 2, device=device).int()
    weight = composite(density, one[:, None], one, one, offsets, backend=backend).weight.reshape(-1, 2).cpu()
    exact = [math.expm1(-d) for d in depth.tolist()], [math.exp(-d) for d in depth.tolist()]
    absorbed, through = (torch.tensor(x, dtype=torch.float64) for x in exact)
    # Digits are half a unit in the last place. A dozen roundings of the polynomial and of its factors, halved by luck;
    # and exp(-d) is worse by d for the rounding of d in octaves, as it is for that of d itself.
    torch.testing.assert_close(weight[:, 0].double(), -absorbed, rtol=5 * digit, atol=0)
    error = (weight[:, 1].double() / through - 1).abs()
    assert (error <= digit * (5 + 2 * depth.double())).all(), (error / digit / (5 + 2 * depth)).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_endless_fog_swallows_all_light(device, backend):
    """So many samples that transmittance would be a denormal number, and then none."""
    count = 600
    density = torch.full((count,), 0.5, device=device).requires_grad_()
    one = torch.ones(count, device=device)
    offsets = torch.tensor([0, count], device=device).int()
    seen = composite(density, one[:, None], one, one, offsets, backend=backend)
    want = torch.exp(-0.5 * torch.arange(count).double()) * -math.expm1(-0.5)
    # 600 factors, each rounded; and light below 1e-30 may be taken for none.
    torch.testing.assert_close(seen.weight.detach().cpu().double(), want, rtol=600 * 1e-7, atol=1e-30)
    seen.features.sum().backward()
    assert density.grad is not None
    assert density.grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_and_distances_get_no_gradient(device, backend):
    (density, features, t, length, offsets), _ = rays()
    t, length = t.requires_grad_(), length.requires_grad_()
    inputs = [x.to(device) for x in (density.requires_grad_(), features, t, length, offsets)]
    seen = composite(*inputs, backend=backend)
    (seen.depth.sum() + seen.alpha.sum()).backward()
    assert density.grad is not None
    assert t.grad is None
    assert length.grad is None


@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rays_without_samples_are_transparent(device, backend, count):
    density = torch.zeros(0, device=device).requires_grad_()
    features = torch.zeros(0, 3, device=device)
    offsets = torch.zeros(count + 1, dtype=torch.int32, device=device)
    seen = composite(density, features, features[:, 0], features[:, 0], offsets, backend=backend)
    assert seen.features.shape == (count, 3)
    assert not any(x.any() for x in seen)
    (seen.features.sum() + seen.alpha.sum()).backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_in_its_ray(device, backend):
    (density, features, t, length, offsets), _ = rays()
    density[0] = torch.nan
    seen = composite(*(x.to(device) for x in (density, features, t, length, offsets)), backend=backend)
    assert seen.alpha.isnan().tolist() == [True] + [False] * 11


def test_threads_do_not_change_a_bit_and_two_runs_agree():
    threads = torch.get_num_threads()
    inputs, gradients = rays()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run(composite, inputs, gradients, "cpu", torch.float32, backend="warp"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_wrong_shapes_are_named():
    (density, features, t, length, offsets), _ = rays()
    with pytest.raises(ValueError, match=r"features \[S, C\].*got \(45,\), \(45,\)"):
        composite(density, features[:, 0], t, length, offsets)
    with pytest.raises(ValueError, match=r"offsets \[R\+1\] int32; got \(13,\) torch.int64"):
        composite(density, features, t, length, offsets.long())
    with pytest.raises(ValueError, match="float32 or float64, the same for all"):
        composite(density.float(), features, t, length, offsets)


def distortion_by_loop(weight: Tensor, t: Tensor, length: Tensor, offsets: Tensor) -> Tensor:
    """The double sum, pair by pair."""
    losses = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        w, m, d = weight[begin:end], t[begin:end], length[begin:end]
        losses.append((w[:, None] * w * (m[:, None] - m).abs()).sum() + (w * w * d).sum() / 3)
    return torch.stack(losses)


def weighted_rays() -> list[Tensor]:
    """Weights, t that rise along each ray, lengths, offsets: float64."""
    (density, _, _, length, offsets), _ = rays()
    t = torch.cat([part.cumsum(0) for part in length.tensor_split(offsets[1:-1].long())]) + 3
    return [density / 40, t, length, offsets]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_distortion_and_its_gradient_match_the_double_sum(device, backend, dtype):
    weight, t, length, offsets = weighted_rays()
    weight[10] = 1.0  # the sample that was a wall
    gradient = torch.linspace(-1, 1, 12, dtype=torch.float64)
    want = distortion_by_loop(weight.requires_grad_(), t, length, offsets)
    want.backward(gradient)
    w, t, length = (x.detach().to(device, dtype) for x in (weight, t, length))
    got = distortion(w.requires_grad_(), t, length, offsets.to(device), backend=backend)
    got.backward(gradient.to(device, dtype))
    # float32: t is about 3 and rounded by 2e-7; at most 81 pairs of weights below 1.
    tolerance = {"rtol": 1e-5, "atol": 5e-6} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-13}
    torch.testing.assert_close(got.detach().cpu().double(), want.detach(), **tolerance)
    torch.testing.assert_close(w.grad.cpu().double(), weight.grad, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distortion_of_an_even_weight_is_a_third(device, backend):
    """The mean distance of two points of [0, 1], however finely the ray is cut."""
    for count in (1, 2, 7, 100):
        t = (torch.arange(count, dtype=torch.float64, device=device) + 0.5) / count
        share = torch.full_like(t, 1 / count)
        got = distortion(share, t, share, torch.tensor([0, count], device=device).int(), backend=backend)
        torch.testing.assert_close(got.item(), 1 / 3, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cutting_a_stretch_in_two_keeps_its_distortion(device, backend):
    weight, t, length, offsets = (x.to(device) for x in weighted_rays())
    halves = (torch.tensor([-0.25, 0.25], device=device) * length[:, None] + t[:, None]).reshape(-1)
    cut = [(weight / 2).repeat_interleave(2), halves, (length / 2).repeat_interleave(2), offsets * 2]
    want = distortion(weight, t, length, offsets, backend=backend)
    torch.testing.assert_close(distortion(*cut, backend=backend), want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_distortion_without_samples_is_nothing(device, backend):
    none = torch.zeros(0, device=device, requires_grad=True)
    got = distortion(none, none, none, torch.zeros(4, dtype=torch.int32, device=device), backend=backend)
    assert got.tolist() == [0.0, 0.0, 0.0]
    got.sum().backward()


def test_threads_do_not_change_the_distortion_and_wrong_shapes_are_named():
    threads = torch.get_num_threads()
    weight, t, length, offsets = weighted_rays()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            w = weight.float().requires_grad_()
            loss = distortion(w, t.float(), length.float(), offsets, backend="warp")
            loss.sum().backward()
            results.append((loss.detach(), w.grad))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results for a, b in zip(results[0], other, strict=True))
    with pytest.raises(ValueError, match=r"distortion expects weight \[S\].*got \(45,\), \(44,\)"):
        distortion(weight, t[1:], length, offsets)
    with pytest.raises(ValueError, match="distortion expects float32 or float64, the same for all"):
        distortion(weight, t.float(), length, offsets)
