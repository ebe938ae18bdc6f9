"""The scene of 3D Gaussians: what it shows, how it grows and thins out, what it remembers, its volume."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dreamkit import frozen
from dreamkit.assets.compare import psnr, silhouette_iou
from dreamkit.cameras import Orbit, orbit
from dreamkit.errors import InputError, RunError
from dreamkit.export import export
from dreamkit.kernels.splat import splat
from dreamkit.meshes import Mesh, coloured
from dreamkit.recipe import Export
from dreamkit.render.mesh import render_mesh
from dreamkit.render.splats import facing_normals
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.gaussians import Densify, File, Gaussians, Points, Relocate, field
from dreamkit.representations.gaussians.control import Statistics, shared_opacity, shared_scale
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.representation import LearnedColour, PlainColour, Volume
from dreamkit.schedule import Linear, Switch, resolve
from dreamkit.state import carried
from dreamkit.streams import Streams
from dreamkit.toybox.world import Thing, mesh_of

SMALL = Gaussians(count=40, opacity=0.5, strategy=None, background=PlainColour((0.0, 0.0, 0.0)))
VIEWS = orbit([10.0, 130.0], 20.0, size=20)


def scene(device="cpu", spec=SMALL, rough=0.5):
    """A scene, no longer a grey ball of round Gaussians."""
    built = spec.build(device, Streams(7, 0))
    draw = Streams(8, 0)
    with torch.no_grad():
        for name, tensor in built.cloud.tensors().items():
            if name != "means":
                tensor += rough * draw.normal(name, tuple(tensor.shape), like=tensor)
    built._keep_limits()
    return built


def train(built, optimiser, steps, count=2):
    """Steps towards a red picture, as the loop takes them; returns the optimiser."""
    for step in steps:
        streams, now = Streams(1, step), resolve(built.spec, step / 20)
        images = built.render(VIEWS[:count], streams, now=now, training=True)
        red = torch.tensor([1.0, 0, 0], device=images.rgb.device)[:, None, None]
        optimiser.zero_grad()
        (((images.rgb - red) ** 2).sum() + images.alpha.sum()).backward()
        optimiser.step()
        rows = built.after_step(step, streams)
        if rows is not None:
            optimiser = carried(optimiser, built.parameters(now), rows)
    return optimiser


def adam(built):
    return torch.optim.Adam([dict(group) for group in built.parameters()], eps=1e-15)


def scales_of(built):
    return built.cloud.scales.detach()


# ---- Pictures ------------------------------------------------------------------------------------------------------


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
    assert torch.equal(built.render(VIEWS).rgb, built.render(VIEWS, Streams(3, 4)).rgb)
    one, again, other = (built.render(VIEWS, Streams(0, step), training=True).rgb for step in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_light_is_refused():
    with pytest.raises(InputError, match="cannot be lit"):
        scene().render(VIEWS, shading="lambertian")
    assert torch.equal(scene().render(VIEWS, shading="albedo").rgb, scene().render(VIEWS).rgb)
    with pytest.raises(ValueError, match="streams"):
        scene().render(VIEWS, training=True)


@pytest.mark.parametrize("name", ["means", "log_scales", "quaternions", "opacity_logits", "dc"])
def test_a_number_that_is_not_finite_is_seen_and_nothing_raises(name):
    built = scene(spec=replace(SMALL, strategy=Densify(begin=0, every=1)))
    with torch.no_grad():
        getattr(built.cloud, name)[3] = math.nan
    images = built.render(VIEWS, Streams(0, 0), training=True, normals=True)
    for picture in (images.rgb, images.alpha, images.depth, images.normal):
        assert picture.isnan().all()
    images.rgb.sum().backward()  # the loop finds the loss not finite only after this
    built.after_step(0, Streams(0, 0))


# ---- Parameters, limits, state -------------------------------------------------------------------------------------


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


# ---- What was seen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
def test_statistics_are_the_screen_gradients_of_this_step_s_renders(device, absolute):
    built = scene(device, replace(SMALL, strategy=Densify(begin=1000, absolute=absolute)))
    wide = orbit([10.0, 130.0, 250.0], 20.0, size=(20, 30))
    weight = Streams(0, 0).normal("weight", (3, 3, 20, 30)).to(device)
    built.render(VIEWS, Streams(0, 4), training=True).rgb.sum().backward()  # a step that was given up
    streams = Streams(0, 5)
    first = built.render(wide, streams, training=True)
    with torch.no_grad():
        built.render(VIEWS, streams, training=True)
    built.render(VIEWS)
    second = built.render(VIEWS, streams, training=True, normals=True)
    built.render(VIEWS, streams, training=True)  # without a gradient
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


# ---- Densify -------------------------------------------------------------------------------------------------------


def grown(built, strategy, gradient, reach=None, views=1.0, step=49, streams=None):
    """What a strategy makes of a scene's cloud and these statistics; the change."""
    zeros = torch.zeros(len(built.cloud))
    seen = Statistics(torch.as_tensor(gradient), zeros + views, zeros if reach is None else torch.as_tensor(reach))
    cloud = built.cloud.each(torch.Tensor.detach)
    return strategy(cloud, seen, step, 1e-3, streams or Streams(2, step))


