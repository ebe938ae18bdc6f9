"""Prompts of two things: each is made by itself, then they are put together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamkit import api, loop
from dreamkit.assets.arrange import GAP, SMALLER, arrange
from dreamkit.assets.prepare import cube_sphere
from dreamkit.cameras import orbit
from dreamkit.compose import apart, with_steps
from dreamkit.errors import InputError
from dreamkit.meshes import GUTTER, Mesh, coloured, join, join_textured
from dreamkit.priors import Bell, Gaussian
from dreamkit.prompts import Related, related
from dreamkit.recipe import Recipe, Stage, from_json, load, to_json
from dreamkit.rehearsal import load_priors
from dreamkit.render.mesh import render_mesh
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.mesh import MeshScene, MeshSurface
from dreamkit.representations.paint import Texture
from dreamkit.representations.particles import Particles, ParticlesScene
from dreamkit.run import Run
from dreamkit.state import fresh, handed_over, save
from dreamkit.step import Task, differentiate
from dreamkit.streams import Streams
from dreamkit.toybox import world
from tests.test_loop import CPU, TINY, final, stop_at

RED, BLUE = (0.9, -0.9, -0.9), (-0.9, -0.9, 0.9)
PROMPT = "a red ball next to a blue ball"
BELLS = (Bell("", 0.0, 0.5), Bell("a red ball", RED, 0.2), Bell("a blue ball", BLUE, 0.2), Bell(PROMPT, 0.0, 0.5))
PRIOR = Gaussian(BELLS, size=8)
BALLS = Related("a red ball", "next to", "a blue ball")
BALL = MeshSurface(cells=3, paint=Texture(size=32, rate=0.1), face_budget=300, grid_resolution=24)


def recipe_of(*representations, **settings) -> Recipe:
    """A stage for each of these, of the tiny system, that makes things apart."""
    tiny = load(TINY)
    (stage,) = tiny.stages
    stage = replace(stage, guides=(replace(stage.guides[0], prior=PRIOR),), losses=(), steps=10)
    stages = tuple(replace(stage, representation=one) for one in representations)
    return replace(tiny, stages=stages, **{"joint_steps": 2, **settings})


# --- what is asked for ---


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a red mug on top of a white table", ("a red mug", "on top of", "a white table")),
        ("A red mug  ON a white table", ("A red mug", "on top of", "a white table")),
        ("a cat beside the green tree", ("a cat", "next to", "the green tree")),
        ("an orange cat and another one", ("an orange cat", "next to", "another one")),
        ("a striped red and blue mug next to a car", ("a striped red and blue mug", "next to", "a car")),
        ("a striped red and blue mug", None),
        ("a horse on wheels", None),
        ("a cat on a table next to a chair", None),
        ("on top of a table", None),
        ("a lemon and anise cake", None),
        ("a red mug", None),
    ],
)
def test_a_prompt_of_two_things_is_told_from_one_of_one(prompt, found):
    assert related(prompt) == (found and Related(*found))


def test_the_toybox_means_by_such_a_prompt_what_is_made_of_it():
    for prompt in ("a red mug on a white table", "a striped red and blue mug and a yellow duck"):
        things, asked = related(prompt), world.named(prompt)
        assert asked == world.Pair(world.named(things.first), things.relation, world.named(things.second))


# --- the recipe ---


def test_each_stage_is_for_both_things_and_the_last_for_the_whole():
    before = load("toybox")
    recipe = apart(before, "a red mug on top of a white table")
    assert [stage.steps for stage in recipe.stages] == [600, 400, before.joint_steps]
    assert [stage.things is not None for stage in recipe.stages] == [True, True, False]
    assert recipe.stages[2].guides == before.stages[1].at(200).guides  # the levels that the last stage ends with
    assert recipe.stages[2].scenes == recipe.stages[1].at(400).representation
    assert from_json(to_json(recipe)) == recipe
    assert apart(before, "a red mug on top of a white table", 100).steps == 100
    with pytest.raises(InputError, match="at least 3"):
        apart(before, "a red mug on top of a white table", 2)


def test_one_thing_particles_canvases_and_other_systems_stay_as_they_are():
    toybox = load("toybox")
    several = replace(toybox, stages=tuple(replace(stage, particles=2) for stage in toybox.stages))
    flat = recipe_of(Canvas(size=8))
    for recipe, prompt in (
        (toybox, "a red mug"),
        (several, PROMPT),
        (flat, PROMPT),
        (load("dreamfusion"), PROMPT),
        (replace(toybox, joint_steps=0), PROMPT),
    ):
        assert apart(recipe, prompt) is recipe
    with pytest.raises(InputError, match="joint_steps is a whole number"):
        replace(toybox, joint_steps=-1)
    with pytest.raises(InputError, match="no particles; got 2"):
        replace(toybox.stages[0], things=BALLS, particles=2)


# --- steps ---


def test_a_step_shows_one_thing_and_is_told_its_words():
    (stage,) = recipe_of(BALL).stages
    stage = replace(stage, things=BALLS, batch=4)
    told: list[str] = []

    class Heard:
        def __init__(self, prior):
            self.prior = prior

        def __getattr__(self, name):
            return getattr(self.prior, name)

        def condition(self, texts, **rest):
            told.extend(texts)
            return self.prior.condition(texts, **rest)

    priors = {PRIOR: Heard(PRIOR.load(CPU))}
    state, seen = fresh(stage, 0, CPU, {PRIOR: PRIOR.load(CPU)}), []
    for step in range(8):
        state.step = step
        told.clear()
        differentiate(stage, state, Task(PROMPT, priors))
        moved = [bool(one.offsets.grad is not None and one.offsets.grad.any()) for one in state.scene.scenes]
        for one in state.scene.scenes:
            one.offsets.grad = None
        (shown,) = (number for number, has in enumerate(moved) if has)
        words = ("a red ball", "a blue ball")[shown]
        assert {text for text in told if text} <= {words, *(f"{words}, {view} view" for view in ("front", "side"))} | {
            f"{words}, back view",
            f"{words}, overhead view",
        }
        assert words in told
        seen.append(shown)
    assert set(seen) == {0, 1}


def test_words_that_the_prior_does_not_know_are_said_before_anything_is_spent():
    recipe = recipe_of(BALL)
    (stage,) = recipe.stages
    unknown = replace(recipe, stages=(replace(stage, things=Related("a red ball", "next to", "a green ball")),))
    with pytest.raises(InputError, match="a green ball"):
        load_priors(unknown, PROMPT, CPU)


# --- the arrangement ---


def box(low, high, colour=(255, 0, 0), **given) -> Mesh:
    """A box with a texture of one colour."""
    ball = cube_sphere(2, 1.0)
    cube = ball.vertices / np.abs(ball.vertices).max(1, keepdims=True)
    low, high = np.array(low, np.float32), np.array(high, np.float32)
    vertices = low + (cube + 1) / 2 * (high - low)
    texture = np.full((8, 8, 3), colour, np.uint8)
    return replace(ball, vertices=vertices.astype(np.float32), **{"texture": texture, **given})


def parts(whole: Mesh, first: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """The boxes [2, 3] of the two meshes in their joint one."""
    split = len(first.vertices)
    return tuple(np.stack([v.min(0), v.max(0)]) for v in (whole.vertices[:split], whole.vertices[split:]))


def test_things_stand_beside_each_other_on_one_ground_the_first_to_the_left():
    first, second = box((-0.2, -0.3, 0.1), (0.2, 0.3, 0.5)), box((-0.3, -0.4, -0.5), (0.1, 0.4, 0.2))
    whole = arrange(first, "next to", second, 0.8)
    one, two = parts(whole, first)
    scale = (two[1] - two[0])[1] / 0.8
    assert (one[1] - one[0]) / scale == pytest.approx(np.array([0.4, 0.6, 0.4]), abs=1e-5)  # its own size
    assert (two[0] - one[1])[1] / scale == pytest.approx(GAP * 0.8, abs=1e-5)
    assert one[0][2] == pytest.approx(two[0][2], abs=1e-5)
    assert one.mean(0)[0] == pytest.approx(two.mean(0)[0], abs=1e-5)
    low, high = np.minimum(one[0], two[0]), np.maximum(one[1], two[1])
    assert low + high == pytest.approx(np.zeros(3), abs=1e-5)
    assert np.linalg.norm(whole.vertices, axis=1).max() == pytest.approx(0.8, abs=1e-5)


def test_what_stands_on_something_is_smaller_and_stands_on_its_middle():
    first, second = box((-0.3, -0.3, -0.5), (0.3, 0.3, 0.5)), box((-0.2, -0.7, -0.1), (0.6, 0.1, 0.3))
    one, two = parts(arrange(first, "on top of", second, 0.8), first)
    assert (one[1] - one[0])[2] / (two[1] - two[0])[2] == pytest.approx(SMALLER * 1.0 / 0.4, abs=1e-4)
    assert one[0][2] == pytest.approx(two[1][2], abs=1e-5)
    assert one.mean(0)[:2] == pytest.approx(two.mean(0)[:2], abs=1e-5)


def test_it_stands_on_the_seat_of_a_chair_and_not_on_its_back():
    seat, back = box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.0)), box((-0.5, -0.5, 0.0), (-0.4, 0.5, 0.7))
    chair, first = replace(join_textured(seat, back), texture=seat.texture), box((-0.2, -0.2, -0.2), (0.2, 0.2, 0.2))
    whole = arrange(first, "on top of", chair, 0.8)
    one, two = parts(whole, first)
    height = (two[1] - two[0])[2]
    assert (one[0] - two[0])[2] / height == pytest.approx(0.5 / 1.2, abs=1e-4)


def test_a_thing_that_looks_down_on_nothing_stands_at_the_height_of_the_top():
    sides = box((-0.8, -0.8, -0.2), (-0.6, 0.8, 0.2)), box((0.6, -0.8, -0.2), (0.8, 0.8, 0.2))
    ring = replace(join_textured(*sides), texture=sides[0].texture)
    first = box((-0.2, -0.2, -0.2), (0.2, 0.2, 0.2))
    one, two = parts(arrange(first, "on top of", ring, 0.8), first)
    assert one[0][2] == pytest.approx(two[1][2], abs=1e-5)
    with pytest.raises(ValueError, match="'under'"):
        arrange(first, "under", ring, 0.8)


@pytest.mark.parametrize("asked", ["a red duck next to a blue chair", "a red mug on top of a blue chair"])
def test_true_things_come_to_stand_as_in_the_true_pair(asked):
    """The toybox's own things, arranged, against its own pair: what stands on something stands where a ray through its
    middle lands there, here where most of its sole looks down. 0.03 is 4 % of the ball's radius."""
    pair = world.named(asked)

    def textured(thing) -> Mesh:
        mesh = world.mesh_of(thing)
        uv = np.full((len(mesh.vertices), 2), 0.5, np.float32)
        return Mesh(mesh.vertices, mesh.faces, uv=uv, texture=np.zeros((2, 2, 3), np.uint8))

    made = arrange(textured(pair.first), pair.relation, textured(pair.second), world.RADIUS)
    assert made.vertices == pytest.approx(world.mesh_of(pair).vertices, abs=0.03)


