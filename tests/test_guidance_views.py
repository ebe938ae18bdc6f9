"""Rules that know where each camera stands and where each surface is: Perp-Neg between views, and regions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.cameras import Cameras, orbit, ring
from dreamkit.errors import InputError
from dreamkit.guidance import Rule, check, gradient, rules
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.facing import PerpNegViews
from dreamkit.guidance.geometry import Geometry
from dreamkit.guidance.regions import Only, Region, Regions, masks
from dreamkit.guidance.rules import SDS
from dreamkit.priors import Bell, Condition, Gaussian, Prior, view_conditions
from dreamkit.prompts import EIGHT, ViewWords
from dreamkit.streams import Streams
from tests.looking import AtK, G, Given, ball, same

VIEWS = {
    "front": (1.0, 0.0, 0.2),
    "side": (-0.3, 0.9, 0.1),
    "back": (0.1, -0.4, 0.8),
    "overhead": (0.5, 0.5, 0.5),
}
SIZE = 4


def prior_of_views() -> Prior:
    """A prior to which every side of y is of another colour."""
    sides = (Bell(f"y, {view} view", colour, 0.4) for view, colour in VIEWS.items())
    return Gaussian((Bell("", 0.3, 0.7), Bell("y", 0.1, 0.5), *sides), size=SIZE).load("cpu")


def draw(seed: int, count: int) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wall(cameras: Cameras) -> Geometry:
    """A surface that fills every picture, at the distance of the origin."""
    full = torch.ones(len(cameras), 1, 16, 16, dtype=torch.float64)
    return Geometry(cameras, 3 * full, full)


def look(rule: Rule, x: Tensor, geometry: Geometry, prior: Prior | None = None, words: bool = True) -> Tensor:
    prior, count = prior or prior_of_views(), len(x)
    conditions = view_conditions(prior, "y", ["front"] * count)
    conditions |= rule.conditions(prior, "y", geometry.cameras, words)
    fixed = replace(rule, levels=AtK((("main", 0.8),)), noise=Given(draw(9, 5)[:count]))
    return gradient(fixed, prior, x, conditions, Streams(0, 0), geometry=geometry).gradient


# Perp-Neg between views ---------------------------------------------------------------------------------------------

BETWEEN = replace(SDS, trust=PerpNegViews(G))


@pytest.mark.parametrize(
    ("azimuth", "front", "side"),
    [(0.0, 0.000, -1.574), (89.999, -1.574, 0.000), (90.0, -1.574, -0.001), (180.0, -1.967, -0.394)],
)
def test_the_weights_are_threestudios(azimuth, front, side):
    for turned in (azimuth, -azimuth, azimuth + 360):
        got = PerpNegViews(1.0).weights(torch.tensor([turned]).double(), torch.zeros(1))
        # Three digits of the published implementation; 89.999 stands for the limit from below.
        assert [float(weight) for weight in got] == pytest.approx([front, side], abs=6e-4)


def test_the_weights_are_never_positive_and_vanish_overhead():
    azimuth = torch.linspace(-180, 180, 721).double()
    low, high = (PerpNegViews(1.0).weights(azimuth, torch.full_like(azimuth, at)) for at in (60.0, 60.1))
    assert all((weight <= 0).all() for weight in low)
    assert all((weight == 0).all() for weight in high)


def test_the_prompt_between_two_views_is_a_mix_of_what_they_mean():
    prior = prior_of_views()
    cameras = orbit([0.0, 30.0, -45.0, 90.0, 135.0, 180.0, 20.0], [0.0] * 6 + [70.0])
    made = BETWEEN.conditions(prior, "y", cameras, True)
    parts = [
        {"front": 1.0},
        {"front": 2 / 3, "side": 1 / 3},
        {"front": 0.5, "side": 0.5},
        {"side": 1.0},
        {"side": 0.5, "back": 0.5},
        {"back": 1.0},
        {"overhead": 1.0},
    ]
    want = torch.tensor([[sum(w * VIEWS[v][c] for v, w in part.items()) for c in range(3)] for part in parts])
    # Azimuths are float32: 360 of 6e-8, over 90 degrees.
    torch.testing.assert_close(made["between"].tensors["mean"][:, 0], want.double(), rtol=0, atol=1e-6)
    assert (made["front"].tensors["mean"][:, 0] == torch.tensor(VIEWS["front"], dtype=torch.float64)).all()
    assert (made["side"].tensors["mean"][:, 0] == torch.tensor(VIEWS["side"], dtype=torch.float64)).all()


def test_a_prior_with_eight_words_is_asked_for_the_two_next_to_the_camera(monkeypatch):
    prior, asked = prior_of_views(), []
    monkeypatch.setattr(prior, "view_words", ViewWords(EIGHT, (("low", -90.0), ("high", 30.0))))
    monkeypatch.setattr(prior, "embed", lambda prompt: asked.append(prompt) or Condition({"none": torch.zeros(1, 1)}))
    monkeypatch.setattr(prior, "check_prompt", lambda prompt: None)
    BETWEEN.conditions(prior, "y", orbit([60.0], 0.0), True)
    assert sorted(asked) == ["y, low front left view", "y, low front view", "y, low left side view"]
    asked.clear()
    BETWEEN.conditions(prior, "z", orbit([-100.0], 40.0), True)
    assert sorted(asked) == ["z, high back right view", "z, high front view", "z, high right side view"]
    asked.clear()
    BETWEEN.conditions(prior, "w", orbit([60.0], 70.0), True)
    assert sorted(asked) == ["w, high front view", "w, high left side view", "w, overhead view"]


def test_without_weights_it_is_plain_guidance_between_the_views():
    none = (0.0, 1.0, 0.0)
    rule = replace(SDS, trust=PerpNegViews(G, none, none, none))
    guided = replace(SDS, trust=Guided(G, "between"))
    x, geometry = draw(0, 3), wall(orbit([10.0, 100.0, -60.0], 10.0))
    prior = prior_of_views()
    conditions = view_conditions(prior, "y", ["front"] * 3) | rule.conditions(prior, "y", geometry.cameras, True)
    at = {"levels": AtK((("main", 0.8),)), "noise": Given(draw(9, 3))}
    plain = gradient(replace(guided, **at), prior, x, conditions, Streams(0, 0)).gradient
    same(look(rule, x, geometry), plain)
    assert (look(BETWEEN, x, geometry) - plain).flatten(1).abs().amax(1).min() > 1e-3


def test_a_batch_of_cameras_is_each_camera_alone():
    """The published implementation pairs negatives with the wrong samples when there is more than one."""
    x, cameras = draw(1, 3), orbit([10.0, 100.0, -60.0], 10.0)
    alone = [look(BETWEEN, x[i : i + 1], wall(cameras[i : i + 1])) for i in range(3)]
    # One noise for all, so that every camera meets the same.
    noise = Given(draw(9, 1).expand(3, -1, -1, -1))
    prior = prior_of_views()
    conditions = view_conditions(prior, "y", ["front"] * 3) | BETWEEN.conditions(prior, "y", cameras, True)
    rule = replace(BETWEEN, levels=AtK((("main", 0.8),)), noise=noise)
    whole = gradient(rule, prior, x, conditions, Streams(0, 0), geometry=wall(cameras)).gradient
    same(whole, torch.cat(alone))


def test_each_negative_is_taken_at_right_angles_by_its_own_weight():
    prior, x, cameras = prior_of_views(), draw(3, 1), orbit([70.0], 0.0)
    rule = replace(BETWEEN, levels=AtK((("main", 0.8),)), noise=Given(draw(9, 1)))
    conditions = view_conditions(prior, "y", ["front"]) | rule.conditions(prior, "y", cameras, True)
    level = prior.level_of_k(torch.tensor([0.8], dtype=torch.float64))
    z = level.alpha.reshape(1, 1, 1, 1) * (x + 0.8 * draw(9, 1))
    null, between, front, side = (
        prior.predict(z, level, [conditions[name]])[0] for name in ("null", "between", "front", "side")
    )
    e, total = between - null, between - null
    for eps, r in ((front, 1 - 70 / 90), (side, 70 / 90)):
        other = eps - null
        total = total - (4 * np.exp(-0.5 * r) - 2.426) * (other - (other * e).sum() / (e * e).sum() * e)
    want = (0.8**2 / (1 + 0.8**2)) * (null + G * total - draw(9, 1))
    got = gradient(rule, prior, x, conditions, Streams(0, 0), geometry=wall(cameras)).gradient
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)  # the azimuth is float32


def test_the_negatives_add_nothing_along_the_prompt():
    x, geometry = draw(2, 2), wall(orbit([40.0, 130.0], 10.0))
    none = (0.0, 1.0, 0.0)
    plain = look(replace(SDS, trust=PerpNegViews(G, none, none, none)), x, geometry)
    one = look(replace(SDS, trust=PerpNegViews(1.0, none, none, none)), x, geometry)
    away = look(BETWEEN, x, geometry) - plain
    along = plain - one  # (G - 1) e
    assert ((away * along).flatten(1).sum(1).abs() < 1e-10 * away.flatten(1).norm(dim=1)).all()
    assert away.abs().max() > 1e-3


def test_a_prompt_that_means_what_null_means_is_finite():
    prior = Gaussian((Bell("", 0.3, 0.7), Bell("y", 0.3, 0.7)), size=SIZE).load("cpu")
    assert look(BETWEEN, draw(0, 2), wall(orbit([0.0, 120.0], 0.0)), prior).isfinite().all()


def test_it_wants_view_words_and_the_check_knows_its_conditions():
    with pytest.raises(InputError, match="view_words"):
        BETWEEN.conditions(prior_of_views(), "y", ring(2), False)
    check(rules.SDS_PERP_NEG_VIEWS, prior_of_views())


def test_prompts_are_those_that_were_worded_for_the_view(monkeypatch):
    """Debiased prompts (`Stage.debias`) reach what a rule asks for itself, but not a region's own words."""
    prior, told = prior_of_views(), list[str]()

    def listen(texts: list[str]) -> Condition:
        told.extend(texts)
        return Condition({"mean": torch.zeros(len(texts), 1)})

    monkeypatch.setattr(prior, "condition", listen)
    BETWEEN.conditions(prior, "y", orbit([60.0], 0.0), True, {"side": "w"})
    assert set(told) == {"y, front view", "w, side view"}
    told.clear()
    both = replace(SDS, trust=Regions(G, (Region(), Region("mine"))))
    both.conditions(prior, "y", orbit([90.0], 0.0), True, {"side": "w"})
    assert told == ["w, side view", "mine, side view"]