def test_cloning_copies_the_small_ones_with_the_largest_gradients():
    built = scene()
    gradient = torch.arange(40.0).flip(0)
    # Over 30 are the rows 0 to 8; a tenth of 40 may be doubled: 0, 1, 2 and 3.
    change = grown(built, Densify(gradient=30.0, growth=0.1, clone_below=9.0, prune_opacity=0.0), gradient)
    assert change.rows["means"].tolist() == [*range(40), -1, -1, -1, -1]
    for name, tensor in change.cloud.tensors().items():
        old = built.cloud.tensors()[name]
        if name == "opacity_logits":
            o = torch.sigmoid(old)
            assert torch.equal(tensor[4:40], old[4:])
            twice = torch.sigmoid(tensor[:4])
            torch.testing.assert_close(1 - (1 - twice) ** 2, o[:4], rtol=1e-5, atol=0)
            assert torch.equal(tensor[40:], tensor[:4])
        else:
            assert torch.equal(tensor, torch.cat([old, old[:4]]))
    # Over 37 are three only; and a mean over the views, not a sum, counts.
    assert (
        len(grown(built, Densify(gradient=36.5, growth=0.2, clone_below=9.0, prune_opacity=0.0), gradient).cloud) == 43
    )
    assert len(grown(built, Densify(gradient=36.5, growth=0.2, prune_opacity=0.0), gradient, views=2.0).cloud) == 40


def test_splitting_draws_two_from_a_large_one():
    built = scene()
    gradient = torch.zeros(40)
    gradient[[3, 30]] = 1.0
    streams = Streams(2, 49)
    change = grown(built, Densify(growth=0.2, clone_below=1e-3, prune_opacity=0.0), gradient, streams=streams)
    stay = [i for i in range(40) if i not in (3, 30)]
    assert change.rows["dc"].tolist() == [*stay, -1, -1, -1, -1]
    draw = streams.normal("split", (4, 3)).double().numpy()
    old = {name: tensor.detach().double().numpy() for name, tensor in built.cloud.tensors().items()}
    for child, parent in enumerate([3, 30, 3, 30]):
        w, x, y, z = old["quaternions"][parent]
        turned = Rotation.from_quat([x, y, z, w]).apply(np.exp(old["log_scales"][parent]) * draw[child])
        row = change.cloud.each(lambda tensor, child=child: tensor[38 + child])
        np.testing.assert_allclose(row.means, old["means"][parent] + turned, atol=1e-5)
        np.testing.assert_allclose(row.scales, np.exp(old["log_scales"][parent]) / 1.6, rtol=1e-5)
        for name in ("quaternions", "opacity_logits", "dc"):
            np.testing.assert_allclose(row.tensors()[name], old[name][parent], rtol=1e-6)


