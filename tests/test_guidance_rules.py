"""Every rule against closed forms on priors whose score is known, and against the others.

The expectation over the noise is Gauss-Hermite quadrature with 80 nodes, which here is exact to about 1e-12.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.guidance import Rule, gradient
from dreamkit.guidance.estimate import Combination, Denoised, Guided, Nothing, PerpNeg, Plain
from dreamkit.guidance.post import Clamp, Normalize, NormalizeBatch
from dreamkit.guidance.rules import CSD, CSD_NEGATIVE, NFSD, SDS, SDS_PERP_NEG, SJC
from dreamkit.guidance.weight import SigmaOverAlpha
from dreamkit.priors import Bell, view_conditions
from dreamkit.schedule import resolve
from dreamkit.streams import Streams
from tests.looking import (
    BELLS,
    MODES,
    PICTURES,
    RULES,
    G,
    S,
    Times,
    at,
    batch,
    colours,
    guided,
    look,
    plain,
    prior_of,
    same,
)

# Samples through the prior for one step of batch one, at progress 0.25, and calls. A new rule says its own here.
COST = {
    "SDS": (2, 1),
    "SDS_ANNEALED": (2, 1),
    "SDS_DREAMTIME": (2, 1),
    "SDS_PERP_NEG": (3, 1),
    "SDS_PERP_NEG_VIEWS": (4, 1),
    "SDS_DEBIASED": (2, 1),
    "SJC": (2, 1),
    "CFD": (2, 1),
    "CSD": (2, 1),
    "CSD_NEGATIVE": (3, 1),
    "NFSD": (3, 1),
    "ANPG": (3, 1),
    "STRUCTURE_SDS": (2, 1),
    "STABLE_SD": (2, 1),
    "ASD": (3, 1),
    "CDS": (4, 2),
    "LMC": (3, 2),  # one of them trains the corrective
    "SEMANTIC_SDS": (2, 1),
    "MV_SDS": (2, 1),
    "CATEGORY_SDS": (3, 1),
    "BALANCED_SD": (2, 1),
    "DDS": (4, 1),
    "PDS": (4, 1),
    "VSD": (2, 1),
    "ESD": (2, 1),
    "LG_VSD": (2, 1),
    "VDM": (2, 1),
    "F_DIV": (2 + 2 * 10, 1 + 10),  # with the discriminator's pictures from the prior, at the first steps only
    "BOOTSTRAPPED_SD": (0, 0),  # teacher and student are copies; the frozen prior is asked while the teacher is taught
    "RSD": (2, 1),
    "LUSD": (2, 1),
}
# Rules that walk a path, whose length depends on the level: the most, as their papers count it.
MOST = {"ISM": (8, 7), "TSM": (9, 7), "CSM": (8, 7), "SDI": (24, 12), "DIVERSE_SD": (26, 13), "HIFA": (8, 4)}

# Rules in which the samples of a batch matter to one another; a prior of joint views would add multi-view SDS.
TOGETHER = (RULES["CSD_NEGATIVE"], RULES["F_DIV"], RULES["RSD"])

every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def moments(rule: Rule, x: float, k: float, bells: tuple[Bell, ...] = BELLS) -> tuple[float, float]:
    """Mean of G over the noise, and the mean of G n, which is G's coefficient of n."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    n, w = batch(nodes), torch.as_tensor(weights / np.sqrt(2 * np.pi))
    g = look(at(rule, k, n), torch.full_like(n, x), prior_of(bells)).flatten()
    return float((w * g).sum()), float((w * g * n.flatten()).sum())


# The golden table ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule", "k", "mean", "noise"),
    [
        ("SDS at 7.5", plain(SDS, 7.5), 1.0, -2.885906, -0.328859),
        ("SDS at 1", plain(SDS, 1.0), 1.0, 0.604027, -0.328859),
        ("SDS of the null prompt", plain(SDS, 0.0), 1.0, 1.140940, -0.328859),
        ("CSD", plain(CSD), 1.0, -0.536913, 0.0),
        ("NFSD, high branch", plain(NFSD), 1.0, -4.563758, 0.0),
        ("NFSD, low branch", replace(plain(NFSD), trust=replace(NFSD.trust, threshold=2.0)), 1.0, -2.885906, 0.671141),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_golden_table(name, rule, k, mean, noise):
    got = moments(rule, 2.0, k)
    assert got == pytest.approx((mean, noise), abs=1e-6)  # the table's six digits


@pytest.mark.parametrize(
    ("x", "values"),
    [
        (0.2, (-0.637144, 0.076684, 0.059403)),
        (0.5, (-0.720018, 0.196856, 0.148519)),
        (1.0, (0.000069, 0.427527, 0.297114)),
    ],
)
def test_sds_on_two_modes_pulls_to_a_mode_at_low_noise_and_to_the_middle_at_high(x, values):
    got = [moments(plain(SDS, 0.0), x, k, MODES)[0] for k in (0.2, 1.0, 3.0)]
    assert got == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "values"), [(0.2, (-0.593626, -0.810629, -0.323430)), (1.0, (-0.000069, -0.427527, -0.297114))]
)
def test_csd_on_two_modes(x, values):
    got = [moments(plain(CSD), x, k, MODES)[0] for k in (0.2, 1.0, 3.0)]
    assert got == pytest.approx(values, abs=1e-6)


