"""Rules that train something, edit in place or push apart: what they equal for known parts, and their memory."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.diffusion import Level, output_of
from dreamkit.errors import InputError
from dreamkit.guidance import Rule, check, gradient
from dreamkit.guidance.discriminator import WEIGHTS, Divergence
from dreamkit.guidance.estimate import Drawn, Guided, Nothing, Plain
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.localized import Gated, Localized, Retries
from dreamkit.guidance.mapper import Mapped
from dreamkit.guidance.networks import Trained
from dreamkit.guidance.repulsion import Repelled
from dreamkit.guidance.rule import Part
from dreamkit.guidance.rules import BOOTSTRAPPED_SD, CSD, ESD, F_DIV, LG_VSD, LUSD, RSD, SDS, VDM, VSD
from dreamkit.guidance.student import Student, StudentPart
from dreamkit.guidance.weight import One, Weight
from dreamkit.nest import flatten, unflatten
from dreamkit.priors import Bell, Condition, Prior
from dreamkit.priors.analytic import AnalyticPrior
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
    ball,
    batch,
    colours,
    conditions_of,
    plain,
    prior_of,
    same,
)
from tests.test_guidance_together import joint

NOISE = torch.randn(PICTURES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
KS = (0.3, 1.0, 5.0)


class Zero(Weight):
    def __call__(self, k: Tensor) -> Tensor:
        return torch.zeros_like(k)


def look(
    rule: Rule,
    x: Tensor,
    prior: Prior,
    parts: dict[str, Part] | None = None,
    step: int = 0,
    progress: float = 0.25,
    source: Tensor | None = None,
    **conditions: Condition,
) -> Tensor:
    images = {"source": 0.3 * x.flip(-1) + 0.1 if source is None else source}
    parts = rule.parts(prior, Streams(0, -1)) if parts is None else parts
    asked = conditions_of(prior, len(x)) | conditions
    return gradient(rule, prior, x, asked, Streams(0, step), progress, images, parts).gradient


def fixed_at(rule: Rule) -> Rule:
    return at(rule, KS, NOISE)


# Every rule's memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_ten_steps_saved_and_ten_more_are_twenty_bit_for_bit(rule):
    prior = colours()

    def go_on(x: Tensor, parts: dict[str, Part], first: int) -> Tensor:
        for step in range(first, first + 10):
            where = ball(3, step)
            asked = conditions_of(prior, 3) | rule.conditions(prior, "y", where.cameras, True)
            images, streams = {"source": PICTURES}, Streams(0, step)
            x = x - 0.1 * gradient(rule, prior, x, asked, streams, step / 20, images, parts, where).gradient
        return x

    parts = rule.parts(prior, Streams(0, -1))
    half = go_on(PICTURES, parts, 0)
    saved = flatten({name: part.state() for name, part in parts.items()})
    saved = ({name: value.clone() for name, value in saved[0].items()}, saved[1])
    whole = go_on(half, parts, 10)
    again = rule.parts(prior, Streams(5, -1))
    for name, state in unflatten(*saved).items():
        again[name].load(state)
    assert torch.equal(go_on(half, again, 10), whole)


# Clouds ---------------------------------------------------------------------------------------------------------------


class Views:
    """A student of many views of one object: told the camera it knows the noise (0), untold the cloud's Gaussian."""

    def __init__(self, prior: Prior, mean: Tensor, variance: Tensor):
        self.prior, self.mean, self.variance = prior, mean, variance

    def __call__(self, z: Tensor, level: Level, condition: Condition, camera: Tensor | None) -> Tensor:
        alpha, sigma = level.over(z)
        k = sigma / alpha
        eps = 0 * z if camera is not None else k * (z / alpha - self.mean) / (self.variance + k**2)
        return output_of(self.prior.parameterization, (z - sigma * eps) / alpha, eps, level)

    def parameters(self) -> dict[str, Tensor]:
        return {"nothing": torch.zeros(1, requires_grad=True)}


