"""Noise attached to the object: unit variance, independent within a view, shared between views as the surface is."""

import itertools
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreamkit.cameras import Cameras, orbit
from dreamkit.guidance import gradient, rules
from dreamkit.guidance.attached import PLANES, SHELLS, Attached, Drifting, _lambert, owners
from dreamkit.guidance.estimate import Drawn, Guided, Nothing
from dreamkit.guidance.geometry import Geometry
from dreamkit.guidance.noise import Fresh
from dreamkit.guidance.rules import SDS
from dreamkit.guidance.weight import One, SigmaOverAlpha
from dreamkit.priors import Bell, Gaussian, Prior, view_conditions
from dreamkit.recipe import load
from dreamkit.streams import Streams
from tests import test_loop
from tests.looking import BELLS, AtK, G, Given, S, ball, batch, look, prior_of, same

TINY = test_loop.TINY
CELLS, DRAWS = 6, 1500
ERROR = 5.5 * (2 / DRAWS) ** 0.5  # five and a half standard errors of a variance of one


def wide(channels: int = DRAWS, size: int = CELLS) -> Prior:
    """A prior of many channels: the channels are independent draws of everything."""
    return Gaussian((Bell("", 0.0, 1.0), Bell("y", 0.0, 1.0)), size=size, channels=channels).load("cpu")


def noise_of(piece: Attached, geometry: Geometry, prior: Prior, streams: Streams, parts: dict | None = None) -> Tensor:
    """The noise itself, [B, C, h, w]: what is left when the rule subtracts nothing."""
    x = torch.zeros(len(geometry), *prior.shape, dtype=torch.float64)
    rule = replace(SDS, levels=AtK((("main", 1.0),)), noise=piece, trust=Drawn(), subtract=Nothing(), weight=One())
    conditions = view_conditions(prior, "y", [None] * len(x))
    return gradient(rule, prior, x, conditions, streams, parts=parts, geometry=geometry).gradient


def views(*azimuths: float, size: int = 48) -> Geometry:
    """A ball from several sides."""
    each = [ball(1, size=size, turn=azimuth) for azimuth in azimuths]
    pose = torch.cat([one.cameras.camera_to_world for one in each])
    cameras = Cameras(pose, *(torch.cat([getattr(one.cameras, name) for one in each]) for name in NUMBERS), size, size)
    return Geometry(cameras, torch.cat([one.depth for one in each]), torch.cat([one.alpha for one in each]))


