"""The toybox: its world is what it says, its pictures match its captions, its trainer resumes exactly."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.prompts import EIGHT, FOUR, read_list
from dreamkit.recipe import data_folder
from dreamkit.render.mesh import render_mesh
from dreamkit.streams import Streams
from dreamkit.toybox import train, world
from dreamkit.toybox.pictures import batch, cast_pool


def test_the_world_has_at_least_twelve_kinds_and_ten_colours():
    assert len(world.KINDS) >= 12
    assert len(world.COLOURS) >= 10


@pytest.mark.parametrize("kind", world.KINDS)
def test_every_kind_fits_its_ball_and_touches_it(kind):
    points = world.true_mesh(kind, "red").vertices
    # Scaled in float64 and stored in float32: a millionth covers the rounding.
    assert abs(np.linalg.norm(points, axis=1).max() - world.RADIUS) < 1e-5


@pytest.mark.parametrize("kind", world.KINDS)
def test_the_colour_of_the_caption_covers_a_good_part_of_the_object(kind):
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 20.0, size=48)
    images = render_mesh(world.true_mesh(kind, "pink"), cameras, background=(0, 0, 0), supersample=1)
    off = (images.rgb - torch.tensor(world.COLOURS["pink"])[None, :, None, None]).abs().amax(1)
    share = (off < 1e-5).sum() / images.alpha.sum()  # unlit and without supersampling the colour is exact
    assert share > 0.25


def test_fronts_face_plus_x():
    """A duck's beak and a car's lights are seen from azimuth 0 and not from 180."""
    for kind, colour in (("duck", world.BEAK), ("car", world.SUN), ("snowman", world.BEAK)):
        views = render_mesh(world.true_mesh(kind, "blue"), orbit([0.0, 180.0], 0.0, size=96), supersample=1).rgb
        near = (views - torch.tensor(colour)[None, :, None, None]).abs().amax(1) < 0.02
        front, back = near.flatten(1).sum(1).tolist()
        assert front > 10 > back, kind


def test_an_unknown_kind_or_colour_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'mug'"):
        world.true_mesh("mugg", "red")
    with pytest.raises(InputError, match="no colour 'rd'"):
        world.true_mesh("mug", "rd")


def test_a_prompt_names_a_thing_or_does_not():
    assert world.named("a red mug, left side view") == world.Thing("mug", "red")
    assert world.named("An Orange lamp") == world.Thing("lamp", "orange")
    for prompt in ("a mug", "something red", "a red mug on a blue table", "a red and blue mug", ""):
        assert world.named(prompt) is None


def test_every_caption_is_in_the_vocabulary():
    tokenizer, draw = train.make_tokenizer(), random.Random(0)
    unknown = tokenizer.unk_token_id
    for _ in range(500):
        thing = world.Thing(draw.choice(list(world.KINDS)), draw.choice(list(world.COLOURS)))
        text = world.caption(thing, draw.choice([*zip(EIGHT, FOUR * 2, strict=True), ("overhead", "overhead")]), draw)
        ids = tokenizer(text).input_ids
        assert unknown not in ids, text
        assert len(ids) <= train.WORDS


def test_an_unknown_word_becomes_unk():
    tokenizer = train.make_tokenizer()
    assert tokenizer.unk_token_id in tokenizer("a red zeppelin").input_ids


def test_the_fixed_prompts_name_every_kind_once():
    prompts = read_list(data_folder("prompts") / "toybox.txt")
    kinds = [prompt.split()[-1] for prompt in prompts]
    assert sorted(kinds) == sorted(world.KINDS)
    assert len({prompt.split()[1] for prompt in prompts}) >= 8


@pytest.fixture(scope="module")
def pool():
    return cast_pool(4, 0, torch.device("cpu"), note=lambda text: None)


def test_pictures_show_the_colour_their_caption_names(pool):
    pictures, captions = batch(pool, 48, Streams(0, 0))
    for picture, text in zip(pictures, captions, strict=True):
        named = [colour for colour in world.COLOURS if colour in text.split()]
        if named and named[0] not in ("gray", "white"):  # a grey background is also grey
            # Lit and shaded, a colour keeps its direction: some pixel's is that of the named one.
            wanted = torch.tensor(world.COLOURS[named[0]])
            cosine = torch.nn.functional.cosine_similarity(picture, wanted[:, None, None], dim=0)
            assert cosine.max() > 0.999, text


def test_pictures_are_a_function_of_seed_and_step(pool):
    first, again, other = (batch(pool, 8, Streams(0, step)) for step in (5, 5, 6))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def test_training_resumes_bit_for_bit(tmp_path, monkeypatch):
    """Three steps, against two steps, a stop, and one more."""
    monkeypatch.setattr(train, "cast_pool", lambda views, seed, device: cast_pool(2, seed, device, lambda text: None))
    cpu = torch.device("cpu")
    whole = train.Settings(steps=3, batch=4)
    train.train(tmp_path / "whole", whole, cpu)
    # The learning rate depends on the number of steps, so the first part is cut short, not asked to be shorter.
    saved, real = [], train._log

    def stop_after_two(folder, step, *rest):
        real(folder, step, *rest)
        if step == 1 and not saved:
            saved.append(step)
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "_log", stop_after_two)
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "parts", whole, cpu)
    train.train(tmp_path / "parts", whole, cpu)
    one, two = (load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "parts" / "weights" / "model_index.json").exists()