# Regions ------------------------------------------------------------------------------------------------------------

HALVES = (Region("y", (-2, -2, 0), (2, 2, 2)), Region("y", (-2, -2, -2), (2, 2, 0)))


def test_one_region_of_everything_is_sds():
    x, geometry = draw(0, 3), wall(orbit([0.0, 90.0, 180.0], 0.0))
    prior = prior_of_views()
    conditions = view_conditions(prior, "y", ["front", "side", "back"])
    at = {"levels": AtK((("main", 0.8),)), "noise": Given(draw(9, 3))}
    sds = gradient(replace(SDS, trust=Guided(G), **at), prior, x, conditions, Streams(0, 0)).gradient
    same(look(replace(rules.SEMANTIC_SDS, trust=Regions(G)), x, geometry), sds)


def test_regions_that_share_out_the_picture_sum_to_sds_and_are_a_half_of_it_as_published():
    x, geometry = draw(0, 2), wall(orbit([0.0, 90.0], 0.0))
    whole = look(replace(rules.SEMANTIC_SDS, trust=Regions(G)), x, geometry)
    summed, mean = (
        look(replace(rules.SEMANTIC_SDS, trust=Regions(G, HALVES, total, grow=0)), x, geometry)
        for total in (True, False)
    )
    same(summed, whole)
    same(mean, whole / 2)