NUMBERS = ("fov_degrees", "azimuth_degrees", "elevation_degrees")


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Between every cell of one noise and every cell of another, over the channels; both [C, h, w]."""
    return a.flatten(1).T @ b.flatten(1) / len(a)


def attached(owner: Tensor) -> Tensor:
    """Which cells own a texel."""
    return torch.bincount(owner[owner >= 0].long(), minlength=CELLS**2) > 0


def test_the_corners_of_cells_lie_on_the_surface():
    points, shown = ball(1, size=256).cells(16, 16)
    outside = torch.nn.functional.pad((~shown).double(), [1] * 4, value=1.0)
    whole = torch.nn.functional.max_pool2d(outside, 2, 1)[0] == 0
    assert whole.sum() > 60
    # A corner's depth is the mean over a square of half side h = 0.12, which a ball of 0.6 bends by (2/3) h^2 / 1.2.
    off = 0.6 - points[0][whole].norm(dim=-1)
    middle = off[points[0][whole][:, 1:].norm(dim=-1) < 0.25]
    assert 0.7 * 0.008 < middle.median() < 1.3 * 0.008
    assert not shown[0, 0, 0]


def test_the_chart_keeps_areas_and_knows_its_axis():
    points = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    axis, below = (
        points.detach().abs().argmax(-1),
        points.detach().gather(-1, points.detach().abs().argmax(-1)[:, None])[:, 0] < 0,
    )
    flat = _lambert(points, axis, below)
    rows = torch.stack([torch.autograd.grad(flat[:, i].sum(), points, retain_graph=True)[0] for i in (0, 1)], dim=1)
    # A solid angle of 1 is an area of |p|^2 on the sphere through p; the map's two gradients are tangent to it.
    area = torch.linalg.cross(rows[:, 0], rows[:, 1]).norm(dim=-1) * points.detach().square().sum(-1)
    torch.testing.assert_close(area, torch.ones_like(area), rtol=1e-10, atol=0)
    assert flat.detach().norm(dim=-1).max() <= 2 * torch.sin(torch.acos(torch.tensor(3.0).rsqrt()) / 2) + 1e-12


def test_a_texel_has_one_owner_and_the_ball_is_covered():
    owner = owners(ball(1, size=64), CELLS, CELLS, 32)
    assert owner.shape == (1, PLANES * SHELLS * 32 * 32)
    _, shown = ball(1, size=64).cells(CELLS, CELLS)
    found = attached(owner[0]).reshape(CELLS, CELLS)
    assert not (found & ~shown[0]).any()
    assert (found & shown[0]).sum() >= 0.9 * shown.sum()
    shells = owner[0].reshape(PLANES, 32, SHELLS, 32).ge(0).any(3).any(1).any(0)
    assert shells.tolist() == [False, False, True, False]  # radius 0.6 of 4 shells up to 1


def test_the_noise_of_a_view_is_standard_and_independent():
    n = noise_of(Attached(), ball(1), wide(), Streams(0, 0))[0]
    covariance = correlation(n, n)
    assert (covariance - torch.eye(CELLS**2)).abs().max() < ERROR
    assert n.flatten(1).mean(0).abs().max() < ERROR


@pytest.mark.parametrize("piece", [Attached(share=0.4), Attached(background="fresh")])
def test_mixed_noise_is_standard_too(piece):
    n = noise_of(piece, ball(1), wide(), Streams(0, 0))[0]
    assert (correlation(n, n) - torch.eye(CELLS**2)).abs().max() < ERROR


def test_two_views_share_noise_as_their_cells_share_texels():
    """The covariance of two cells is (texels shared) / sqrt(texels of one * texels of the other)."""
    geometry = views(0.0, 12.0)
    first, second = owners(geometry, CELLS, CELLS, 4 * CELLS)
    both = (first >= 0) & (second >= 0)
    shared = torch.zeros(CELLS**2, CELLS**2, dtype=torch.float64)
    shared.index_put_((first[both].long(), second[both].long()), torch.ones(()).double(), accumulate=True)
    sizes = [torch.bincount(o[o >= 0].long(), minlength=CELLS**2).double() for o in (first, second)]
    want = shared / (sizes[0][:, None] * sizes[1]).sqrt().clamp(min=1)
    n = noise_of(Attached(background="fresh"), geometry, wide(), Streams(0, 0))
    assert want.max() > 0.5
    assert (correlation(n[0], n[1]) - want).abs().max() < ERROR


def test_views_agree_where_they_stand_alike_and_not_where_they_stand_opposite():
    geometry = views(0.0, 0.0, 3.0, 180.0)
    n = noise_of(Attached(), geometry, wide(), Streams(0, 0))
    assert torch.equal(n[0], n[1])
    seen = attached(owners(views(0.0), CELLS, CELLS, 4 * CELLS)[0])
    near = correlation(n[0], n[2])[seen]
    assert near.amax(1).median() > 0.5
    far = correlation(n[0], n[3])[seen]
    back = attached(owners(views(180.0), CELLS, CELLS, 4 * CELLS)[0])
    assert far[:, back].abs().max() < ERROR


def test_kept_noise_needs_no_state_and_hangs_on_the_seed():
    prior = wide(8)
    n = [noise_of(Attached(), ball(1), prior, Streams(seed, step)) for seed, step in ((0, 0), (0, 9), (1, 0))]
    assert torch.equal(n[0], n[1])
    assert not torch.equal(n[0], n[2])


def test_a_picture_without_depth_has_the_same_background_noise_at_every_step():
    """A canvas stands at depth 0: there is nothing to attach noise to."""
    flat = Geometry(orbit([0.0, 90.0], 0.0, size=16), torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16))
    n = [noise_of(Attached(), flat, wide(4), Streams(0, step)) for step in (0, 1)]
    assert torch.equal(n[0], n[1])
    assert torch.equal(n[0][0], n[0][1])
    fresh = noise_of(Attached(background="fresh"), flat, wide(4), Streams(0, 0))
    assert not torch.equal(fresh[0], fresh[1])


def test_drifting_textures_stay_standard_and_forget_at_their_rate():
    prior = wide(400)
    piece = Drifting(rate=0.19)
    parts = {"textures": piece.part(prior, Streams(0, -1))}
    n = [noise_of(piece, ball(1), prior, Streams(0, step), parts)[0] for step in range(3)]
    seen = attached(owners(ball(1), CELLS, CELLS, 4 * CELLS)[0]).reshape(CELLS, CELLS)
    means = [(n[0] * later)[:, seen].mean().item() for later in n]
    # sqrt(1 - 0.19) = 0.9 a step; a mean over 400 channels and some 25 cells has an error of 0.01.
    assert means == pytest.approx([1.0, 0.9, 0.81], abs=0.06)


def test_drifting_textures_go_on_from_their_state():
    prior, piece = wide(4), Drifting(rate=0.3)
    whole, begun = (piece.part(prior, Streams(0, -1)) for _ in range(2))
    for step in range(4):
        last = noise_of(piece, ball(1), prior, Streams(0, step), {"textures": whole})
    for step in range(2):
        noise_of(piece, ball(1), prior, Streams(0, step), {"textures": begun})
    resumed = piece.part(prior, Streams(5, -1))
    resumed.load(begun.state())
    for step in range(2, 4):
        again = noise_of(piece, ball(1), prior, Streams(0, step), {"textures": resumed})
    assert torch.equal(again, last)
    with pytest.raises(ValueError, match="cannot take over"):
        resumed.load({"value": torch.zeros(3, 4)})


def test_a_rate_of_zero_leaves_the_textures_alone():
    prior, piece = wide(4), Drifting(rate=0.0)
    part = piece.part(prior, Streams(0, -1))
    before = part.value.clone()
    n = [noise_of(piece, ball(1), prior, Streams(0, step), {"textures": part}) for step in range(3)]
    assert torch.equal(part.value, before)
    assert torch.equal(n[0], n[2])


# The rule -----------------------------------------------------------------------------------------------------------


def test_cfd_with_fresh_noise_is_sds_with_weight_k():
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = prior_of((*BELLS[:2], Bell("bad", 0.0, 1.0)), size=4, channels=3)
    sds = replace(SDS, levels=rules.CFD.levels, trust=rules.CFD.trust, weight=SigmaOverAlpha())
    same(look(replace(rules.CFD, noise=Fresh()), x, prior), look(sds, x, prior))


def test_cfd_down_the_levels_is_ddim_and_ends_at_its_sample_of_the_gaussian():
    """With one noise, x <- x + (k' - k) G is DDIM on z / alpha = x + k noise, step by step; the exact flow ends at
    mean + std noise, that is 6.3 + 0.7 n."""
    prior = prior_of()
    flat = Geometry(orbit([0.0], 0.0, size=8), torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
    conditions = view_conditions(prior, "y", [None])
    n = noise_of(Attached(), flat, prior, Streams(0, 0)).item()
    ks = torch.logspace(4, -4, 1500, dtype=torch.float64).tolist()
    x, zeta = batch([6.3]), 6.3 + ks[0] * n
    for k, lower in itertools.pairwise(ks):
        rule = replace(rules.CFD, levels=AtK((("main", k),)), noise=Given(batch([n])), trust=Guided(G), weight=One())
        step = gradient(rule, prior, x, conditions, Streams(0, 0), geometry=flat).gradient
        x = x + (lower - k) * step
        zeta = zeta + (lower - k) * k * (zeta - 6.3) / (S**2 + k**2)  # DDIM, the Gaussian's own
    assert x.item() + ks[-1] * n == pytest.approx(zeta, abs=1e-6)  # 1e4 of the first level, in float64
    assert x.item() == pytest.approx(6.3 + S * n, abs=0.02 * abs(n))  # Euler's error, of first order in the step


def test_a_rule_that_needs_geometry_says_so():
    prior = prior_of()
    with pytest.raises(ValueError, match="give gradient\\(\\) a Geometry"):
        gradient(rules.CFD, prior, batch([0.0]), view_conditions(prior, "y", [None]), Streams(0, 0))


def test_drifting_textures_are_stopped_and_resumed_with_the_scene(tmp_path):
    recipe = load(TINY)
    stage = recipe.stages[0]
    rule = replace(rules.CFD, noise=Drifting(rate=0.1, texels=1))
    drifting = replace(stage, guides=(replace(stage.guides[0], rule=rule),))
    test_loop.test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(
        replace(recipe, stages=(drifting,)), tmp_path
    )
    assert "parts/guide0/textures/value" in load_file(max((tmp_path / "parts").glob("checkpoints/*.safetensors")))