def test_csd_with_a_narrower_prompt_has_its_fixed_point():
    bells = (Bell("", 0.3, 0.7), Bell("y", 1.1, 0.4), Bell("bad", 0.0, 1.0))
    assert moments(plain(CSD), 2.0, 1.0, bells)[0] == pytest.approx(-0.365078, abs=1e-6)
    assert moments(plain(CSD), 3.912121, 1.0, bells)[0] == pytest.approx(0.0, abs=1e-6)


def test_sds_descends_the_noised_log_density():
    """E[G] = -w k d/dx E_n log p(alpha x + sigma n), by central differences in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    k, x, alpha = 1.0, 0.5, 0.5**0.5

    def expected_log_density(x: float) -> float:
        z = alpha * (x + k * nodes)
        spread = alpha**2 * 0.09 + (alpha * k) ** 2
        density = sum(np.exp(-((z - alpha * m) ** 2) / (2 * spread)) for m in (1.0, -1.0))
        return float((weights * np.log(density)).sum() / np.sqrt(2 * np.pi))

    slope = (expected_log_density(x + 1e-5) - expected_log_density(x - 1e-5)) / 2e-5
    assert moments(plain(SDS, 0.0), x, k, MODES)[0] == pytest.approx(-k * slope, abs=1e-8)


# Closed forms, draw by draw -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.1, 1.0, 13.0])
def test_sds_is_its_closed_form_for_every_draw(k):
    x, n = batch([-2.0, 0.1, 2.0, 9.0]), batch([0.3, -1.2, 0.0, 2.5])
    want = (k * (x - 6.3) - S**2 * n) / (S**2 + k**2)
    torch.testing.assert_close(look(at(plain(SDS, G), k, n), x, prior_of()), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("k", [0.1, 1.0, 13.0])
def test_csd_of_equal_widths_is_a_constant_drift(k):
    x, n = batch([-2.0, 0.1, 2.0, 9.0]), batch([0.3, -1.2, 0.0, 2.5])
    want = torch.full_like(x, k / (S**2 + k**2) * (0.3 - 1.1))
    torch.testing.assert_close(look(at(plain(CSD), k, n), x, prior_of()), want, rtol=1e-10, atol=1e-11)


def test_sds_as_an_l2_loss_to_the_one_step_estimate():
    """With weight k, G = x - x0 (the equivalence StableDreamer states)."""
    k, x, n = 2.0, batch([-2.0, 0.1, 2.0]), batch([0.3, -1.2, 0.0])
    x0 = 6.3 + S**2 * (x + k * n - 6.3) / (S**2 + k**2)  # of the guided Gaussian, whose mean is 6.3
    rule = replace(plain(SDS, G), weight=SigmaOverAlpha())
    torch.testing.assert_close(look(at(rule, k, n), x, prior_of()), x - x0, rtol=1e-12, atol=1e-12)


# Identities between rules -------------------------------------------------------------------------------------------

X = batch([-2.0, 0.1, 2.0, 0.7])
N = batch([0.3, -1.2, 0.0, 2.5])
KS = (0.3, 0.56, 0.58, 4.0)
W = batch(list(KS)) ** 2 / (1 + batch(list(KS)) ** 2)


def pathwise(rule: Rule, bells: tuple[Bell, ...] = MODES, negative: str = "bad", noise: Tensor = N) -> Tensor:
    prior = prior_of(bells)
    conditions = view_conditions(prior, "y", ["side"] * 4, negative)
    parts = rule.parts(prior, Streams(0, -1))
    return gradient(at(rule, KS, noise), prior, X, conditions, Streams(0, 0), parts=parts).gradient


def test_sjc_is_sds_with_weight_one():
    same(pathwise(SJC) * W, pathwise(SDS))


def test_csd_is_sds_without_its_data_term():
    """CSD(g) = SDS(g) - w (eps_null - n), and CSD(g) is g times CSD."""
    null_term = pathwise(replace(SDS, trust=Plain("null")))
    same(G * pathwise(CSD), pathwise(replace(SDS, trust=Guided(G))) - null_term)


def test_nfsd_is_sds_plus_the_noise_below_the_threshold_and_not_above():
    difference = pathwise(NFSD) - pathwise(replace(SDS, trust=Guided(G)))
    same(difference[:2], (W * N)[:2])
    assert (difference - W * N)[2:].abs().min() > 0.01


def test_nfsd_with_an_empty_negative_is_csd_above_the_threshold():
    same(pathwise(NFSD, negative="")[2:], G * pathwise(CSD)[2:])


def test_nfsd_switches_between_indices_199_and_200_of_stable_diffusion():
    prior = prior_of()
    k = prior.level_at(torch.tensor([199, 200])).k
    assert k[0] < NFSD.trust.threshold <= k[1]


def test_sds_and_csd_are_points_of_the_general_combination():
    combined = replace(SDS, trust=Combination(prompt=G, null=1 - G, noise=-1.0), subtract=Nothing())
    same(pathwise(combined), pathwise(replace(SDS, trust=Guided(G))))
    same(pathwise(replace(combined, trust=Combination(prompt=G, null=-G))), G * pathwise(CSD))


def test_a_prediction_equal_to_the_noise_gives_no_gradient():
    """A prior that knows only x is N(x, 0): its eps is the drawn noise."""
    prior = prior_of((Bell("", 2.0, 1e-9), Bell("y", 2.0, 1e-9), Bell("bad", 0.0, 1.0)))
    got = look(at(SDS, 1.0, N), torch.full_like(N, 2.0), prior)
    assert got.abs().max() < 1e-7  # a width of 1e-9 times the scale of 101


def test_dropping_the_subtraction_changes_sds_by_the_noise():
    same(pathwise(replace(SDS, subtract=Nothing())) - pathwise(SDS), W * N)


def test_with_prompt_and_null_alike_the_scale_does_not_matter():
    bells = (Bell("", 0.3, 0.7), Bell("y", 0.3, 0.7), Bell("bad", 0.0, 1.0))
    same(pathwise(replace(SDS, trust=Guided(1.0)), bells), pathwise(replace(SDS, trust=Guided(100.0)), bells))


def test_the_coefficients_of_csds_schedule_sum_to_zero_all_along():

    for progress in (0.0, 0.1, 0.25, 0.5, 1.0):
        trust = resolve(CSD_NEGATIVE, progress).trust
        assert trust.prompt + trust.negative + trust.null + trust.noise == pytest.approx(0.0)
    assert (trust.prompt, trust.negative, trust.null) == (1.0, -1.0, 0.0)


def test_perp_neg_with_weight_zero_is_plain_guidance():
    prior = prior_of(MODES, size=2, channels=3)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    guided, zero = (replace(SDS, trust=trust) for trust in (Guided(G), PerpNeg(G, 0.0)))
    same(look(guided, x, prior), look(zero, x, prior))


def test_perp_neg_goes_away_from_what_the_negative_prompt_has_across_the_prompt():
    prior = prior_of(
        (Bell("", 0.3, 0.7), Bell("y", (1.0, 0.0, 0.2), 0.4), Bell("bad", (-0.3, 0.9, 0.1), 0.5)), "eps", 2, 3
    )
    x, n = torch.randn(2, 1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    only = [
        look(at(replace(plain(SDS), trust=Plain(name), subtract=Nothing()), 1.0, n), x, prior)
        for name in ("null", "prompt", "negative")
    ]
    null, along, other = only[0], only[1] - only[0], only[2] - only[0]
    across = other - (other * along).sum() / (along * along).sum() * along
    rule = plain(replace(SDS_PERP_NEG, trust=PerpNeg(G)))
    assert SDS_PERP_NEG.trust.weight == -1
    same(look(at(rule, 1.0, n), x, prior), null + G * (along - across) - n)


def test_perp_neg_of_a_batch_is_that_of_its_samples():
    """The published implementation pairs negatives with the wrong samples when there is more than one."""
    prior = prior_of(
        (Bell("", 0.3, 0.7), Bell("y", (1.0, 0.0, 0.2), 0.4), Bell("bad", (-0.3, 0.9, 0.1), 0.5)), "eps", 2, 3
    )
    draws = torch.randn(2, 3, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rule = replace(SDS, trust=PerpNeg(G, -1.5))
    whole = look(at(rule, (0.3, 1.0, 5.0), draws[1]), draws[0], prior)
    for i, k in enumerate((0.3, 1.0, 5.0)):
        same(whole[i : i + 1], look(at(rule, k, draws[1, i : i + 1]), draws[0, i : i + 1], prior))


# What every rule must do --------------------------------------------------------------------------------------------


@every_rule
def test_the_gradient_has_the_shape_of_x_no_graph_and_something_to_say(rule):
    x = (PICTURES.clone().requires_grad_() * 1.0).float()
    g = look(rule, x, colours())
    assert (g.shape, g.dtype, g.requires_grad) == (x.shape, x.dtype, False)
    assert g.abs().max() > 1e-3


@every_rule
@pytest.mark.parametrize("parameterization", ["v", "x0", "flow"])
def test_a_rule_does_not_notice_what_the_network_predicts(rule, parameterization):
    same(look(rule, PICTURES, colours(parameterization)), look(rule, PICTURES, colours()))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_costs_what_its_paper_says(name):
    prior = colours()
    look(RULES[name], PICTURES, prior)
    if name in COST:
        samples, calls = COST[name]
        assert (prior.samples, prior.calls) == (3 * samples, calls)
    else:
        samples, calls = MOST[name]
        assert 3 * 4 < prior.samples <= 3 * samples
        assert 3 <= prior.calls <= calls


def test_a_coefficient_of_zero_costs_nothing():
    prior = colours()
    look(CSD_NEGATIVE, PICTURES, prior, progress=0.0)
    assert prior.samples == 3 * 2


@every_rule
def test_a_step_replayed_alone_is_the_same_and_another_step_is_not(rule):
    prior = colours()
    run = [look(rule, PICTURES, prior, step) for step in range(3)]
    assert torch.equal(look(rule, PICTURES, colours(), 2), run[2])
    assert not torch.equal(run[1], run[2])


@every_rule
def test_a_batch_is_its_samples_one_by_one(rule):
    noise = torch.randn(PICTURES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    ks = (0.3, 1.0, 5.0)
    if isinstance(rule.trust, Denoised):  # the noise that it adds on its way is drawn for the batch, and not given
        rule = replace(rule, trust=replace(rule.trust, eta=0.0))
    whole = look(at(rule, ks, noise), PICTURES, colours())
    parts = [look(at(rule, k, noise[i : i + 1]), PICTURES[i : i + 1], colours()) for i, k in enumerate(ks)]
    if rule not in TOGETHER:
        same(whole, torch.cat(parts))
    else:
        assert (whole - torch.cat(parts)).abs().max() > 1e-3


@every_rule
def test_a_weight_twice_as_large_doubles_the_gradient_unless_it_is_normalised(rule):
    factor = 1.0 if any(isinstance(post, NormalizeBatch | Normalize) for post in rule.post) else 2.0
    rule = replace(rule, post=tuple(post for post in rule.post if not isinstance(post, Clamp)))
    same(
        look(replace(rule, weight=Times(rule.weight, 2.0)), PICTURES, colours()),
        factor * look(rule, PICTURES, colours()),
    )


@every_rule
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_sample_is_dropped_and_counted_and_hurts_no_other(rule, bad):
    prior, x = colours(), PICTURES.clone()
    x[1, 0, 2, 2] = bad
    guidance = guided(rule, prior, x, {"source": 0.3 * x.flip(-1)})
    assert guidance.figures["dropped"] == 1
    assert guidance.gradient.isfinite().all()
    assert guidance.gradient[1].abs().max() == 0
    whole = look(rule, PICTURES, prior, source=0.3 * PICTURES.flip(-1))
    kept = torch.tensor([0, 2])
    if rule not in TOGETHER:
        assert torch.equal(guidance.gradient[kept], whole[kept])
    else:
        assert guidance.gradient[kept].abs().min(0).values.max() > 0


@every_rule
def test_the_figures_of_the_log_are_plain_numbers(rule):

    prior = colours()
    guidance = guided(rule, prior, PICTURES, {"source": -PICTURES})
    figures = json.loads(json.dumps(guidance.figures))
    assert figures["norm"] == pytest.approx(float(guidance.gradient.norm()))
    assert figures["norms"] == pytest.approx([float(g.norm()) for g in guidance.gradient])
    assert len(figures["t"]) == 3
    assert figures["k"] > 0