def test_pruning_removes_what_is_faint_large_or_wide_on_the_screen():
    built = scene()
    with torch.no_grad():
        built.cloud.opacity_logits[5] = math.log(0.019 / 0.981)
        built.cloud.opacity_logits[6] = math.log(0.021 / 0.979)
        built.cloud.log_scales[7, 1] = math.log(0.31)
        built.cloud.log_scales[8, 1] = math.log(0.29)
    reach = torch.zeros(40)
    reach[9], reach[10] = 0.6, 0.4
    strategy = Densify(growth=0.0, prune_opacity=0.02, prune_scale=0.3, prune_reach=0.5)
    change = grown(built, strategy, torch.ones(40), reach)
    assert change.rows["means"].tolist() == [i for i in range(40) if i not in (5, 7, 9)]
    assert torch.equal(change.cloud.means, built.cloud.means[change.rows["means"]])
    # Rows of the old cloud, also where something is pruned before and grown after it.
    gradient = torch.zeros(40)
    gradient[20] = 1.0
    change = grown(built, replace(strategy, growth=0.1, clone_below=9.0), gradient, reach)
    assert change.rows["means"].tolist() == [*[i for i in range(40) if i not in (5, 7, 9)], -1]
    assert torch.equal(change.cloud.dc[-1], built.cloud.dc[20])


def test_pruning_what_is_too_faint_to_be_drawn_keeps_the_picture(device):
    spec = replace(SMALL, strategy=Densify(begin=0, every=1, growth=0.0, prune_opacity=1 / 256))
    built = scene(device, spec)
    with torch.no_grad():
        built.cloud.opacity_logits[::3] = -6.0
    before = built.render(VIEWS)
    built.after_step(0, Streams(0, 0))
    assert len(built.cloud) == 26
    after = built.render(VIEWS)
    for name in ("rgb", "alpha", "depth"):
        assert torch.equal(getattr(before, name), getattr(after, name))


def test_opacities_are_reset_and_their_statistics_forgotten():
    built = scene()
    change = grown(built, Densify(begin=1000, reset_every=50, reset_opacity=0.3), torch.ones(40))
    torch.testing.assert_close(change.cloud.opacities, built.cloud.opacities.clamp(max=0.3))
    assert change.rows["means"].tolist() == list(range(40))
    assert change.rows["opacity_logits"].tolist() == [-1] * 40


def test_densifying_has_its_time_its_bounds_and_a_phase_that_only_prunes():
    built, ones = scene(), torch.ones(40)
    strategy = Densify(begin=20, every=10, growth=Switch(0.5, 0.0, 0.5), prune_opacity=0.0)
    early, late = resolve(strategy, 0.2), resolve(strategy, 0.7)
    assert [grown(built, early, ones, step=step) is not None for step in (9, 10, 18, 19, 20, 29)] == [
        *(False, False, False, True, False, True)
    ]
    assert len(grown(built, early, ones).cloud) == 60
    assert len(grown(built, late, ones).cloud) == 40
    assert len(grown(built, replace(early, max_count=47), ones).cloud) == 47
    assert len(grown(built, replace(early, max_count=10), ones).cloud) == 40  # more at the start than may grow


def test_a_scene_without_gaussians_stops_the_run_with_a_reason():
    built = scene(spec=replace(SMALL, strategy=Densify(begin=0, every=1, prune_opacity=0.999)))
    with pytest.raises(RunError, match="no Gaussian is left after step 7: all 40"):
        built.after_step(7, Streams(0, 7))
    assert len(built.cloud) == 40


def test_the_optimiser_s_statistics_follow_their_gaussians():
    built = scene(spec=replace(SMALL, strategy=Densify(begin=0, every=3, clone_below=9.0, growth=0.1)))
    optimiser = train(built, adam(built), range(2))
    before = {g["name"]: optimiser.state[g["params"][0]]["exp_avg"].clone() for g in optimiser.param_groups}
    streams = Streams(1, 2)
    built.render(VIEWS, streams, training=True).rgb.sum().backward()
    rows = built.after_step(2, streams)
    after = carried(optimiser, built.parameters(), rows)
    for group in after.param_groups:
        mine, leaf = after.state[group["params"][0]]["exp_avg"], group["params"][0]
        assert leaf is built.cloud.tensors()[group["name"]]
        for new, old in enumerate(rows[group["name"]].tolist()):
            want = before[group["name"]][old] if old >= 0 else torch.zeros_like(mine[new])
            assert torch.equal(mine[new], want)


