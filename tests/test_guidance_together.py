"""Rules of priors that see more at once (several views, depth beside colours, a kind), and the learned corrective."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.cameras import Orbit
from dreamkit.diffusion import Level, output_of
from dreamkit.errors import InputError
from dreamkit.guidance import Rule, check, gradient, rules
from dreamkit.guidance.corrective import CorrectivePart
from dreamkit.guidance.estimate import Guided, rescaled
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import NFSD, SDS
from dreamkit.guidance.together import Category, Halves
from dreamkit.guidance.weight import SigmaOverAlpha
from dreamkit.images import Images
from dreamkit.priors import Bell, Condition, Gaussian
from dreamkit.priors.analytic import AnalyticPrior
from dreamkit.recipe import Guide, load
from dreamkit.rehearsal import check_sight, rehearse
from dreamkit.step import seen
from dreamkit.streams import Streams
from tests.looking import (
    BELLS,
    PICTURES,
    RULES,
    AtK,
    G,
    Given,
    S,
    at,
    batch,
    colours,
    conditions_of,
    look,
    prior_of,
    same,
)

TINY = Path(__file__).parent / "data" / "tiny_system.py"


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def analytic(kind: type[AnalyticPrior], channels: int, size: int, bells: tuple[Bell, ...]) -> AnalyticPrior:
    spec = Gaussian(bells, size=size, channels=channels)
    return kind(kind.__name__.lower(), spec, {bell.prompt: (bell,) for bell in bells}, "cpu")


# Views together -----------------------------------------------------------------------------------------------------


class Joint(AnalyticPrior):
    """Four views of one object, N(mean, s^2 C) in every element: eps = k (s^2 C + k^2)^-1 (z / alpha - mean)."""

    capabilities = AnalyticPrior.capabilities | {"joint_views"}
    views = 4
    correlation = torch.eye(4, dtype=torch.float64)

    def network(self, z: Tensor, level: Level, condition: Condition) -> Tensor:
        if len(z) % self.views:
            raise ValueError(f"{len(z)} samples are not objects of {self.views} views")
        objects = level.k.reshape(-1, self.views)
        assert (objects == objects[:, :1]).all(), "the views of an object share a level"
        k, alpha = objects[:, :1, None], level.alpha.reshape(-1, self.views, 1)
        mean = condition.tensors["mean"][:, 0, :, None, None].expand_as(z)
        off = z.reshape(-1, self.views, z[0].numel()) / alpha - mean.reshape(-1, self.views, z[0].numel())
        std = condition.tensors["std"][0, 0]
        matrix = std**2 * self.correlation + k**2 * torch.eye(self.views, dtype=torch.float64)
        eps = (k * torch.linalg.solve(matrix, off)).reshape(z.shape)
        alpha, sigma = level.over(z)
        return output_of(self.parameterization, (z - sigma * eps) / alpha, eps, level)


def joint(row: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)) -> AnalyticPrior:
    """The first row of C, whose others are it turned round."""
    prior = analytic(Joint, 3, 2, BELLS)
    prior.correlation = torch.stack([torch.tensor(row, dtype=torch.float64).roll(i) for i in range(4)])
    return prior


RING = (1.0, 0.5, 0.2, 0.5)
X, N = draw(0, 8, 3, 2, 2), draw(1, 8, 3, 2, 2)
MV = replace(rules.MV_SDS, trust=replace(rules.MV_SDS.trust, scale=G, rescale=0.0))


def mv(rule: Rule, x: Tensor, noise: Tensor, prior: AnalyticPrior, k: float = 0.8) -> Tensor:
    return look(replace(rule, levels=AtK((("main", k),)), noise=Given(noise)), x, prior)


def test_views_that_know_nothing_of_each_other_are_sds_with_weight_k():
    plain = prior_of(size=2, channels=3)
    sds = replace(SDS, trust=Guided(G, against="negative"), weight=SigmaOverAlpha())
    same(mv(MV, X, N, joint()), mv(sds, X, N, plain))


def test_views_of_one_object_are_not_separable_and_objects_are():
    prior = joint(RING)
    whole = mv(MV, X, N, prior)
    same(whole, torch.cat([mv(MV, X[i : i + 4], N[i : i + 4], prior) for i in (0, 4)]))
    changed = X.clone()
    changed[1] += 0.3
    moved = (mv(MV, changed, N, prior) - whole).flatten(1).abs().amax(1)
    assert (moved[:4] > 1e-5).all()  # even the view opposite, which is tied to it through the other two
    assert moved[4:].max() == 0
    with pytest.raises(ValueError, match="objects of 4 views"):
        mv(MV, X[:3], N[:3], prior)


def test_turning_the_ring_of_views_turns_the_gradient_and_swapping_two_does_not():
    prior = joint(RING)
    whole = mv(rules.MV_SDS, X[:4], N[:4], prior)
    same(mv(rules.MV_SDS, X[:4].roll(1, 0), N[:4].roll(1, 0), prior), whole.roll(1, 0))
    swap = [1, 0, 2, 3]
    assert (mv(rules.MV_SDS, X[:4][swap], N[:4][swap], prior) - whole[swap]).abs().max() > 1e-3


def test_a_deviation_is_that_of_all_views_of_an_object():
    level = colours().level_of_k(torch.full((8,), 2.0, dtype=torch.float64))
    cond, mixed = draw(6, 8, 3, 2, 2), 3 * draw(7, 8, 3, 2, 2)
    alpha, sigma = level.over(X)

    def deviation(eps: Tensor) -> Tensor:
        return ((X - sigma * eps) / alpha).reshape(2, -1).std(1)

    same(deviation(rescaled(mixed, cond, X, level, 1.0, views=4)), deviation(cond))
    apart = rescaled(mixed, cond, X, level, 1.0)
    assert (deviation(apart) - deviation(cond)).abs().max() > 1e-3


def test_the_views_of_an_object_share_a_level_and_objects_do_not():
    levels = Uniform(0.02, 0.98)
    t = levels(joint(), 400, Streams(0, 0))["main"].t.reshape(100, 4)
    assert (t == t[:, :1]).all()
    assert len(set(t[:, 0].tolist())) > 80
    assert len(set(levels(colours(), 400, Streams(0, 0))["main"].t.tolist())) > 200  # a prior of single views


def test_cameras_stand_in_groups_round_the_object():
    cameras = Orbit(group=4).sample(8, Streams(0, 0))
    azimuth = cameras.azimuth_degrees.reshape(2, 4)
    turned = (azimuth - azimuth[:, :1]) % 360
    # Azimuths are float32 of up to 540: 6e-5.
    torch.testing.assert_close(turned, torch.tensor([[0.0, 90.0, 180.0, 270.0]]).expand(2, 4), rtol=0, atol=1e-3)
    for values in (cameras.elevation_degrees, cameras.fov_degrees, cameras.positions.norm(dim=-1)):
        grouped = values.reshape(2, 4)
        torch.testing.assert_close(grouped, grouped[:, :1].expand(2, 4), rtol=1e-6, atol=0)
    assert azimuth[0, 0] != azimuth[1, 0]
    with pytest.raises(InputError, match="groups of 4"):
        Orbit(group=4).sample(6, Streams(0, 0))
    with pytest.raises(InputError, match="at least 1"):
        Orbit(group=0)
    stage = load(TINY).stages[0]
    with pytest.raises(InputError, match="multiple of its cameras' group"):
        replace(stage, cameras=Orbit(group=4), batch=3)


def test_a_prior_of_many_views_wants_cameras_in_such_groups():
    recipe = load(TINY)
    stage = recipe.stages[0]
    with pytest.raises(InputError, match=r"cameras.group=4"):
        check_sight(stage.guides[0], stage, joint())
    check_sight(stage.guides[0], replace(stage, cameras=Orbit(group=4), batch=4), joint())


@pytest.mark.parametrize(
    ("rule", "capability"),
    [
        (rules.MV_SDS, "joint_views"),
        (rules.ANPG, "multimodal"),
        (rules.STRUCTURE_SDS, "multimodal"),
        (rules.CATEGORY_SDS, "control"),
    ],
)
def test_a_prior_that_cannot_is_refused_by_name(rule, capability):
    with pytest.raises(InputError, match=f"needs of its prior '{capability}'"):
        check(rule, colours())


# Colours and depth --------------------------------------------------------------------------------------------------


class WithDepth(AnalyticPrior):
    capabilities = AnalyticPrior.capabilities | {"multimodal"}


SIX = (
    Bell("", (0.3, 0.2, 0.1, 0.0, 0.0, 0.0), 0.7),
    Bell("y", (1.1, -0.2, 0.5, 0.6, 0.6, 0.6), 0.5),
    Bell("bad", (-0.5, 0.0, 0.4, -0.3, -0.3, -0.3), 0.6),
)
THREE = tuple(replace(bell, mean=bell.mean[:3]) for bell in SIX)
BOTH, NOISE = draw(2, 3, 6, 4, 4), draw(3, 3, 6, 4, 4)
KS = (0.3, 0.8, 4.0)


def unclamped(depth: float = 1.0) -> Rule:
    return replace(rules.ANPG, post=(Halves(depth),))


def test_anpg_is_nfsd_of_the_colours_and_of_the_depth():
    prior, flat = analytic(WithDepth, 6, 4, SIX), prior_of(THREE, size=4, channels=3)
    g = look(at(unclamped(0.5), KS, NOISE), BOTH, prior)
    same(g[:, :3], look(at(NFSD, KS, NOISE[:, :3]), BOTH[:, :3], flat))
    same(g, look(at(NFSD, KS, NOISE), BOTH, prior) * torch.tensor([1, 1, 1, 0.5, 0.5, 0.5])[:, None, None])


def test_without_depth_it_is_nfsd_of_the_colours_alone():
    g = look(at(unclamped(0.0), KS, NOISE), BOTH, analytic(WithDepth, 6, 4, SIX))
    assert g[:, 3:].abs().max() == 0
    assert g[:, :3].abs().max() > 0.1


def test_anpg_keeps_every_element_within_its_growing_limit():
    prior = analytic(WithDepth, 6, 4, SIX)
    early, late = (look(rules.ANPG, 30 * BOTH, prior, progress=progress) for progress in (0.0, 0.28))
    assert (early.abs().max().item(), late.abs().max().item()) == (1.5, 2.0)


def test_a_difference_of_v_is_alpha_times_that_as_noise():
    """The published code takes v for eps in differences; here they are converted first."""
    spec = Gaussian(SIX, "v", 4, 6)
    prior = WithDepth("v", spec, {bell.prompt: (bell,) for bell in SIX}, "cpu")
    level, conditions = prior.level_of_k(torch.tensor(KS, dtype=torch.float64)), conditions_of(prior, 3)
    v = [prior.network(BOTH, level, conditions[name]) for name in ("prompt", "null")]
    eps = prior.predict(BOTH, level, [conditions[name] for name in ("prompt", "null")])
    same(eps[0] - eps[1], level.alpha.reshape(3, 1, 1, 1) * (v[0] - v[1]))


def test_colours_and_depth_are_shown_together(monkeypatch):
    stage = load(TINY).stages[0]
    guide = replace(stage.guides[0], sees="rgb_depth", rule=rules.ANPG)
    rgb, alpha = torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 8)
    depth = torch.linspace(2, 4, 128).reshape(2, 1, 8, 8)
    picture = seen(Images(rgb, alpha, depth), guide)
    assert picture.shape == (2, 6, 8, 8)
    assert torch.equal(picture[:, :3], rgb)
    assert torch.equal(picture[:, 3:], seen(Images(rgb, alpha, depth), replace(guide, sees="depth")))
    bells = (Bell("", (0.0,) * 6, 1.0), Bell("a red ball", (0.8, -0.8, -0.8, 0.1, 0.1, 0.1), 0.3))
    prior = analytic(WithDepth, 6, 8, bells)
    recipe = replace(load(TINY), stages=(replace(stage, guides=(guide,), steps=2),))
    check_sight(guide, stage, prior)
    rehearse(recipe, {guide.prior: prior}, "a red ball", torch.device("cpu"))


def test_a_prior_is_shown_what_it_looks_at():
    stage = load(TINY).stages[0]
    guide: Guide = stage.guides[0]
    with pytest.raises(InputError, match="looks at rgb_depth"):
        check_sight(guide, stage, analytic(WithDepth, 6, 4, SIX))
    with pytest.raises(InputError, match="looks at rgb, normal or depth"):
        check_sight(replace(guide, sees="rgb_depth"), stage, colours())


# A kind's score -----------------------------------------------------------------------------------------------------


def kinds(rule: Rule, controlled: str, kind: str, x: Tensor = PICTURES) -> Tensor:
    prior = colours()
    conditions = conditions_of(prior, 3) | {
        name: prior.condition([prompt] * 3) for name, prompt in (("layout", controlled), ("category", kind))
    }
    return gradient(at(rule, 0.8, PICTURES.flip(0)), prior, x, conditions, Streams(0, 0)).gradient


def test_without_a_controller_category_sds_is_csd_of_one_scale_less():
    same(kinds(rules.CATEGORY_SDS, "y", "y"), 6.5 * look(at(rules.CSD, 0.8, PICTURES.flip(0)), PICTURES, colours()))


def test_equal_scores_give_nothing():
    alike = replace(rules.CATEGORY_SDS, trust=replace(rules.CATEGORY_SDS.trust, scale=1.0))
    assert kinds(alike, "bad", "bad").abs().max() < 1e-14


def test_the_other_reading_adds_sds_of_the_kind():
    added = replace(rules.CATEGORY_SDS, subtract=Category(added=0.25))
    controlled = replace(SDS, trust=rules.CATEGORY_SDS.trust)
    of_kind = look(at(replace(SDS, trust=Guided(1.0)), 0.8, PICTURES.flip(0)), PICTURES, colours())
    same(kinds(added, "bad", "y"), kinds(controlled, "bad", "y") + 0.25 * of_kind)


def test_a_kind_is_a_prompt_of_its_own():
    prior = colours()
    made = Category("bad").conditions(prior, "y", Orbit().sample(2, Streams(0, 0)), True)["category"]
    assert torch.equal(made.tensors["mean"], prior.condition(["bad"] * 2).tensors["mean"])


# The learned corrective ---------------------------------------------------------------------------------------------


def test_a_fresh_corrective_is_sds():
    sds = replace(SDS, trust=Guided(9.0), weight=SigmaOverAlpha())
    same(look(rules.LMC, PICTURES, colours()), look(sds, PICTURES, colours()))


class Oracle(CorrectivePart):
    """b(x) = E_n x0_prompt(alpha x + sigma n), exact for the Gaussian of the golden table."""

    def blurred(self, x: Tensor, level: Level) -> Tensor:
        return 1.1 + S**2 / (S**2 + level.k.reshape(-1, 1, 1, 1) ** 2) * (x - 1.1)

    def train(self, probe) -> float:
        return 0.0


def test_a_corrective_that_knows_all_leaves_only_the_guidance():
    """E[G] = -w (g - 1) k^2 / (s^2 + k^2) (mean_prompt - mean_null), wherever x is."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    n, w = batch(nodes), torch.as_tensor(weights / np.sqrt(2 * np.pi))
    prior = prior_of()
    part = Oracle(prior, (4,), 0.0, Streams(0, 0))
    for x, k in ((2.0, 1.0), (-1.0, 1.0), (2.0, 3.0), (2.0, 0.2)):
        g = gradient(
            replace(rules.LMC, levels=AtK((("main", k),)), noise=Given(n)),
            prior,
            torch.full_like(n, x),
            conditions_of(prior, 80),
            Streams(0, 0),
            parts={"corrective": part},
        ).gradient
        assert float((w * g.flatten()).sum()) == pytest.approx(-8.0 * k**2 / (S**2 + k**2) * 0.8, abs=1e-9)


