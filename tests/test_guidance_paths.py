"""Rules of two levels, of a walked path and of two images: their rows of the golden table, and what they equal."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.diffusion import Level, ddim
from dreamkit.guidance import Rule, gradient, noise, rules
from dreamkit.guidance.estimate import Drawn, Guided, Nothing, PerpNeg, Plain
from dreamkit.guidance.levels import Above, At, Uniform, drawn
from dreamkit.guidance.noise import Fresh, Inverted, Kept, Simulated
from dreamkit.guidance.rule import Noise, Probe
from dreamkit.guidance.rules import CSD, SDS
from dreamkit.guidance.weight import Alpha, One, SigmaOverAlpha
from dreamkit.priors import Bell
from dreamkit.schedule import resolve
from dreamkit.streams import Streams
from tests.looking import (
    BELLS,
    MODES,
    PICTURES,
    AtK,
    G,
    Given,
    S,
    at,
    batch,
    colours,
    conditions_of,
    look,
    plain,
    prior_of,
    same,
)

# Rules of two levels, of a walked path, of two images ---------------------------------------------------------------

TWO = AtK((("main", 1.0), ("upper", 1.2), ("lower", 0.8), ("middle", 0.9)))


def there(rule: Rule, noise: Noise | None = None, scale: float = G) -> Rule:
    """A rule at the levels of the golden table, with weight one and one scale throughout."""
    trust = replace(rule.trust, scale=scale, against="null") if isinstance(rule.trust, Guided) else rule.trust
    subtract = replace(rule.subtract, scale=scale) if isinstance(rule.subtract, Guided) else rule.subtract
    return replace(rule, levels=TWO, noise=noise or rule.noise, trust=trust, subtract=subtract, weight=One())


@dataclass(frozen=True)
class OnGrid(Inverted):
    """Inversion without noise on a grid of given k."""

    start: bool = False
    ks: tuple[float, ...] = (1e-12, 0.4, 0.8)

    def grid(self, probe: Probe, goal: Level, last: Level) -> list[Level]:
        return [probe.prior.level_of_k(torch.full((len(probe.x),), k, dtype=torch.float64)) for k in self.ks]


def test_asd_is_its_row_of_the_golden_table():
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    prior, n = prior_of(), batch(nodes)
    g = look(there(rules.ASD, Given(n)), torch.full_like(n, 2.0), prior).flatten()
    w = torch.as_tensor(weights / np.sqrt(2 * np.pi))
    assert float((w * g).sum()) == pytest.approx(-3.445492, abs=1e-6)
    assert float((w * g * n.flatten()).sum()) == pytest.approx(-0.074973, abs=1e-6)
    assert (prior.calls, prior.samples) == (1, 3 * 80)


@pytest.mark.parametrize(
    ("rule", "want"),
    [(rules.ISM, -3.903540), (rules.TSM, -3.974204), (rules.CSM, -0.536913)],
    ids=["ism", "tsm", "csm"],
)
def test_rules_on_an_inverted_path_are_their_rows_of_the_golden_table(rule, want):
    assert look(there(rule, OnGrid()), batch([2.0]), prior_of()).item() == pytest.approx(want, abs=1e-6)


def inverted(x: Tensor, k: float | tuple[float, ...], noise: Inverted) -> Tensor:
    """The noise that the inversion of x finds at level k."""
    rule = Rule(AtK((("main", k),)), noise, trust=Drawn(), subtract=Nothing(), weight=One())
    return look(rule, x, prior_of())


def walked(nodes: list[int]) -> float:
    """The noise found for x = 2 on a walk through these indices of the schedule.

    In z / alpha the step of one Gaussian from k to k' is (x - m) (s^2 + k k') / (s^2 + k^2).
    """
    ks = [float(prior_of().level_at(index).k) for index in nodes]
    off = 2.0 - 0.3
    for k, to in itertools.pairwise(ks):
        off *= (S**2 + k * to) / (S**2 + k**2)
    return (0.3 + off - 2.0) / ks[-1]


def test_an_inversion_walks_up_the_schedule_in_its_strides():
    found = inverted(batch([2.0]), float(prior_of().level_at(350).k), Inverted(stride=0.1, steps=None, start=False))
    assert found.item() == pytest.approx(walked([0, 100, 200, 300, 350]), rel=1e-9)


def test_a_walk_that_ends_where_it_begins_asks_for_nothing():
    prior = prior_of()
    rule = replace(there(rules.ISM), levels=AtK((("main", 1.0), ("lower", float(prior.level_at(0).k)))))
    look(rule, batch([2.0]), prior)
    assert prior.calls == 2  # at the lower level, which is the baseline, and at the main one


def test_an_inversion_adds_noise_of_its_share_of_the_ddpm_deviation():
    low, high = (prior_of().level_at(index) for index in (0, 500))
    x = torch.full((4000, 1, 1, 1), 2.0, dtype=torch.float64)
    found = inverted(x, float(high.k), Inverted(stride=1.0, start=False, eta=0.3))
    abar, before = float(high.alpha) ** 2, float(low.alpha) ** 2
    want = 0.3**2 * (1 - before) / (1 - abar) * (1 - abar / before) / (1 - abar)
    assert found.var().item() == pytest.approx(want, rel=5 * (2 / 4000) ** 0.5)  # five deviations of a variance


def test_an_inversion_goes_beyond_the_level_by_up_to_its_share_of_the_schedule():
    x = torch.full((200, 1, 1, 1), 2.0, dtype=torch.float64)
    far = (drawn(Streams(0, 0), "beyond", 200) * 100).floor()
    assert far.min() < 5
    assert far.max() > 95
    walk, nodes = Inverted(stride=0.1, steps=None, start=False, beyond=0.1), (0, 100, 200, 300)  # those below the level
    found = inverted(x, float(prior_of().level_at(400).k), walk)
    want = torch.cat([batch([walked([*nodes, 400 + int(index)])]) for index in far])
    same(found, want)


def test_what_the_golden_table_replaces_is_as_published():
    assert rules.ISM.trust == rules.TSM.trust == Guided(7.5, against="negative")
    assert (rules.SDI.noise.scale, rules.SDI.noise.eta, rules.SDI.noise.beyond) == (-6.5, 0.3, 0.1)
    assert rules.SDI.trust == rules.DIVERSE_SD.trust == Guided(8.5)  # 7.5, in code that counts from the prompt
    assert rules.DIVERSE_SD.noise.scale == 8.5
    assert isinstance(rules.BALANCED_SD.weight, Alpha)


def test_a_sample_made_by_inversion_pays_for_its_predictions_once():
    prior = prior_of()
    look(there(rules.ISM, OnGrid()), batch([2.0]), prior)
    assert prior.calls == 3 + 1  # the baseline comes from the path


@pytest.mark.parametrize(
    ("inverse", "kappa", "want"),
    [
        (7.5, -3.198313, -1.834112),
        (1.0, 0.669414, -3.106049),
        (0.0, 1.264449, -3.301732),
        (-7.5, 5.727211, -4.769351),
    ],
)
def test_sdi_with_a_fine_grid_is_its_rows_of_the_golden_table(inverse, kappa, want):
    noise = OnGrid(scale=inverse, ks=tuple(np.linspace(1e-9, 1.0, 2001)))
    prior = prior_of()
    rule = replace(there(rules.SDI, noise), levels=AtK((("main", 1.0),)))
    # Euler's error is of the order of a step, 1/2000 of numbers below 10.
    assert look(rule, batch([2.0]), prior).item() == pytest.approx(want, abs=5e-3)
    subtracted = look(replace(rule, trust=Nothing()), batch([2.0]), prior).item()
    assert -subtracted == pytest.approx(kappa, abs=5e-3)


def test_a_fixed_noise_moves_the_fixed_point_to_where_cfd_has_it():
    for scale, x, want in ((G, 2.0, -3.181879), (1.0, 2.0, 0.308054), (G, 6.741, 0.0), (1.0, 1.541, 0.0)):
        got = look(at(plain(SDS, scale), 1.0, batch([0.9])), batch([x]), prior_of()).item()
        assert got == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(("scale", "mean", "golden"), [(1.0, 1.1, 0.104769), (7.5, 6.3, -0.197897)])
def test_cds_is_its_closed_form(scale, mean, golden):
    def closed(n: float) -> float:
        return S**2 * 0.2 * (2.0 + n - mean) / ((S**2 + 1) * (S**2 + 0.64))

    assert closed(0.9) == pytest.approx(golden, abs=1e-6)
    kept = Streams(0, 0).still().normal("noise", (1, 1, 1), like=torch.zeros((), dtype=torch.float64)).item()
    rule = there(rules.CDS, noise.EulerStep(scale), scale)
    assert look(rule, batch([2.0]), prior_of()).item() == pytest.approx(closed(kept), abs=1e-10)


def test_dds_is_its_row_of_the_golden_table_without_any_noise():
    dds = there(rules.DDS, Fresh(), 1.0)
    dds = replace(dds, subtract=replace(dds.subtract, scale=1.0))
    for step in range(3):
        for x, want in ((2.0, 0.469799), (1.3, 0.0)):
            assert look(dds, batch([x]), prior_of(), step, source=batch([0.5])).item() == pytest.approx(want, abs=1e-6)


def test_pds_of_one_index_is_dds_times_its_coefficient():
    levels = AtK((("main", float(prior_of().level_at(700).k)), ("lower", float(prior_of().level_at(699).k))))
    pds = replace(rules.PDS, levels=levels, trust=replace(rules.PDS.trust, scale=G, identity=0.0))
    pds = replace(pds, subtract=replace(rules.PDS.subtract, scale=G, identity=0.0))
    dds = replace(rules.DDS, levels=levels)
    prior, x = colours(), PICTURES
    chi = look(pds, x, prior) / look(dds, x, prior)
    assert chi.min().item() == pytest.approx(0.089603, abs=1e-6)
    same(chi, torch.full_like(chi, chi.mean().item()))


def test_pds_pulls_to_the_source_by_its_identity_weight():
    free, held = (
        replace(
            rules.PDS,
            trust=replace(rules.PDS.trust, identity=psi),
            subtract=replace(rules.PDS.subtract, identity=psi),
        )
        for psi in (0.0, 0.25)
    )
    source = 0.2 * PICTURES + 0.3
    difference = look(held, PICTURES, colours(), source=source) - look(free, PICTURES, colours(), source=source)
    same(difference, 0.25 * (PICTURES - source))


def test_the_noise_of_diverse_sd_is_affine_in_the_kept_one():
    """On one Gaussian the exact flow from N at the last level is k (N/alpha - m) / sqrt((s^2 + k^2)(s^2 + K^2))."""
    prior = prior_of()
    last = prior.level_at(999)
    kept = Streams(0, 0).still().normal("noise", (1, 1, 1), like=torch.zeros((), dtype=torch.float64)).item()
    want = (kept / last.alpha.item() - 6.3) * 1.2 / ((S**2 + 1.44) * (S**2 + last.k.item() ** 2)) ** 0.5
    rule = replace(there(rules.DIVERSE_SD), trust=Drawn(), subtract=Nothing())
    errors = [
        look(replace(rule, noise=Simulated(G, steps=steps)), batch([2.0]), prior).item() - want for steps in (60, 240)
    ]
    assert abs(errors[1]) < 0.02
    assert abs(errors[1]) < abs(errors[0]) / 2.5  # first order in the step


# More identities ----------------------------------------------------------------------------------------------------


def on_path(rule: Rule, piece: Noise, **levels: float) -> Tensor:
    named = {"main": 1.0, "upper": 1.2, "lower": 0.8, "middle": 0.9} | levels
    return look(replace(rule, levels=AtK(tuple(named.items())), noise=piece), PICTURES, colours())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_middle_level_stands_between_the_others(gamma):
    levels = replace(rules.TSM.levels, gamma=gamma)
    t = {name: level.t for name, level in resolve(levels, 0.5)(colours(), 4, Streams(0, 0)).items()}
    assert (t["lower"] <= t["middle"]).all()
    assert (t["middle"] <= t["main"]).all()
    if gamma in (0.0, 1.0):
        assert torch.equal(t["middle"], t["main" if gamma == 0 else "lower"])
    assert (t["main"] - t["lower"] == 80).all()


def test_tsm_at_gamma_one_is_ism_bit_for_bit():
    tsm = replace(rules.TSM, levels=replace(rules.TSM.levels, gamma=1.0))
    assert torch.equal(look(tsm, PICTURES, colours()), look(rules.ISM, PICTURES, colours()))


def test_tsm_at_gamma_zero_is_a_scale_times_csm():
    plain_tsm = replace(rules.TSM, trust=Guided(G))
    same(on_path(plain_tsm, OnGrid(), middle=1.0), G * on_path(rules.CSM, OnGrid()))


def test_csm_ism_and_sdi_with_random_noise_are_csd_and_sds():
    given = Given(torch.randn(PICTURES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
    of_k = {"weight": SigmaOverAlpha()}
    same(on_path(rules.CSM, given), on_path(replace(CSD, **of_k), given))
    sds = on_path(replace(SDS, trust=Guided(G), **of_k), given)
    same(on_path(replace(rules.SDI, trust=Guided(G)), given), sds)
    same(on_path(replace(rules.ISM, trust=Guided(G), subtract=Drawn()), given), sds)


def test_asd_without_a_gap_is_csd_of_one_scale_less():
    given = Given(PICTURES.flip(0))
    same(on_path(rules.ASD, given, upper=1.0), (G - 1) * on_path(CSD, given))


def test_diverse_sd_with_fresh_noise_is_asd():
    same(on_path(replace(rules.DIVERSE_SD, trust=Guided(G)), Given(PICTURES)), on_path(rules.ASD, Given(PICTURES)))


def test_cds_of_one_level_and_dds_of_one_picture_are_nothing():
    piece = noise.EulerStep(3.0)
    cds = replace(rules.CDS, trust=Guided(3.0), subtract=Guided(3.0, level="lower"))
    assert on_path(cds, piece, lower=1.0).abs().max() < 1e-12
    alike = replace(rules.DDS, subtract=Guided(7.5, image="source"))
    assert look(alike, PICTURES, colours(), source=PICTURES).abs().max() == 0


def test_perp_neg_and_prompt_alike_change_nothing():
    """A negative prompt that says what the prompt says has no part at right angles to it."""
    away = replace(SDS, trust=PerpNeg(G, -2.0))
    prior = prior_of((*BELLS[:2], Bell("bad", 1.1, 0.7)))
    same(look(away, batch([2.0]), prior), look(replace(SDS, trust=Guided(G)), batch([2.0]), prior))


# What single pieces promise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.1, 0.34, 0.36, 3.0])
def test_stable_sds_low_branch_is_free_of_the_noise_and_as_long_as_the_high_one(k):
    n = torch.randn(PICTURES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    g = look(at(rules.STABLE_SD, k, n), PICTURES, colours())
    direction = look(at(CSD, k, n), PICTURES, colours())
    same(g.flatten(1).norm(dim=1), direction.flatten(1).norm(dim=1))
    if k > 0.345:
        same(g, direction)
    else:
        said = look(
            at(replace(SDS, trust=Plain("prompt"), subtract=Nothing(), weight=rules.STABLE_SD.weight), k, n),
            PICTURES,
            colours(),
        )
        share = (said * n).sum((1, 2, 3), keepdim=True) / (n * n).sum((1, 2, 3), keepdim=True)
        free = said - share * n
        lengths = (one.flatten(1).norm(dim=1)[:, None, None, None] for one in (direction, free))
        same(g, free * next(lengths) / next(lengths))


def test_stable_sd_of_a_prediction_that_is_only_noise_is_zero():
    prior = prior_of((Bell("", 0.0, 1.0), Bell("y", 2.0, 1e-30), Bell("bad", 0.0, 1.0)))
    assert look(at(rules.STABLE_SD, 0.1, batch([0.7])), batch([2.0]), prior).item() == 0


def test_balanced_sd_descends_both_objectives():
    """The shortest vector between two: <G, C> >= |G|^2 and <G, S> >= |G|^2 (Karush-Kuhn-Tucker)."""
    n = torch.randn(PICTURES.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    rule = at(replace(rules.BALANCED_SD, weight=One()), (0.3, 1.0, 5.0), n)
    g, c = (
        look(rule, PICTURES, colours()),
        15 * look(replace(rule, trust=CSD.trust, subtract=CSD.subtract), PICTURES, colours()),
    )
    s = look(replace(rule, trust=Plain("null")), PICTURES, colours())
    squared = (g * g).flatten(1).sum(1)
    for other in (c, s):
        assert ((g * other).flatten(1).sum(1) - squared).min() > -1e-10
    assert (squared.sqrt() <= torch.minimum(c.flatten(1).norm(dim=1), s.flatten(1).norm(dim=1)) + 1e-12).all()


def test_balanced_sd_of_opposite_objectives_is_zero_and_of_equal_ones_is_either():
    probe = prior_of((Bell("", 0.0, 0.7), Bell("y", -3.0, 0.7), Bell("bad", 0.0, 1.0)))
    rule = at(replace(rules.BALANCED_SD, weight=One()), 1.0, batch([0.0]))
    # C = 15 h (0 + 3) > 0 and S = h x < 0 for x < 0.
    assert look(rule, batch([-1.0]), probe).item() == pytest.approx(0.0, abs=1e-12)
    equal = look(rule, batch([45.0]), probe).item()
    assert equal == pytest.approx(45.0 / (S**2 + 1), rel=1e-12)


def test_sdi_retraces_ddims_clean_estimates():
    """The paper's central identity: unit steps x <- x - G down a grid, with kappa the guided prediction one level
    before, give DDIM's clean estimates."""
    prior, x_t = prior_of(MODES), batch([1.3])
    ks = (8.0, 4.0, 2.0, 1.0, 0.5)
    levels = [prior.level_of_k(torch.tensor([k], dtype=torch.float64)) for k in ks]
    z, clean, kappas = x_t, [], []
    conditions = conditions_of(prior, 1)
    for level, to in itertools.pairwise(levels):
        prompt, null = prior.predict(z, level, [conditions["prompt"], conditions["null"]])
        kappas.append(null + G * (prompt - null))
        clean.append((z - level.sigma * kappas[-1]) / level.alpha)
        z = ddim(z, kappas[-1], level, to)
    x = clean[0]
    for k, kappa, want in zip(ks[1:], kappas, clean[1:], strict=False):
        x = x - look(at(replace(rules.SDI, trust=Guided(G)), k, kappa), x, prior)
        same(x, want)