@pytest.mark.parametrize(("share", "spread"), [(0.5, 0.0), (0.8, 0.192), (1.0, 0.49)])
def test_views_under_esd_spread_as_far_as_the_entropy_lets_them(share, spread):
    """At k = 1 and s = 0.7 the variance between views settles at max(share (s^2 + k^2) - k^2, 0).

    G is linear in the noise, so noise 0 gives its mean; the flow is then deterministic. For a share of 1/2, under the
    critical k^2 / (s^2 + k^2), the views become one.
    """
    prior, x = prior_of(), batch(np.random.default_rng(0).normal(2.0, 0.5, 50))
    camera = Condition({"camera": torch.zeros(50, 12, dtype=torch.float64)})
    rule = replace(ESD, trust=Guided(1.0), subtract=Student(scale=1 - share), weight=One())
    rule = at(rule, 1.0, torch.zeros_like(x))
    for _ in range(150):
        part = StudentPart(prior, Views(prior, x.mean(), x.var(correction=0)), 0.0, 0.1)
        part.train = lambda probe: 0.0
        x = x - 0.8 * look(rule, x, prior, {"student": part}, camera=camera)
    assert x.mean().item() == pytest.approx(1.1, abs=1e-6)
    assert x.var(correction=0).item() == pytest.approx(spread, abs=1e-4)


def test_a_flow_with_kept_noise_ends_distributed_as_the_guided_prior():
    """x + k n follows the prior's ODE, from any x at large k to mu_g + s n: so n ~ N(0, 1) ends ~ N(mu_g, s^2).

    The first-order error of 500 Euler steps, even in log k from 1e3 to 1e-3, is of the order of the step, 3 % of s |n|.
    """
    prior, n = prior_of(), batch([-2.0, -0.5, 0.0, 0.9, 1.7])
    ks = np.geomspace(1e3, 1e-3, 500)
    x = torch.zeros_like(n)
    for k, to in itertools.pairwise(ks):
        x = x + (to - k) * look(at(plain(SDS, G), float(k), n), x, prior)
    torch.testing.assert_close(x, 6.3 + S * n, rtol=0, atol=0.1)


# Variational Distribution Mapping -------------------------------------------------------------------------------------


def test_a_mapper_that_knows_the_picture_makes_sds_whatever_its_share():
    prior, sds = colours(), fixed_at(replace(SDS, trust=Guided(G)))
    for rule in (VDM, replace(VDM, subtract=Mapped(One()))):
        parts = rule.parts(prior, Streams(0, -1))
        parts["mapper"].mapped, parts["mapper"].train = lambda probe: probe.x, lambda probe: 0.0
        same(look(fixed_at(rule), PICTURES, prior, parts), look(sds, PICTURES, prior))


def test_a_mapper_of_no_share_is_sds_and_a_fresh_one_of_all_is_csd():
    prior = colours()
    none, all_of_it = (fixed_at(replace(VDM, subtract=Mapped(share))) for share in (Zero(), One()))
    same(look(none, PICTURES, prior), look(fixed_at(replace(SDS, trust=Guided(G))), PICTURES, prior))
    same(look(all_of_it, PICTURES, prior), (G - 1) * look(fixed_at(CSD), PICTURES, prior))


def test_a_mapper_learns_the_pictures_and_touches_nothing_else():
    prior = colours()
    rule = fixed_at(replace(VDM, subtract=Mapped(rate=1e-2)))
    parts, x = rule.parts(prior, Streams(0, -1)), PICTURES.clone().requires_grad_()
    losses = []
    for step in range(60):
        asked = conditions_of(prior, 3)
        losses.append(gradient(rule, prior, x, asked, Streams(0, step), parts=parts).figures["mapper_loss"])
    assert x.grad is None
    assert losses[-1] < 0.5 * losses[0]  # one level and one noise for each: three pictures to learn by heart


# f-divergences --------------------------------------------------------------------------------------------------------