# ---- Relocate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opacity", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("copies", [1, 2, 3, 17])
def test_shared_opacity_and_scale_preserve_a_gaussian_s_integral_and_its_middle(opacity, copies):
    """Eq. 9: what N copies show, 1 - (1 - o' g')^N, has the middle and the line integral of o g."""
    o, n = torch.tensor([opacity]), torch.tensor([copies])
    new = torch.sigmoid(shared_opacity(o, n).double()).item()
    narrower = shared_scale(o, n).item()
    assert 1 - (1 - new) ** copies == pytest.approx(opacity, rel=1e-4)  # float32 logits
    x = np.linspace(-12, 12, 20_001)
    together = 1 - (1 - new * np.exp(-(x**2) / (2 * narrower**2))) ** copies
    assert np.trapezoid(together, x) == pytest.approx(opacity * math.sqrt(2 * math.pi), rel=1e-4)


def test_relocating_puts_what_is_faint_on_what_is_there_and_keeps_the_picture(device):
    spec = replace(SMALL, strategy=Relocate(begin=0, every=1, growth=0.0, noise=0.0, dead=0.01))
    built = scene(device, spec)
    with torch.no_grad():
        built.cloud.opacity_logits[:10] = -6.0
    old = built.cloud.each(lambda tensor: tensor.detach().clone())
    before = built.render(VIEWS)
    rows = built.after_step(0, Streams(0, 0))["means"].tolist()
    assert len(built.cloud) == 40
    sources = [(old.means[10:] == mean).all(1).nonzero().item() + 10 for mean in built.cloud.means.detach()[:10]]
    assert {i for i, row in enumerate(rows) if row < 0} == {*range(10), *sources}
    # Equal along every line through a middle, so nearly so in pixels.
    assert psnr(before.rgb.detach(), built.render(VIEWS).rgb.detach()) > 30
    for source in set(sources):
        copies = 1 + sources.count(source)
        shared = 1 - (1 - old.opacities[source].item()) ** (1 / copies)
        assert built.cloud.opacities[source].item() == pytest.approx(shared, rel=1e-4)


def test_more_are_drawn_where_there_is_more_opacity():
    built = scene()
    with torch.no_grad():
        built.cloud.opacity_logits[:] = -8.0
        built.cloud.opacity_logits[4], built.cloud.opacity_logits[9] = math.log(3), math.log(1 / 3)  # 3/4 and 1/4
    found = [
        (grown(built, Relocate(growth=1.0, noise=0.0), torch.zeros(40), streams=Streams(s, 0)).cloud.means)
        for s in range(5)
    ]
    drawn = torch.cat([torch.cat([means[:4], means[5:9], means[10:]]) for means in found])
    of_four = (drawn == built.cloud.means[4]).all(1).float().mean().item()
    of_nine = (drawn == built.cloud.means[9]).all(1).float().mean().item()
    assert of_four + of_nine == pytest.approx(1.0, abs=0.01)  # the faint ones have 1.3 % together, and are moved first
    assert of_four == pytest.approx(0.75, abs=0.09)  # four standard deviations
    assert len(grown(built, Relocate(growth=0.1, max_count=43), torch.zeros(40)).cloud) == 43


def test_only_what_is_faint_explores_and_along_its_own_axes():
    built = scene()
    with torch.no_grad():
        built.cloud.opacity_logits[::2] = -7.0
        built.cloud.opacity_logits[1::2] = 0.0
    before, streams = built.cloud.means.detach().clone(), Streams(2, 3)
    grown(built, Relocate(noise=4e3), torch.zeros(40), step=3, streams=streams)
    moved = (built.cloud.means.detach() - before).double().numpy()
    assert np.abs(moved[1::2]).max() < 1e-7
    draw = streams.normal("explore", (40, 3)).double().numpy()
    for i in range(0, 40, 2):
        w, x, y, z = built.cloud.quaternions[i].tolist()
        turn = Rotation.from_quat([x, y, z, w]).as_matrix()
        sigma = turn @ np.diag(scales_of(built)[i].double().numpy() ** 2) @ turn.T
        freedom = 1 / (1 + math.exp(-100 * (0.005 - built.cloud.opacities[i].item())))
        np.testing.assert_allclose(moved[i], 4e3 * 1e-3 * freedom * sigma @ draw[i], rtol=1e-3, atol=1e-6)


