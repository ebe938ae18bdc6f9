"""Samples against the exact path of a Gaussian prior."""

import math
from itertools import pairwise

import pytest
import torch

from dreamkit.errors import InputError
from dreamkit.priors import Bell, Gaussian
from dreamkit.priors.sample import sample
from dreamkit.streams import Streams

MEAN, STD = 0.3, 0.2


def prior(device: str, parameterization: str = "eps", std: float = STD):
    bells = (Bell("a ball", MEAN, std), Bell("", -0.5, 0.7))
    return Gaussian(bells, parameterization, size=4).load(device)


def noise(like: torch.Tensor) -> torch.Tensor:
    return Streams(5, 0).normal("sample", tuple(like.shape), like)


def exact(found: torch.Tensor, model) -> torch.Tensor:
    """Where the flow d(z / alpha) / dk = eps takes the same noise: y - mean stays proportional to sqrt(std^2 + k^2)."""
    top = model.level(1.0)
    start = noise(found) / float(top.alpha) - MEAN
    return MEAN + start * STD / float(STD**2 + top.k**2) ** 0.5


def test_a_single_point_is_found_in_any_number_of_steps(device):
    # Without spread every eps points straight at the mean, so Euler's steps are exact up to float32.
    for steps in (1, 7):
        found = sample(prior(device, std=0.0), ["a ball"] * 2, Streams(5, 0), steps=steps, scale=1.0)
        torch.testing.assert_close(found, torch.full_like(found, MEAN), atol=2e-5, rtol=0)


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0", "flow"])
@pytest.mark.parametrize("steps", [1, 30])
def test_samples_are_eulers_of_the_gaussian_flow(device, parameterization, steps):
    """eps = k (y - mean) / (std^2 + k^2) with y = z / alpha, so a step from k to k' multiplies y - mean by a number."""
    model = prior(device, parameterization)
    found = sample(model, ["a ball"], Streams(5, 0), steps=steps, scale=1.0)
    indices = [min(round(1000 * (1 - i / steps)), 999) for i in range(steps)]
    ks = [float(model.level_at(index).k) for index in indices] + [0.0]
    factor = math.prod(1 + (after - k) * k / (STD**2 + k**2) for k, after in pairwise(ks))
    start = noise(found) / float(model.level_at(999).alpha) - MEAN
    # float32 with k up to 15 at the start: a few 1e-6 each step
    torch.testing.assert_close(found, MEAN + factor * start, atol=1e-4, rtol=0)


def test_many_steps_come_near_the_exact_flow(device):
    model = prior(device)
    few, many = (float((f - exact(f, model)).abs().max()) for f in (shot(model, 30), shot(model, 960)))
    assert many < 0.1 * STD
    assert many < few / 5


def shot(model, steps: int) -> torch.Tensor:
    return sample(model, ["a ball"], Streams(5, 0), steps=steps, scale=1.0)


def test_guidance_mixes_the_two_predictions(device):
    """One step of two points: x0 is what cfg makes of their two estimates, uncond + s (cond - uncond)."""
    bells = (Bell("a ball", 0.4, 0.0), Bell("", -0.2, 0.0))
    model = Gaussian(bells, size=4).load(device)
    found = sample(model, ["a ball"], Streams(5, 0), steps=1, scale=3.0)
    # The first level has alpha of 0.07 and floats of sigma / alpha: 1e-4 is a few roundings.
    torch.testing.assert_close(found, torch.full_like(found, -0.2 + 3 * 0.6), atol=1e-4, rtol=0)
    assert model.calls == 1
    assert model.samples == 2


def test_each_sample_has_its_own_prompt_and_noise(device):
    model = prior(device)
    found = sample(model, ["a ball", ""], Streams(5, 0), steps=20, scale=1.0)
    assert abs(float(found[0].mean()) - MEAN) < 0.2  # three standard errors of 48 draws, and the steps
    assert abs(float(found[1].mean()) + 0.5) < 0.4
    assert torch.equal(found, sample(model, ["a ball", ""], Streams(5, 0), steps=20, scale=1.0))
    assert not torch.equal(found, sample(model, ["a ball", ""], Streams(6, 0), steps=20, scale=1.0))


def test_what_cannot_be_sampled_is_said(device):
    with pytest.raises(InputError, match="does not know the prompt 'a cube'"):
        sample(prior(device), ["a cube"], Streams(0, 0))
    with pytest.raises(ValueError, match="at least one step"):
        sample(prior(device), ["a ball"], Streams(0, 0), steps=0)