GENERATORS = {
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "jensen_shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "softened_kl": lambda r: (r + 1) * ((r + 1) / r).log(),
    "squared_hellinger": lambda r: (r.sqrt() - 1) ** 2,
    "neyman_chi2": lambda r: (1 - r) ** 2 / r,
}
FACTORS = {"squared_hellinger": 0.5, "neyman_chi2": 2.0}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_are_the_second_derivative_of_the_generator_times_the_square(kind):
    r = torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(GENERATORS[kind](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(FACTORS.get(kind, 1.0) * WEIGHTS[kind](r.detach()), second * r.detach() ** 2)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("reverse_kl", 1.428571),
        ("forward_kl", 0.864198),
        ("jensen_shannon", 0.433126),
        ("squared_hellinger", 0.482441),
        ("jeffreys", 2.292769),
    ],
)
def test_the_weighed_score_difference_is_the_divergences_gradient(kind, want):
    """Of p = N(0.3, 0.7^2) and q = N(m, 0.9^2) in m = 1, by quadrature under q: E_q[h(r) (s_q - s_p)]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    n, w = torch.as_tensor(nodes), torch.as_tensor(weights / np.sqrt(2 * np.pi))
    x = 1.0 + 0.9 * n
    log_p, log_q = -((x - 0.3) ** 2) / (2 * 0.49) - math.log(0.7), -(n**2) / 2 - math.log(0.9)
    score = -n / 0.9 + (x - 0.3) / 0.49
    h = FACTORS.get(kind, 1.0) * WEIGHTS[kind]((log_p - log_q).exp())
    # The quadrature of what is no polynomial: six digits, as the table has them; forward KL's tail costs one more.
    assert float((w * h * score).sum()) == pytest.approx(want, abs=1e-5)


def test_the_reverse_divergence_is_vsd_and_so_is_any_at_equal_densities():
    prior, vsd = colours(), fixed_at(replace(VSD, trust=F_DIV.trust))
    reverse = fixed_at(replace(F_DIV, post=(Divergence("reverse_kl"),)))
    assert torch.equal(look(reverse, PICTURES, prior), look(vsd, PICTURES, prior))
    for kind in WEIGHTS:
        rule = fixed_at(replace(F_DIV, post=(Divergence(kind),)))
        parts = rule.parts(prior, Streams(0, -1))
        with torch.no_grad():
            parts["discriminator"].net.weights["2/kernel"].zero_()
        same(look(rule, PICTURES, prior, parts), look(vsd, PICTURES, prior))


def test_the_weights_of_a_batch_are_one_on_average_and_those_of_the_ratios():
    prior, rule = colours(), fixed_at(F_DIV)
    parts, vsd = rule.parts(prior, Streams(0, -1)), fixed_at(replace(VSD, trust=F_DIV.trust))
    parts["discriminator"].ratio = lambda z, level: torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    h = torch.tensor([1 / 3, 1 / 2, 4 / 5], dtype=torch.float64)
    got = look(rule, PICTURES, prior, parts) / look(vsd, PICTURES, prior)
    same(got.flatten(1).mean(1), h / h.mean())
    assert got.flatten(1).mean(1).mean().item() == pytest.approx(1.0, abs=1e-12)


def test_a_ratio_is_that_of_the_discriminator_within_bounds_over_its_levels_mean():
    prior = colours()
    part = F_DIV.parts(prior, Streams(0, -1))["discriminator"]
    part.means[:] = 2.0
    part.logits = lambda z, level: torch.tensor([0.5, -20.0, 3.1], dtype=torch.float64)
    level = prior.level_of_k(torch.ones(3, dtype=torch.float64))
    want = torch.tensor([math.exp(0.5), 0.1, 20.0], dtype=torch.float64)
    raw, bins, means = part._measured(PICTURES, level)
    same(raw, want)
    mean = 0.9 * 2 + 0.1 * want.mean().item()  # with those of this step
    assert means[bins[0]].item() == pytest.approx(mean)
    assert (means != 2).sum() == 1
    same(part.ratio(PICTURES, level), want / mean)


def test_a_discriminator_learns_which_pictures_the_prior_draws():
    prior = prior_of((Bell("", 0.9, 0.1), Bell("y", 0.9, 0.1), Bell("bad", 0.0, 1.0)), size=4, channels=3)
    rule = replace(F_DIV, levels=Uniform(0.02, 0.3))
    parts, x = rule.parts(prior, Streams(0, -1)), torch.full((4, 3, 4, 4), -0.9, dtype=torch.float64)
    for step in range(80):
        look(rule, x, prior, parts, step)
    part, level = parts["discriminator"], prior.level_of_k(torch.full((4,), 0.2, dtype=torch.float64))
    assert part.real.shape == (16, 3, 4, 4)
    with torch.no_grad():
        assert part.logits(-x, level).min() > 1
        assert part.logits(x, level).max() < -1


# A teacher that learns the object -------------------------------------------------------------------------------------


def test_a_teacher_still_as_the_prior_makes_vsd_without_camera():
    prior = colours()
    vsd = replace(VSD, levels=BOOTSTRAPPED_SD.levels, trust=Guided(2.0), subtract=Student(scale=0.0))
    same(look(BOOTSTRAPPED_SD, PICTURES, prior), look(vsd, PICTURES, prior))


def test_a_teacher_that_is_the_student_gives_nothing_at_scale_one():
    rule = replace(BOOTSTRAPPED_SD, trust=replace(BOOTSTRAPPED_SD.trust, scale=1.0))
    assert look(rule, PICTURES, colours()).abs().max() < 1e-14


def test_teacher_and_student_are_trained_in_turn_as_the_progress_says():
    prior, rule = colours(), replace(BOOTSTRAPPED_SD, trust=replace(BOOTSTRAPPED_SD.trust, rate=1e-2, kept=3))
    parts = rule.parts(prior, Streams(0, -1))
    part = parts["bootstrap"]

    def moved() -> tuple[float, float]:
        weights = [
            copy.network.parameters()["move"].detach().abs().max().item() for copy in (part.teacher, part.student)
        ]
        return weights[0], weights[1]

    assert look(rule, PICTURES, prior, parts, 0, 0.0).abs().max() == 0  # the first fifth of a period: teaching
    assert moved() == (pytest.approx(1e-2, rel=1e-3), 0.0)  # Adam's first step is its rate
    assert prior.calls == 25
    before = moved()[0]
    assert look(rule, PICTURES, prior, parts, 1, 0.05).abs().max() > 0
    assert moved() == (before, pytest.approx(1e-2, rel=1e-3))
    for step in range(25, 150, 25):
        look(rule, PICTURES, prior, parts, step, 0.2)
    assert part.pictures.shape == (3, *prior.shape)
    again = rule.parts(prior, Streams(1, -1))["bootstrap"]
    again.load(unflatten(*flatten(part.state())))
    assert torch.equal(again.pictures, part.pictures)
    assert torch.equal(again.made_for.tensors["mean"], part.made_for.tensors["mean"])


# A layout -------------------------------------------------------------------------------------------------------------


class Follows(AnalyticPrior):
    """A prior that a layout moves: every bell's mean goes by the layout's mean colour."""

    capabilities = AnalyticPrior.capabilities | {"control"}

    def control(self, condition: Condition, picture: Tensor) -> Condition:
        moved = condition.tensors["mean"] + picture.mean((2, 3))[:, None, :3].to(condition.tensors["mean"])
        return Condition(condition.tensors | {"mean": moved})


def laid_out(prior: Prior, picture: Tensor) -> dict[str, Condition]:
    named = conditions_of(prior, len(picture))
    pairs = (("layout", "prompt"), ("layout_null", "null"), ("layout_bare", "bare"))
    return {name: prior.control(named[plain], picture) for name, plain in pairs}


def test_a_layout_that_says_nothing_makes_vsd_and_one_that_says_something_does_not():
    source = colours()
    prior = Follows("follows", source._spec, source._meanings, "cpu")
    vsd = replace(VSD, levels=LG_VSD.levels, subtract=Student(rate=1e-3))
    nothing = laid_out(prior, torch.zeros(3, 4, 8, 8))
    same(look(LG_VSD, PICTURES, prior, **nothing), look(vsd, PICTURES, prior))
    something = laid_out(prior, torch.full((3, 4, 8, 8), 0.5))
    assert (look(LG_VSD, PICTURES, prior, **something) - look(vsd, PICTURES, prior)).abs().max() > 1e-2


def test_a_prior_without_control_is_refused_by_name():
    with pytest.raises(InputError, match=r"'control' \(priors with a ControlNet\)"):
        check(LG_VSD, colours())


# Edits in place -------------------------------------------------------------------------------------------------------

LOCAL = replace(LUSD, trust=Localized(0.1, mask=1.0, identity=0.0))


def test_lusd_without_mask_gate_and_identity_is_csd_from_the_source_brought_to_one_size():
    csd = fixed_at(replace(CSD, subtract=Plain("source"), weight=One()))
    want = look(csd, PICTURES, colours())
    want = 0.1 * want / want.flatten(1).std(1)[:, None, None, None]
    same(look(fixed_at(LOCAL), PICTURES, colours()), want)


def test_lusds_gradient_has_the_deviation_it_is_told():
    got = look(replace(LUSD, trust=Localized(0.07)), PICTURES, colours())
    same(got.flatten(1).std(1), torch.full((3,), 0.07, dtype=torch.float64))


def test_lusd_draws_once_if_little_is_enough_and_again_only_what_says_too_little():
    prior = colours()
    look(replace(LUSD, noise=Gated(0.0)), PICTURES, prior)
    assert (prior.calls, prior.samples) == (1, 6)
    look(replace(LUSD, noise=Gated(0.3)), PICTURES, prior)  # at high levels the two prompts differ by less
    assert 1 < prior.calls - 1 <= 10
    assert prior.samples - 6 < 6 * (prior.calls - 1)


@pytest.mark.parametrize(("more", "draws"), [(0.999, 1), (1.005, 2), (1.015, 3), (1.15, 10)])
def test_lusd_expects_a_hundredth_less_of_every_further_draw_and_begins_anew_at_the_next_step(more, draws):
    """At one level, all that two Gaussians' predictions differ by is a constant, whatever the noise."""
    bells = (Bell("", 0.0, 0.5), Bell("y", (1.0, 0.0, 0.2), 0.5), Bell("bad", -1.0, 0.5))
    prior, names = prior_of(bells, size=4, channels=3), ["main", *(f"again{i}" for i in range(1, 10))]
    level = prior.level_of_k(torch.full((3,), 2.0, dtype=torch.float64))
    asked = conditions_of(prior, 3)
    told, was = prior.predict(PICTURES, level, [asked["prompt"], asked["source"]])
    parts, before = LUSD.parts(prior, Streams(0, -1)), prior.calls
    enough = Gated(more * (told - was).flatten(1).std(1).mean().item())
    rule = replace(LUSD, levels=AtK(tuple((name, 2.0) for name in names)), noise=enough)
    for step in range(2):
        look(rule, PICTURES, prior, parts, step)
    assert prior.calls - before == 2 * draws


