"""The scene of 3D Gaussians: what it shows, what it remembers, what it sees of itself."""

import math
from dataclasses import replace

import pytest
import torch

from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.images import Images
from dreamkit.kernels.splat import splat
from dreamkit.representations.gaussians import Densify, Gaussians, Relocate
from dreamkit.representations.gaussians.scene import mean_opacity, mean_scale
from dreamkit.representations.representation import LearnedColour
from dreamkit.schedule import Linear, resolve
from dreamkit.streams import Streams
from tests.gaussian_scenes import SMALL, VIEWS, adam, scales_of, scene, train

# ---- Pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 2])
def test_it_shows_what_the_kernel_draws(device, degree):
    built = scene(device, replace(SMALL, sh_degree=degree))
    cloud = built.cloud
    features = torch.cat([cloud.dc[:, None], cloud.rest], 1)
    behind = torch.tensor([[0.1, 0.2, 0.3]] * 2, device=device)
    shape = (cloud.means, cloud.quaternions, cloud.log_scales.exp(), torch.sigmoid(cloud.opacity_logits))
    seen = splat(*shape, features, VIEWS.to(device), background=behind, sh_degree=degree)
    images = built.render(VIEWS, background=(0.1, 0.2, 0.3))
    torch.testing.assert_close(images.rgb, seen.features.clamp(0, 1), rtol=0, atol=1e-6)  # one rounding
    assert torch.equal(images.alpha[:, 0], seen.alpha)


def test_it_begins_as_a_grey_ball(device):
    built = Gaussians(count=300, ball=0.4).build(device, Streams(0, -1))
    far = built.cloud.means.norm(dim=1)
    assert 0.38 < far.max() <= 0.4
    assert (far**3 / 0.4**3).mean().item() == pytest.approx(0.5, abs=0.07)  # uniform; four standard deviations
    assert torch.equal(built.cloud.opacities, torch.full_like(far, 0.1))
    means = built.cloud.means.detach().cpu().double()
    apart = torch.cdist(means, means).sort(dim=1).values[:, 1:4].square().mean(1).sqrt()
    torch.testing.assert_close(scales_of(built).cpu(), apart.float()[:, None].expand(-1, 3), rtol=1e-4, atol=0)
    torch.testing.assert_close(built.colour(built.cloud.means.detach()), torch.full((300, 3), 0.5, device=device))


def test_harmonics_come_in_one_degree_after_another():
    spec = replace(SMALL, sh_degree=2, sh_active=Linear(0.0, 3.0))
    built = scene(spec=spec)

    def shown(progress):
        return built.render(VIEWS, now=resolve(spec, progress)).rgb

    low = scene(spec=replace(spec, sh_degree=0))
    assert torch.equal(shown(0.2), low.render(VIEWS).rgb)
    assert not torch.equal(shown(0.4), shown(0.2))
    assert not torch.equal(shown(0.7), shown(0.4))
    assert torch.equal(shown(0.7), shown(1.0))