def test_textures_lie_side_by_side_and_each_thing_keeps_its_colours():
    red, blue = box((-0.2, -0.7, -0.3), (0.2, -0.1, 0.3)), box((-0.2, 0.1, -0.3), (0.2, 0.7, 0.3), (0, 0, 255))
    rough = {"roughness": np.full((8, 8), 77, np.uint8)}
    whole = join_textured(replace(red, **rough), replace(blue, **rough))
    assert whole.texture.shape == (8, 2 * (8 + 2 * GUTTER), 3)
    assert whole.roughness.shape == whole.texture.shape[:2]
    assert join_textured(replace(red, **rough), blue).roughness is None
    front = {"cameras": orbit([0.0], [0.0], size=32), "background": (1.0, 1.0, 1.0)}
    plain = join(coloured(red, (1.0, 0.0, 0.0)), coloured(blue, (0.0, 0.0, 1.0)))
    # Both are one colour for each thing: they differ by rounding, and by nothing of the other's.
    assert render_mesh(whole, **front).rgb == pytest.approx(render_mesh(plain, **front).rgb, abs=1e-3)
    with pytest.raises(ValueError, match="has none"):
        join_textured(red, Mesh(blue.vertices, blue.faces))
    with pytest.raises(ValueError, match=r"one size; these have \[\(4, 8\), \(8, 8\)\]"):
        join_textured(red, replace(blue, texture=blue.texture[:4]))


