"""Texture lookup against loops over single texels in float64, and cube maps against the geometry of a cube."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.kernels.texture import cube_directions, footprint_level, mipmap, sample, sample_cube

BACKENDS = ["reference", "warp"]
DTYPES = [torch.float64, torch.float32]


def texel(texture: Tensor, i: int, j: int, border: str) -> Tensor:
    height, width = texture.shape[:2]
    if border == "wrap":
        return texture[i % height, j % width]
    return texture[min(max(i, 0), height - 1), min(max(j, 0), width - 1)]


def bilinear(x: float, y: float, read) -> Tensor:  # type: ignore[no-untyped-def]
    """The weighted mean of read(i, j) at the four whole positions around (x, y)."""
    total = 0
    for i, j in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
        total = total + (1 - abs(x - j)) * (1 - abs(y - i)) * read(i, j)
    return total  # type: ignore[return-value]


def trilinear(levels: list[Tensor], level: float, one) -> Tensor:  # type: ignore[no-untyped-def]
    level = min(max(level, 0.0), len(levels) - 1.0)
    lower = min(int(level), max(len(levels) - 2, 0))
    upper = min(lower + 1, len(levels) - 1)
    return (1 - (level - lower)) * one(levels[lower]) + (level - lower) * one(levels[upper])


def by_loop(levels: list[Tensor], uv: Tensor, level: Tensor, border: str) -> Tensor:
    """Lookup by lookup: levels [H, W, C], uv [N, 2], level [N]."""

    def one(texture: Tensor, u: float, v: float) -> Tensor:
        x, y = u * texture.shape[1] - 0.5, (1 - v) * texture.shape[0] - 0.5
        return bilinear(x, y, lambda i, j: texel(texture, i, j, border))

    return torch.stack(
        [
            trilinear(levels, at, lambda texture, u=u, v=v: one(texture, u, v))
            for (u, v), at in zip(uv.tolist(), level.tolist(), strict=True)
        ]
    )


def half_by_loop(texture: Tensor) -> Tensor:
    """The mean over the area of each new texel, from the overlap of intervals."""
    sizes = [max(n // 2, 1) for n in texture.shape[:2]]
    out = torch.zeros(*sizes, texture.shape[2], dtype=texture.dtype)
    for i, j, k, m in itertools.product(*map(range, sizes), *map(range, texture.shape[:2])):
        height, width = (n / s for n, s in zip(texture.shape[:2], sizes, strict=True))
        tall = max(0.0, min((i + 1) * height, k + 1) - max(i * height, k))
        wide = max(0.0, min((j + 1) * width, m + 1) - max(j * width, m))
        out[i, j] = out[i, j] + texture[k, m] * tall * wide / (height * width)
    return out


def draws(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    """Normal numbers in float64, exact in float32, so that no texel is in doubt."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw).double() for shape in shapes]