def test_nothing_happens_outside_the_regions():
    x, geometry = draw(0, 1), ball(1)
    g = look(replace(rules.SEMANTIC_SDS, trust=Regions(G, HALVES, grow=0)), x, geometry)
    where = masks(geometry, HALVES, x, 0).sum(1, keepdim=True)
    assert 0 < where.sum() < where.numel()
    assert (g * (1 - where)).abs().max() == 0
    assert (g.abs().amax(1, keepdim=True) > 0).double().equal(where)


def test_what_is_above_in_the_world_is_above_in_the_picture():
    upper, lower = masks(ball(1, size=64), HALVES, torch.empty(1, 1, 16, 16), 0)[0]
    assert upper[:5].sum() > 0
    assert lower[11:].sum() > 0
    assert lower[:5].sum() == upper[11:].sum() == 0


def test_a_region_grows_into_the_background_only():
    geometry = ball(2, size=64)
    own, grown = (masks(geometry, HALVES, torch.empty(2, 1, 16, 16), grow) for grow in (0, 2))
    assert own.sum(1).max() == 1
    for mine, other in ((0, 1), (1, 0)):
        assert (grown[:, mine] * own[:, other]).max() == 0
        assert (grown[:, mine] >= own[:, mine]).all()
    background = own.sum(1) == 0
    assert (grown.sum(1)[background] > 0).any()
    # Two cells and no more: what is three cells from the object stays empty.
    near = torch.nn.functional.max_pool2d((~background).float()[:, None], 5, 1, 2)[:, 0]
    assert torch.equal((grown.sum(1) > 0).float(), near)