# --- the whole ---


def test_things_that_are_volumes_are_put_together_as_a_mesh():
    (stage,) = recipe_of(load(TINY).stages[0].representation).stages
    scene = Particles(stage.representation, 2, 2, "next to").build(CPU, Streams(0, -1))
    whole = handed_over(scene, replace(stage, things=BALLS).scenes, BALL, 0, CPU)
    assert isinstance(whole, MeshScene)
    low, high = whole.mesh().vertices.min(0), whole.mesh().vertices.max(0)
    assert np.linalg.norm(whole.mesh().vertices, axis=1).max() == pytest.approx(0.8, abs=1e-4)
    assert (high - low)[1] > 1.8 * (high - low)[0]  # two balls of fog, side by side


def test_two_balls_are_made_and_resumed_bit_for_bit(tmp_path):
    """Stopped while they are made apart, and where they are together."""
    recipe = apart(recipe_of(BALL, BALL), PROMPT)
    priors = load_priors(recipe, PROMPT, CPU)
    assert recipe.steps == 42
    with Run.create(tmp_path / "whole", PROMPT, "tiny", 0, recipe, "cpu") as run:
        scene = loop.optimise(recipe, run, priors, CPU)
    assert isinstance(scene, MeshScene)
    picture = scene.render(orbit([0.0], [0.0], size=32), background=(1.0, 1.0, 1.0)).rgb[0]
    left, right = picture[:, 12:20, 4:12].mean((1, 2)), picture[:, 12:20, 20:28].mean((1, 2))
    assert left[0] > left[2] + 0.2
    assert right[2] > right[0] + 0.2
    for stop in (13, 41):
        folder = tmp_path / f"parts{stop}"
        with (
            Run.create(folder, PROMPT, "tiny", 0, recipe, "cpu") as run,
            pytest.raises(KeyboardInterrupt),
        ):
            loop.optimise(recipe, run, priors, CPU, stop_at(stop))
        with Run.resume(folder) as run:
            loop.optimise(recipe, run, priors, CPU)
        assert final(tmp_path / "whole") == final(folder)


