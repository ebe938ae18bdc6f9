"""How scenes of Gaussians grow and thin out: density control, and relocation."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dreamkit import frozen
from dreamkit.cameras import Orbit
from dreamkit.errors import InputError, RunError
from dreamkit.export import export_scene
from dreamkit.metrics.compare import psnr
from dreamkit.recipe import Export
from dreamkit.render.mesh import render_mesh
from dreamkit.representations.gaussians import Densify, Gaussians, Points, Relocate
from dreamkit.representations.gaussians.control import Statistics, shared_opacity, shared_scale
from dreamkit.schedule import Linear, Switch, resolve
from dreamkit.state import carried
from dreamkit.streams import Streams
from dreamkit.toybox.world import Thing, mesh_of
from tests.gaussian_scenes import SMALL, VIEWS, adam, scales_of, scene, train

# ---- Densify ---------------------------------------------------------------------------------------------------------


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
    built.render(VIEWS, streams).rgb.sum().backward()
    rows = built.after_step(2, streams)
    after = carried(optimiser, built.parameters(), rows)
    for group in after.param_groups:
        mine, leaf = after.state[group["params"][0]]["exp_avg"], group["params"][0]
        assert leaf is built.cloud.tensors()[group["name"]]
        for new, old in enumerate(rows[group["name"]].tolist()):
            want = before[group["name"]][old] if old >= 0 else torch.zeros_like(mine[new])
            assert torch.equal(mine[new], want)


# ---- Relocate --------------------------------------------------------------------------------------------------------


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


# ---- As a whole ------------------------------------------------------------------------------------------------------


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
        images = built.render(cameras[pick], streams, now=now, background=behind.expand(2, 3, size, size))
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
    done = export_scene(built, spec, tmp_path, {})
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