def test_kept_noise_is_the_same_for_every_view_and_step_and_another_for_another_seed():
    def drawn(seed: int, step: int) -> Tensor:
        rule = replace(SDS, noise=Kept(), trust=Drawn(), subtract=Nothing(), weight=One())
        return gradient(rule, colours(), PICTURES, conditions_of(colours(), 3), Streams(seed, step)).gradient

    assert torch.equal(drawn(0, 0), drawn(0, 5))
    assert torch.equal(drawn(0, 0)[0], drawn(0, 0)[2])
    assert not torch.equal(drawn(0, 0), drawn(1, 0))


def test_inversion_treats_samples_of_other_levels_as_if_alone():
    levels = AtK((("main", (0.5, 2.0, 9.0)), ("lower", (0.3, 1.7, 8.0))))
    rule = replace(rules.ISM, levels=levels, noise=Inverted(start=False))
    whole = look(rule, PICTURES, colours())
    for i, (main, lower) in enumerate(((0.5, 0.3), (2.0, 1.7), (9.0, 8.0))):
        alone = replace(rule, levels=AtK((("main", main), ("lower", lower))))
        same(whole[i : i + 1], look(alone, PICTURES[i : i + 1], colours()))


def test_inversion_and_sampling_back_on_one_grid_return_nearly():
    """Up and down the same grid under the null prompt; DDIM is not its own inverse, so only as far as the grid is
    fine: half the step, half the error."""
    prior, x = prior_of(), batch([2.0])

    def there_and_back(count: int) -> float:
        ks = np.linspace(1e-9, 2.0, count + 1)
        levels = [prior.level_of_k(torch.tensor([k], dtype=torch.float64)) for k in ks]
        null, z = prior.condition([""]), x
        for path in (levels, levels[::-1]):
            for level, to in itertools.pairwise(path):
                z = ddim(z, prior.predict(z, level, [null])[0], level, to)
        return abs(z.item() - 2.0)

    assert there_and_back(200) < 0.6 * there_and_back(100)
    assert there_and_back(200) < 0.02