def test_generate_makes_things_apart_where_the_system_does_and_not_of_a_scene_that_is_there(tmp_path, monkeypatch):
    recipe = recipe_of(BALL, export=replace(load(TINY).export, turntable_seconds=0.0))
    monkeypatch.setattr(api, "compose", lambda *given: recipe)
    made = api.generate(PROMPT, system=str(TINY), out=tmp_path / "run", steps=6)
    assert [stage.steps for stage in made.run.recipe.stages] == [5, 1]  # of 20 and 2
    assert made.mesh.texture.shape == (32, 2 * (32 + 2 * GUTTER), 3)
    again = api.generate(PROMPT, system=str(TINY), start=tmp_path / "run", out=tmp_path / "again", steps=6)
    assert [stage.things for stage in again.run.recipe.stages] == [None]


def test_a_run_that_stops_while_things_are_apart_shows_them_apart(tmp_path):
    recipe = apart(recipe_of(BALL, export=replace(load(TINY).export, turntable_seconds=0.0)), PROMPT)
    with Run.create(tmp_path / "run", PROMPT, "tiny", 0, recipe, "cpu") as run:
        state = fresh(recipe.stages[0], 0, CPU)
        assert isinstance(state.scene, ParticlesScene)
        save(run, replace(state, step=1))
        run.update(status="interrupted")
    shown = api.render(tmp_path / "run", views=1, size=16)
    assert [path.name for path in sorted(shown.iterdir())] == ["particle_0", "particle_1"]
    assert with_steps(recipe, 7).steps == 7
    assert torch.equal(loop.four_views(state.scene)[:, 128:], loop.four_views(state.scene.scenes[1]))
    assert isinstance(recipe.stages[0], Stage)