def test_a_trained_corrective_blurs_as_the_prior_does():
    """On held-out pictures it is nearer to E x0 than the identity at every level, and the identity at none."""
    prior = prior_of((Bell("", 0.0, 0.5), Bell("y", 0.2, 0.5)), size=4, channels=2)
    part = CorrectivePart(prior, (24, 24), 3e-3, Streams(0, 0))
    condition = prior.condition(["y"] * 64)
    for step in range(300):
        part.fit((0.2 + 0.5 * draw(100 + step, 64, 2, 4, 4)).float(), condition, Streams(0, step))
    x = (0.2 + 0.5 * draw(5, 64, 2, 4, 4)).float()
    for k in (0.1, 0.5, 1.5, 5.0, 12.0):
        level = prior.level_of_k(torch.full((64,), k, dtype=torch.float64))
        want = 0.2 + 0.25 / (0.25 + k**2) * (x - 0.2)
        found, identity = ((one - want).square().mean().item() for one in (part.blurred(x, level).detach(), x))
        # 300 steps of 64 leave a root mean square of less than 0.07; at k = 0.1 the identity is nearly right.
        assert found < max(0.25 * identity, 5e-3)


def test_a_correctives_pictures_are_the_priors_and_never_the_scenes():
    prior, seen = colours(), []
    parts = rules.LMC.parts(prior, Streams(0, -1))
    part = parts["corrective"]
    part.fit = lambda pictures, condition, streams: float(seen.append(pictures) or 0.0)
    rule = replace(rules.LMC, levels=AtK((("main", 50.0),)))
    for x in (7 + PICTURES, -7 + PICTURES):
        gradient(rule, prior, x, conditions_of(prior, 3), Streams(0, 0), parts=parts)
    # At so much noise the estimates, up to 6.5 at this scale, know little of x, which moves by 14.
    torch.testing.assert_close(*seen, rtol=0, atol=0.02 * 14)


