"""Pictures of Gaussians: the kernel's own, with the conventions of images.py."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dreamkit.cameras import orbit
from dreamkit.kernels.splat import splat
from dreamkit.render.splats import facing_normals, render_splats, rotations
from dreamkit.streams import Streams

VIEWS = orbit([10.0, 130.0], [20.0, -30.0], size=(20, 24))


def cloud(device="cpu", count=12, terms=4, dtype=torch.float32):
    """Means, quaternions, scales, opacities and harmonics of a few Gaussians that overlap."""
    draw = Streams(3, 0)
    like = torch.zeros((), dtype=dtype, device=device)
    return (
        0.4 * draw.normal("means", (count, 3), like=like),
        draw.normal("turns", (count, 4), like=like),
        torch.exp(0.4 * draw.normal("scales", (count, 3), like=like) - 2),
        draw.uniform("opacities", (count,), like=like),
        0.5 * draw.normal("sh", (count, terms, 3), like=like),
    )


def on(cameras, device, dtype=torch.float32):
    moved = cameras.to(device)
    return replace(moved, camera_to_world=moved.camera_to_world.to(dtype), fov_degrees=moved.fov_degrees.to(dtype))


@pytest.mark.parametrize("terms", [1, 4, 9, 16])
def test_pictures_are_the_kernel_s_over_the_background(device, terms):
    gaussians, views = cloud(device, terms=terms), on(VIEWS, device)
    behind = torch.tensor([[0.2, 0.4, 0.6], [1.0, 0.0, 0.5]], device=device)
    images, kept = render_splats(views, *gaussians, background=behind)
    seen = splat(*gaussians, views, background=behind, sh_degree={1: 0, 4: 1, 9: 2, 16: 3}[terms])
    torch.testing.assert_close(images.rgb, seen.features, rtol=0, atol=1e-6)  # one rounding more
    assert torch.equal(images.alpha[:, 0], seen.alpha)
    assert torch.equal(kept.radii, seen.radii)


def test_normals_change_no_other_picture(device):
    gaussians, views = cloud(device, terms=9), on(VIEWS, device)
    behind = Streams(0, 0).uniform("behind", (2, 3, 20, 24)).to(device)
    plain, _ = render_splats(views, *gaussians, background=behind)
    with_normals, _ = render_splats(views, *gaussians, background=behind, normals=True)
    # The harmonics are summed by torch here, by the kernel there.
    for name in ("rgb", "alpha", "depth"):
        torch.testing.assert_close(getattr(with_normals, name), getattr(plain, name), rtol=1e-5, atol=1e-5)


def test_rotations_turn_as_quaternions_do():
    turns = cloud(dtype=torch.float64)[1]
    w, v = turns[:, :1] / turns.norm(dim=1, keepdim=True), turns[:, 1:] / turns.norm(dim=1, keepdim=True)
    for axis in torch.eye(3, dtype=torch.float64):
        # q (0, axis) q*, multiplied out by hand.
        rest = torch.linalg.cross(v, axis.expand_as(v)) + w * axis
        want = v * (v @ axis)[:, None] + w * rest + torch.linalg.cross(v, rest)
        torch.testing.assert_close(rotations(turns) @ axis, want)
    assert torch.equal(rotations(torch.zeros(1, 4))[0], torch.eye(3))


def disc(device, axis, opacity=0.999):
    """One flat, nearly opaque Gaussian at the origin, its short axis along `axis`."""
    half = math.sqrt(0.5)
    turn = {"x": [half, 0.0, half, 0.0], "z": [1.0, 0.0, 0.0, 0.0]}[axis]
    rows = ([[0.0, 0, 0]], [turn], [[0.3, 0.3, 0.02]])
    return (*(torch.tensor(row, device=device) for row in rows), torch.tensor([opacity], device=device))


def test_normals_are_the_shortest_axis_towards_every_camera(device):
    views = orbit([0.0, 180.0], 25.0, size=9).to(device)
    gaussian = disc(device, "x")
    white = torch.zeros(1, 1, 3, device=device)
    images, _ = render_splats(views, *gaussian, white, background=torch.ones(2, 3, device=device), normals=True)
    middle = images.normal[:, :, 4, 4]
    want = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], device=device) * images.alpha[:, :, 4, 4]
    torch.testing.assert_close(middle, want, rtol=0, atol=1e-5)
    assert images.alpha[:, 0, 4, 4].min() > 0.95
    away = facing_normals(*gaussian[:3], torch.tensor([[-5.0, 0, 0], [5.0, 0, 0]], device=device))
    torch.testing.assert_close(away[:, 0], torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]], device=device), rtol=0, atol=1e-6)


def test_depth_is_the_distance_along_the_ray(device):
    # Seen from straight above, a disc across the axis is the plane z = 0: rays meet it at height / cos(angle).
    views = orbit([0.0], 90.0, distance=2.5, size=15).to(device)
    images, _ = render_splats(
        views, *disc(device, "z"), torch.zeros(1, 1, 3, device=device), background=torch.ones(1, 3, device=device)
    )
    directions = views.rays()[1]
    covered = images.alpha[0, 0] > 0.05
    assert covered.sum() > 20
    want = 2.5 / -directions[0, ..., 2]
    torch.testing.assert_close(images.depth[0, 0][covered], want[covered], rtol=1e-5, atol=0)
    assert (images.depth[0, 0][images.alpha[0, 0] == 0] == 0).all()


def test_gradients_match_finite_differences():
    gaussians = [tensor.requires_grad_() for tensor in cloud(count=5, dtype=torch.float64)]
    views = on(orbit([10.0, 130.0], 20.0, size=7), "cpu", torch.float64)
    behind = torch.full((2, 3), 0.3, dtype=torch.float64)

    def pictures(*values):
        images, _ = render_splats(views, *values, background=behind, normals=True, backend="reference")
        return torch.cat([images.rgb, images.alpha, images.depth * images.alpha, images.normal], 1)

    # The cut at alpha 1/255 makes jumps; over random weights they stay below 1e-4 here, seldom met at all.
    weight = Streams(0, 0).normal("weight", (2, 8, 7, 7)).double()
    (pictures(*gaussians) * weight).sum().backward()
    for number, value in enumerate(gaussians):
        move = Streams(1, 0).normal(f"move{number}", tuple(value.shape), like=value)
        ends = []
        for side in (1e-6, -1e-6):
            moved = [v.detach() + (side * move if i == number else 0) for i, v in enumerate(gaussians)]
            ends.append((pictures(*moved) * weight).sum())
        slope = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close((value.grad * move).sum(), slope, rtol=1e-4, atol=1e-5)


def test_nothing_is_the_background_without_nan(device):
    none = [tensor[:0] for tensor in cloud(device, terms=1)]
    images, _ = render_splats(
        on(VIEWS, device), *none, background=torch.full((2, 3), 0.25, device=device), normals=True
    )
    assert torch.equal(images.rgb, torch.full_like(images.rgb, 0.25))
    for picture in (images.alpha, images.depth, images.normal):
        assert picture.abs().max() == 0
    far = cloud(device, terms=1)
    far[0].add_(100.0).requires_grad_()
    images, _ = render_splats(on(VIEWS, device), *far, background=torch.ones(2, 3, device=device), normals=True)
    (images.rgb.sum() + images.depth.sum() + images.normal.sum()).backward()
    assert F.mse_loss(far[0].grad, torch.zeros_like(far[0])) == 0


def test_bad_shapes_are_refused():
    gaussians = cloud(terms=1)
    with pytest.raises(ValueError, match="background must be"):
        render_splats(VIEWS, *gaussians, background=torch.ones(3))
    with pytest.raises(ValueError, match="1, 4, 9 or 16"):
        render_splats(VIEWS, *gaussians[:4], torch.zeros(12, 5, 3), background=torch.ones(2, 3))
