"""Gaussian splatting against a loop over pixels and Gaussians written from the paper's formulas, in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.cameras import Cameras, orbit
from dreamkit.kernels.splat import Splats, reference, splat, warp_kernel

BACKENDS = ["reference", "warp"]
INPUTS = ("means", "quaternions", "scales", "opacities", "features", "camera_to_world", "background")
PICTURES = ("features", "alpha", "depth", "radii", "screen")

Scene = tuple[list[Tensor], Cameras, Tensor]  # the five tensors of the Gaussians, cameras, background


def cast(cameras: Cameras, dtype: torch.dtype, device: str = "cpu") -> Cameras:
    names = ("camera_to_world", "fov_degrees")
    return dataclasses.replace(cameras, **{n: getattr(cameras, n).to(device, dtype) for n in names}).to(device)


def scene(count: int, size: tuple[int, int], width: int = 3, sh_degree: int | None = None, seed: int = 0) -> Scene:
    """Random Gaussians of a few pixels seen by two cameras, float64: some are behind others, some outside."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    shape = (width,) if sh_degree is None else ((sh_degree + 1) ** 2, 3)
    gaussians = [
        normal(count, 3) * 0.5,
        normal(count, 4),
        torch.exp(normal(count, 3) * 0.6 - 2.2),
        torch.rand(count, generator=draw, dtype=torch.float64),
        normal(count, *shape) * 0.4,
    ]
    cameras = orbit([10.0, 130.0], [20.0, -35.0], fov_degrees=50.0, size=size)
    return gaussians, cast(cameras, torch.float64), normal(2, gaussians[4].shape[-1])


def weights(pictures: list[Tensor], seed: int = 1) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=draw, dtype=torch.float64) for p in pictures]


def by_loop(gaussians: list[Tensor], cameras: Cameras, background: Tensor) -> Splats:
    """Camera by camera, Gaussian by Gaussian, pixel by pixel."""
    means, quaternions, scales, opacities, features = gaussians
    height, width = cameras.height, cameras.width
    pictures, alphas, depths, radii, screens = [], [], [], [], []
    for b in range(len(cameras)):
        turn, position = cameras.camera_to_world[b, :, :3], cameras.camera_to_world[b, :, 3]
        half = math.tan(math.radians(float(cameras.fov_degrees[b])) / 2)
        focal, wide = height / 2 / half, half * width / height
        flat, screen, radius = [], [], []
        for i in range(len(means)):
            x, y, minus_z = turn.T @ (means[i] - position)
            z = -minus_z
            screen.append(torch.zeros(2, dtype=means.dtype))
            radius.append(torch.zeros((), dtype=means.dtype))
            if z <= 0.01:
                continue
            # Quaternion to matrix by its action on the axes: q e q*.
            w, v = quaternions[i, 0] / quaternions[i].norm(), quaternions[i, 1:] / quaternions[i].norm()
            axes = torch.eye(3, dtype=means.dtype)
            turned = [
                e + 2 * w * torch.linalg.cross(v, e) + 2 * torch.linalg.cross(v, torch.linalg.cross(v, e)) for e in axes
            ]
            rotation = torch.stack(turned, 1)
            sigma = rotation @ torch.diag(scales[i] ** 2) @ rotation.T
            sx, sy = (x / z).clamp(-1.3 * wide, 1.3 * wide), (y / z).clamp(-1.3 * half, 1.3 * half)
            zero = torch.zeros_like(z)
            # d(column, row) / d(x, y, z of the camera, z backwards)
            jacobian = torch.stack(
                [torch.stack([focal / z, zero, focal * sx / z]), torch.stack([zero, -focal / z, -focal * sy / z])]
            )
            covariance = jacobian @ turn.T @ sigma @ turn @ jacobian.T + 0.3 * torch.eye(2, dtype=means.dtype)
            centre = torch.stack([width / 2 + focal * x / z, height / 2 - focal * y / z])
            flat.append((float(z.detach()), i, z, centre, torch.linalg.inv(covariance), covariance))
        flat.sort(key=lambda item: item[:2])
        rows = [[] for _ in range(3)]
        for r in range(height):
            for c in range(width):
                light, seen, far = torch.ones((), dtype=means.dtype), 0 * features[0], 0 * means[0, 0]
                over = False
                for _, i, z, centre, conic, covariance in flat:
                    d = torch.tensor([c + 0.5, r + 0.5], dtype=means.dtype) - centre
                    alpha = (opacities[i] * torch.exp(-(d @ conic @ d) / 2)).clamp(max=0.999)
                    if alpha < 1 / 255:
                        continue
                    screen[i], radius[i] = centre, 3 * torch.linalg.eigvalsh(covariance.detach())[-1].sqrt()
                    over = over or bool(light * (1 - alpha) < 1e-4)
                    if not over:
                        seen, far = seen + light * alpha * features[i], far + light * alpha * z
                        light = light * (1 - alpha)
                for row, value in zip(rows, (seen + light * background[b], 1 - light, far), strict=True):
                    row.append(value)
        pictures.append(torch.stack(rows[0], 1).reshape(-1, height, width))
        alphas.append(torch.stack(rows[1]).reshape(height, width))
        depths.append(torch.stack(rows[2]).reshape(height, width))
        radii.append(torch.stack(radius)), screens.append(torch.stack(screen))
    return Splats(*(torch.stack(x) for x in (pictures, alphas, depths, radii, screens)), None)


