"""The pieces of rules by themselves: levels, weights, posts, and the options of guidance."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.guidance import Rule
from dreamkit.guidance.estimate import Denoised, Guided, rescaled
from dreamkit.guidance.levels import At, Uniform
from dreamkit.guidance.post import Clamp, Normalize, NormalizeBatch, clip_pixels
from dreamkit.guidance.rule import Weight
from dreamkit.guidance.rules import CSD, SDS, SDS_ANNEALED
from dreamkit.guidance.weight import Alpha, AlphaSigmaSquared, InverseSigmaSquared, One, SigmaOverAlpha, SigmaSquared
from dreamkit.schedule import Linear, resolve
from dreamkit.streams import Streams
from tests.looking import PICTURES, G, S, at, batch, colours, conditions_of, look, prior_of, same


def levels_drawn(rule: Rule, progress: float, count: int = 4000) -> list[float]:

    return resolve(rule, progress).levels(colours(), count, Streams(1, 0))["main"].t.tolist()


def test_the_default_levels_are_20_to_980_uniformly():
    t = levels_drawn(SDS, 0.0, 40_000)
    assert (min(t), max(t)) == (20.0, 980.0)
    counts, _ = np.histogram(t, bins=31, range=(20, 981))
    assert abs(counts - 40_000 / 31).max() < 5 * (40_000 / 31) ** 0.5  # five standard errors


def test_annealed_levels_come_down_and_reach_both_ends():
    assert max(levels_drawn(SDS_ANNEALED, 0.0)) > 970
    last = levels_drawn(SDS_ANNEALED, 1.0)
    assert (min(last), max(last)) == (20.0, 300.0)


def test_levels_per_batch_are_one_level_and_at_is_deterministic():

    assert len(set(levels_drawn(replace(SDS, levels=Uniform(per="batch")), 0.0, 8))) == 1
    falling = replace(SDS, levels=At(Linear(0.98, 0.25)))
    assert [set(levels_drawn(falling, p, 3)) for p in (0.0, 1.0)] == [{980.0}, {250.0}]
    with pytest.raises(ValueError, match="empty"):
        levels_drawn(replace(SDS, levels=Uniform(0.9, 0.1)), 0.0)


@pytest.mark.parametrize(
    ("weight", "want"),
    [
        (SigmaSquared(), lambda alpha, sigma: sigma**2),
        (One(), lambda alpha, sigma: torch.ones_like(alpha)),
        (SigmaOverAlpha(), lambda alpha, sigma: sigma / alpha),
        (AlphaSigmaSquared(), lambda alpha, sigma: alpha * sigma**2),
        (Alpha(), lambda alpha, sigma: alpha),
        (InverseSigmaSquared(), lambda alpha, sigma: 1 / sigma**2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_are_their_formulas_on_stable_diffusions_schedule(weight: Weight, want: Callable[..., Tensor]):
    level = colours().level(torch.tensor([0.0, 0.02, 0.5, 0.98, 1.0]))
    torch.testing.assert_close(weight(level.k), want(level.alpha, level.sigma), rtol=1e-12, atol=0)


def test_weights_that_have_a_limit_are_finite_at_infinite_k():
    k = torch.tensor([float("inf")], dtype=torch.float64)
    assert [weight(k).item() for weight in (SigmaSquared(), One(), AlphaSigmaSquared())] == [1.0, 1.0, 0.0]


NO_PROBE: Any = None
"""For a piece that looks at the gradient alone."""


def test_posts_do_what_they_say():
    g = torch.tensor([[3.0, -4.0], [0.0, 0.0]]).reshape(2, 1, 1, 2)
    assert Clamp(3.5)(g, NO_PROBE).flatten().tolist() == [3.0, -3.5, 0.0, 0.0]
    assert NormalizeBatch()(g, NO_PROBE).flatten().tolist() == pytest.approx([0.6, -0.8, 0.0, 0.0])
    rms = 12.5**0.5
    assert Normalize()(g, NO_PROBE).flatten().tolist() == pytest.approx([3 / rms, -4 / rms, 0.0, 0.0])


def test_pixels_are_clipped_along_their_own_direction():
    g = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g[0, :, 0, 0] = 0
    cut = clip_pixels(g, 0.5)
    assert cut.abs().max() == 0.5
    small = g.abs().amax(1) <= 0.5
    assert torch.equal(cut.movedim(1, -1)[small], g.movedim(1, -1)[small])
    same(torch.linalg.cross(cut, g, dim=1), torch.zeros_like(g))  # parallel
    assert (cut * g).sum(1).min() >= 0
    same(clip_pixels(cut, 0.5), cut)
    same(clip_pixels(1024 * g, 1024 * 0.5), 1024 * cut)  # a loss scale cancels
    assert torch.equal(clip_pixels(g, 1e9), g)
    assert torch.equal(clip_pixels(g, float("inf")), g)


def test_a_rescaled_guidance_has_the_deviation_of_the_conditional_estimate():
    prior = colours()
    level = prior.level_of_k(torch.full((3,), 2.0, dtype=torch.float64))
    z = PICTURES * 1.3
    cond, null = prior.predict(z, level, [conditions_of(prior, 3)[name] for name in ("prompt", "null")])
    mixed = null + 30 * (cond - null)

    def deviation(eps: Tensor) -> Tensor:
        alpha, sigma = level.over(z)
        return ((z - sigma * eps) / alpha).flatten(1).std(1)

    same(deviation(rescaled(mixed, cond, z, level, 1.0)), deviation(cond))
    same(rescaled(mixed, cond, z, level, 0.0), mixed)
    half = deviation(rescaled(mixed, cond, z, level, 0.5))
    same(half, (deviation(mixed) + deviation(cond)) / 2)


def test_a_spread_of_the_scale_is_drawn_for_every_sample():
    wide = look(at(replace(SDS, trust=Guided(G, spread=2.0)), 1.0, PICTURES), PICTURES, colours())
    middle = look(at(replace(SDS, trust=Guided(G)), 1.0, PICTURES), PICTURES, colours())
    direction = look(at(CSD, 1.0, PICTURES), PICTURES, colours())
    off = ((wide - middle) * direction).flatten(1).sum(1) / (direction * direction).flatten(1).sum(1)
    same(wide - middle, direction * off[:, None, None, None])
    assert off.abs().max() <= 2
    assert len(set(off.tolist())) == 3


def to_pictures(scale: float, stride: float, eta: float = 0.0) -> Rule:
    """G is then x less the picture that the sampler comes to."""
    return replace(SDS, trust=Denoised(scale, stride=stride, eta=eta), weight=SigmaOverAlpha())


def test_denoised_in_one_step_is_guided():
    noise = PICTURES.flip(1)
    guided = look(at(replace(SDS, trust=Guided(G), weight=SigmaOverAlpha()), 1.0, noise), PICTURES, colours())
    same(look(at(to_pictures(G, 1.0), 1.0, noise), PICTURES, colours()), guided)


def test_denoised_in_many_steps_is_where_the_flow_of_a_bell_ends():
    # Of N(m, S^2) the noisy z / alpha has mean m and variance S^2 + k^2, and the flow keeps its place in units of that.
    prior, k, noise = prior_of(), (0.3, 1.0, 6.0), batch([0.7, -1.2, 0.4])
    x = batch([2.0, 0.1, -3.0])
    ends = 1.1 + (x + batch(k) * noise - 1.1) * S / (S**2 + batch(k) ** 2).sqrt()
    off = [(look(at(to_pictures(1.0, s), k, noise), x, prior) - (x - ends)).abs().max().item() for s in (0.02, 0.001)]
    # Euler's method: its error falls as the stride does, and there is hardly any left at the finest one.
    assert off[0] < 0.05
    assert off[1] < off[0] / 10


def test_denoised_takes_each_sample_down_its_own_levels():
    prior, indices, noise = colours(), (620, 90, 330), PICTURES.flip(1)
    conditions = conditions_of(prior, 1)
    ks = tuple(prior.level_at(index).k.item() for index in indices)
    found = PICTURES - look(at(to_pictures(G, 0.25), ks, noise), PICTURES, prior)
    for i, index in enumerate(indices):
        level = prior.level_at(index)
        alpha, sigma = level.over(PICTURES[:1])
        z = alpha * PICTURES[i : i + 1] + sigma * noise[i : i + 1]
        while index >= 0:
            cond, null = prior.predict(z, prior.level_at(index), [conditions["prompt"], conditions["null"]])
            eps, alpha, sigma = null + G * (cond - null), *prior.level_at(index).over(z)
            clean, index = (z - sigma * eps) / alpha, index - 250
            if index >= 0:
                alpha, sigma = prior.level_at(index).over(z)
                clean = alpha * clean + sigma * eps
            z = clean
        same(found[i : i + 1], z)


def test_denoised_with_fresh_noise_draws_from_the_bell():
    prior, count = prior_of(), 4000
    x, noise = batch(1.1 + S * standard(count, 0)), batch(standard(count, 1))
    ends = x - look(at(to_pictures(1.0, 0.005, 1.0), 4.0, noise), x, prior)
    # Samples of the bell go in, so samples come out: four standard errors, and what 200 steps leave, of first order (50
    # leave 0.08).
    assert abs(ends.mean().item() - 1.1) < 4 * S / count**0.5
    assert abs(ends.std().item() / S - 1) < 4 / (2 * count) ** 0.5 + 0.02
    # And others: only E[x | z] is kept of x, a correlation of S^2 / (S^2 + k^2) = 0.03, where the flow keeps 0.17.
    kept = float(torch.corrcoef(torch.stack([ends.flatten(), x.flatten()]))[0, 1])
    assert abs(kept - S**2 / (S**2 + 16)) < 4 / count**0.5


def standard(count: int, seed: int) -> Tensor:
    return torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_denoised_refuses_strides_that_lead_nowhere():
    for stride in (0.0, -0.1, 1.5):
        with pytest.raises(InputError, match="stride"):
            Denoised(G, stride=stride)


def test_a_rule_not_yet_resolved_says_so():
    with pytest.raises(ValueError, match="is still a schedule"):
        Clamp(Linear(0.0, 1.0))(PICTURES, NO_PROBE)