def test_a_corrective_goes_on_from_its_state():
    prior = colours()
    one, other = (rules.LMC.parts(prior, Streams(seed, -1)) for seed in (0, 1))

    def step(parts: dict, number: int) -> Tensor:
        return gradient(rules.LMC, prior, PICTURES, conditions_of(prior, 3), Streams(0, number), parts=parts).gradient

    for number in range(2):
        step(one, number)
    other["corrective"].load(copy.deepcopy(one["corrective"].state()))
    for number in range(2, 4):
        assert torch.equal(step(one, number), step(other, number))


@pytest.mark.parametrize("name", ["SDS_ANNEALED", "SDS_DREAMTIME", "ASD", "CDS", "SDI", "VSD", "F_DIV", "LMC"])
def test_whatever_a_rule_asks_views_of_one_object_share_a_level(name):
    """The prior asserts it of every question: also those of second levels, of walks, and of what is trained."""
    for step in range(3):
        assert look(RULES[name], X, joint(RING), step).isfinite().all()


def test_a_teacher_of_views_that_are_seen_together_learns_whole_objects():
    prior, taught = joint(RING), []
    rule = replace(rules.BOOTSTRAPPED_SD, trust=replace(rules.BOOTSTRAPPED_SD.trust, every=1, kept=2, steps=2))
    parts = rule.parts(prior, Streams(0, -1))
    part = parts["bootstrap"]
    part.teacher.fit = lambda pictures, *rest: float(taught.append(pictures) or 0.0)
    for step in range(8):
        gradient(rule, prior, X, conditions_of(prior, len(X)), Streams(0, step), progress=0.0, parts=parts)
        objects = part.pictures.reshape(-1, 4, 3, 2, 2)
        assert len(objects) == min(step + 1, 2)
        for one in taught[-1].reshape(2, 4, 3, 2, 2):
            assert any(torch.equal(one, whole) for whole in objects)
