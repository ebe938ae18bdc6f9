"""The hash-grid scene: what it shows, what it leaves out, what it remembers."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.representation import LearnedColour, PlainColour, RandomColour, Shading
from dreamkit.schedule import Linear, Switch, resolve
from dreamkit.streams import Streams
from tests.training import descend, redness

SMALL = HashGrid(
    encoding=HashGridShape(levels=3, log2_entries=9, coarsest=4, finest=16),
    hidden=8,
    step=0.12,
    cells=16,
    refresh=2,
)
VIEWS = orbit([10.0, 130.0], 20.0, size=10)


def scene(device="cpu", spec=SMALL, rough=0.0):
    """A scene; `rough` adds noise to its table, so that it is no plain ball."""
    built = spec.build(device, Streams(7, 0))
    table = built.network.table
    with torch.no_grad():
        table += rough * Streams(8, 0).normal("rough", tuple(table.shape), like=table)
    return built


def train(built, steps):
    """A few steps towards a red picture, as the loop would take them."""
    descend(built, steps, VIEWS, lambda images: redness(images).mean())


def test_it_begins_as_a_grey_ball_in_the_middle(device):
    built = scene(device)
    points = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0, 1.0]], device=device)
    want = F.softplus(torch.tensor([10.0, 0.0, -10.0], device=device))
    torch.testing.assert_close(built.density(points), want, rtol=0, atol=1e-3)  # the table begins within 1e-4
    torch.testing.assert_close(built.colour(points), torch.full_like(points, 0.5), rtol=0, atol=1e-3)
    alpha = built.render(VIEWS).alpha
    assert alpha[:, :, 4:6, 4:6].min() > 0.95
    assert alpha[:, :, 0, 0].max() < 0.05


def test_equal_streams_give_equal_bits_and_other_steps_other_views(device):
    def render(seed, step):
        return scene(device, rough=0.3).render(VIEWS, Streams(seed, step))

    one, again, other = render(0, 5), render(0, 5), render(0, 6)
    for name in ("rgb", "alpha", "depth"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert not torch.equal(getattr(one, name), getattr(other, name))


def test_previews_draw_nothing(device):
    built = scene(device, rough=0.3)
    assert torch.equal(built.render(VIEWS).rgb, built.render(VIEWS).rgb)


@pytest.mark.parametrize("background", [RandomColour(), LearnedColour()])
def test_a_loaded_scene_goes_on_bit_for_bit(background):
    # Opaque, and resumed between two looks at the cells: then what the grids remember shows in the picture.
    spec = replace(SMALL, background=background, blob_strength=300.0, refresh=4)
    whole = scene(spec=spec, rough=0.3)
    train(whole, range(3))
    state = {name: tensor.clone() for name, tensor in whole.state().items()}
    resumed = spec.build("cpu", Streams(99, 0))
    kept = [id(p) for group in resumed.parameters() for p in group["params"]]
    resumed.load(state)
    assert kept == [id(p) for group in resumed.parameters() for p in group["params"]]  # the optimiser holds them
    for built in (whole, resumed):
        train(built, range(3, 7))
    assert torch.equal(whole.render(VIEWS).rgb, resumed.render(VIEWS).rgb)
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_a_state_is_a_copy():
    built = scene()
    state = built.state()
    train(built, range(1))
    assert not torch.equal(state["table"], built.state()["table"])


def test_another_specification_s_state_is_refused():
    with pytest.raises(ValueError, match="not a state"):
        scene().load(scene(spec=replace(SMALL, hidden=4)).state())
    with pytest.raises(ValueError, match="not a state"):
        scene().load({"table": scene().state()["table"]})


def test_empty_cells_cost_less_of_the_picture_than_promised(device):
    built = scene(device, rough=1.0)
    full = built.render(VIEWS)
    for step in range(8):
        built.after_step(step, Streams(0, step))
    culled = built.render(VIEWS)
    assert 0.02 < built.occupied.float().mean() < 0.5
    assert len(culled.samples.weight) < 0.6 * len(full.samples.weight)
    # At most `empty` of density over a chord of 2 sqrt 3; a hidden sample adds 1e-3.
    bound = 1 - math.exp(-SMALL.empty * 2 * 3**0.5) + 1e-3
    for name in ("rgb", "alpha"):
        assert (getattr(full, name) - getattr(culled, name)).abs().max() < bound


def test_what_is_called_opaque_is_at_least_that_dense(device):
    built = scene(device, spec=replace(SMALL, blob_strength=60.0))
    built.after_step(0, Streams(0, 0))
    points = 2 * torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)).to(device) - 1
    cells = ((points + 1) * (SMALL.cells / 2)).long()
    surely = built.thinnest[cells[:, 0], cells[:, 1], cells[:, 2]]
    # The ball is convex: of the 27 looks around a point one is further out. The table adds 1e-4.
    assert (surely <= built.density(points) + 1e-3).all()
    assert surely.max() > 15.0


def test_what_grows_is_found_again_and_what_went_is_forgotten(device):
    built = scene(device)
    built.after_step(0, Streams(0, 0))
    assert not built.occupied[0, 0, 0]
    built.remembered[0, 0, 0] = 1.0
    for step in range(2, 40, 2):
        built.after_step(step, Streams(0, step))
        if step == 2:
            assert built.occupied[0, 0, 0]
            assert built.occupied[1, 1, 1]  # and its neighbours
    assert not built.occupied[0, 0, 0]
    with torch.no_grad():  # a fog everywhere
        built.spec = replace(built.spec, blob_strength=0.0)
    built.after_step(40, Streams(0, 40))
    assert built.occupied.all()


def test_a_scene_that_is_thin_everywhere_is_not_emptied(device):
    built = scene(device, spec=replace(SMALL, blob_strength=0.0, empty=100.0), rough=1.0)
    built.after_step(0, Streams(0, 0))
    assert built.occupied.float().mean() > 0.5


def test_cells_are_looked_at_only_when_it_is_time():
    built = scene()
    built.after_step(1, Streams(0, 1))
    assert built.remembered.abs().max() == 0


def test_no_occupied_cell_gives_the_background(device):
    built = scene(device)
    built.occupied.zero_()
    images = built.render(VIEWS, Streams(0, 0), background=(0.2, 0.4, 0.6), normals=True)
    assert images.alpha.abs().max() == 0
    assert torch.equal(images.rgb[:, 1], torch.full_like(images.rgb[:, 1], 0.4))
    (images.rgb.sum() + images.depth.sum() + images.normal.sum()).backward()
    for group in built.parameters():
        for parameter in group["params"]:
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_a_nan_is_seen_also_after_the_cells_were_looked_at(device):
    built = scene(device)
    with torch.no_grad():
        built.network.table[:] = math.nan
    for step in range(12):
        assert built.render(VIEWS).rgb.isnan().any(), step
        built.after_step(step, Streams(0, step))


@pytest.mark.parametrize("kind", ["albedo", "textureless", "lambertian"])
def test_gradients_match_finite_differences(kind):
    built = scene(rough=0.5)
    for name in ("table", "hidden", "output"):
        setattr(built.network, name, getattr(built.network, name).detach().double().requires_grad_())
    built.thinnest = built.thinnest.double()
    views = orbit([10.0, 130.0], 20.0, size=5)
    views = replace(views, camera_to_world=views.camera_to_world.double(), fov_degrees=views.fov_degrees.double())
    mix = Streams(3, 0)

    def value():
        images = built.render(views, Streams(0, 0), shading=kind, normals=True)
        parts = {"rgb": images.rgb, "alpha": images.alpha, "depth": images.depth, "normal": images.normal}
        return sum((mix.normal(name, tuple(x.shape), like=x) * x).sum() for name, x in parts.items())

    value().backward()
    small = 1e-6
    for name, parameter in zip(("table", "hidden", "output"), built.network.weights, strict=True):
        move = mix.normal(name, tuple(parameter.shape), like=parameter)
        with torch.no_grad():
            parameter += small * move
            above = value()
            parameter -= 2 * small * move
            below = value()
            parameter += small * move
        slope = (parameter.grad * move).sum()
        # The central difference errs by small^2 and rounding / small, both near 1e-9; ReLU corners may be crossed.
        torch.testing.assert_close((above - below) / (2 * small), slope, rtol=1e-4, atol=1e-6)


def test_normals_of_the_first_ball_point_outward(device):
    built = scene(device)
    images = built.render(VIEWS, normals=True)
    normal = F.normalize(images.normal[:, :, 4:6, 4:6].mean((2, 3)), dim=-1)
    towards = F.normalize(VIEWS.positions.to(device), dim=-1)
    assert (normal * towards).sum(-1).min() > 0.99
    points = F.normalize(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), dim=-1).to(device) * 0.5
    # The taps err by their distance, 0.02, times the curvature's off-diagonal terms, at most 0.5 / 0.5.
    torch.testing.assert_close(built._normal(points), 2 * points, rtol=0, atol=0.022)


def test_unlit_views_never_pay_for_normals(device, monkeypatch):
    built = scene(device)
    monkeypatch.setattr(built, "_normal", lambda points: pytest.fail("normals were computed"))
    images = built.render(VIEWS, Streams(0, 0))
    assert images.normal is None
    assert images.samples.normal is None


def test_clay_shows_no_colour_and_lit_views_are_darker(device):
    built = scene(device, rough=1.0)
    black = {"background": (0.0, 0.0, 0.0)}
    albedo, clay, lit = (built.render(VIEWS, shading=s, **black) for s in ("albedo", "textureless", "lambertian"))
    assert (clay.rgb.amax(1) - clay.rgb.amin(1)).max() < 1e-6
    assert (albedo.rgb.amax(1) - albedo.rgb.amin(1)).max() > 0.1
    assert (lit.rgb <= albedo.rgb + 1e-6).all()  # ambient 0.1 + diffuse 0.9 is at most 1
    assert lit.rgb.mean() < 0.95 * albedo.rgb.mean()


def test_kinds_of_light_come_as_often_as_asked_after_a_warm_up():
    shading = Shading(albedo=Switch(1.0, 0.25, 0.1), textureless=Switch(0.0, 0.375, 0.1))
    early, late = (resolve(shading, progress) for progress in (0.05, 0.5))
    assert {early.choose(Streams(0, step)) for step in range(50)} == {"albedo"}
    drawn = [late.choose(Streams(0, step)) for step in range(2000)]
    for name, share in (("albedo", 0.25), ("textureless", 0.375), ("lambertian", 0.375)):
        assert drawn.count(name) / 2000 == pytest.approx(share, abs=0.04)  # four standard deviations
    with pytest.raises(ValueError, match="resolve"):
        shading.choose(Streams(0, 0))


def test_the_light_stands_near_the_camera_and_at_it_in_previews():
    views = orbit([0.0] * 500, 0.0)
    exact = Shading().light("lambertian", views, None)
    assert torch.equal(exact.position, views.positions)
    drawn = Shading().light("lambertian", views, Streams(0, 0)).position
    assert 0.8 * 3 - 1e-4 <= drawn.norm(dim=-1).min() <= drawn.norm(dim=-1).max() <= 1.5 * 3 + 1e-4
    assert F.normalize(drawn, dim=-1)[:, 0].mean() > 0.5
    assert (drawn[:, 0] < 0).float().mean() < 0.2


@torch.no_grad()
def test_a_picture_that_draws_nothing_is_near_the_mean_of_training_views(device):
    """Much nearer than a training view is, whose few samples stand anywhere: here of a sharp and grainy ball."""
    built = scene(device, replace(SMALL, blob_strength=80.0), rough=2.0)
    white = {"shading": "albedo", "background": (1.0, 1.0, 1.0)}
    views = torch.stack([built.render(VIEWS, Streams(0, step), **white).rgb for step in range(200)])
    mean = views.mean(0)
    picture = (built.render(VIEWS, **white).rgb - mean).square().mean()
    assert picture < 0.25 * (views - mean).square().mean()  # half the distance between samples, at most half the error


def test_training_backgrounds_change_and_preview_s_does_not(device):
    built = scene(device)
    corners = torch.stack([built.render(VIEWS, Streams(0, s)).rgb[:, :, 0, 0] for s in range(3)])
    assert len({tuple(c.tolist()) for c in corners.reshape(-1, 3)}) == 6
    assert (built.render(VIEWS).rgb[:, :, 0, 0] - 1).abs().max() < 0.05


def test_plain_and_given_backgrounds(device):
    built = scene(device, spec=replace(SMALL, background=PlainColour((0.0, 0.0, 1.0))))
    built.occupied.zero_()
    blue = built.render(VIEWS, Streams(0, 0)).rgb
    assert torch.equal(blue[0, :, 3, 3].cpu(), torch.tensor([0.0, 0.0, 1.0]))
    given = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(built.render(VIEWS, background=given).rgb, given)


def test_random_backgrounds_are_grey_as_often_as_asked():
    colours = RandomColour(grey=0.5).draw(1000, Streams(0, 0))
    grey = (colours.amax(1) == colours.amin(1)).float().mean().item()
    assert grey == pytest.approx(0.5, abs=0.07)  # four standard deviations


def test_a_learned_background_learns_where_it_is_shown(device):
    built = scene(device, spec=replace(SMALL, background=LearnedColour(random=0.0, rate=0.5)))
    group = built.parameters()[-1]
    assert (group["name"], group["lr"]) == ("background", 0.5)
    corner = built.render(VIEWS, Streams(0, 0)).rgb[:, :, 0, 0]
    torch.testing.assert_close(corner, torch.full_like(corner, 0.5), rtol=0, atol=0.02)
    corner.sum().backward()
    assert group["params"][0].grad.min() > 0


def test_learning_rates_follow_their_schedules():
    spec = replace(SMALL, table_rate=Linear(1.0, 3.0))
    built = scene(spec=spec)
    assert [g["lr"] for g in built.parameters(resolve(spec, 0.5))] == [2.0, SMALL.network_rate]
    assert built.parameters()[0]["lr"] == 3.0
    with pytest.raises(ValueError, match="resolve"):
        built.parameters(spec)


def test_density_and_colour_take_any_number_of_points(device, monkeypatch):
    built = scene(device, rough=1.0)
    points = 2 * torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).to(device) - 1
    density, colour = built._field(points)
    assert not built.density(points).requires_grad
    monkeypatch.setattr("dreamkit.representations.network.POINTS_AT_ONCE", 7)
    # The same sums; matrix products of other sizes may round differently.
    torch.testing.assert_close(built.density(points), density.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(built.colour(points), colour.detach(), rtol=1e-5, atol=1e-6)
    assert built.density(points[:0]).shape == (0,)
    assert built.colour(points[:0]).shape == (0, 3)


def test_big_previews_are_rendered_in_chunks_and_look_the_same(device, monkeypatch):
    built = scene(device, rough=1.0)
    whole = built.render(VIEWS)
    monkeypatch.setattr("dreamkit.representations.hashgrid.RAYS_AT_ONCE", 33)
    with torch.no_grad():
        parts = built.render(VIEWS)
    assert parts.samples is None
    # As above.
    torch.testing.assert_close(parts.rgb, whole.rgb.detach(), rtol=1e-5, atol=1e-5)


def test_it_learns_a_colour(device):
    built = scene(device, spec=replace(SMALL, network_rate=1e-2))
    middle = slice(4, 6)
    train(built, range(30))
    red, green, blue = built.render(VIEWS).rgb[:, :, middle, middle].mean((0, 2, 3))
    assert red > 0.7
    assert max(green, blue) < 0.3


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="step > 0"):
        HashGrid(step=0.0)
    with pytest.raises(InputError, match="forget"):
        HashGrid(forget=1.0)


def test_nothing_is_outside_the_radius_and_the_fog_stands_where_it_should():
    spec = HashGrid(radius=0.4)
    scene = spec.build("cpu", Streams(0, -1))
    points = torch.tensor([[0.0, 0.0, 0.0], [0.39, 0.0, 0.0], [0.0, 0.41, 0.0]])
    centre, inside, outside = scene.density(points).tolist()
    assert centre > 9  # softplus(10), and the fresh network adds less than a thousandth
    assert inside == pytest.approx(2.3, abs=0.1)  # softplus(10 (1 - 0.39 / 0.5))
    assert outside < 1e-20


def test_numbers_that_were_added_to_another_blob_are_another_scene():
    built, other = (replace(SMALL, blob_strength=strength).build("cpu", Streams(0, 0)) for strength in (5.0, 10.0))
    with pytest.raises(ValueError, match="another scene"):
        other.load(built.state())
