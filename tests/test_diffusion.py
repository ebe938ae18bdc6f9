"""The algebra of diffusion against the published numbers of Stable Diffusion's schedule and against itself."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.diffusion import (
    PARAMETERIZATIONS,
    FlowSchedule,
    Level,
    NoiseSchedule,
    add_noise,
    cfg,
    ddim,
    output_of,
    over,
    perp_neg,
    scaled_linear,
    to_eps,
    to_x0,
    x0_of,
)

SD = NoiseSchedule(scaled_linear())

# t, alpha^2, alpha, sigma, k, rectified-flow time: Stable Diffusion's published schedule, printed to five or six digits
ANCHORS = [
    (0, 0.999150, 0.99957, 0.02915, 0.02917, 0.02834),
    (20, 0.981314, 0.99061, 0.13670, 0.13799, 0.12126),
    (200, 0.753692, 0.86815, 0.49629, 0.57167, 0.36373),
    (500, 0.276333, 0.52567, 0.85069, 1.61828, 0.61807),
    (800, 0.036870, 0.19201, 0.98139, 5.11103, 0.83636),
    (980, 0.005844, 0.07644, 0.99707, 13.04308, 0.92879),
    (999, 0.004660, 0.06826, 0.99767, 14.61464, 0.93596),
]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level_at(k: float, path: str, batch: int = 2) -> Level:
    """The level with noise to signal k on the variance-preserving or the straight path, by its definition."""
    alpha = 1 / (1 + k**2) ** 0.5 if path == "vp" else 1 / (1 + k)
    values = torch.full((batch,), alpha, dtype=torch.float64)
    return Level(torch.zeros(batch, dtype=torch.float64), values, k * values)


@pytest.mark.parametrize("row", ANCHORS, ids=lambda row: f"t={row[0]}")
def test_stable_diffusions_schedule_has_its_published_numbers(row):
    t, squared, alpha, sigma, k, time = row
    level = SD.at(torch.tensor([t]))
    assert level.alpha.item() ** 2 == pytest.approx(squared, abs=1e-6)
    assert level.alpha.item() == pytest.approx(alpha, abs=1e-5)
    assert level.sigma.item() == pytest.approx(sigma, abs=1e-5)
    assert level.k.item() == pytest.approx(k, abs=2e-5)
    assert FlowSchedule().at(torch.tensor([t])).t.item() == pytest.approx(time, abs=1e-5)


@pytest.mark.parametrize("schedule", [SD, FlowSchedule()], ids=["vp", "flow"])
def test_a_level_is_found_again_by_its_k(schedule):
    index = torch.arange(1000)
    level = schedule.at(index)
    again = schedule.of_k(level.k)
    for name in ("t", "alpha", "sigma"):  # float64 through tan and atan
        torch.testing.assert_close(getattr(again, name), getattr(level, name), rtol=1e-9, atol=1e-9)


def test_between_two_indices_t_is_between_them_and_k_is_exact():
    k = torch.tensor([1.0, 0.5, 5.0], dtype=torch.float64)
    level = SD.of_k(k)
    torch.testing.assert_close(level.k, k, rtol=1e-12, atol=0)
    low, high = SD.at(level.t.floor().long()).k, SD.at(level.t.ceil().long()).k
    assert bool(((low <= k) & (k <= high)).all())


def test_beyond_the_schedule_t_is_its_end_and_k_is_still_exact():
    level = SD.of_k(torch.tensor([1e-4, 1e4], dtype=torch.float64))
    assert level.t.tolist() == [0.0, 999.0]
    torch.testing.assert_close(level.k, torch.tensor([1e-4, 1e4], dtype=torch.float64), rtol=1e-9, atol=0)


def test_fractions_hit_both_ends_of_the_schedule():
    assert SD.level(torch.tensor([0.0, 0.02, 0.98, 1.0])).t.tolist() == [0.0, 20.0, 980.0, 999.0]


@pytest.mark.parametrize("kind", [NoiseSchedule, FlowSchedule])
def test_zero_terminal_snr_ends_before_it(kind):
    schedule = kind(torch.linspace(0.99, 0.0, 11, dtype=torch.float64))
    assert schedule.steps == 10
    top = schedule.level(torch.tensor([1.0]))
    # alpha^2 falls by 0.099 a step, and from that to 0.
    assert top.k.item() == pytest.approx((0.901 / 0.099) ** 0.5)
    assert schedule.index(torch.tensor([torch.inf])).item() == 9.0


def test_a_schedule_that_rises_is_refused():
    with pytest.raises(ValueError, match="decreasing"):
        NoiseSchedule(torch.tensor([0.5, 0.6]))


@given(k=st.floats(1e-2, 1e2), kind=st.sampled_from(PARAMETERIZATIONS), seed=st.integers(0, 1000))
def test_what_a_network_says_means_what_was_meant(k, kind, seed):
    """x0 and eps -> the network's words -> x0 and eps, on the path the parameterization lives on."""
    level = level_at(k, "flow" if kind == "flow" else "vp")
    x0, eps = draw(seed, 2, 3, 2, 2), draw(seed + 1, 2, 3, 2, 2)
    z = add_noise(x0, eps, level)
    said = output_of(kind, x0, eps, level)
    # Float64; the way over eps divides by alpha, the way over x0 by sigma: at most 1e2 times rounding.
    torch.testing.assert_close(to_eps(kind, said, z, level), eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_x0(kind, said, z, level), x0, rtol=1e-10, atol=1e-10)


