"""Regularisers against closed forms, and their gradients against finite differences in float64."""

import math
from dataclasses import dataclass

import pytest
import torch

from dreamkit import losses
from dreamkit.images import Images, RaySamples
from dreamkit.losses import Weighted
from dreamkit.schedule import Linear, resolve


def pictures(alpha, rgb=None, depth=None, normal=None, samples=None):
    return Images(torch.zeros(1, 3, *alpha.shape[2:]) if rgb is None else rgb, alpha, depth, normal, samples)


def random(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_opacity_is_a_tenth_where_nothing_is_and_about_one_where_opaque():
    alpha = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    assert losses.opacity(pictures(alpha), None).item() == pytest.approx((0.1 + math.sqrt(1.01)) / 2)


@pytest.mark.parametrize(("alpha", "bits"), [(0.5, 1.0), (0.25, 2 - 0.75 * math.log2(3))])
def test_entropy_of_a_coin(alpha, bits):
    assert losses.entropy(pictures(torch.full((1, 1, 2, 2), alpha)), None).item() == pytest.approx(bits)


def test_entropy_at_the_ends_is_almost_nothing_and_its_gradient_finite():
    alpha = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2).requires_grad_()
    value = losses.entropy(pictures(alpha), None)
    value.backward()
    assert 0 <= value.item() < 3e-4  # the cut at 1e-5 leaves 1.8e-4 bits
    assert torch.isfinite(alpha.grad).all()


def test_orientation_punishes_only_what_faces_away():
    direction = torch.tensor([[1.0, 0.0, 0.0]]).expand(3, 3)
    normal = torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    samples = RaySamples(torch.tensor([0.5, 0.25, 0.125]), normal, direction, torch.ones(3), torch.zeros(3, 3))
    got = losses.orientation(pictures(torch.ones(1, 1, 1, 2), samples=samples), None)
    assert got.item() == pytest.approx((0.25 * 1 + 0.125 * 0.36) / 2)  # two rays


def test_orientation_gives_the_weights_no_gradient():
    weight = torch.ones(2, requires_grad=True)
    normal = torch.ones(2, 3, requires_grad=True)
    samples = RaySamples(weight, normal, torch.ones(2, 3), torch.ones(2), torch.zeros(2, 3))
    losses.orientation(pictures(torch.ones(1, 1, 1, 1), samples=samples), None).backward()
    assert weight.grad is None
    assert normal.grad.abs().min() > 0


def test_total_variation_of_a_step_is_its_height_times_its_length():
    picture = torch.zeros(1, 1, 4, 5)
    picture[..., 2:] = 3.0
    # One of the four horizontal differences of every row is 3, no vertical one is.
    assert losses.total_variation(picture).item() == pytest.approx(3 / 4)
    assert losses.total_variation(picture.transpose(2, 3)).item() == pytest.approx(3 / 4)


def test_one_pixel_has_no_variation():
    assert losses.total_variation(torch.ones(1, 3, 1, 1)).item() == 0


def test_smooth_depth_does_not_see_the_edge_of_the_object():
    alpha = torch.ones(1, 1, 2, 4)
    alpha[..., 2:] = 0
    depth = torch.where(alpha > 0, 3.0, 0.0)
    assert losses.smooth_depth(pictures(alpha, depth=depth), None).item() == 0
    depth[..., 0] = 2.0
    # One of three horizontal differences is 1.
    assert losses.smooth_depth(pictures(alpha, depth=depth), None).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["opacity", "entropy", "smooth_rgb", "smooth_depth", "smooth_normal"])
def test_picture_losses_match_finite_differences(name):
    channels = (1, 3, 1, 3)
    inputs = [(0.1 + 0.8 * random(2, c, 3, 4, seed=i)).requires_grad_() for i, c in enumerate(channels)]
    fixed = inputs[0].detach().clone()

    def value(alpha, rgb, depth, normal):
        # smooth_depth takes alpha as a constant, so here it is one.
        images = pictures(fixed if name == "smooth_depth" else alpha, rgb, depth, normal)
        return getattr(losses, name)(images, None) + 0 * (alpha.sum() + rgb.sum() + depth.sum() + normal.sum())

    # gradcheck's own tolerance fits: the inputs stay away from the corners of |x| and of the clamp.
    assert torch.autograd.gradcheck(value, inputs)


def test_orientation_matches_finite_differences():
    normal = (random(6, 3) - 0.3).requires_grad_()
    weight, direction = random(6, seed=1), random(6, 3, seed=2)

    def value(n):
        samples = RaySamples(weight, n, direction, weight, direction)
        return losses.orientation(pictures(torch.ones(1, 1, 2, 1), samples=samples), None)

    assert torch.autograd.gradcheck(value, [normal])


def test_a_nan_is_not_hidden():
    alpha = torch.tensor([0.5, math.nan]).reshape(1, 1, 1, 2)
    assert losses.opacity(pictures(alpha), None).isnan()
    assert losses.entropy(pictures(alpha), None).isnan()


def test_losses_that_look_at_normals_ask_for_them():
    images = pictures(torch.ones(1, 1, 1, 1))
    for loss in (losses.orientation, losses.smooth_normal):
        with pytest.raises(ValueError, match="normals=True"):
            loss(images, None)
        assert losses.needs_normals([Weighted(loss)])
    assert not losses.needs_normals([Weighted(losses.opacity), Weighted(losses.smooth_rgb)])