# ---- The volume ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 8, 64])
def test_density_and_colour_are_sums_over_all_gaussians(device, cells, monkeypatch):
    monkeypatch.setattr(field, "CELLS", cells)
    monkeypatch.setattr(field, "PAIRS", 500)
    built = scene(device)
    assert isinstance(built, Volume)
    points = (2 * Streams(4, 0).uniform("points", (300, 3)) - 1) * 0.8
    cloud = built.cloud.each(lambda tensor: tensor.detach().double().cpu())
    want = torch.zeros(300, 4, dtype=torch.float64)
    for i in range(40):
        w, x, y, z = cloud.quaternions[i].tolist()
        scale = cloud.scales[i].clamp(min=0.01)
        turn = torch.as_tensor(Rotation.from_quat([x, y, z, w]).as_matrix())
        square = (((points.double() - cloud.means[i]) @ turn) / scale).square().sum(1)
        peak = -math.log(1 - min(cloud.opacities[i].item(), 0.999)) / (math.sqrt(2 * math.pi) * scale.min())
        share = torch.where(square < 3.4**2, peak * torch.exp(-square / 2), 0.0)
        colour = (0.5 + cloud.dc[i] / math.sqrt(4 * math.pi)).clamp(0, 1)
        want += share[:, None] * torch.cat([torch.ones(1, dtype=torch.float64), colour])
    density, colour = built.density(points).cpu().double(), built.colour(points).cpu().double()
    assert (want[:, 0] > 0).sum() > 100
    torch.testing.assert_close(density, want[:, 0], rtol=1e-4, atol=1e-5)  # float32 sums
    there = want[:, 0] > 1e-6
    torch.testing.assert_close(colour[there], want[there, 1:] / want[there, :1], rtol=1e-3, atol=1e-3)
    assert not built.density(points).requires_grad


def test_outside_there_is_nothing_and_colour_is_the_nearest_one_s(device):
    built = scene(device)
    away = torch.tensor([[5.0, 0.0, 0.0], [0.9, 0.9, 0.9]])
    assert built.density(away).abs().max() == 0
    nearest = (built.cloud.means.detach().cpu()[None] - away[:, None]).norm(dim=2).argmin(1)
    want = (0.5 + built.cloud.dc.detach().cpu()[nearest] / math.sqrt(4 * math.pi)).clamp(0, 1)
    torch.testing.assert_close(built.colour(away).cpu(), want)
    assert built.density(away[:0]).shape == (0,)
    assert built.colour(away[:0]).shape == (0, 3)


def test_a_ray_along_the_shortest_axis_loses_as_much_as_in_splatting():
    flat = replace(SMALL, start=Points(((0.0, 0.0, 0.0),)), opacity=0.7, anisotropy=20.0)
    built = flat.build("cpu", Streams(0, 0))
    with torch.no_grad():
        built.cloud.log_scales[:] = torch.tensor([0.2, 0.2, 0.03]).log()
    z = torch.linspace(-0.5, 0.5, 4001)
    line = built.density(torch.stack([0 * z, 0 * z, z], 1)).double()
    # What lies beyond 3.4 deviations is 0.07 % of the optical depth.
    assert 1 - math.exp(-float(torch.trapezoid(line, z.double()))) == pytest.approx(0.7, abs=1e-3)
    above = built.render(orbit([0.0], 90.0, size=101))
    assert above.alpha[0, 0, 50, 50].item() == pytest.approx(0.7, abs=1e-3)


def test_the_volume_follows_the_optimiser():
    built = scene()
    points = built.cloud.means.detach().clone()
    before = built.density(points)
    assert torch.equal(built.density(points), before)
    optimiser = torch.optim.Adam([dict(group) for group in built.parameters()], fused=True)
    built.render(VIEWS, Streams(0, 0), training=True).rgb.sum().backward()
    optimiser.step()
    assert not torch.equal(built.density(points), before)


# ---- From other things ---------------------------------------------------------------------------------------------