def run(
    function, case: Scene, device: str = "cpu", dtype: torch.dtype = torch.float64, **settings
) -> dict[str, Tensor]:
    """Pictures, and gradients of everything, of a sum of the pictures with fixed random weights."""
    gaussians, cameras, background = case
    tensors = [*gaussians, cameras.camera_to_world, background]
    leaves = [x.to(device, dtype).clone().requires_grad_() for x in tensors]
    cameras = dataclasses.replace(cast(cameras, dtype, device), camera_to_world=leaves[5])
    if function is splat:
        seen = splat(*leaves[:5], cameras, background=leaves[6], **settings)
    else:
        seen = function(leaves[:5], cameras, leaves[6])
    chosen = weights(list(seen[:3]))
    if seen.screen.requires_grad:
        seen.screen.retain_grad()
    sum((p * w.to(device, dtype)).sum() for p, w in zip(seen[:3], chosen, strict=True)).backward()
    out = {name: getattr(seen, name).detach() for name in PICTURES}
    out |= {f"d/d {name}": leaf.grad for name, leaf in zip(INPUTS, leaves, strict=True)}
    if function is splat:
        out["d/d screen"] = seen.screen.grad
    if seen.spread is not None:
        out["spread"] = seen.spread.grad
    return {name: value.double().cpu() for name, value in out.items()}


def same(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float, skip: tuple[str, ...] = ()) -> None:
    """Each tensor within `tolerance` of its own largest value."""
    for name in want.keys() - skip:
        scale = max(float(want[name].abs().max()), 1e-3) if want[name].numel() else 1.0
        torch.testing.assert_close(
            got[name], want[name], rtol=0, atol=tolerance * scale, msg=lambda m, name=name: f"{name}: {m}"
        )


