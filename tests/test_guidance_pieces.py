"""The pieces of rules by themselves: levels, weights, posts, and the options of guidance."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamkit.guidance import CSD, SDS, SDS_ANNEALED, Rule
from dreamkit.guidance.estimate import Guided, rescaled
from dreamkit.guidance.levels import At, Uniform
from dreamkit.guidance.post import Clamp, Normalize, NormalizeBatch, clip_pixels
from dreamkit.guidance.rule import Weight
from dreamkit.guidance.weight import Alpha, AlphaSigmaSquared, One, SigmaOverAlpha, SigmaSquared
from dreamkit.schedule import Linear, resolve
from dreamkit.streams import Streams
from tests.looking import PICTURES, G, at, colours, conditions_of, look, same


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
    ],
    ids=lambda value: type(value).__name__,
)
def test_weights_are_their_formulas_on_stable_diffusions_schedule(weight: Weight, want: Callable[..., Tensor]):
    level = colours().level(torch.tensor([0.0, 0.02, 0.5, 0.98, 1.0]))
    torch.testing.assert_close(weight(level.k), want(level.alpha, level.sigma), rtol=1e-12, atol=0)


def test_weights_that_have_a_limit_are_finite_at_infinite_k():
    k = torch.tensor([float("inf")], dtype=torch.float64)
    assert [weight(k).item() for weight in (SigmaSquared(), One(), AlphaSigmaSquared())] == [1.0, 1.0, 0.0]


def test_posts_do_what_they_say():
    g = torch.tensor([[3.0, -4.0], [0.0, 0.0]]).reshape(2, 1, 1, 2)
    assert Clamp(3.5)(g).flatten().tolist() == [3.0, -3.5, 0.0, 0.0]
    assert NormalizeBatch()(g).flatten().tolist() == pytest.approx([0.6, -0.8, 0.0, 0.0])
    rms = 12.5**0.5
    assert Normalize()(g).flatten().tolist() == pytest.approx([3 / rms, -4 / rms, 0.0, 0.0])


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


def test_a_rule_not_yet_resolved_says_so():
    with pytest.raises(ValueError, match="is still a schedule"):
        Clamp(Linear(0.0, 1.0))(PICTURES)
