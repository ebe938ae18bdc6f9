"""Views as the tiles of one picture: against the prior that sees the picture."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dreamkit.cameras import Orbit
from dreamkit.errors import InputError
from dreamkit.guidance import gradient, rules
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.rules import SDS
from dreamkit.guidance.weight import SigmaOverAlpha
from dreamkit.priors import Bell, Diffusers, Gaussian, Mixture, Prior, view_conditions
from dreamkit.priors.tiled import Tiled, tiled, untiled
from dreamkit.recipe import Recipe, from_json, load, override, to_json
from dreamkit.rehearsal import load_priors, rehearse
from dreamkit.streams import Streams
from tests.looking import AtK, Given, same
from tests.test_loop import TINY

BELLS = (Bell("a red ball", (0.8, -0.8, -0.8), 0.3), Bell("a blue ball", (-0.8, -0.8, 0.8), 0.3))
CPU = torch.device("cpu")


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, N = 0.4 * draw(0, 8, 3, 4, 4), draw(1, 8, 3, 4, 4)
MV = replace(rules.MV_SDS, trust=replace(rules.MV_SDS.trust, against="null", rescale=0.5))
SINGLE = replace(SDS, trust=Guided(MV.trust.scale, rescale=0.5), weight=SigmaOverAlpha())


def look(rule: rules.Rule, x: Tensor, noise: Tensor, prior: Prior, k: float = 1.5) -> Tensor:
    rule = replace(rule, levels=AtK((("main", k),)), noise=Given(noise))
    return gradient(rule, prior, x, view_conditions(prior, "a red ball", [None] * len(x)), Streams(0, 0)).gradient


def test_tiles_lie_row_by_row_and_come_back():
    x = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert tiled(x, 2)[0, 0, ::2, ::2].tolist() == [[0, 1], [2, 3]]
    assert torch.equal(untiled(tiled(X, 2), 2), X)
    with pytest.raises(ValueError, match="6 views are not objects of 4"):
        tiled(X[:6], 2)


@pytest.mark.parametrize("parameterization", ["eps", "v", "flow"])
def test_multi_view_sds_of_tiles_is_sds_of_the_picture(parameterization):
    """Under a mixture, whose pixels hang together: which bell it is, all of the picture says. Rescaling as well."""
    spec = Mixture(BELLS, parameterization, size=8)
    g = look(MV, X, N, Tiled(spec).load(CPU))
    same(g, untiled(look(SINGLE, tiled(X, 2), tiled(N, 2), spec.load(CPU)), 2))
    assert (g - look(SINGLE, X, N, replace(spec, size=4).load(CPU))).abs().max() > 1e-3


def test_tiles_that_know_nothing_of_each_other_are_sds_of_each_view():
    spec = Gaussian((*BELLS, Bell("", 0.0, 0.7)), size=8)
    free = replace(MV, trust=replace(MV.trust, rescale=0.0))
    single = replace(SINGLE, trust=Guided(MV.trust.scale))
    same(look(free, X, N, Tiled(spec).load(CPU)), look(single, X, N, replace(spec, size=4).load(CPU)))


def test_a_single_tile_is_the_prior_itself():
    spec = Mixture(BELLS, size=4)
    assert torch.equal(look(MV, X, N, Tiled(spec, across=1).load(CPU)), look(SINGLE, X, N, spec.load(CPU)))


def test_an_object_costs_one_picture_of_the_network(monkeypatch):
    prior, shapes = Tiled(Mixture(BELLS, size=8)).load(CPU), []
    network = prior.base.network
    monkeypatch.setattr(prior.base, "network", lambda *given: shapes.append(given[0].shape) or network(*given))
    look(MV, X, N, prior)
    assert shapes == [(4, 3, 8, 8)]  # two objects, with the prompt and without
    assert prior.calls == 1


def test_pictures_are_encoded_as_one_and_decoded_as_one():
    """The toybox's network takes blocks of pixels as channels, so a tile of it is not simply a part of a picture."""
    prior = Tiled(Diffusers("toybox", dtype="float32")).load(CPU)
    half = prior.base.size // 2
    rgb = torch.rand(4, 3, half, half, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = prior.encode(rgb)
    assert x.shape == (4, *prior.shape)
    assert torch.equal(tiled(x, 2), prior.base.encode(tiled(rgb, 2)))
    torch.testing.assert_close(prior.decode(x), rgb)
    (slope,) = torch.autograd.grad(x[1].sum(), rgb)
    assert slope.flatten(1).abs().amax(1).tolist() == [0.0, 2.0, 0.0, 0.0]  # x = 2 rgb - 1
    level, told = prior.level(torch.full((4,), 0.5)), prior.condition(["a red mug"] * 4)
    assert prior.eps(x.detach(), level, told).isfinite().all()
    assert prior.identity() == prior.base.identity() | {"across": 2}


def test_what_cannot_be_tiled_is_said():
    with pytest.raises(InputError, match="3 x 3 views as one picture"):
        Tiled(Mixture(BELLS, size=8), across=3).load(CPU)
    with pytest.raises(InputError, match="which sees 4 at once"):
        Tiled(Tiled(Mixture(BELLS, size=8))).load(CPU)
    with pytest.raises(InputError, match="does not know the prompt"):
        Tiled(Mixture(BELLS, size=8)).load(CPU).check_prompt("a cube")
    prior = Tiled(Mixture(BELLS, size=8)).load(CPU)
    with pytest.raises(ValueError, match="share a noise level"):
        prior.eps(X[:4], prior.level(torch.tensor([0.2, 0.2, 0.2, 0.3])), prior.condition(["a red ball"] * 4))


def test_a_recipe_with_tiles_is_written_read_and_rehearsed():
    spec = Tiled(Mixture(BELLS, size=8))
    stage = load(TINY).stages[0]
    stage = replace(stage, guides=(replace(stage.guides[0], rule=rules.MV_SDS, prior=spec),), view_words=False, steps=2)
    with pytest.raises(InputError, match=r"cameras.group=4"):
        load_priors(Recipe((stage,)), "a red ball", CPU)
    recipe = Recipe((replace(stage, cameras=Orbit(group=4, size=16), batch=4),))
    assert from_json(to_json(recipe)) == recipe
    rehearse(recipe, load_priors(recipe, "a red ball", CPU), "a red ball", CPU)
    said = {"guides.0.prior": "Tiled(base=Diffusers('toybox'))"}
    assert override(recipe, said).stages[0].guides[0].prior == Tiled(Diffusers("toybox"))
