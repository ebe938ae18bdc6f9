"""Targets without chance: the mean of what a noisy picture may be a picture of is that mean."""

import random
from dataclasses import replace

import pytest
import torch

from dreamkit.streams import Streams
from dreamkit.toybox import pictures, targets, world
from dreamkit.toybox.pictures import Batch, cast_pool, draw_asked, shade
from dreamkit.toybox.targets import HIDDEN, HIDING, MEAN, Explained, expected, explain, take_apart
from dreamkit.toybox.world import Pair, Thing


@pytest.fixture(scope="module")
def pool():
    return cast_pool(32, 0, torch.device("cpu"), lambda text: None, pairs=3, together=4)


@pytest.fixture(scope="module")
def layers(pool):
    return take_apart(pool)


def test_layers_in_their_colours_are_the_pictures(pool, monkeypatch):
    """Lit from the camera by all lamps, on the background that a picture has."""
    for module in (pictures, targets):
        monkeypatch.setattr(module, "LAMP_SPREAD", 0.0)
    few = replace(
        pool, kinds={a: pool.kinds[a] for a in [("castle",), ("duck",)]}, pairs=dict([*pool.pairs.items()][:1])
    )
    taken = take_apart(few)
    for arrangement, views in (few.kinds | few.pairs).items():
        first, *rest = (
            Thing(kind, colour, "cyan") for kind, colour in zip(arrangement[::2], ("green", "red"), strict=False)
        )
        asked = Pair(first, arrangement[1], rest[0]) if rest else first
        picture = shade(few, [asked], [views[1]], Streams(0, 0))[0]
        ground = pictures._backgrounds(1, few.towards[:1], Streams(0, 0))[0, 0, 0]
        planes = taken.planes[arrangement][1].float() / 255
        colours = torch.cat([ground[None], pictures.palette(asked)[1:, :3][taken.parts[arrangement]]])
        # Two planes meet at an edge, each rounded to half of 1/255, at most seven in a pixel.
        assert (torch.einsum("ps,pc->cs", planes, colours) - picture.flatten(1)).abs().max() < 7 / 510


def by_integration(planes, colours, z, alpha, sigma) -> Explained:
    """The same integral over the background, summed on a grid in each dimension."""
    b = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    prior = torch.exp(-1.5 * b**2) * (1.5 / torch.pi) ** 0.5 * (b[1] - b[0])
    evidence, means = [], []
    for layer in planes:
        a, c = layer[0], 2 * (layer[1:].T @ colours).T + layer[0] - 1

        def fit(channel, b=b, a=a, c=c):  # -|z - alpha (c + a b)|^2 / 2 sigma^2 of one channel at every b
            off = z[channel] - alpha * c[channel]
            squares = (off @ off) - 2 * alpha * b * (a @ off) + (alpha * b) ** 2 * (a @ a)
            return -squares / (2 * sigma**2)

        fits = torch.stack([fit(channel) for channel in range(3)])
        tinted = (fits.exp() * prior).sum(1)
        grey = (fits.sum(0).exp() * prior).sum()
        weights = (1 - pictures.GREY_SHARE) * tinted.prod(), pictures.GREY_SHARE * grey
        of_tinted = (fits.exp() * prior * b).sum(1) / tinted
        of_grey = (fits.sum(0).exp() * prior * b).sum() / grey
        mean = (weights[0] * of_tinted + weights[1] * of_grey) / sum(weights)
        evidence.append(sum(weights).log())
        means.append(c + a * mean[:, None])
    return Explained(torch.stack(evidence), torch.stack(means))


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 0.8])
def test_the_background_is_integrated_out(alpha):
    draw = torch.Generator().manual_seed(0)
    planes = torch.rand(3, 4, 20, generator=draw, dtype=torch.float64)
    colours = torch.rand(3, 3, generator=draw, dtype=torch.float64)
    z = torch.randn(3, 20, generator=draw, dtype=torch.float64)
    sigma = (1 - alpha**2) ** 0.5
    found, wanted = (of(planes, colours, z, alpha, sigma) for of in (explain, by_integration))
    # Float64; the grid's step is a twentieth of the narrowest normal's width or less, where such a sum is exact.
    assert torch.allclose(found.evidence.diff(), wanted.evidence.diff(), atol=1e-9)
    assert torch.allclose(found.mean, wanted.mean, atol=1e-9)