def test_lusd_of_equal_prompts_ends_and_pulls_to_the_source_alone():
    prior, source = colours(), 0.2 * PICTURES
    alike = conditions_of(prior, 3)["prompt"]
    asked = conditions_of(prior, 3) | {"source": alike}
    got = gradient(
        LUSD, prior, PICTURES, asked, Streams(0, 0), 0.5, {"source": source}, LUSD.parts(prior, Streams(0, 0))
    )
    assert prior.calls == 10
    direction = PICTURES - source
    same(got.gradient, 0.08 * direction / direction.flatten(1).std(1)[:, None, None, None])  # 0.15 to 0.01, at half
    still = LUSD.parts(prior, Streams(0, 0))
    got = gradient(LUSD, prior, PICTURES, asked, Streams(0, 0), 0.5, {"source": PICTURES}, still)
    assert got.gradient.abs().max() == 0


def test_lusds_direction_is_a_mix_of_the_masked_difference_and_the_pull_to_the_source():
    rule = fixed_at(replace(LUSD, trust=Localized(0.1, mask=0.5, identity=0.2)))
    parts, source = rule.parts(colours(), Streams(0, -1)), 0.3 * PICTURES.flip(-1) + 0.1
    mask = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    parts["local"].look(mask, None)
    apart = look(fixed_at(replace(CSD, subtract=Plain("source"), weight=One())), PICTURES, colours())
    want = 0.8 * (0.5 * mask + 0.5) * apart + 0.2 * (PICTURES - source)
    got = look(rule, PICTURES, colours(), parts, source=source)
    same(got, 0.1 * want / want.flatten(1).std(1)[:, None, None, None])


