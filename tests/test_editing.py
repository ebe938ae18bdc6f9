"""Runs that start from another run's scene, and rules that compare with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from dreamkit import api, cli, loop
from dreamkit.cameras import orbit
from dreamkit.compose import editing
from dreamkit.diffusion import add_noise
from dreamkit.errors import InputError
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import DDS, SDS
from dreamkit.priors import Bell, Diffusers, Gaussian
from dreamkit.recipe import Guide, Recipe, Stage, load
from dreamkit.rehearsal import load_priors
from dreamkit.render.mesh import render_mesh
from dreamkit.representations.canvas import Canvas
from dreamkit.run import Run
from dreamkit.state import Start, fresh
from dreamkit.step import Task, take_step
from dreamkit.streams import Streams
from dreamkit.toybox import world
from tests.test_loop import CPU, TINY, final, stop_at

BELLS = (Bell("", 0.0, 0.5), Bell("a red ball", (0.8, -0.8, -0.8), 0.5), Bell("a blue ball", (-0.8, -0.8, 0.8), 0.5))
PRIOR = Gaussian(BELLS, size=8)


def stage_of(rule, representation, source: str = "a red ball", **settings) -> Stage:
    tiny = load(TINY).stages[0]
    changed = replace(tiny, guides=(Guide(rule, PRIOR),), representation=representation, losses=(), steps=20)
    return replace(changed, source_prompt=source, **settings)


@pytest.fixture(scope="module")
def red(tmp_path_factory) -> Path:
    """A finished run: a red ball in a tiny hash grid."""
    folder = tmp_path_factory.mktemp("runs") / "red"
    assert cli.main(("generate", "a red ball", "--system", str(TINY), "--out", str(folder))) == 0
    return folder


def begun(folder: Path) -> Start:
    return api._started(folder, CPU, print)


def test_a_dds_edit_with_equal_prompts_changes_nothing_at_all(tmp_path):
    """Not a bit of a picture: the difference of two equal predictions is zero, and Adam does not move by zero."""
    stage = stage_of(replace(DDS, subtract=replace(DDS.subtract, condition="prompt")), Canvas(size=8), steps=5)
    priors = {PRIOR: PRIOR.load(CPU)}
    state = fresh(stage, 0, CPU, priors)
    before = state.scene.state()["logits"].clone()
    for _ in range(5):
        take_step(stage, state, Task("a red ball", priors))
    assert torch.equal(state.scene.state()["logits"], before)


def test_an_edit_moves_the_colours_of_a_scene_from_the_source_to_the_target(red, tmp_path):
    start = begun(red)
    fast = replace(start.representation, table_rate=5e-2, network_rate=2e-2)
    stage = stage_of(replace(DDS, levels=Uniform(0.3, 0.6)), fast)
    recipe = replace(load(TINY), stages=(stage,))
    before = start.scene.colour(torch.zeros(1, 3))[0]
    with Run.create(tmp_path / "blue", "a blue ball", "tiny", 0, recipe, "cpu") as run:
        priors = load_priors(recipe, run.prompt, CPU)
        after = loop.optimise(recipe, run, priors, CPU, start=start).colour(torch.zeros(1, 3))[0]
    assert after[0] < before[0] - 0.1
    assert after[2] > before[2] + 0.1


def test_an_edit_that_is_stopped_and_resumed_ends_in_the_same_bits_without_the_source_run(red, tmp_path):
    start = begun(red)
    recipe = replace(load(TINY), stages=(stage_of(DDS, start.representation),))
    for name in ("whole", "parts"):
        with Run.create(tmp_path / name, "a blue ball", "tiny", 0, recipe, "cpu") as run:
            run.update(start=str(red))
            priors = load_priors(recipe, run.prompt, CPU)
            if name == "whole":
                loop.optimise(recipe, run, priors, CPU, start=start)
                continue
            with pytest.raises(KeyboardInterrupt):
                loop.optimise(recipe, run, priors, CPU, stop_at(7), start)
    with Run.resume(tmp_path / "parts") as run:
        loop.optimise(recipe, run, priors, CPU)
    assert final(tmp_path / "whole") == final(tmp_path / "parts")
    tensors = load_file(max((tmp_path / "parts").glob("checkpoints/*.safetensors")))
    assert torch.equal(tensors["source/table"], start.scene.state()["table"])
    assert not torch.equal(tensors["scene/table"], tensors["source/table"])


def test_a_run_that_never_had_its_start_says_so(red, tmp_path):
    recipe = replace(load(TINY), stages=(stage_of(DDS, begun(red).representation),))
    with Run.create(tmp_path / "run", "a blue ball", "tiny", 0, recipe, "cpu") as run:
        run.update(start=str(red))
        with pytest.raises(InputError, match="was to start from the scene of"):
            loop.optimise(recipe, run, load_priors(recipe, run.prompt, CPU), CPU)


def test_a_later_stage_edits_the_scene_of_the_one_before(tmp_path):
    first = stage_of(SDS, Canvas(size=8), source="", steps=3)
    recipe = Recipe(stages=(first, stage_of(DDS, Canvas(size=8), steps=3)))
    seen = []

    with Run.create(tmp_path / "run", "a blue ball", "tiny", 0, recipe, "cpu") as run:
        priors = load_priors(recipe, run.prompt, CPU)
        state = fresh(first, 0, CPU, priors)
        for _ in range(3):
            take_step(first, state, Task(run.prompt, priors))
        seen.append(state.scene.state()["logits"].clone())
        assert state.source is None
        state = loop.next_stage(recipe, 0, state, CPU, priors)
        take_step(recipe.stages[1], state, Task(run.prompt, priors))
    assert torch.equal(state.source.state()["logits"], seen[0])
    assert not torch.equal(state.scene.state()["logits"], seen[0])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--guidance", "dds"), "--from"),
        (("--source-prompt", "a red ball", "--from", "RED"), "no rule of this recipe edits"),
        (("--from", "nowhere"), "is not a run"),
        (("--from", "RED", "--representation", "image"), "cannot start from"),
        (("--guidance", "dds", "--from", "RED", "--source-prompt", "a green ball"), "a green ball"),
    ],
)
def test_what_cannot_be_edited_is_said_before_anything_is_made(red, tmp_path, capfd, extra, message):
    extra = tuple(str(red) if word == "RED" else word for word in extra)
    code = cli.main(("generate", "a red ball", "--system", str(TINY), "--out", str(tmp_path / "run"), *extra))
    assert code == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_source_prompt_is_by_default_what_the_scene_was_made_for(red):
    recipe = replace(load(TINY), stages=(stage_of(DDS, Canvas(), source=""),))
    assert editing(recipe, None, "a red ball").stages[0].source_prompt == "a red ball"
    assert editing(recipe, "a red cup", "a red ball").stages[0].source_prompt == "a red cup"


# With the prior that ships --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toybox():
    return Diffusers("toybox", dtype="float32").load("cpu")


def red_mug():
    """The world's own picture of one, [3, 64, 64], before grey."""
    mug = world.mesh_of(world.Thing("mug", "red"))
    return render_mesh(mug, orbit([90.0], 20.0, size=64), background=(0.7, 0.7, 0.7), lit=True).rgb[0]


