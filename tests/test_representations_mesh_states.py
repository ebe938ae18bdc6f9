"""What a painted mesh remembers, and what it is painted with."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamkit.assets.files import write
from dreamkit.cameras import Orbit
from dreamkit.errors import InputError
from dreamkit.recipe import load as load_recipe
from dreamkit.rehearsal import load_priors, rehearse
from dreamkit.render.lighting import Studio
from dreamkit.representations.network import Network
from dreamkit.representations.paint import LatentTexture, Texture
from dreamkit.representations.representation import LearnedColour, PlainColour, continued
from dreamkit.state import fresh
from dreamkit.step import Task, take_step
from dreamkit.streams import Streams
from tests.mesh_scenes import KINDS, SMALL, TINY, VIEWS, a_mesh, scene, train

# ---- States ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [PlainColour(), LearnedColour()])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_scene_goes_on_bit_for_bit(kind, background, tmp_path):
    """Also when its source is gone, and when the new one was made of something else."""
    path = tmp_path / "ball.glb"
    write(a_mesh(), path)
    spec = replace(KINDS[kind], source=str(path), background=background)
    whole = scene(spec=spec)
    optimiser = train(whole, range(2))
    state = {name: tensor.clone() for name, tensor in whole.state().items()}
    statistics = optimiser.state_dict()
    path.unlink()
    resumed = spec.build("cpu", Streams(99, 0))
    resumed.load(state)

    def go_on(built, first):
        optimiser = torch.optim.Adam([dict(group) for group in built.parameters()])
        optimiser.load_state_dict(first)
        for step in (2, 3):
            optimiser.zero_grad()
            built.render(VIEWS, Streams(1, step)).rgb.square().mean().backward()
            optimiser.step()
            built.after_step(step, Streams(1, step))

    for built in (whole, resumed):
        go_on(built, copy.deepcopy(statistics))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    assert torch.equal(whole.render(VIEWS).rgb, resumed.render(VIEWS).rgb)


def test_a_state_of_another_mesh_is_taken_over():
    other = scene(spec=replace(SMALL, cells=6, paint=Texture(size=16)))
    built = scene()
    built.load(other.state())
    assert torch.equal(built.render(VIEWS).rgb, other.render(VIEWS).rgb)


def test_a_shape_that_has_moved_stays_when_it_is_locked_or_smoothed_otherwise():
    moved = scene()
    want = moved.render(VIEWS)
    locked = replace(SMALL, keep_geometry=True).build("cpu", Streams(0, 0))
    locked.load(moved.state())
    assert torch.equal(locked.vertices(), moved.vertices())
    assert not locked.vertices().requires_grad
    other = replace(SMALL, smoothing=2).build("cpu", Streams(0, 0))
    other.load(moved.state())
    np.testing.assert_allclose(other.mesh().vertices, moved.mesh().vertices, rtol=0, atol=1e-6)
    for built in (locked, other):
        torch.testing.assert_close(built.render(VIEWS).rgb, want.rgb, rtol=0, atol=1e-3)


def test_a_state_is_a_copy():
    built = scene()
    state = built.state()
    train(built, range(1))
    assert not torch.equal(state["texture/colour"], built.state()["texture/colour"])


def test_another_kind_s_state_is_refused():
    with pytest.raises(ValueError, match="painted with a Network cannot go on with texture/"):
        scene(spec=KINDS["network"]).load(scene().state())
    with pytest.raises(ValueError, match="has no background"):
        scene(spec=replace(SMALL, background=LearnedColour())).load(scene().state())
    with pytest.raises(ValueError, match="offsets do not fit"):
        scene().load(scene().state() | {"offsets": torch.zeros(3, 3)})


# ---- Latents ---------------------------------------------------------------------------------------------------------

PLAIN = LatentTexture(size=8, to_rgb=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
"""Latents that are colours in [-1, 1], as a pixel prior has them."""


def test_latents_are_what_the_colours_say_on_any_background(device):
    built = scene(device, replace(SMALL, paint=PLAIN))
    images = built.render(VIEWS, Streams(0, 0))
    torch.testing.assert_close(images.latent, 2 * images.rgb - 1, rtol=0, atol=1e-6)
    four = scene(device, KINDS["latents"], rough=False).render(VIEWS, background=(0.9, 0.1, 0.3))
    assert four.latent.shape == (3, 4, 36, 40)
    to_rgb = torch.tensor(KINDS["latents"].paint.to_rgb, device=device)
    # Antialiasing mixes latents and colours alike.
    found = 0.5 * torch.einsum("bchw,ci->bihw", four.latent, to_rgb) + 0.5
    torch.testing.assert_close(found, four.rgb, rtol=0, atol=1e-5)


def test_colours_become_latents_and_latents_colours():
    coloured = scene(spec=replace(SMALL, paint=Texture(size=8)))
    latent = KINDS["latents"].build("cpu", Streams(0, 0))
    latent.load(coloured.state())
    torch.testing.assert_close(latent.render(VIEWS).rgb, coloured.render(VIEWS).rgb, rtol=0, atol=1e-5)
    again = replace(SMALL, paint=Texture(size=8), environment=Studio()).build("cpu", Streams(0, 0))
    again.load(latent.state())
    shown = again.render(VIEWS, shading="albedo").rgb
    torch.testing.assert_close(shown, coloured.render(VIEWS).rgb, rtol=0, atol=1e-5)
    assert again.state()["texture/material"].shape == (8, 8, 2)  # lit: a texel each, to learn
    assert latent.mesh().texture.shape == (8, 8, 3)


def test_latents_become_a_texture_of_the_size_that_is_asked_for():
    latent = replace(SMALL, paint=LatentTexture(size=8)).build("cpu", Streams(0, 0))
    latent.load(scene(spec=replace(SMALL, paint=Texture(size=8))).state())
    fine = replace(SMALL, paint=Texture(size=24)).build("cpu", Streams(0, 0))
    fine.load(latent.state())
    given, found = latent.mesh().texture, fine.state()["texture/colour"]
    assert found.shape == (24, 24, 3)
    # The middle of every 3 x 3 lies on a coarse texel's centre.
    np.testing.assert_allclose(255 * found[1::3, 1::3].numpy(), given, atol=0.51)  # bytes


def test_a_painting_network_of_other_sizes_is_no_state_but_is_taken_over():
    one = replace(SMALL, paint=Network(hidden=8)).build("cpu", Streams(0, 0))
    spec = replace(SMALL, paint=Network(hidden=12))
    with pytest.raises(ValueError, match="other sizes"):
        spec.build("cpu", Streams(0, 0)).load(one.state())
    other = continued(spec, one, "cpu", Streams(1, 0))
    assert other.state()["paint/hidden"].shape[0] == 12


def test_a_learned_background_comes_and_goes_with_the_stages():
    plain, learned = SMALL, replace(SMALL, background=LearnedColour())
    one = scene(spec=plain)
    other = continued(learned, one, "cpu", Streams(1, 0))
    back = continued(plain, other, "cpu", Streams(2, 0))
    for name, value in one.state().items():
        assert torch.equal(value, other.state()[name]), name
        assert torch.equal(value, back.state()[name]), name
    assert other.state().keys() - one.state().keys() == {"background"}


def test_a_guide_that_sees_latents_moves_them_and_asks_for_some():
    tiny = load_recipe(TINY)
    guide = replace(tiny.stages[0].guides[0], sees="latent")
    stage = replace(tiny.stages[0], guides=(guide,), cameras=Orbit(size=8), losses=())
    recipe = replace(tiny, stages=(stage,))
    priors = load_priors(recipe, "a red ball", torch.device("cpu"))
    with pytest.raises(InputError, match="LatentTexture"):
        rehearse(recipe, priors, "a red ball", torch.device("cpu"))
    stage = replace(stage, representation=replace(SMALL, paint=PLAIN))
    state = fresh(stage, 0, torch.device("cpu"), priors)
    for _ in range(15):
        take_step(stage, state, Task("a red ball", priors))
    red, green, blue = state.scene.state()["latent/texture"].mean((0, 1))
    assert red > 0.3 > -0.3 > max(green, blue)  # the prior's mean is (0.8, -0.8, -0.8)


def test_latents_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="cannot be lit"):
        replace(KINDS["latents"], environment=Studio())
    for bad in ({"size": 4}, {"to_rgb": ()}, {"to_rgb": ((1.0, 2.0),)}):
        with pytest.raises(InputError):
            LatentTexture(**bad)