def test_lusd_changes_nothing_where_nobody_looks_and_remembers_nine_tenths_of_the_last_mask(monkeypatch):
    prior = colours()
    looked = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    looked[..., :2] = 1.0
    attended = type(prior).attended
    monkeypatch.setattr(type(prior), "attended", lambda *given: (*attended(*given)[:2], looked))
    rule = replace(LOCAL, noise=Gated(0.0))
    parts = rule.parts(prior, Streams(0, -1))
    got = look(rule, PICTURES, prior, parts)
    assert got[..., 2:].abs().max() == 0
    assert got[..., :2].abs().min() > 0
    looked = looked.flip(-1)
    look(rule, PICTURES, prior, parts, 1)
    same(parts["local"].last, 0.1 * looked + 0.9 * looked.flip(-1))


def test_lusd_remembers_a_mask_only_where_the_camera_stays(monkeypatch):
    prior, looked = colours(), torch.rand(3, 1, 4, 4, dtype=torch.float64)
    attended = type(prior).attended
    monkeypatch.setattr(type(prior), "attended", lambda *given: (*attended(*given)[:2], looked))
    rule, before = replace(LOCAL, noise=Gated(0.0)), looked
    parts = rule.parts(prior, Streams(0, -1))
    stands = torch.zeros(3, 12, dtype=torch.float64)
    look(rule, PICTURES, prior, parts, camera=Condition({"camera": stands}))
    looked = looked.flip(-1)
    moved = stands + torch.tensor([[0.0], [0.0], [1.0]])
    look(rule, PICTURES, prior, parts, 1, camera=Condition({"camera": moved}))
    same(parts["local"].last[:2], 0.1 * looked[:2] + 0.9 * before[:2])
    same(parts["local"].last[2], looked[2])