def test_dds_makes_a_red_mug_blue_with_the_toybox(toybox):
    """On the world's own picture of one: after 25 steps blue has gained on red, which a picture that stays does not."""
    edit = replace(DDS, levels=Uniform(0.1, 0.6))
    stage = stage_of(edit, Canvas(size=64), source="a red mug", steps=25, batch=1, view_words=False)
    stage = replace(stage, cameras=replace(stage.cameras, size=64), guides=(Guide(edit, Diffusers("toybox")),))
    picture = red_mug()
    priors = {Diffusers("toybox"): toybox}
    state = fresh(stage, 0, CPU, priors)
    state.scene.load({"logits": torch.logit(picture.clamp(0.02, 0.98))})
    for _ in range(25):
        take_step(stage, state, Task("a blue mug", priors))
    gained = (torch.sigmoid(state.scene.state()["logits"]) - picture).mean((1, 2))
    assert gained[2] - gained[0] > 0.02


def test_the_toyboxs_attention_is_a_map_of_the_words_that_differ_and_leaves_no_trace(toybox):
    x = torch.randn(2, *toybox.shape, generator=torch.Generator().manual_seed(0))
    level = toybox.level(torch.tensor([0.4, 0.6]))
    red, blue = (toybox.condition([prompt] * 2) for prompt in ("a red mug", "a blue mug"))
    plain = toybox.predict(x, level, [blue, red])
    told, was, looked = toybox.attended(x, level, blue, red)
    assert torch.equal(told, plain[0])
    assert torch.equal(was, plain[1])
    assert looked.shape == (2, 1, 16, 16)
    # Each map spans 0 to 1 on the layer's own grid; interpolation takes a little off both ends.
    assert looked.amin((1, 2, 3)).max() < 0.2
    assert looked.amax((1, 2, 3)).min() > 0.8
    assert torch.equal(toybox.attended(x, level, blue, blue)[2], torch.ones(2, 1, 16, 16))
    assert not any(module._forward_pre_hooks for module in toybox.unet.modules())


def test_the_word_for_the_colour_is_looked_for_on_the_object(toybox):
    """A red mug: the map of "blue" is brighter where the picture is red than where it is not."""
    prompt, picture = toybox.condition(["a red mug, left side view"]), red_mug()[None]
    x = toybox.encode(picture)
    red, green, _ = interpolate(picture, (16, 16), mode="area")[0]
    noise = Streams(0, 1).normal("noise", tuple(x.shape))
    level = toybox.level(torch.tensor([0.4]))
    blue = toybox.condition(["a blue mug, left side view"])
    looked = toybox.attended(add_noise(x, noise, level), level, blue, prompt)[2][0, 0]
    mug = red - green > 0.3
    assert 0.1 < mug.float().mean() < 0.6
    assert looked[mug].mean() > looked[~mug].mean() + 0.3