def test_it_starts_from_points():
    held = Points(((0.0, 0, 0), (0.1, 0, 0), (0.0, 0.2, 0)), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
    built = Gaussians(start=held, opacity=0.3).build("cpu", Streams(0, 0))
    assert torch.equal(built.cloud.means.detach(), torch.tensor(held.points))
    torch.testing.assert_close(
        built.colour(torch.tensor(held.points)).argmax(1), torch.tensor([0, 1, 2])
    )  # neighbours mix in
    torch.testing.assert_close(scales_of(built)[1], torch.full((3,), math.sqrt((0.1**2 + 0.1**2 + 0.2**2) / 2)))
    with pytest.raises(InputError, match="as many"):
        Points(((0.0, 0, 0),), ((1.0, 0, 0), (1.0, 0, 0)))
    with pytest.raises(InputError, match="0 points"):
        Points(())


def test_it_starts_from_files(tmp_path):
    import trimesh

    places = np.array([[0.1, 0.2, 0.3], [-0.3, 0.1, 0.0], [0.2, -0.2, 0.1]])
    shades = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]], np.uint8)
    trimesh.PointCloud(places, shades).export(tmp_path / "points.ply")
    built = Gaussians(start=File(str(tmp_path / "points.ply"))).build("cpu", Streams(0, 0))
    torch.testing.assert_close(built.cloud.means.detach(), torch.as_tensor(places).float())
    torch.testing.assert_close(
        0.5 + built.cloud.dc[1].detach() / math.sqrt(4 * math.pi), torch.tensor([1 / 512, 1.0, 1 / 512])
    )

    trimesh.creation.box((1.0, 0.6, 0.4)).export(tmp_path / "box.ply")
    built = Gaussians(start=File(str(tmp_path / "box.ply")), count=200).build("cpu", Streams(0, 0))
    outside = (built.cloud.means.detach().abs() / torch.tensor([0.5, 0.3, 0.2])).amax(1)
    # Two deviations under a face; near an edge another face may be nearer.
    assert 0.6 < outside.min() < outside.max() < 1
    with pytest.raises(InputError, match="there is no file"):
        Gaussians(start=File(str(tmp_path / "none.ply"))).build("cpu", Streams(0, 0))
    (tmp_path / "broken.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    with pytest.raises(InputError, match="points"):
        Gaussians(start=File(str(tmp_path / "broken.ply"))).build("cpu", Streams(0, 0))


@pytest.mark.parametrize("suffix", ["ply", "glb"])
def test_it_starts_from_its_own_splats(tmp_path, suffix):
    from dreamkit.assets.splats import write_splats

    built = scene(spec=replace(SMALL, sh_degree=1))
    write_splats(built.splats(), tmp_path / f"scene.{suffix}")
    spec = replace(SMALL, start=File(str(tmp_path / f"scene.{suffix}")))
    again = replace(spec, sh_degree=1).build("cpu", Streams(0, 0))
    for name, tensor in built.cloud.tensors().items():
        wanted = torch.nn.functional.normalize(tensor) if (name, suffix) == ("quaternions", "glb") else tensor
        torch.testing.assert_close(again.cloud.tensors()[name], wanted, rtol=1e-5, atol=1e-5)  # GLB rounds
    assert spec.build("cpu", Streams(0, 0)).cloud.rest.shape == (40, 0, 3)  # higher degrees are left out


class Ball:
    """A scene that is a surface, red above and blue below."""

    def __init__(self):
        import trimesh

        ball = trimesh.creation.icosphere(subdivisions=3, radius=0.6)
        self.ball = Mesh(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int32))

    def mesh(self):
        return self.ball

    def colour(self, points):
        above = (points[:, 2:] > 0).float()
        return torch.cat([above, 0 * above, 1 - above], 1)

    def unused(self, *given, **settings):
        raise AssertionError("a surface says all that is needed")

    render = parameters = after_step = state = load = unused


def test_it_starts_from_a_surface(device):
    built = replace(SMALL, count=3000).from_scene(Ball(), device, Streams(0, 0))
    views = orbit([0.0, 120.0], 0.0, size=80)
    seen = built.render(views)
    true = render_mesh(coloured(Ball().ball, (1.0, 0.0, 0.0)), views)
    assert (
        silhouette_iou(seen.alpha, true.alpha.to(device)) > 0.93
    )  # the screen's blur of 0.3 pixels^2 is a third of a pixel all round
    top, bottom = seen.rgb[:, :, 20, 40], seen.rgb[:, :, 59, 40]
    assert (top[:, 0] > 0.9).all()
    assert (bottom[:, 2] > 0.9).all()
    outward = torch.nn.functional.normalize(built.cloud.means.detach(), dim=1)
    shape = (built.cloud.means, built.cloud.quaternions, built.cloud.scales)
    axis = facing_normals(*shape, views.positions[0].to(device)).detach()
    assert (axis * outward).sum(1).abs().min() > 0.99