def test_retries_are_draws_of_their_own_in_a_systems_range():
    levels = Retries(Uniform()).within(Uniform(0.5, 0.6))(colours(), 50, Streams(0, 0))
    assert len(levels) == 10
    assert all(level.t.min() >= 500 and level.t.max() <= 600 for level in levels.values())
    assert not torch.equal(levels["again1"].t, levels["again2"].t)
    assert isinstance(LUSD.noise, Gated)


# Repulsion ------------------------------------------------------------------------------------------------------------

ALONE = replace(RSD, trust=Nothing(), subtract=Repelled(Nothing(), 1.0))


def clusters() -> Tensor:
    near = 0.05 * torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return near + batch([1.0, 1.0, -1.0, -1.0])


def repelled(x: Tensor, rule: Rule = ALONE, **conditions: Condition) -> Tensor:
    rule = replace(rule, levels=AtK((("main", 0.5),)), noise=Given(torch.zeros_like(x)))
    return look(rule, x, prior_of(size=2, channels=3), **conditions)


def apart(x: Tensor) -> float:
    return float(torch.pdist(x.flatten(1)).mean())


def test_descending_repulsion_alone_drives_particles_apart():
    x = clusters()
    assert apart(x - 0.1 * repelled(x)) > apart(x)


def test_repulsion_is_its_formula_and_sums_to_zero_before_it_is_normalised():
    """Pixels are (z + 1) / 2 and z = alpha x, here with k = 0.5."""
    x, alpha = clusters(), (1 / 1.25) ** 0.5
    f = (alpha * x + 1).flatten(1) / 2
    d = torch.cdist(f, f)
    h = d[~torch.eye(4, dtype=torch.bool)].reshape(4, 3).median(1).values.median() ** 2 / math.log(3)
    kernel = torch.exp(-(d**2) / h)
    towards = (-2 / h) * (kernel[..., None] * (f[:, None] - f[None])).sum(1) / 2  # d f / d z = 1/2
    want = 0.5 * alpha * towards / kernel.sum(1, keepdim=True)  # sigma = k alpha
    same(repelled(x).flatten(1), want)
    same((repelled(x).flatten(1) * kernel.sum(1, keepdim=True)).sum(0), torch.zeros(12, dtype=torch.float64))


def test_no_strength_is_the_base_rule_and_equal_particles_do_not_move_each_other():
    x = clusters()
    base = replace(RSD, subtract=Drawn())
    assert torch.equal(repelled(x, replace(RSD, subtract=Repelled(Drawn(), 0.0))), repelled(x, base))
    assert repelled(x[:1].expand(4, -1, -1, -1)).abs().max() == 0
    pair = repelled(x[1:3])
    assert pair.isfinite().all()
    assert pair.abs().max() > 1e-6


def test_permuted_particles_have_permuted_gradients():
    x, order = clusters(), torch.tensor([2, 0, 3, 1])
    same(repelled(x[order], RSD), repelled(x, RSD)[order])


def test_only_what_one_camera_sees_is_compared():
    x = clusters()
    here = torch.arange(4, dtype=torch.float64)[:, None].expand(4, 12)
    assert repelled(x, camera=Condition({"camera": here})).abs().max() == 0
    pairs = repelled(x, camera=Condition({"camera": (here / 2).floor()}))
    assert pairs.abs().max() > 0
    assert pairs[:2].sum(0).abs().max() < 1e-12  # equal and opposite