def gradients(inputs: list[Tensor], function) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """The value of function(*inputs), and its gradients for a fixed random gradient of the value."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    weight = draws(tuple(value.shape), seed=7)[0].to(value)
    return [value.detach(), *torch.autograd.grad(value, leaves, weight)]


def close(dtype: torch.dtype) -> dict[str, float]:
    # float32: positions of up to 20 texels are rounded by 1e-6, and texels differ by up to 6.
    return {"rtol": 0, "atol": 2e-5 if dtype == torch.float32 else 1e-12}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("border", ["clamp", "wrap"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bilinear_values_and_the_gradient_of_the_texture_match_a_loop(device, backend, border, dtype):
    texture, uv, weight = draws((7, 5, 3), (60, 2), (60, 3))  # uv from -3 to 3: many outside
    uv[0], uv[1] = 0.0, 1.0
    texture.requires_grad_()
    want = by_loop([texture], uv, torch.zeros(60), border)
    want.backward(weight)
    got = texture.detach().to(device, dtype).requires_grad_()
    value = sample(got, uv.to(device, dtype), border=border, backend=backend)
    value.backward(weight.to(device, dtype))
    torch.testing.assert_close(value.detach().cpu().double(), want.detach(), **close(dtype))
    torch.testing.assert_close(got.grad.cpu().double(), texture.grad, **close(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_trilinear_values_and_gradients_match_a_loop(device, backend, dtype):
    texture, uv, footprint, weight = draws((9, 6, 2), (40, 2), (40, 2, 2), (40, 2), seed=1)
    footprint *= 0.2  # levels from below 0 to beyond the last
    level = torch.stack([(f * torch.tensor([[6.0], [9.0]]).double()).norm(dim=0).max().log2() for f in footprint])
    assert level.min() < 0
    assert level.max() > 1
    texture.requires_grad_()
    levels = [texture]
    while max(levels[-1].shape[:2]) > 1:
        levels.append(half_by_loop(levels[-1]))
    want = by_loop(levels, uv, level, "clamp")
    want.backward(weight)
    got = texture.detach().to(device, dtype).requires_grad_()
    value = sample(got, uv.to(device, dtype), footprint.to(device, dtype), backend=backend)
    value.backward(weight.to(device, dtype))
    torch.testing.assert_close(value.detach().cpu().double(), want.detach(), **close(dtype))
    torch.testing.assert_close(got.grad.cpu().double(), texture.grad, **close(dtype))


@pytest.mark.parametrize("border", ["clamp", "wrap"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_match_finite_differences(device, backend, border):
    texture, uv, footprint = (x.to(device) for x in draws((6, 5, 2), (7, 2), (7, 2, 2), seed=2))
    # The patches are linear in each: only rounding is left of the differences. No position is within 1e-6 of a centre.
    inputs = [texture.requires_grad_(), uv.requires_grad_(), (footprint * 0.3).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *x: sample(*x, border=border, backend=backend), inputs)
    assert torch.autograd.gradcheck(lambda *x: sample(*x, border=border, backend=backend), inputs[:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_convention_is_that_of_torchs_grid_sample_with_the_first_row_at_the_top(device, backend):
    texture, uv = (x.float().to(device) for x in draws((16, 12, 3), (500, 2), seed=3))
    grid = torch.stack([uv[:, 0] * 2 - 1, 1 - uv[:, 1] * 2], dim=-1)[None, None]
    picture = texture.permute(2, 0, 1)[None]
    want = torch.nn.functional.grid_sample(picture, grid, padding_mode="border", align_corners=False)[0, :, 0].T
    torch.testing.assert_close(sample(texture, uv, backend=backend), want, rtol=0, atol=1e-5)
    top_left = sample(texture, torch.tensor([0.5 / 12, 1 - 0.5 / 16], device=device), backend=backend)
    torch.testing.assert_close(top_left, texture[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_border_wraps_without_a_seam_and_repeats(device, backend):
    texture, uv = (x.to(device) for x in draws((6, 5, 3), (100, 2), seed=4))
    value = sample(texture, uv, border="wrap", backend=backend)
    torch.testing.assert_close(sample(texture, uv + 3, border="wrap", backend=backend), value, rtol=0, atol=1e-12)
    edge = torch.tensor([[1 - 1e-9, 0.3], [1 + 1e-9, 0.3]], device=device).double()
    low, high = sample(texture, edge, border="wrap", backend=backend)
    torch.testing.assert_close(low, high, rtol=0, atol=1e-6)  # the slope is some 10 texels
    # Halfway between the last column and the first.
    middle = sample(texture, torch.tensor([0.0, 1 - 0.5 / 6], device=device).double(), border="wrap", backend=backend)
    torch.testing.assert_close(middle, (texture[0, 0] + texture[0, -1]) / 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clamped_positions_feel_nothing(device, backend):
    (texture,) = (x.to(device) for x in draws((6, 5, 3)))
    uv = torch.tensor([[-0.3, 0.5], [1.2, 0.4], [0.5, 1e30], [-torch.inf, 0.4]], device=device).double()
    _, _, to_uv = gradients([texture, uv], lambda t, x: sample(t, x, backend=backend))
    assert to_uv[[0, 1, 2, 3], [0, 0, 1, 0]].tolist() == [0.0] * 4
    assert (to_uv[[0, 1, 2, 3], [1, 1, 0, 1]] != 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_one_lookup_after_the_other(device, backend):
    textures, uv, footprint = (x.to(device) for x in draws((3, 5, 4, 2), (3, 6, 7, 2), (3, 6, 7, 2, 2), seed=5))
    together = gradients([textures, uv, footprint], lambda *x: sample(*x, backend=backend))
    alone = lambda t, x, f: torch.stack([sample(t[b], x[b], f[b], backend=backend) for b in range(3)])  # noqa: E731
    for got, want in zip(together, gradients([textures, uv, footprint], alone), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert together[0].shape == (3, 6, 7, 2)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 6), (3, 1), (1, 1)])
def test_mips_are_means_over_area(size):
    (texture,) = draws((*size, 2))
    levels = mipmap(texture)
    assert levels[-1].shape == (1, 1, 2)
    for fine, coarse in itertools.pairwise(levels):
        torch.testing.assert_close(coarse, half_by_loop(fine), rtol=0, atol=1e-14)
        torch.testing.assert_close(coarse.mean((0, 1)), texture.mean((0, 1)), rtol=0, atol=1e-14)
    assert len(mipmap(texture, 1)) == 1
    batch = mipmap(torch.stack([texture, texture + 1]))
    assert all(torch.equal(b[0], one) for b, one in zip(batch, levels, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_footprint_of_two_to_the_k_texels_reads_level_k(device, backend):
    texture, uv = (x.to(device) for x in draws((16, 8, 3), (20, 2), seed=6))
    levels = mipmap(texture)
    for k, one in enumerate(levels):
        long, short = 2**k / 8, 2**k / 16 / 3  # along u 2^k texels, along v a third of that
        footprint = torch.tensor([[0.0, long], [short, 0.0]], device=device).double().expand(20, 2, 2)
        assert footprint_level(footprint, 16, 8)[0].item() == pytest.approx(k, abs=1e-12)  # CUDA's log2
        got = sample(texture, uv, footprint, levels, backend=backend)
        torch.testing.assert_close(got, sample(one, uv, backend=backend), rtol=0, atol=1e-12)
    far = sample(texture, uv, torch.full((20, 2, 2), 1e9, device=device).double(), backend=backend)
    torch.testing.assert_close(far, levels[-1][0].expand(20, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_reaches_the_mips_that_were_given(device, backend):
    texture, uv = (x.to(device) for x in draws((8, 8, 1), (9, 2)))
    mips = [level.clone().requires_grad_() for level in mipmap(texture)]
    footprint = (torch.eye(2, device=device).double() * 3 / 8).expand(9, 2, 2)  # between levels 1 and 2
    sample(mips[0], uv, footprint, mips, backend=backend).sum().backward()
    # Every lookup hands out its weight once: log2(3) - 1 of it to level 2.
    sums = [float(level.grad.sum()) if level.grad is not None else 0.0 for level in mips]
    assert sums == pytest.approx([0, 9 * (2 - math.log2(3)), 9 * (math.log2(3) - 1), 0], abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_many_lookups_is_the_adjoint_of_the_lookup(device, backend):
    # <weight, lookup(texture)> = <gradient, texture>: with many lookups and rows, so that all bands take part.
    texture, uv, footprint, weight = (
        x.to(device) for x in draws((70, 50, 4), (4000, 2), (4000, 2, 2), (4000, 4), seed=8)
    )
    value = sample(texture.requires_grad_(), uv, footprint * 0.05, border="wrap", backend=backend)
    (gradient,) = torch.autograd.grad(value, texture, weight)
    assert (gradient * texture).sum().item() == pytest.approx((value * weight).sum().item(), rel=1e-11)


def neighbour(faces: Tensor, face: int, i: int, j: int) -> Tensor:
    """Texel (i, j) of a face, or what lies one beyond its edge: by distances between the texels' centres in space."""
    size = faces.shape[1]
    points = cube_directions(size, torch.float64, unit=False)
    inner = [min(max(n, 0), size - 1) for n in (i, j)]
    if [i, j] == inner:
        return faces[face, i, j]
    if i != inner[0] and j != inner[1]:  # the corner: three meet
        return (faces[face, *inner] + neighbour(faces, face, inner[0], j) + neighbour(faces, face, i, inner[1])) / 3
    # The face beyond is the one whose middle lies in the direction of the step.
    middle = points.mean((1, 2))
    down, right = points[face, -1, 0] - points[face, 0, 0], points[face, 0, -1] - points[face, 0, 0]
    if size == 1:  # one texel shows no direction
        big = cube_directions(2, torch.float64, unit=False)[face]
        down, right = big[1, 0] - big[0, 0], big[0, 1] - big[0, 0]
    step = down * (i - inner[0]) + right * (j - inner[1])
    beyond = int((middle @ step).argmax())
    nearest = (points[beyond] - points[face, *inner]).norm(dim=-1).argmin()
    return faces[beyond, int(nearest) // size, int(nearest) % size]


def cube_by_loop(levels: list[Tensor], directions: Tensor, level: Tensor) -> Tensor:
    found = []
    for d, at in zip(directions, level, strict=True):
        axis = int(d.abs().argmax())
        face = 2 * axis + int(d[axis] < 0)
        p = d / d[axis].abs()  # on the cube

        def one(faces: Tensor, face: int = face, p: Tensor = p) -> Tensor:
            corners = cube_directions(2, torch.float64, unit=False)[face]  # at +-1/2
            right, down = corners[0, 1] - corners[0, 0], corners[1, 0] - corners[0, 0]
            x, y = ((float(p @ side) + 1) / 2 * faces.shape[1] - 0.5 for side in (right, down))
            return bilinear(x, y, lambda i, j: neighbour(faces, face, i, j))

        found.append(trilinear(levels, float(at), one))
    return torch.stack(found)


def test_the_faces_of_a_cube_map_are_as_documented():
    d = cube_directions(4, torch.float64)
    torch.testing.assert_close(d.norm(dim=-1), torch.ones(6, 4, 4).double())
    middle = torch.nn.functional.normalize(d.mean((1, 2)), dim=-1)
    axes = torch.tensor([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]).double()
    torch.testing.assert_close(middle, axes, rtol=0, atol=1e-15)
    assert (d[:4, 0, :, 2] > 0.5).all()  # the sides have +z at the top
    assert (d[4, -1, :, 0] > 0.5).all()  # above: +x at the bottom
    assert (d[5, 0, :, 0] > 0.5).all()  # below: +x at the top
    for face in range(6):  # seen from inside, nothing is mirrored: right x up points at the eye
        right, up = d[face, 1, 2] - d[face, 1, 1], d[face, 1, 1] - d[face, 2, 1]
        assert torch.linalg.cross(right, up) @ axes[face] < 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cube_map_matches_a_loop(device, backend, size, dtype):
    faces, directions, level, weight = draws((6, size, size, 2), (60, 3), (60,), (60, 2), seed=9)
    directions[:8] = torch.tensor([*itertools.product((-1.0, 1.0), repeat=3)]) + 0.05 * directions[:8]  # corners
    directions = directions.float().double()
    faces.requires_grad_()
    levels = [faces]
    while levels[-1].shape[1] > 1:
        levels.append(torch.stack([half_by_loop(face) for face in levels[-1]]))
    want = cube_by_loop(levels, directions, level)
    want.backward(weight)
    got = faces.detach().to(device, dtype).requires_grad_()
    value = sample_cube(got, directions.to(device, dtype), level.to(device, dtype), backend=backend)
    value.backward(weight.to(device, dtype))
    torch.testing.assert_close(value.detach().cpu().double(), want.detach(), **close(dtype))
    torch.testing.assert_close(got.grad.cpu().double(), faces.grad, **close(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_cube_map_match_finite_differences(device, backend):
    faces, directions, level = (x.to(device) for x in draws((6, 3, 3, 2), (12, 3), (12,), seed=10))
    inputs = [faces.requires_grad_(), directions.requires_grad_(), level.abs().requires_grad_()]
    assert torch.autograd.gradcheck(lambda *x: sample_cube(*x, backend=backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cube_map_has_no_seam(device, backend):
    (faces,) = (x.to(device) for x in draws((6, 4, 4, 3), seed=11))
    # Pairs of directions on both sides of all edges, as far as the corners.
    along, h = torch.linspace(-1, 1, 41, device=device).double(), 1e-9
    for first, second in itertools.combinations(range(3), 2):
        for s, t in itertools.product((-1.0, 1.0), repeat=2):
            pair = torch.zeros(2, 41, 3, device=device, dtype=torch.float64)
            pair[..., 3 - first - second] = along
            pair[..., first], pair[..., second] = s, t
            pair[0, :, first] += s * h
            pair[1, :, second] += t * h
            one, other = sample_cube(faces, pair, torch.full((2, 41), 0.5, device=device).double(), backend=backend)
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # a slope of up to 20 over 2e-9


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_environment_of_constant_gradient_is_smooth_and_converges(device, backend):
    directions = torch.nn.functional.normalize(draws((4000, 3), seed=12)[0], dim=1).to(device)
    slope = torch.tensor([0.3, -0.5, 0.8], device=device).double()

    def error(size: int) -> Tensor:
        faces = 1 + cube_directions(size, torch.float64, device) @ slope[:, None]
        return (sample_cube(faces, directions, backend=backend)[:, 0] - 1 - directions @ slope).abs()

    # Within a face the patch errs by about (2 / S)^2 / 8 times the second derivative. At an edge the lines of texels
    # bend, which costs about 1 / S times the slope, in a strip about 1 / S wide.
    coarse, fine = error(8), error(32)
    assert coarse.max() < 0.03
    assert fine.max() < coarse.max() / 3.5
    assert fine.mean() < coarse.mean() / 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_environment_is_constant_and_roughness_reads_the_mips(device, backend):
    faces, directions = (x.to(device) for x in draws((6, 8, 8, 3), (50, 3), seed=13))
    flat = sample_cube(torch.full((6, 5, 5, 1), 0.7, device=device), directions.float(), backend=backend)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.7))
    mips = mipmap(faces)
    for k, one in enumerate(mips):
        level = torch.full((50,), float(k), device=device).double()
        got = sample_cube(faces, directions, level, mips, backend=backend)
        torch.testing.assert_close(got, sample_cube(one, directions * 5, backend=backend), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_look_up(device, backend):
    for texture, at in ((torch.ones(4, 3, 2), torch.zeros(0, 2)), (torch.ones(2, 4, 3, 2), torch.zeros(2, 0, 5, 2))):
        texture, at = texture.to(device).requires_grad_(), at.to(device).requires_grad_()
        value = sample(texture, at, torch.zeros(*at.shape, 2, device=device), backend=backend)
        assert value.shape == (*at.shape[:-1], 2)
        value.sum().backward()
        assert not texture.grad.any()
    assert sample_cube(torch.ones(6, 2, 2, 1), torch.zeros(0, 3), backend=backend).shape == (0, 1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_lookups_with_more_threads(count):
    threads = torch.get_num_threads()
    texture, uv = draws((64, 3, 2), (count, 2))
    want = gradients([texture, uv], lambda *x: sample(*x, backend="reference"))
    try:
        torch.set_num_threads(3)
        got = gradients([texture, uv], lambda *x: sample(*x, backend="warp"))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", ["clamp", "wrap"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_a_number_gives_nan_and_nothing_worse(device, backend, border):
    texture = torch.ones(4, 5, 2, device=device)
    uv = torch.tensor([[torch.nan, 0.5], [0.5, torch.nan], [0.5, 0.5]], device=device)
    assert sample(texture, uv, border=border, backend=backend).isnan().all(1).tolist() == [True, True, False]
    big = torch.tensor([[1e30, -1e30], [3e9, 0.5]], device=device)
    assert torch.equal(sample(texture, big, border=border, backend=backend), torch.ones(2, 2, device=device))
    footprint = torch.full((3, 2, 2), torch.nan, device=device)
    assert sample(texture, uv, footprint, border=border, backend=backend).isnan().all()
    directions = torch.tensor([[0.0, 0.0, 0.0], [torch.nan, 1.0, 0.0], [0.0, 1.0, 0.0]], device=device)
    found = sample_cube(torch.ones(6, 4, 4, 1, device=device), directions, backend=backend)
    assert found.isnan()[:, 0].tolist() == [True, True, False]


def test_threads_do_not_change_a_bit_and_two_runs_agree(device):
    texture, uv, footprint, faces, directions, level = (
        x.float().to(device)
        for x in draws((70, 33, 3), (20000, 2), (20000, 2, 2), (6, 16, 16, 3), (20000, 3), (20000,), seed=14)
    )
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    results = []
    try:
        torch.use_deterministic_algorithms(device != "cpu")
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            plane = gradients([texture, uv, footprint * 0.1], lambda *x: sample(*x, border="wrap", backend="warp"))
            cube = gradients([faces, directions, level], lambda *x: sample_cube(*x, backend="warp"))
            results.append(plane + cube)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_wrong_arguments_are_named():
    texture, uv = torch.ones(4, 5, 3), torch.zeros(7, 2)
    with pytest.raises(ValueError, match=r"texture \[H, W, C\].*got \(4, 5\) and \(7, 2\)"):
        sample(texture[..., 0], uv)
    with pytest.raises(ValueError, match=r"uv \[2, ..., 2\], one row a texture; got \(7, 2\)"):
        sample(torch.ones(2, 4, 5, 3), uv)
    with pytest.raises(ValueError, match=r"footprint \[7, 2, 2\].*got \[7, 2\]"):
        sample(texture, uv, uv)
    with pytest.raises(ValueError, match="borders 'clamp' and 'wrap'; got 'mirror'"):
        sample(texture, uv, border="mirror")
    with pytest.raises(ValueError, match=r"sample expects float32 or float64.*float16"):
        sample(texture.half(), uv)
    with pytest.raises(ValueError, match=r"begin with itself.*got \[\(2, 2, 3\)\]"):
        sample(texture, uv, torch.zeros(7, 2, 2), [torch.ones(2, 2, 3)])
    with pytest.raises(ValueError, match=r"faces \[6, S, S, C\].*got \(5, 4, 4, 3\)"):
        sample_cube(torch.ones(5, 4, 4, 3), torch.zeros(7, 3))
    with pytest.raises(ValueError, match=r"directions \[..., 3\]; got \(7, 2\)"):
        sample_cube(torch.ones(6, 4, 4, 3), uv)
    with pytest.raises(ValueError, match=r"level \[7\] for its directions; got \[6\]"):
        sample_cube(torch.ones(6, 4, 4, 3), torch.zeros(7, 3), torch.zeros(6))
    with pytest.raises(ValueError, match=r"mipmap expects.*got \(4, 5\)"):
        mipmap(texture[..., 0])
    with pytest.raises(InputError, match=r"'wrap' is not known"):
        sample(texture, uv, backend="wrap")