@dataclass(frozen=True)
class Solid:
    """A scene of two tetrahedra that share a face."""

    vertices: torch.Tensor

    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 4], [3, 1, 4], [2, 3, 4]])

    def triangles(self):
        return self.vertices, self.faces


def double_tetrahedron():
    return (2 * random(5, 3, seed=3) - 1).requires_grad_()


def test_the_laplacian_by_a_loop():
    scene = Solid(double_tetrahedron())
    around = {i: set() for i in range(5)}
    for face in scene.faces.tolist():
        for corner in face:
            around[corner] |= {*face} - {corner}
    want = 0.0
    for vertex, neighbours in around.items():
        middle = sum(scene.vertices[n] for n in neighbours) / len(neighbours)
        want += (middle - scene.vertices[vertex]).norm().item() / 5
    assert losses.laplacian(None, scene).item() == pytest.approx(want)
    # A vertex that no face uses, as of a mesh that was cut, counts for nothing.
    more = Solid(torch.cat([scene.vertices, torch.full((1, 3), 9.0)]))
    assert losses.laplacian(None, more).item() == pytest.approx(want)


def test_normal_consistency_of_a_cube_s_corner_and_of_a_plane():
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    flat = Solid(square)
    object.__setattr__(flat, "faces", torch.tensor([[0, 1, 2], [0, 2, 3]]))
    assert losses.normal_consistency(None, flat).item() == pytest.approx(0, abs=1e-6)
    # Bent by a right angle along the diagonal: the ends of the bend take the mean of both sides.
    bent = Solid(torch.tensor([[0.0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1]]))
    object.__setattr__(bent, "faces", torch.tensor([[0, 1, 3], [1, 0, 2]]))
    a, b = torch.tensor([1.0, -1, 0]) / 2**0.5, torch.tensor([0.0, 0, -1])
    mean = 2**0.5 * a + b  # twice the areas: sqrt 2 and 1
    cosines = [1.0] + [float(side @ mean / mean.norm()) for side in (a, a, b, b)]
    assert losses.normal_consistency(None, bent).item() == pytest.approx(1 - sum(cosines) / 5, abs=1e-6)


@pytest.mark.parametrize("name", ["laplacian", "normal_consistency"])
def test_mesh_losses_match_finite_differences(name):
    def value(vertices):
        return getattr(losses, name)(None, Solid(vertices))

    assert torch.autograd.gradcheck(value, [double_tetrahedron()])


@dataclass(frozen=True)
class Signed:
    """A scene of four distances on a chain of edges."""

    distance: torch.Tensor

    def distances(self):
        return self.distance, torch.tensor([[0, 1], [1, 2], [2, 3]])


def test_signs_that_differ_by_a_loop():
    values = [-0.5, 0.3, 0.0, -2.0]  # 0 counts as outside: the first and the last edge change sign
    distance = torch.tensor(values, dtype=torch.float64, requires_grad=True)

    def entropy(s, outside):
        p = 1 / (1 + math.exp(-s))
        return -math.log(p if outside else 1 - p)

    want = [entropy(-0.5, True) + entropy(0.3, False), entropy(0.0, False) + entropy(-2.0, True)]
    assert losses.sdf_sign(None, Signed(distance)).item() == pytest.approx(sum(want) / 2)
    away = torch.tensor([-0.5, 0.3, 0.1, -2.0], dtype=torch.float64, requires_grad=True)  # from the jump at 0
    assert torch.autograd.gradcheck(lambda d: losses.sdf_sign(None, Signed(d)), [away])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_where_no_signs_differ_the_nearest_to_zero_is_drawn_to_it(sign):
    distance = (sign * torch.tensor([0.5, 0.3, 0.7, 2.0])).requires_grad_()
    value = losses.sdf_sign(None, Signed(distance))
    assert value.item() == pytest.approx(0.3)
    value.backward()
    assert distance.grad.tolist() == [0, sign, 0, 0]


def test_eikonal_is_zero_for_slopes_of_one():
    @dataclass(frozen=True)
    class Sloped:
        lengths: torch.Tensor

        def slopes(self):
            return self.lengths

    assert losses.eikonal(None, Sloped(torch.ones(4))).item() == 0
    assert losses.eikonal(None, Sloped(torch.tensor([1.0, 3.0]))).item() == pytest.approx(2)


def test_a_surface_that_is_gone_costs_nothing():
    gone = Solid(torch.zeros(0, 3, requires_grad=True))
    object.__setattr__(gone, "faces", torch.zeros(0, 3, dtype=torch.int64))
    for loss in (losses.laplacian, losses.normal_consistency):
        value = loss(None, gone)
        value.backward()
        assert value.item() == 0


@pytest.mark.parametrize("name", ["laplacian", "normal_consistency", "sdf_sign", "eikonal"])
def test_losses_on_surfaces_say_what_they_need(name):
    with pytest.raises(ValueError, match=f"{name} needs"):
        getattr(losses, name)(None, object())


def test_a_weight_is_a_factor_and_a_schedule_must_be_resolved():
    images = pictures(torch.zeros(1, 1, 1, 1))
    loss = Weighted(losses.opacity, Linear(0.0, 10.0))
    assert resolve(loss, 0.5)(images, None).item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="resolve"):
        loss(images, None)


def test_needs_normals_sees_through_a_resolved_tuple():
    @dataclass(frozen=True)
    class Stage:
        losses: tuple[Weighted, ...]

    stage = resolve(Stage((Weighted(losses.orientation, Linear(0.0, 1.0)),)), 1.0)
    assert losses.needs_normals(stage.losses)