def test_other_cameras_do_not_change_how_far_particles_reach():
    x = clusters()
    two = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat_interleave(4)[:, None].expand(8, 12)
    same(repelled(torch.cat([x, x]), camera=Condition({"camera": two}))[:4], repelled(x))


def test_features_may_come_from_a_vision_transformer(tmp_path):
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    small = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    ViTModel(small, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    rule = replace(ALONE, subtract=Repelled(Nothing(), 1.0, str(tmp_path / "vit")))
    assert repelled(clusters(), rule).abs().max() > 0
    with pytest.raises(InputError, match="vision transformer"):
        repelled(clusters(), replace(ALONE, subtract=Repelled(Nothing(), 1.0, str(tmp_path / "none"))))


def test_views_that_are_seen_together_are_told_the_camera_together_or_not_at_all(monkeypatch):
    """A share of views would leave hardly an object without any, which is what scale asks the student for."""
    prior, x, told = joint(), torch.zeros(1600, 3, 2, 2, dtype=torch.float64), list[Tensor]()
    parts = ESD.parts(prior, Streams(0, -1))
    monkeypatch.setattr(type(parts["student"]), "fit", lambda self, x, c, camera, s: told.append(camera) or 0.0)
    look(ESD, x, prior, parts, camera=Condition({"camera": torch.ones(1600, 12, dtype=torch.float64)}))
    known = told[0][:, 0].reshape(400, 4)
    assert torch.equal(known, known[:, :1].expand(-1, 4))
    assert 20 < int((known[:, 0] == 0).sum()) < 60  # of 400 a tenth; three deviations are 18


def test_the_parts_of_a_rule_refuse_another_rules_state():
    prior = colours()
    vdm, bells = VDM.parts(prior, Streams(0, 0)), len(BELLS)
    assert bells == 3
    with pytest.raises(ValueError, match="other names"):
        vdm["mapper"].load(VSD.parts(prior, Streams(0, 0))["student"].state())


def test_a_map_that_is_not_finite_is_not_remembered(monkeypatch):
    prior = colours()
    attended = type(prior).attended
    broken = torch.full((3, 1, 4, 4), math.nan)
    parts = LUSD.parts(prior, Streams(0, -1))
    with monkeypatch.context() as patch:
        patch.setattr(type(prior), "attended", lambda *given: (*attended(*given)[:2], broken[: len(given[1])]))
        look(LUSD, PICTURES, prior, parts)
    assert parts["local"].last.isfinite().all()
    assert look(LUSD, PICTURES, prior, parts, 1).abs().sum((1, 2, 3)).min() > 0


def test_a_picture_that_is_not_finite_does_not_enter_the_bank(monkeypatch):
    prior, drawn = colours(), PICTURES.clone()
    drawn[1] = math.nan
    monkeypatch.setattr("dreamkit.guidance.discriminator.sample", lambda *given, **rest: drawn)
    parts = F_DIV.parts(prior, Streams(0, -1))
    look(F_DIV, PICTURES, prior, parts)
    assert torch.equal(parts["discriminator"].real, PICTURES[[0, 2]].to(parts["discriminator"].real))
    drawn[:] = math.nan
    parts = F_DIV.parts(prior, Streams(0, -1))
    look(F_DIV, PICTURES, prior, parts)
    assert len(parts["discriminator"].real) == 0


def test_what_is_learned_hears_small_slopes_in_half_precision_and_no_broken_ones():
    """A slope of 2^-30 in half precision is zero, unless the loss was made larger first."""
    weight = torch.ones(1, requires_grad=True)
    part = LocalTrained({"w": weight}, 1e-3)
    part.learn((weight.half() * torch.tensor([2.0**-20], dtype=torch.float16)).float().sum() * 2.0**-10)
    assert weight.grad.item() == 2.0**-30
    assert weight.item() < 1  # Adam's step has the size of its rate
    before = weight.item()
    assert part.learn((weight - weight.detach()).sqrt().sum()) == 0.0  # a finite loss of infinite slope
    assert weight.item() == before


class LocalTrained(Trained):
    def train(self, probe):
        raise NotImplementedError