def noisy(pool, thing, count, together, alpha, seed=0):
    """Noisy pictures [N, 3, S, S] of one thing from random views, with the words for them, and their batch."""
    draw = random.Random(seed)
    starts = [draw.choice(pool.kinds[(thing.kind,)][::together]) for _ in range(count // together)]
    views = [start + k for start in starts for k in range(together)]
    captions = [f"a {thing.colour} {thing.kind}"] * count
    seen = Batch(shade(pool, [thing] * count, views, Streams(seed, 1)), captions, [thing] * count, views)
    noise = torch.randn(seen.pictures.shape, generator=torch.Generator().manual_seed(seed))
    signal = torch.full((count,), alpha)
    return alpha * (2 * seen.pictures - 1) + (1 - alpha**2) ** 0.5 * noise, signal, (1 - signal**2).sqrt(), seen


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("alpha", [0.02, 0.1])
def test_what_is_left_over_is_chance(pool, layers, together, alpha):
    """x - E[x | z] is uncorrelated with whatever z tells, so with E[x | z] itself; and it is smaller than without z."""
    pool = replace(pool, together=together)
    z, signal, sigma, seen = noisy(pool, Thing("car", "red"), 160, together, alpha)
    mean, x = expected(pool, layers, seen, z, signal, sigma, 0).x, 2 * seen.pictures - 1
    blind = expected(pool, layers, seen, torch.zeros_like(z), signal, sigma, 0).x if alpha == 0.02 else x.mean(0)
    products = ((x - mean) * (mean - blind)).mean((1, 2, 3)).unflatten(0, (-1, together)).mean(1)
    spread = (mean - blind).square().mean()
    # Zero within three standard errors, and a hundredth of the spread for what is not quite so: the jitter of the lamp
    # has other tails, and backgrounds are uniform, not normal.
    assert products.mean().abs() < 3 * products.std() / len(products) ** 0.5 + 0.01 * spread
    assert (x - mean).square().mean() < (x - blind).square().mean()


@pytest.mark.parametrize("said", ["left side", "back", "high left side", "overhead"])
def test_without_a_signal_it_is_the_mean_over_the_views_that_the_words_may_mean(pool, layers, said):
    """Two ways to tell a view say "back" of what is seen just from behind, only the rough one of what is nearly; all
    say "overhead"."""
    single = replace(pool, together=1)
    words = {view: single.views[view] for view in single.kinds["duck",] if said in single.views[view]}
    shares = world.VIEW_WORDS.values()
    likely = torch.tensor([sum(s for w, s in zip(ways, shares, strict=True) if w == said) for ways in words.values()])
    z, signal, sigma, seen = noisy(single, Thing("duck", "blue"), 2, 1, 0.0)
    seen = seen._replace(captions=[f"a blue duck, {said} view"] * 2, views=[*words][:1] * 2)
    mean = expected(single, layers, seen, z, signal, sigma, 0).x
    assert torch.equal(mean[0], mean[1])
    true = [torch.stack([shade(single, seen.asked[:1], [v], Streams(s, 2))[0] for s in range(300)]) for v in words]
    weighted = torch.stack([2 * one.mean(0) - 1 for one in true]) * (likely / likely.sum())[:, None, None, None]
    # Four standard errors of a mean of 300 backgrounds, which are shared by the views: 4 / sqrt(3 * 300).
    assert (mean[0] - weighted.sum(0)).abs().max() < 0.133


def test_views_that_stand_together_are_weighed_together(pool, layers):
    """The first of four noisy views is known better beside its own three companions than beside another group's."""
    z, signal, sigma, seen = noisy(pool, Thing("chair", "blue"), 200, 4, 0.06)
    misled = z.roll(4, 0)
    misled[::4] = z[::4]
    x = (2 * seen.pictures - 1)[::4]
    right, wrong = (expected(pool, layers, seen, of, signal, sigma, 0).x[::4] for of in (z, misled))
    assert (right - x).square().mean() < 0.8 * (wrong - x).square().mean()


def test_where_the_mean_is_not_known_it_is_the_picture_itself(pool, layers):
    single = replace(pool, together=1)
    thing = Thing("boat", "pink")
    for asked, caption, alpha in (
        (thing, "a pink boat", HIDING),
        (thing, "", 0.01),
        (thing, "a boat", 0.01),
        (thing, "something pink", 0.01),
        (replace(thing, material="shiny"), "a shiny pink boat", 0.01),
        (replace(thing, material="striped"), "a striped pink boat", 0.01),
    ):
        z, signal, sigma, seen = noisy(single, asked, 2, 1, alpha)
        seen = seen._replace(captions=[caption] * 2)
        x, weight = expected(single, layers, seen, z, signal, sigma, 0)
        assert torch.equal(x, 2 * seen.pictures - 1), caption
        assert (weight == (1.0 if alpha >= HIDING else HIDDEN)).all()
    z, signal, sigma, seen = noisy(single, thing, 2, 1, 0.01)
    x, weight = expected(single, layers, seen, z, signal, sigma, 0)
    assert (x - 2 * seen.pictures + 1).abs().max() > 0.1
    assert (weight == MEAN).all()


@pytest.mark.parametrize("together", [1, 4])
def test_a_mean_counts_as_many_pictures_as_it_is_of_up_to_a_limit(pool, layers, together):
    some = replace(pool, together=together)
    z, signal, sigma, seen = noisy(some, Thing("boat", "pink"), 4, together, 0.01)
    first = some.views[seen.views[0]][0]
    said = [some.views[view][0] for view in seen.views] if together == 4 else [first] * 4
    seen = seen._replace(captions=[f"a pink boat, {words} view" for words in said])
    alike = [view for view in some.kinds["boat",][::together] if some.views[view][0] == first]
    _, weight = expected(some, layers, seen, z, signal, sigma, 0)
    assert len(alike) * HIDDEN < MEAN  # so that this is not the limit
    assert weight[0] == pytest.approx(HIDDEN * len(alike))


def test_the_view_words_of_captions_are_read(pool):
    draw = random.Random(0)
    asked, views = draw_asked(replace(pool, together=1), 400, draw)
    for one, view in zip(asked, views, strict=True):
        text = world.caption(one, pool.views[view], draw)
        assert world.view_said(text) in (*pool.views[view], ""), text
        assert bool(world.view_said(text)) == (" view" in text), text


def test_a_pair_is_weighed_too(pool, layers):
    """From each of its views; nothing tells them apart without a signal."""
    single = replace(pool, together=1)
    arrangement, views = next(iter(single.pairs.items()))
    pair = Pair(Thing(arrangement[0], "red"), arrangement[1], Thing(arrangement[2], "blue"))
    text = f"a red {arrangement[0]} {arrangement[1]} a blue {arrangement[2]}"
    pictured = shade(single, [pair] * len(views), [*views], Streams(0, 0))
    seen = Batch(pictured, [text] * len(views), [pair] * len(views), [*views])
    z, level = torch.zeros_like(pictured), torch.zeros(len(views))
    mean = expected(single, layers, seen, z, level, level + 1, 0).x
    assert torch.allclose(mean[0], mean[-1], atol=1e-5)  # the same sum of float32, over candidates in one order


def test_the_true_view_is_weighed_however_few_are(pool, layers, monkeypatch):
    """Where the noise hides little, the mean is near the picture, so the true view was among the two weighed."""
    monkeypatch.setattr(targets, "CANDIDATES", 1)
    single = replace(pool, together=1)
    z, signal, sigma, seen = noisy(single, Thing("car", "red"), 24, 1, 0.119)
    mean, x = (
        expected(single, layers, seen, z, signal, sigma, 7).x,
        2 * seen.pictures - 1,
    )  # 0 drew the views themselves
    others = [next(v for v in single.kinds["car",] if v != own) for own in seen.views]
    wrong = 2 * shade(single, seen.asked, others, Streams(0, 1)) - 1
    # 0.06 of it with the true views, 1.1 with any others, laid on the ground that explains z best.
    assert (x - mean).square().mean() < (x - wrong).square().mean() / 4