def test_previews_draw_nothing_and_training_views_are_theirs_bit_for_bit(device):
    built = scene(device, replace(SMALL, background=LearnedColour()))
    assert torch.equal(built.render(VIEWS).rgb, built.render(VIEWS).rgb)
    one, again, other = (built.render(VIEWS, Streams(0, step)).rgb for step in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_light_is_refused():
    with pytest.raises(InputError, match="cannot be lit"):
        scene().render(VIEWS, shading="lambertian")
    assert torch.equal(scene().render(VIEWS, shading="albedo").rgb, scene().render(VIEWS).rgb)


@pytest.mark.parametrize("name", ["means", "log_scales", "quaternions", "opacity_logits", "dc"])
def test_a_number_that_is_not_finite_is_seen_and_nothing_raises(name):
    built = scene(spec=replace(SMALL, strategy=Densify(begin=0, every=1)))
    with torch.no_grad():
        getattr(built.cloud, name)[3] = math.nan
    images = built.render(VIEWS, Streams(0, 0), normals=True)
    for picture in (images.rgb, images.alpha, images.depth, images.normal):
        assert picture.isnan().all()
    images.rgb.sum().backward()  # the loop finds the loss not finite only after this
    built.after_step(0, Streams(0, 0))


# ---- Parameters, limits, state ---------------------------------------------------------------------------------------


def test_groups_have_rates_of_their_own():
    spec = replace(SMALL, sh_degree=1, background=LearnedColour(rate=0.7), means_rate=Linear(1.0, 3.0))
    built = scene(spec=spec)
    groups = built.parameters(resolve(spec, 0.5))
    assert [group["name"] for group in groups] == [*built.cloud.tensors(), "background"]
    assert [group["lr"] for group in groups] == [2.0, 5e-3, 5e-3, 5e-2, 5e-3, 5e-4, 0.7]
    assert all(group["params"][0].is_leaf and group["params"][0].requires_grad for group in groups)
    assert "rest" not in {group["name"] for group in scene().parameters()}
    with pytest.raises(ValueError, match="resolve"):
        built.parameters(spec)


def test_limits_hold_after_every_step(device):
    spec = replace(SMALL, radius=0.6, smallest=0.01, largest=0.1, anisotropy=3.0)
    built = scene(device, spec)
    with torch.no_grad():
        built.cloud.means.mul_(3)
        built.cloud.log_scales.mul_(2)
        built.cloud.dc.mul_(9)
    before = {name: tensor.clone() for name, tensor in built.cloud.tensors().items()}
    built.after_step(0, Streams(0, 0))
    scales = scales_of(built)
    assert built.cloud.means.norm(dim=1).max() <= 0.6 + 1e-6
    assert (scales.amax(1) / scales.amin(1)).max() <= 3.0 + 1e-4
    assert 0.01 - 1e-6 <= scales.min() <= scales.max() <= 0.1 + 1e-6
    colour = built.colour(built.cloud.means.detach())
    assert 0 < colour.min() < 0.1 < 0.9 < colour.max() <= 1
    inside = before["means"].norm(dim=1) < 0.6
    assert torch.equal(built.cloud.means[inside], before["means"][inside])
    torch.testing.assert_close(  # pulled straight back
        torch.nn.functional.normalize(built.cloud.means), torch.nn.functional.normalize(before["means"])
    )


@pytest.mark.parametrize("strategy", [Densify(begin=0, every=3, clone_below=0.1), Relocate(begin=0, every=3)])
def test_a_loaded_scene_goes_on_bit_for_bit_over_changes_of_number(strategy):
    spec = replace(SMALL, strategy=strategy, background=LearnedColour())
    whole = scene(spec=spec)
    optimiser = train(whole, adam(whole), range(5))
    assert len(whole.cloud) != 40
    state = {name: tensor.clone() for name, tensor in whole.state().items()}
    saved = optimiser.state_dict()
    copied = {"state": {k: {n: v.clone() for n, v in s.items()} for k, s in saved["state"].items()}}
    resumed = spec.build("cpu", Streams(99, 0))
    resumed.load(state)
    other = adam(resumed)
    other.load_state_dict(saved | copied)
    for built, own in ((whole, optimiser), (resumed, other)):
        train(built, own, range(5, 11))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    assert torch.equal(whole.render(VIEWS).rgb, resumed.render(VIEWS).rgb)


def test_a_state_is_a_copy_and_another_s_is_refused():
    built = scene()
    state = built.state()
    train(built, adam(built), range(1))
    assert not torch.equal(state["means"], built.state()["means"])
    with pytest.raises(ValueError, match="not a state"):
        built.load(scene(spec=replace(SMALL, sh_degree=1)).state())
    with pytest.raises(ValueError, match="not a state"):
        built.load(state | {"dc": state["dc"][:7]})
    with pytest.raises(ValueError, match="not a state"):
        built.load({"means": state["means"]})


# ---- What was seen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
def test_statistics_are_the_screen_gradients_of_this_step_s_renders(device, absolute):
    built = scene(device, replace(SMALL, strategy=Densify(begin=1000, absolute=absolute)))
    wide = orbit([10.0, 130.0, 250.0], 20.0, size=(20, 30))
    weight = Streams(0, 0).normal("weight", (3, 3, 20, 30)).to(device)
    built.render(VIEWS, Streams(0, 4)).rgb.sum().backward()  # a step that was given up
    streams = Streams(0, 5)
    first = built.render(wide, streams)
    with torch.no_grad():
        built.render(VIEWS, streams)
    built.render(VIEWS)
    second = built.render(VIEWS, streams, normals=True)
    built.render(VIEWS, streams)  # without a gradient
    ((first.rgb * weight).sum() / 3 + second.alpha.sum() / 2).backward()
    built.after_step(5, streams)

    want, seen = torch.zeros(40, device=device), torch.zeros(40, device=device)
    cloud = built.cloud
    for views, weights in ((wide, weight), (VIEWS, None)):
        for b in range(len(views)):
            view = views[b : b + 1].to(device)
            shape = (cloud.means, cloud.quaternions, cloud.scales, cloud.opacities)
            found = splat(*shape, cloud.dc[:, None], view, sh_degree=0, absolute=absolute)
            # The loss of this view alone; a black background adds nothing.
            loss = found.alpha.sum() if weights is None else (found.features * weights[b]).sum()
            if absolute:
                loss.backward()
                pull = found.spread.grad[0]
            else:
                pull = torch.autograd.grad(loss, found.screen)[0][0]
            want += torch.hypot(pull[:, 0] * views.width / 2, pull[:, 1] * views.height / 2)
            seen += found.radii[0] > 0
    torch.testing.assert_close(built.state()["seen/gradient"], want, rtol=1e-3, atol=1e-3)  # other orders of sums
    assert torch.equal(built.state()["seen/views"], seen)
    assert 0 < built.state()["seen/reach"].max() < 3


def test_the_losses_of_mcmc_are_means_over_all_gaussians():
    built = Gaussians(count=30).build("cpu", Streams(0, 0))
    nothing = Images(*(torch.zeros(1, 1, 1, 1),) * 3)
    with torch.no_grad():
        built.cloud.log_scales.add_(torch.linspace(-1, 1, 90).reshape(30, 3))
        built.cloud.opacity_logits.add_(torch.linspace(-2, 2, 30))
    opacity = sum(1 / (1 + math.exp(-logit)) for logit in built.cloud.opacity_logits.tolist()) / 30
    scale = sum(math.exp(log) for row in built.cloud.log_scales.tolist() for log in row) / 90
    assert mean_opacity(nothing, built).item() == pytest.approx(opacity, rel=1e-5)  # float32
    assert mean_scale(nothing, built).item() == pytest.approx(scale, rel=1e-5)