def test_cells_belong_to_the_first_region_that_holds_them():
    both = (Region("y"), HALVES[0])
    found = masks(ball(1), both, torch.empty(1, 1, 8, 8), 0)
    assert found[0, 0].sum() > 0
    assert found[0, 1].sum() == 0


def test_a_regions_view_words_go_by_its_own_middle():
    """A camera in front of the world stands at the side of a thing in the world's left front corner."""
    prior = prior_of_views()
    aside = Region("y", (2.5, 1.0, -0.5), (3.5, 5.0, 0.5))
    made = Regions(G, (Region("y"), aside)).conditions(prior, "nothing", orbit([0.0], 0.0), True)
    front, side = (torch.tensor(VIEWS[view], dtype=torch.float64) for view in ("front", "side"))
    assert torch.equal(made["region0"].tensors["mean"][0, 0], front)
    assert torch.equal(made["region1"].tensors["mean"][0, 0], side)


def test_a_region_without_a_prompt_takes_the_runs_and_words_may_be_off():
    made = Regions(G, (Region(),)).conditions(prior_of_views(), "y", orbit([0.0], 0.0), False)
    assert made["region0"].tensors["mean"][0, 0].tolist() == pytest.approx([0.1] * 3)
    with pytest.raises(InputError, match="at least one Region"):
        Regions(G, ())


def test_each_region_costs_one_prediction_and_null_another():
    prior = prior_of_views()
    look(replace(rules.SEMANTIC_SDS, trust=Regions(G, HALVES)), draw(0, 2), ball(2), prior)
    assert (prior.samples, prior.calls) == (3 * 2, 1)


def test_only_keeps_the_gradient_of_a_region():
    x, geometry = draw(0, 2), ball(2)
    whole = look(SDS, x, geometry)
    part = look(replace(SDS, post=(Only(HALVES[0]),)), x, geometry)
    same(part, whole * masks(geometry, HALVES[:1], x, 0))
    assert 0 < (part != 0).sum() < part.numel()