def test_the_upper_level_keeps_to_its_bounds():
    def drawn(random: bool, low: float = 0.3) -> dict[str, Tensor]:
        levels = Above(Uniform(low, 0.98), start=low, random=random)
        return {name: level.t for name, level in levels(colours(), 2000, Streams(0, 0)).items()}

    exact, jittered = drawn(False), drawn(True)
    want = torch.minimum((0.1 * (exact["main"] - 300)).floor(), 999 - exact["main"])
    assert torch.equal(exact["upper"] - exact["main"], want)
    gap = jittered["upper"] - jittered["main"]
    assert gap.min() >= 0
    assert jittered["upper"].max() <= 999
    assert (gap <= want).all()
    assert (gap < want).any()


def test_a_rule_takes_over_a_systems_levels_and_keeps_its_own_second_one():
    system = Uniform(0.1, 0.4)
    assert rules.SDS.levels.within(system) == system
    assert rules.ISM.levels.within(system) == replace(rules.ISM.levels, base=system)
    assert rules.SDS.levels.within(rules.ISM.levels) == rules.ISM.levels.base
    assert rules.CDS.levels.within(system) == rules.CDS.levels  # a path of levels is the rule's own
    assert rules.SDS.levels.within(rules.SDI.levels) == rules.SDI.levels
    with pytest.raises(ValueError, match="cannot lend"):
        rules.ISM.levels.within(TWO)


