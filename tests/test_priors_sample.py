"""Samples against the exact path of a Gaussian prior."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dreamkit.diffusion import PARAMETERIZATIONS, Level, NoiseSchedule
from dreamkit.priors import Bell, Gaussian, Prior
from dreamkit.priors.folder import alpha_squared
from dreamkit.priors.sample import sample
from dreamkit.streams import Streams

MEAN, STD = 0.3, 0.2


def prior(device: str, parameterization: str = "eps", std: float = STD) -> Prior:
    bells = (Bell("a ball", MEAN, std), Bell("", -0.5, 0.7))
    return Gaussian(bells, parameterization, size=4).load(device)


def shot(model: Prior, steps: int, scale: float = 1.0, count: int = 1, seed: int = 5, **given) -> Tensor:
    """Samples of "a ball", against the null prompt."""
    asked = [model.condition([text] * count) for text in ("a ball", "")]
    return sample(model, *asked, Streams(seed, 0), steps=steps, scale=scale, **given)


def noise(like: Tensor) -> Tensor:
    return Streams(5, 0).normal("sample", tuple(like.shape), like)


def begun(found: Tensor, top: Level) -> Tensor:
    """y = z / alpha of pure noise: as long as y has to be at that k, whatever the schedule."""
    return noise(found) * float(1 + top.k**2) ** 0.5


def eulers(model: Prior, steps: int, strength: float = 1.0) -> tuple[Level, float]:
    """The first level, and what Euler's steps from there to k = 0 multiply y - mean by.

    eps = k (y - mean) / (std^2 + k^2) with y = z / alpha, so a step from k to k' is a number.
    """
    levels = [model.level_at(min(round(1000 * strength * (1 - i / steps)), 999)) for i in range(steps)]
    ks = [float(level.k) for level in levels] + [0.0]
    return levels[0], math.prod(1 + (after - k) * k / (STD**2 + k**2) for k, after in pairwise(ks))


def test_a_single_point_is_found_in_any_number_of_steps(device):
    # Without spread every eps points straight at the mean, so Euler's steps are exact up to float32.
    for steps in (1, 7):
        found = shot(prior(device, std=0.0), steps, count=2)
        torch.testing.assert_close(found, torch.full_like(found, MEAN), atol=2e-5, rtol=0)


def test_sampling_begins_at_zero_terminal_snr(device):
    model = prior(device, "v", std=0.0)
    model.schedule = NoiseSchedule(alpha_squared({"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True}))
    assert float(model.level(1.0).k) > 1000
    found = shot(model, 7, count=2)
    # As above; k of 2,000 times the rounding of float32.
    torch.testing.assert_close(found, torch.full_like(found, MEAN), atol=2e-3, rtol=0)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("steps", [1, 30])
def test_samples_are_eulers_of_the_gaussian_flow(device, parameterization, steps):
    model = prior(device, parameterization)
    found = shot(model, steps)
    top, factor = eulers(model, steps)
    # float32 with k up to 15 at the start: a few 1e-6 each step
    torch.testing.assert_close(found, MEAN + factor * (begun(found, top) - MEAN), atol=1e-4, rtol=0)


@pytest.mark.parametrize("parameterization", ["eps", "flow"])
def test_many_steps_come_near_the_exact_flow(device, parameterization):
    """Where the flow d(z / alpha) / dk = eps takes the same noise: y - mean stays proportional to sqrt(std^2 + k^2)."""
    model = prior(device, parameterization)

    def off(steps: int) -> float:
        found, top = shot(model, steps), model.level(1.0)
        exact = MEAN + (begun(found, top) - MEAN) * STD / float(STD**2 + top.k**2) ** 0.5
        return float((found - exact).abs().max())

    assert off(960) < 0.1 * STD
    assert off(960) < off(30) / 5


@pytest.mark.parametrize("parameterization", ["v", "flow"])
def test_from_pictures_the_flow_begins_at_the_pictures_noised(device, parameterization):
    model = prior(device, parameterization)
    start = torch.linspace(-1, 1, 48, dtype=torch.float64, device=device).reshape(1, 3, 4, 4)
    found = shot(model, 12, start=start, strength=0.6)
    top, factor = eulers(model, 12, 0.6)
    want = MEAN + factor * (start + noise(start) * float(top.k) - MEAN)
    torch.testing.assert_close(found, want, atol=1e-12, rtol=0)  # float64, as the pictures
    little = shot(model, 12, start=start, strength=1e-3)
    assert (little - start).abs().max() < 0.3  # four deviations of the noise at index 1, k = 0.04, and the drift


def test_guidance_mixes_the_two_predictions(device):
    """One step of two points: x0 is what cfg makes of their two estimates, uncond + s (cond - uncond)."""
    bells = (Bell("a ball", 0.4, 0.0), Bell("", -0.2, 0.0))
    model = Gaussian(bells, size=4).load(device)
    found = shot(model, 1, scale=3.0)
    # The first level has alpha of 0.07 and floats of sigma / alpha: 1e-4 is a few roundings.
    torch.testing.assert_close(found, torch.full_like(found, -0.2 + 3 * 0.6), atol=1e-4, rtol=0)
    assert (model.calls, model.samples) == (1, 2)


def test_scale_one_does_not_ask_without_the_prompt(device):
    model = prior(device)
    shot(model, 7, count=3)
    assert (model.calls, model.samples) == (7, 21)


def test_each_sample_has_its_own_prompt_and_noise(device):
    model = prior(device)

    def drawn(seed: int) -> Tensor:
        asked, null = model.condition(["a ball", ""]), model.condition([""] * 2)
        return sample(model, asked, null, Streams(seed, 0), steps=20, scale=1.0)

    found = drawn(5)
    assert abs(float(found[0].mean()) - MEAN) < 0.2  # three standard errors of 48 draws, and the steps
    assert abs(float(found[1].mean()) + 0.5) < 0.4
    assert torch.equal(found, drawn(5))
    assert not torch.equal(found, drawn(6))


@pytest.mark.parametrize(("steps", "strength"), [(0, 1.0), (5, 0.0), (5, 1.1)])
def test_what_cannot_be_sampled_is_said(device, steps, strength):
    with pytest.raises(ValueError, match="at least one step and a strength in"):
        shot(prior(device), steps, strength=strength)