def test_the_words_themselves_are_those_of_the_papers():
    level = level_at(0.75, "vp")  # alpha 0.8, sigma 0.6
    x0, eps = torch.full((2, 1), 2.0, dtype=torch.float64), torch.full((2, 1), 5.0, dtype=torch.float64)
    torch.testing.assert_close(output_of("v", x0, eps, level), torch.full_like(x0, 0.8 * 5 - 0.6 * 2))
    torch.testing.assert_close(output_of("flow", x0, eps, level), torch.full_like(x0, 5.0 - 2.0))
    torch.testing.assert_close(add_noise(x0, eps, level), torch.full_like(x0, 0.8 * 2 + 0.6 * 5))


def test_a_v_is_read_off_the_unit_circle_too():
    """alpha^2 + sigma^2 need not be one: the formulas of v keep their denominators."""
    level = level_at(0.5, "flow")
    x0, eps = draw(0, 2, 3), draw(1, 2, 3)
    said = output_of("v", x0, eps, level)
    torch.testing.assert_close(to_eps("v", said, add_noise(x0, eps, level), level), eps)
    torch.testing.assert_close(to_x0("v", said, add_noise(x0, eps, level), level), x0)


def test_at_zero_alpha_v_and_flow_still_give_an_estimate():
    level = Level(torch.ones(2), torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    x0, eps = draw(0, 2, 3), draw(1, 2, 3)
    for kind in ("v", "flow", "x0"):
        torch.testing.assert_close(to_x0(kind, output_of(kind, x0, eps, level), eps, level), x0)


@pytest.mark.parametrize("kind", PARAMETERIZATIONS)
def test_guiding_and_converting_commute(kind):
    level = level_at(2.0, "flow" if kind == "flow" else "vp")
    z, cond, uncond = draw(0, 2, 3), draw(1, 2, 3), draw(2, 2, 3)
    first = to_eps(kind, cfg(cond, uncond, 7.5), z, level)
    last = cfg(to_eps(kind, cond, z, level), to_eps(kind, uncond, z, level), 7.5)
    torch.testing.assert_close(first, last, rtol=1e-12, atol=1e-12)


def test_scale_one_is_the_conditional_prediction_and_zero_the_other():
    cond, uncond = draw(0, 2, 3), draw(1, 2, 3)
    torch.testing.assert_close(cfg(cond, uncond, 1.0), cond)
    assert torch.equal(cfg(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(cfg(cond, uncond, 101.0), cond + 100 * (cond - uncond))


def test_an_unknown_parameterization_is_named():
    for convert in (to_eps, to_x0):
        with pytest.raises(ValueError, match="'score' is not one of eps, v, x0, flow"):
            convert("score", draw(0, 2, 3), draw(0, 2, 3), level_at(1.0, "vp"))


# Perp-Neg


def test_perp_neg_without_negatives_is_cfg():
    cond, uncond, negative = draw(0, 2, 3, 4), draw(1, 2, 3, 4), draw(2, 2, 3, 4)
    assert torch.equal(perp_neg(cond, uncond, [], 7.5), cfg(cond, uncond, 7.5))
    torch.testing.assert_close(perp_neg(cond, uncond, [(0.0, negative)], 7.5), cfg(cond, uncond, 7.5))


def test_what_perp_neg_adds_is_at_right_angles_to_the_prompt_per_sample():
    cond, uncond, negative = draw(0, 3, 2, 4), draw(1, 3, 2, 4), draw(2, 3, 2, 4)
    added = perp_neg(cond, uncond, [(-1.5, negative)], 1.0) - cfg(cond, uncond, 1.0)
    assert (added * (cond - uncond)).flatten(1).sum(1).abs().max() < 1e-12
    assert added.abs().max() > 0.1


def test_a_negative_along_the_prompt_changes_nothing():
    cond, uncond = draw(0, 2, 3, 4), draw(1, 2, 3, 4)
    along = uncond + 0.3 * (cond - uncond)
    torch.testing.assert_close(perp_neg(cond, uncond, [(-2.0, along)], 7.5), cfg(cond, uncond, 7.5))


def test_perp_neg_of_a_prompt_that_says_nothing_is_finite():
    cond, negative = draw(0, 2, 3, 4), draw(1, 2, 3, 4)
    assert perp_neg(cond, cond, [(-1.0, negative)], 7.5).isfinite().all()


# The sampler


def gaussian_eps(z: torch.Tensor, level: Level, mean: float, std: float) -> torch.Tensor:
    alpha, sigma = level.over(z)
    return sigma * (z - alpha * mean) / (alpha**2 * std**2 + sigma**2)


def test_ddim_is_one_euler_step_of_zeta_in_k():
    level, to = level_at(2.0, "vp"), level_at(0.5, "vp")
    z, eps = draw(0, 2, 3), draw(1, 2, 3)
    zeta = z / over(level.alpha, z) + (0.5 - 2.0) * eps
    torch.testing.assert_close(ddim(z, eps, level, to), zeta * over(to.alpha, z), rtol=1e-12, atol=1e-12)


def test_many_ddim_steps_carry_noise_to_a_sample_of_a_gaussian():
    """The exact map of the ODE is z -> mean + std (zeta - mean) / sqrt(std^2 + k^2)."""
    mean, std = 0.3, 0.7
    ks = torch.logspace(2, -4, 3000, dtype=torch.float64).tolist()
    zeta = mean + 1.3 * (std**2 + ks[0] ** 2) ** 0.5
    z = torch.full((1, 1), zeta, dtype=torch.float64) * level_at(ks[0], "vp", 1).alpha
    for a, b in pairwise(ks):
        level, to = level_at(a, "vp", 1), level_at(b, "vp", 1)
        z = ddim(z, gaussian_eps(z, level, mean, std), level, to)
    assert z.item() == pytest.approx(mean + 1.3 * std, abs=5e-3)  # Euler's first-order error at 3,000 steps


def test_a_step_up_and_down_again_with_the_same_eps_returns():
    low, high = level_at(0.3, "flow"), level_at(1.7, "flow")
    z, eps = draw(0, 2, 3), draw(1, 2, 3)
    torch.testing.assert_close(ddim(ddim(z, eps, low, high), eps, high, low), z, rtol=1e-12, atol=1e-12)


def test_a_noisy_step_keeps_the_total_noise_and_needs_its_noise():
    """With x0 = 0 and eps, noise independent, the result is N(0, sigma'^2) whatever eta is."""
    level, to = level_at(2.0, "vp", 1), level_at(0.5, "vp", 1)
    eps, noise = draw(0, 1, 100_000), draw(1, 1, 100_000)
    z = over(level.sigma, eps) * eps
    for eta in (0.5, 1.0):
        spread = ddim(z, eps, level, to, eta, noise).std().item()
        assert spread == pytest.approx(to.sigma.item(), rel=0.01)  # five standard errors of 1e5 draws
    with pytest.raises(ValueError, match="adds noise"):
        ddim(z, eps, level, to, 1.0)


def test_a_noisy_step_of_another_path_is_a_multiple_of_the_same_one():
    """z / alpha goes the same way on every path through the same k, with the same noise."""
    eps, noise, zeta = draw(0, 2, 3), draw(1, 2, 3), draw(2, 2, 3)
    ends = []
    for path in ("vp", "flow"):
        level, to = level_at(2.0, path), level_at(0.5, path)
        ends.append(ddim(zeta * over(level.alpha, zeta), eps, level, to, 0.7, noise) / over(to.alpha, zeta))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)


def test_a_fully_noisy_step_is_ddpms_posterior():
    """At eta = 1 the step is N(c0 x0 + c1 z, s^2), the posterior of z' given z and x0 (arXiv:2006.11239, eq. 6-7)."""
    level, to = level_at(2.0, "vp", 1), level_at(0.5, "vp", 1)
    ratio = level.alpha / to.alpha
    c1 = ratio * to.sigma**2 / level.sigma**2
    c0 = to.alpha * (1 - ratio**2) / level.sigma**2
    spread = (to.sigma**2 * (1 - ratio**2)).sqrt() / level.sigma
    x0, eps, noise = draw(0, 1, 5), draw(1, 1, 5), draw(2, 1, 5)
    z = add_noise(x0, eps, level)
    torch.testing.assert_close(ddim(z, eps, level, to, 1.0, noise), c0 * x0 + c1 * z + spread * noise)


def test_x0_of_undoes_add_noise():
    level = level_at(3.0, "vp")
    x, noise = draw(0, 2, 3), draw(1, 2, 3)
    torch.testing.assert_close(x0_of(add_noise(x, noise, level), noise, level), x)


# Levels


def test_levels_stack_slice_and_broadcast():
    level = SD.at(torch.tensor([20, 500, 980]))
    both = Level.cat([level[:1], level[1:]])
    assert both.t.tolist() == [20.0, 500.0, 980.0]
    assert len(both) == 3
    alpha, sigma = level.over(torch.zeros(3, 4, 5, 6))
    assert alpha.shape == sigma.shape == (3, 1, 1, 1)
    assert alpha.dtype == torch.float32