def test_what_no_piece_declared_is_asked_for_when_it_is_read():
    class Curious(Drawn):
        def __call__(self, probe: Probe) -> Tensor:
            return probe.eps("negative")

    prior = prior_of()
    look(replace(SDS, subtract=Curious()), batch([1.0]), prior)
    assert prior.calls == 2


def test_the_gap_starts_at_the_lowest_level_there_is_also_in_another_system_s_range():
    """With the lowest of the range as the start, the gap at t is a tenth of t - 300."""
    for levels in (Above(Uniform(0.3, 0.98), random=False), rules.ASD.levels.within(Uniform(0.3, 0.98))):
        drawn = replace(levels, random=False)(colours(), 2000, Streams(0, 0))
        main, upper = (drawn[name].t for name in ("main", "upper"))
        assert torch.equal(upper - main, torch.minimum((0.1 * (main - 300)).floor(), 999 - main))
    with pytest.raises(ValueError, match="say where the gap starts"):
        Above(At(0.5))(colours(), 2, Streams(0, 0))


def test_from_the_last_level_a_simulated_path_has_no_length():
    """Where even the upper level is the last one, its noise is what is predicted at the kept noise there."""
    prior = prior_of()
    top = AtK((("main", prior.level_at(998).k.item()), ("upper", prior.level_at(999).k.item())))
    rule = Rule(top, Simulated(1.0), trust=Drawn(), subtract=Nothing(), weight=One())
    last = prior.level_at(999)
    kept = Streams(0, 0).still().normal("noise", (1, 1, 1), like=torch.zeros((), dtype=torch.float64))
    (want,) = prior.predict(
        kept[None] * (last.alpha**2 + last.sigma**2).sqrt(),
        prior.level_at(torch.tensor([999])),
        [prior.condition(["y"])],
    )
    assert look(rule, batch([2.0]), prior).item() == pytest.approx(want.item(), abs=1e-6)