@pytest.fixture(scope="module")
def small() -> tuple[Scene, dict[str, Tensor]]:
    """A scene and what the loop makes of it: 8 Gaussians, two cameras, 7 x 9 pixels."""
    case = scene(8, (7, 9))
    means, _, scales, opacities, _ = case[0]
    inward = case[1].camera_to_world[0, :, 2]
    means[0] = case[1].positions[0] + inward  # behind the first camera
    means[1] = case[1].positions[0] - 1.0 * inward + 1.2 * case[1].camera_to_world[0, :, 0]  # beyond 1.3 fields of view
    scales[1] = 0.5
    opacities[2], scales[2] = 1.0, 0.5  # cut at 0.999
    opacities[3] = 0.0
    return case, run(by_loop, case)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_match_a_loop(device, backend, dtype, small):
    case, want = small
    assert (want["radii"] == 0).any(dim=1).all()  # some are not seen
    assert want["radii"][0, 1] > 0  # the linearisation is kept within its margin
    # float32: 8 layers, each rounded by some 6e-8, and an exp within 6e-7; gradients are sums of both signs.
    got = run(splat, case, device, dtype, backend=backend)
    same(got, want, 1e-5 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_picture_at_a_time(device, backend, which, small):
    (gaussians, cameras, background), _ = small
    grads = []
    for function in (by_loop, splat):
        leaves = [x.to(device if function is splat else "cpu").clone().requires_grad_() for x in gaussians]
        if function is splat:
            seen = splat(*leaves, cameras.to(device), background=background.to(device), backend=backend)
        else:
            seen = by_loop(leaves, cameras, background)
        weight = weights([x.cpu() for x in seen[:3]])[which].to(seen[which].device)
        (seen[which] * weight).sum().backward()
        grads.append([torch.zeros_like(x).cpu() if x.grad is None else x.grad.cpu() for x in leaves])
    for got, want in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)  # sums of some hundred terms of order 1


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_the_slopes(device, backend, antialiased):
    case = scene(30, (20, 37), sh_degree=2)
    settings = {"sh_degree": 2, "antialiased": antialiased, "backend": backend}
    got = run(splat, case, device, **settings)
    gaussians, cameras, background = case
    tensors = dict(zip(INPUTS, [*gaussians, cameras.camera_to_world, background], strict=True))
    step = 1e-6

    def loss(name: str, direction: Tensor, sign: int) -> float:
        moved = {n: (t + sign * step * direction if n == name else t).to(device) for n, t in tensors.items()}
        there = dataclasses.replace(cast(cameras, torch.float64, device), camera_to_world=moved["camera_to_world"])
        seen = splat(*list(moved.values())[:5], there, background=moved["background"], **settings)
        return sum(
            float((p.cpu() * w).sum()) for p, w in zip(seen[:3], weights([x.cpu() for x in seen[:3]]), strict=True)
        )

    for name, tensor in tensors.items():
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        slope = (loss(name, direction, 1) - loss(name, direction, -1)) / (2 * step)
        # Central differences: step^2 times a third derivative of some 1e3, and 1e-14 of rounding over the step.
        assert float((got[f"d/d {name}"] * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize("sh_degree", [None, 0, 1, 3])
def test_the_backends_agree_on_many_tiles_and_layers(device, sh_degree):
    case = scene(300, (40, 53), sh_degree=sh_degree)
    case[0][2][:3] *= 40  # huge
    case[0][2][3:6] *= 1e-4  # much smaller than a pixel
    case[0][3][6:60] = 0.99  # pixels end before their list does
    settings = {"sh_degree": sh_degree, "antialiased": sh_degree == 1, "absolute": sh_degree is None}
    want = run(splat, case, device, backend="reference", **settings)
    assert want["alpha"].max() > 0.9998
    # Two ways of summing some hundred terms; dividing by 1 - alpha, 0.001 at the least, loses up to 3 digits.
    same(run(splat, case, device, backend="warp", **settings), want, 1e-11)
    got = run(splat, case, device, torch.float32, backend="warp", **settings)
    same(got, want, 3e-4, skip=("depth", "d/d camera_to_world"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_splat_moved_across_a_tile_border_only_moves(device, backend):
    """Seen from far with a long lens, moving by one pixel moves the picture by one; columns 16 and 32 end tiles."""
    size, distance, lens = 48, 400_000.0, 0.0003
    camera = cast(orbit([0.0], 0.0, distance=distance, fov_degrees=lens, size=size), torch.float64, device)
    pixel = 2 * distance * math.tan(math.radians(float(camera.fov_degrees)) / 2) / size
    pictures, gradients = [], []
    for column in range(12, 36):
        # The camera on +x sees +y to its right.
        place = [0.0, (column - size / 2) * pixel, 0.3 * pixel]
        means = torch.tensor([place], dtype=torch.float64, device=device, requires_grad=True)
        rest = [
            torch.tensor([x], dtype=torch.float64, device=device)
            for x in ([0.9, 0.1, 0.3, 0.2], [3, 1.5, 1], 0.8, [1.0])
        ]
        rest[1] = rest[1] * pixel
        seen = splat(means, *rest, camera, backend=backend)
        picture = seen.features[0, 0].roll(-column, 1)
        (picture[20:28] * torch.arange(size, device=device)).sum().backward()
        pictures.append(picture.detach())
        gradients.append(means.grad)
    for picture, gradient in zip(pictures, gradients, strict=True):
        # So far away the slant towards the side changes the footprint by some millionths.
        torch.testing.assert_close(picture, pictures[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-5, atol=1e-5 * float(gradients[0].abs().max()))
    assert pictures[0].max() > 0.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_of_every_view_are_drawn_as_each_view_alone(device, backend):
    gaussians, cameras, _ = (
        [x.to(device) for x in part] if isinstance(part, list | tuple) else part.to(device)
        for part in scene(40, (20, 18))
    )
    own = torch.stack([gaussians[4], gaussians[4].flip(0)]).requires_grad_()
    both = splat(*gaussians[:4], own, cameras, backend=backend).features
    alone = [splat(*gaussians[:4], own[b], cameras[b : b + 1], backend=backend).features for b in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-12)
    weight = torch.linspace(-1, 1, both.numel(), dtype=both.dtype, device=device).reshape(both.shape)
    got, want = (torch.autograd.grad((x * weight).sum(), own)[0] for x in (both, torch.cat(alone)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert not torch.equal(got[0], got[1])


@pytest.mark.parametrize("width", [1, 17])
def test_any_number_of_features(device, width):
    case = scene(40, (20, 18), width)
    same(run(splat, case, device, backend="warp"), run(splat, case, device, backend="reference"), 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_spread_is_the_sum_of_each_pixels_absolute_gradient(device, backend):
    gaussians, cameras, _ = scene(4, (5, 6))
    gaussians, cameras = [x.to(device) for x in gaussians], cast(cameras, torch.float64, device)
    gaussians[0].requires_grad_()
    seen = splat(*gaussians, cameras, absolute=True, backend=backend)
    total = torch.zeros_like(seen.screen)
    for pixel in seen.features.sum(1).flatten():
        (alone,) = torch.autograd.grad(pixel, seen.screen, retain_graph=True)
        total += alone.abs()
    seen.features.sum().backward()
    torch.testing.assert_close(seen.spread.grad, total, rtol=1e-10, atol=1e-12)  # 30 terms of order 0.1
    assert splat(*gaussians, cameras, backend=backend).spread is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gaussian_lies_where_the_ray_of_its_pixel_passes(device, backend):
    _, cameras, _ = scene(1, (11, 17))  # their rotations were made in float32: orthogonal within 1e-7
    origins, directions = cameras.rays()
    at = [(0, 2, 3), (1, 8, 15)]  # view, row, column
    means = torch.stack([origins[p] + 2.5 * directions[p] for p in at]).to(device)
    turn = torch.tensor([[1.0, 0, 0, 0]] * 2, device=device).double()
    scales, opacities = torch.full((2, 3), 1e-3, device=device).double(), torch.ones(2, device=device).double()
    seen = splat(means, turn, scales, opacities, means, cast(cameras, torch.float64, device), backend=backend)
    for i, (view, row, column) in enumerate(at):
        torch.testing.assert_close(seen.screen[view, i].cpu().tolist(), [column + 0.5, row + 0.5], rtol=0, atol=1e-5)
        along = 2.5 * -(cameras.camera_to_world[view, :, 2] @ directions[view, row, column])
        # Depth is along the camera's axis; the one Gaussian is cut at 0.999.
        torch.testing.assert_close(seen.depth[view, row, column].item(), 0.999 * along.item(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_round_gaussian_is_its_formula(device, backend):
    opacity, deviation, size, distance = 0.7, 0.1, 33, 3.0
    one = torch.ones(1, device=device).double()
    cameras = cast(orbit([0.0], 0.0, distance, 40.0, size), torch.float64, device)
    seen = splat(
        0 * one.expand(1, 3),
        one.expand(1, 4),
        deviation * one.expand(1, 3),
        opacity * one,
        one.expand(1, 3),
        cameras,
        backend=backend,
    )
    variance = (size / 2 / math.tan(math.radians(20)) * deviation / distance) ** 2 + 0.3
    x = torch.arange(size).double() + 0.5 - size / 2
    want = opacity * torch.exp(-(x[:, None] ** 2 + x**2) / (2 * variance))
    want = torch.where(want < 1 / 255, 0.0, want)
    # The camera's direction was made in float32, so z is 3 within 1e-7.
    torch.testing.assert_close(seen.alpha[0].cpu(), want, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        seen.radii.cpu(), torch.full((1, 1), 3 * math.sqrt(variance)).double(), rtol=1e-6, atol=0
    )


def wall(opacities: list[float], depths: list[float], device: str, **settings) -> Splats:
    """Sheets that fill the picture at these distances before a camera; the first three have a channel each."""
    cameras = orbit([0.0], 0.0, 3.0, 40.0, (18, 20)).to(device)
    count = len(depths)
    means = torch.tensor([[3.0 - d, 0.0, 0.0] for d in depths], device=device)
    turn = torch.tensor([[1.0, 0, 0, 0]], device=device).expand(count, 4)
    scales = torch.tensor([[0.0, 1e4, 1e4]], device=device).expand(count, 3)
    opacity = torch.tensor(opacities, device=device).requires_grad_()
    return splat(means, turn, scales, opacity, torch.eye(count, 3, device=device), cameras, **settings)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearer_ones_hide_farther_ones_and_ties_go_by_index(device, backend):
    seen = wall([0.5, 0.25, 0.25], [2.0, 1.0, 2.0], device, backend=backend)
    want = torch.tensor([0.75 * 0.5, 0.25, 0.75 * 0.5 * 0.25])
    for c in range(3):  # one float32 rounding for each layer, and for exp
        torch.testing.assert_close(seen.features[0, c].cpu(), want[c].expand(18, 20), rtol=0, atol=3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pixel_ends_before_the_dark(device, backend):
    # Transmittance after 2 walls of 0.98: 4e-4. A third would leave 8e-6, so it and the fourth are left out.
    seen = wall([0.98, 0.98, 0.98, 0.01], [1.0, 1.1, 1.2, 1.3], device, backend=backend)
    torch.testing.assert_close(seen.alpha.cpu(), torch.full((1, 18, 20), 1 - 4e-4), rtol=0, atol=1e-6)
    assert not seen.features[0, 2:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opacity_beyond_the_cut_has_no_gradient(device, backend):
    for opacity, moves in ((1.0, False), (0.9, True)):
        cameras = orbit([0.0], 0.0, 3.0, 40.0, (18, 20)).to(device)
        one = torch.tensor([opacity], device=device, requires_grad=True)
        sheet = torch.tensor([[0.0, 1e4, 1e4]], device=device)
        turn = torch.tensor([[1.0, 0, 0, 0]], device=device)
        seen = splat(0 * sheet, turn, sheet, one, sheet, cameras, backend=backend)
        (gradient,) = torch.autograd.grad(seen.alpha.sum(), one)
        assert bool(gradient.any()) == moves


@pytest.mark.parametrize("backend", BACKENDS)
def test_antialiasing_keeps_the_light_of_what_is_smaller_than_a_pixel(device, backend):
    pixels, distance, size = 0.4, 3.0, 33
    focal = size / 2 / math.tan(math.radians(20))
    cameras = cast(orbit([0.0], 0.0, distance, 40.0, size), torch.float64, device)
    one = torch.ones(1, device=device).double()
    scales = one.expand(1, 3) * pixels * distance / focal
    seen = splat(0 * scales, one.expand(1, 4), scales, one, scales, cameras, antialiased=True, backend=backend)
    # The integral of the Gaussian before it was widened. What falls under 1/255 of alpha is missing: 1 %.
    assert seen.alpha.sum().item() == pytest.approx(2 * math.pi * pixels**2, rel=0.02)
    peak = pixels**2 / (pixels**2 + 0.3)  # and the centre is a pixel centre
    assert seen.alpha.max().item() == pytest.approx(peak, rel=1e-6)


def test_spherical_harmonics_are_orthonormal(device):
    # Cameras all round: a product of Gauss-Legendre in z and even azimuths integrates degree 6 exactly.
    z, share = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(5))
    azimuth = torch.arange(9).double() * (2 * math.pi / 9)
    ring = (1 - z**2).sqrt()
    xyz = torch.stack([ring[:, None] * azimuth.cos(), ring[:, None] * azimuth.sin(), z[:, None].expand(5, 9)], -1)
    weight = (share[:, None] * (2 * math.pi / 9)).expand(5, 9).reshape(-1)
    xyz = xyz.reshape(-1, 3)
    for backend in (reference, warp_kernel):
        values = []
        for k in range(16):
            coefficients = torch.zeros(1, 16, 3, dtype=torch.float64, device=device)
            coefficients[0, k] = 0.1  # so small that the clamp at 0 does not cut
            radii = torch.ones(len(xyz), 1, dtype=torch.float64, device=device)
            colours = backend.colour(torch.zeros(1, 3).to(coefficients), coefficients, -2 * xyz.to(device), 3, radii)
            values.append((colours[:, 0, 0].cpu() - 0.5) / 0.1)
        basis = torch.stack(values)
        torch.testing.assert_close((basis * weight) @ basis.T, torch.eye(16).double(), rtol=0, atol=1e-12)
        # The signs and the order of 3DGS files, where the direction is +x, +y, +z (by the three terms of degree 1).
        first = torch.stack([xyz[:, 1], xyz[:, 2], xyz[:, 0]]) * torch.tensor([[-1.0], [1.0], [-1.0]])
        torch.testing.assert_close(basis[1:4], first * math.sqrt(3 / (4 * math.pi)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_colours_below_zero_are_black_and_have_no_gradient(device, backend):
    coefficients = torch.tensor([[[-3.0, 0.0, 3.0]]], device=device, requires_grad=True)
    zero = torch.zeros(1, 3, device=device)
    cameras = orbit([0.0], 0.0, size=9).to(device)
    turn = torch.ones(1, 4, device=device)
    seen = splat(zero, turn, zero + 0.2, zero[:, 0] + 0.5, coefficients, cameras, sh_degree=0, backend=backend)
    assert not seen.features[0, 0].any()
    seen.features.sum().backward()
    assert (coefficients.grad[0, 0] != 0).tolist() == [False, True, True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_seen_leaves_no_trace(device, backend):
    cameras = orbit([0.0], 0.0, 3.0, 40.0, (18, 20)).to(device)
    means = torch.tensor([[3.5, 0, 0], [3.0, 0, 0], [2.995, 0, 0], [0, 50.0, 0], [0, 0, 0], [0, 0, 0]], device=device)
    opacities = torch.tensor([1, 1, 1, 1, 0.0, 0.5 / 255], device=device)
    tensors = [means, torch.ones(6, 4, device=device), torch.full((6, 3), 0.1, device=device), opacities]
    leaves = [x.requires_grad_() for x in (*tensors, torch.rand(6, 3, device=device))]
    seen = splat(*leaves, cameras, background=torch.tensor([[0.25, 0.5, 1.0]], device=device), backend=backend)
    assert not seen.alpha.any()
    assert not seen.radii.any()
    assert not seen.screen.any()
    assert torch.equal(seen.features[0, :, 0, 0].cpu(), torch.tensor([0.25, 0.5, 1.0]))
    (seen.features.sum() + seen.alpha.sum() + seen.depth.sum()).backward()
    assert not any(leaf.grad is not None and leaf.grad.any() for leaf in leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gaussians_and_one_pixel(device, backend):
    for count, size in ((0, (5, 18)), (1, (1, 1))):
        means = torch.zeros(count, 3, device=device, requires_grad=True)
        ones = torch.ones(count, 4, device=device)
        cameras = orbit([0.0, 90.0], 0.0, size=size).to(device)
        seen = splat(means, ones, ones[:, :3], ones[:, 0], ones[:, :3], cameras, backend=backend)
        assert seen.features.shape == (2, 3, *size)
        assert seen.radii.shape == (2, count)
        assert bool(seen.alpha.any()) == (count > 0)
        seen.features.sum().backward()
        assert means.grad.shape == (count, 3)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_points_and_unturned_gaussians_have_finite_gradients(device, backend, antialiased):
    case = scene(3, (9, 9))
    case[0][2][0] = 0.0  # no size at all
    case[0][2][1, 1:] = 0.0  # a line
    case[0][1][2] = 0.0  # a quaternion of no length is no rotation
    got = run(splat, case, device, antialiased=antialiased, backend=backend)
    assert all(value.isfinite().all() for value in got.values())


def test_threads_do_not_change_a_bit_and_two_runs_agree():
    case, threads = scene(200, (40, 53), sh_degree=1), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run(splat, case, "cpu", torch.float32, backend="warp", sh_degree=1, absolute=True))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(value, other[name]) for name, value in results[0].items())


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_orders_of_work_made_for_cuda_give_the_same(monkeypatch, deterministic):
    """Lists by sorting; one item per pixel with atomic sums, or whole tiles in Warp's own vectors: here on a CPU."""
    case = scene(60, (20, 37))
    want = run(splat, case, backend="warp", absolute=True)
    monkeypatch.setattr(warp_kernel, "_by_counting", lambda device: False)
    monkeypatch.setattr(warp_kernel, "_per_pixel", lambda device: not deterministic)
    monkeypatch.setattr(warp_kernel, "_native", lambda device: False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # atomics are plain sums on a CPU
        got = run(splat, case, backend="warp", absolute=True)
    finally:
        torch.set_num_threads(threads)
    same(got, want, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_exponential_holds_through_all_powers_that_count(device, backend, dtype):
    """A sheet upright, edge on: all rows are alike, and fall from 0.99 to 1/255 within 30 columns."""
    size, pixels = 64, 9.0
    focal = size / 2 / math.tan(math.radians(20))
    scales = torch.tensor([[0.0, pixels * 3 / focal, 1e4]], dtype=dtype, device=device)
    turn = torch.tensor([[1.0, 0, 0, 0]], dtype=dtype, device=device)
    cameras = cast(orbit([0.0], 0.0, 3.0, 40.0, size), dtype, device)
    opacity = 0.99 * turn[:, 0]
    seen = splat(0 * scales, turn, scales, opacity, scales, cameras, backend=backend)
    x = torch.arange(size).double() + 0.5 - size / 2
    want = 0.99 * torch.exp(-(x**2) / (2 * (pixels**2 + 0.3)))
    near = want > 1.001 / 255
    assert near.sum() == 60
    # The power, 5.5 at the most, is rounded some 6 times by 6e-8 relative; the exp of float32 is within 1.2e-6. The
    # camera was made in float32.
    got = seen.alpha[0, size // 2].double().cpu()
    torch.testing.assert_close(got[near], want[near], rtol=1e-5 if dtype == torch.float32 else 2e-6, atol=0)


def test_wrong_inputs_are_named():
    gaussians, cameras, background = scene(5, (4, 4))
    with pytest.raises(ValueError, match=r"quaternions \[N, 4\] with N = 5 means and B = 2 cameras; got \(5, 3\)"):
        splat(gaussians[0], gaussians[0], *gaussians[2:], cameras)
    with pytest.raises(ValueError, match=r"features \[N, 9, 3\] for sh_degree=2"):
        splat(*gaussians, cameras, sh_degree=2)
    for wrong in ((5, 0), (3, 5, 3), (2, 4, 3)):
        with pytest.raises(ValueError, match=r"features \[N, C\] or \[B, N, C\], C >= 1,.*got"):
            splat(*gaussians[:4], torch.zeros(wrong).double(), cameras)
    with pytest.raises(ValueError, match=r"background \[B, C\].*got \(1, 3\)"):
        splat(*gaussians, cameras, background=background[:1])
    with pytest.raises(ValueError, match=r"the same for all; got means torch\.float32, quaternions torch\.float64"):
        splat(gaussians[0].float(), *gaussians[1:], cameras)
    with pytest.raises(ValueError, match="degree 0 to 3; got sh_degree=4"):
        splat(*gaussians[:4], torch.zeros(5, 25, 3).double(), cameras, sh_degree=4)
    with pytest.raises(ValueError, match="near > 0; got 0"):
        splat(*gaussians, cameras, near=0.0)
    for i, name in enumerate(INPUTS[:5]):
        for bad in (math.nan, math.inf):
            broken = [x.clone() for x in gaussians]
            broken[i].view(-1)[1] = bad
            with pytest.raises(ValueError, match=f"finite inputs; {name} holds"):
                splat(*broken, cameras)
    huge = [x.clone() for x in gaussians]
    huge[0][:, 0] = 1e308  # finite, though their sum is not
    assert not splat(*huge, cameras).alpha.any()