def test_it_starts_from_a_volume_and_from_its_kind(device):
    fog = HashGrid(blob_strength=60.0, blob_radius=0.6).build(device, Streams(0, 0))
    built = replace(SMALL, count=2000, antialiased=True).from_scene(fog, device, Streams(0, 0))
    views = orbit([0.0, 120.0], 10.0, size=96)
    assert silhouette_iou(built.render(views).alpha, fog.render(views).alpha) > 0.9
    assert (built.colour(built.cloud.means.detach()) - 0.5).abs().max() < 0.02
    again = built.spec.from_scene(built, device, Streams(0, 0))
    assert torch.equal(again.render(views).rgb, built.render(views).rgb)
    assert again.cloud.means is not built.cloud.means
    with pytest.raises(InputError, match="neither"):
        SMALL.from_scene(Canvas().build("cpu", Streams(0, 0)), "cpu", Streams(0, 0))


# ---- As a whole ----------------------------------------------------------------------------------------------------


def fitted(spec, steps=120):
    """A scene fitted to pictures of the world's blue car, and pictures it was not fitted to with its own."""
    mesh, size = mesh_of(Thing("car", "blue")), 48
    cameras = Orbit(size=size).sample(24, Streams(5, 0))
    shown = render_mesh(mesh, cameras, background=(0.0, 0.0, 0.0))
    built = spec.build("cpu", Streams(0, -1))
    optimiser = adam(built)
    for step in range(steps):
        streams, now = Streams(0, step), resolve(spec, step / steps)
        pick = (24 * streams.uniform("pick", (2,))).long()
        behind = streams.uniform("behind", (2, 3))[:, :, None, None]
        images = built.render(
            cameras[pick], streams, now=now, training=True, background=behind.expand(2, 3, size, size)
        )
        wanted = shown.rgb[pick] + (1 - shown.alpha[pick]) * behind
        optimiser.zero_grad()
        (images.rgb - wanted).square().mean().backward()
        for group, fresh in zip(optimiser.param_groups, built.parameters(now), strict=True):
            group["lr"] = fresh["lr"]
        optimiser.step()
        rows = built.after_step(step, streams)
        if rows is not None:
            optimiser = carried(optimiser, built.parameters(now), rows)
    others = Orbit(size=size).sample(6, Streams(6, 0))
    with torch.no_grad():
        return built, psnr(built.render(others, background=(1.0,) * 3).rgb, render_mesh(mesh, others).rgb)


FEW = Gaussians(count=150, strategy=None, means_rate=6e-3, scale_rate=2e-2, colour_rate=3e-2)


def test_densifying_sees_what_the_first_gaussians_cannot_and_becomes_a_mesh(tmp_path):
    _, few = fitted(FEW)
    built, more = fitted(replace(FEW, strategy=Densify(begin=20, every=20, growth=0.5)))
    assert len(built.cloud) > 500
    assert more > few + 2.0
    assert more > 22.5
    spec = Export(grid_resolution=64, face_budget=4000, texture_size=256, turntable_seconds=0)
    done = export(built, spec, tmp_path, {})
    assert done.agreement.iou > 0.9
    assert done.agreement.psnr > 22.0


def test_a_specification_is_json_and_bad_numbers_are_refused():
    for spec in (Gaussians(), Gaussians(strategy=Relocate(noise=Linear(1.0, 0.0)), start=Points(((0.0, 0, 1),)))):
        assert frozen.read(json.loads(json.dumps(frozen.write(spec, "spec"))), "spec") == spec
    bad = [
        ({"count": 0}, "count > 0"),
        ({"opacity": 1.0}, "between 0 and 1"),
        ({"sh_degree": 4}, "degree 0 to 3"),
        ({"smallest": 0.5}, "smallest <= largest"),
        ({"scale_rate": -1.0}, "scale_rate"),
    ]
    for changes, words in bad:
        with pytest.raises(InputError, match=words):
            Gaussians(**changes)
    with pytest.raises(InputError, match="every"):
        Densify(every=0)
    with pytest.raises(InputError, match="growth"):
        Densify(growth=-0.1)
    with pytest.raises(InputError, match="dead"):
        Relocate(dead=1.0)
