"""Prompts of two things: each is made by itself, then they are put together."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamkit import api, loop, losses
from dreamkit.assets.arrange import GAP, SMALLER, arrange
from dreamkit.assets.prepare import cube_sphere
from dreamkit.cameras import orbit
from dreamkit.compose import apart, compose
from dreamkit.errors import InputError
from dreamkit.guidance.rules import DDS, F_DIV
from dreamkit.kernels.query import Hits
from dreamkit.losses import Weighted
from dreamkit.meshes import GUTTER, Mesh, join_textured
from dreamkit.priors import Bell, Gaussian
from dreamkit.prompts import Related, related
from dreamkit.recipe import Recipe, from_json, load, to_json
from dreamkit.rehearsal import load_priors
from dreamkit.render.lighting import Panorama
from dreamkit.render.mesh import colour_at
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.gaussians import Gaussians
from dreamkit.representations.gaussians.start import File
from dreamkit.representations.mesh import MeshScene, MeshSurface
from dreamkit.representations.paint import Texture
from dreamkit.representations.sketch import Sketch
from dreamkit.run import Run
from dreamkit.state import fresh, restore, save, whole
from dreamkit.step import Task, differentiate, take_step
from dreamkit.streams import Streams
from dreamkit.toybox import world
from tests.mesh_scenes import NET
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
    return replace(tiny, stages=stages, **{"apart": True, **settings})


# --- what is asked for ---


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a red mug on top of a white table", ("a red mug", "on top of", "a white table")),
        ("A red mug  ON a white table", ("A red mug", "on top of", "a white table")),
        ("red mug on top of white table", ("red mug", "on top of", "white table")),
        ("a cat beside the green tree", ("a cat", "next to", "the green tree")),
        ("an orange cat, and one green tree", ("an orange cat", "next to", "one green tree")),
        ("a striped red and blue mug next to a car", ("a striped red and blue mug", "next to", "a car")),
        ("a striped red and blue mug", None),
        ("a horse on wheels", None),
        ("a cat on a table next to a chair", None),
        ("on top of a table", None),
        ("a lemon and anise cake", None),
        ("a red mug next to", None),
        ("a red mug on the left of a blue car", None),
        ("a red mug on the top of a white table", None),
        ("a red and a blue mug", None),
        ("a red cat, a blue duck and a green tree", None),
        ("a red mug", None),
    ],
)
def test_a_prompt_of_two_things_is_told_from_one_of_one(prompt, found):
    assert related(prompt) == (found and Related(*found))


def test_the_toybox_means_by_such_a_prompt_what_is_made_of_it():
    for prompt in ("a red mug on a white table", "a striped red and blue mug and a yellow duck"):
        things, asked = related(prompt), world.named(prompt)
        assert asked == world.Pair(world.named(things.first), things.relation, world.named(things.second))


def test_a_relation_that_there_is_not_is_refused():
    with pytest.raises(InputError, match=r"'under'. Known: next to, on top of"):
        Related("a cat", "under", "a table")


# --- the recipe ---


def test_every_stage_is_for_both_things():
    before = load("toybox")
    recipe = apart(before, "a red mug on top of a white table")
    assert {stage.things for stage in recipe.stages} == {Related("a red mug", "on top of", "a white table")}
    assert [replace(stage, things=None) for stage in recipe.stages] == [*before.stages]
    assert from_json(to_json(recipe)) == recipe


def test_what_cannot_be_put_together_or_begins_with_something_is_made_as_one():
    toybox = load("toybox")
    several = replace(toybox, stages=tuple(replace(stage, particles=2) for stage in toybox.stages))
    sketched = replace(recipe_of(BALL).stages[0], losses=(Weighted(Sketch("there.obj")),))
    for recipe in (
        several,
        recipe_of(Canvas(size=8)),
        recipe_of(BALL, Gaussians()),
        recipe_of(replace(BALL, source="there.glb")),
        recipe_of(Gaussians(start=File("there.ply")), BALL),
        replace(recipe_of(BALL), stages=(sketched,)),
        load("dreamfusion"),
        replace(toybox, apart=False),
        compose("toybox", prior="some/model"),
    ):
        assert apart(recipe, PROMPT) is recipe
    assert apart(toybox, "a red mug") is toybox
    assert apart(recipe_of(Gaussians(), BALL), PROMPT).stages[1].things == BALLS
    assert apart(compose("toybox", prior="some/model", settings={"apart": "true"}), PROMPT).stages[0].things == BALLS
    with pytest.raises(InputError, match="no particles; got 2"):
        replace(toybox.stages[0], things=BALLS, particles=2)
    with pytest.raises(InputError, match="are meshes in the last stage"):
        replace(toybox, stages=(replace(toybox.stages[0], things=BALLS),))
    assert apart(recipe_of(replace(BALL, environment=Panorama("room.hdr"))), PROMPT).stages[0].things == BALLS
    with pytest.raises(InputError, match="in all stages of a recipe, or in none"):
        replace(toybox, stages=(replace(toybox.stages[0], things=BALLS), toybox.stages[1]))


# --- steps ---


class Heard:
    """A prior that remembers the texts it was told."""

    def __init__(self, prior):
        self.prior, self.told = prior, list[str]()

    def __getattr__(self, name):
        return getattr(self.prior, name)

    def condition(self, texts, **rest):
        self.told.extend(texts)
        return self.prior.condition(texts, **rest)


def test_a_step_shows_each_thing_under_its_own_words_and_is_the_steps_of_both_alone():
    """With a loss that looks at the scene. The first thing's gradients are those of a run of its own with that seed."""
    (stage,) = recipe_of(BALL).stages
    stage = replace(stage, batch=4, losses=(Weighted(losses.laplacian), Weighted(losses.opacity)))
    heard = Heard(PRIOR.load(CPU))
    both = fresh(replace(stage, things=BALLS), 0, CPU, {PRIOR: heard.prior})
    figures = differentiate(replace(stage, things=BALLS), both, Task(PROMPT, {PRIOR: heard}))
    words = [text.partition(",")[0] for text in heard.told if text]
    assert words == ["a red ball"] * (len(words) // 2) + ["a blue ball"] * (len(words) // 2)
    names = {f"{name}{end}" for name in ("guide0", "laplacian", "opacity") for end in ("", "/second")}
    assert figures["losses"].keys() == names
    assert figures["guide0"]["t"] != figures["guide0/second"]["t"]
    alone = fresh(stage, 0, CPU, {PRIOR: heard.prior})
    said = differentiate(stage, alone, Task("a red ball", {PRIOR: heard.prior}))
    assert said["guide0"] == figures["guide0"]
    first, second = both.scene.scenes
    assert torch.equal(first.offsets.grad, alone.scene.offsets.grad)
    assert bool(second.offsets.grad.any())
    assert not torch.equal(second.offsets.grad, first.offsets.grad)
    assert figures["skipped"] == []


def test_each_thing_has_what_its_rule_remembers_to_itself(tmp_path):
    """The discriminator keeps pictures that the prior drew, which are red of one thing and blue of the other."""
    recipe = recipe_of(BALL)
    guide = replace(recipe.stages[0].guides[0], rule=F_DIV)
    stage = replace(recipe.stages[0], guides=(guide,), things=BALLS)
    recipe, priors = replace(recipe, stages=(stage,)), {PRIOR: PRIOR.load(CPU)}
    state = fresh(stage, 0, CPU, priors)
    take_step(stage, state, Task(PROMPT, priors))
    red, blue = (state.parts[name]["discriminator"].real.mean((0, 2, 3)) for name in ("guide0", "guide0/second"))
    assert red[0] > 0.5 > -0.5 > red[2]
    assert blue[2] > 0.5 > -0.5 > blue[0]
    with Run.create(tmp_path / "run", PROMPT, "tiny", 0, recipe) as run:
        save(run, state)
        back = restore(recipe, run, CPU, priors)
    for name in ("guide0", "guide0/second"):
        kept = [found.parts[name]["discriminator"].real for found in (state, back)]
        assert torch.equal(*kept)


def test_a_thing_that_is_not_finite_is_named_and_nothing_moves():
    (stage,) = recipe_of(BALL).stages
    stage = replace(stage, things=BALLS)
    priors = {PRIOR: PRIOR.load(CPU)}
    state = fresh(stage, 0, CPU, priors)
    with torch.no_grad():
        state.scene.scenes[1].offsets[0] = torch.nan
    before = state.scene.scenes[0].offsets.clone()
    figures = take_step(stage, state, Task(PROMPT, priors))
    assert any("/second" in name or name.startswith("gradient of 1/") for name in figures["skipped"])
    assert state.skipped == 1
    assert torch.equal(state.scene.scenes[0].offsets, before)


def test_a_rule_that_edits_compares_each_thing_with_what_it_was():
    bells = (*BELLS, Bell("a ball", 0.0, 0.5))
    prior = Gaussian(bells, size=8)
    (stage,) = recipe_of(BALL).stages
    guide = replace(stage.guides[0], rule=DDS, prior=prior)
    stage = replace(stage, things=BALLS, guides=(guide,), source_prompt="a ball")
    state = fresh(stage, 0, CPU, {prior: prior.load(CPU)})
    before = differentiate(stage, state, Task(PROMPT, {prior: prior.load(CPU)}))
    with torch.no_grad():
        state.source.scenes[1]._parts[2].layers["texture/colour"].fill_(0.9)
    after = differentiate(stage, state, Task(PROMPT, {prior: prior.load(CPU)}))
    assert after["guide0"]["norm"] == before["guide0"]["norm"]
    assert after["guide0/second"]["norm"] != before["guide0/second"]["norm"]


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


def one_of(*meshes: Mesh) -> Mesh:
    """Several boxes as one, with the texture of the first."""
    return replace(join_textured(*meshes), texture=meshes[0].texture)


def blank(thing) -> Mesh:
    """The world's own mesh of a thing, with a texture."""
    mesh = world.mesh_of(thing)
    uv = np.full((len(mesh.vertices), 2), 0.5, np.float32)
    return Mesh(mesh.vertices, mesh.faces, uv=uv, texture=np.zeros((2, 2, 3), np.uint8))


def parts(whole: Mesh, first: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """The boxes [2, 3] of the two meshes in their joint one."""
    split = len(first.vertices)
    return tuple(np.stack([v.min(0), v.max(0)]) for v in (whole.vertices[:split], whole.vertices[split:]))


def test_things_stand_beside_each_other_on_one_ground_the_first_to_the_left():
    """They are of one size, as each is made to fit the ball: half of it as large is the first one at first."""
    first, second = box((9.0, 0.0, 0.0), (9.2, 0.3, 0.2)), box((-0.3, -0.4, -0.5), (0.1, 0.4, 0.2))
    whole = arrange(first, "next to", second, 0.8)
    one, two = parts(whole, first)
    size = {0: np.array([0.2, 0.3, 0.2]), 1: np.array([0.4, 0.8, 0.7])}
    scale = (two[1] - two[0])[1] / 0.8
    grown = np.linalg.norm(size[1]) / np.linalg.norm(size[0])
    assert (one[1] - one[0]) / scale == pytest.approx(grown * size[0], abs=1e-5)
    assert (two[0] - one[1])[1] / scale == pytest.approx(GAP * np.linalg.norm(size[1]) / 2, abs=1e-5)
    assert one[0][2] == pytest.approx(two[0][2], abs=1e-5)
    assert one.mean(0)[0] == pytest.approx(two.mean(0)[0], abs=1e-5)
    low, high = np.minimum(one[0], two[0]), np.maximum(one[1], two[1])
    assert low + high == pytest.approx(np.zeros(3), abs=1e-5)
    assert np.linalg.norm(whole.vertices, axis=1).max() == pytest.approx(0.8, abs=1e-5)


def test_what_stands_on_something_is_smaller_and_stands_on_its_middle():
    first, second = box((-0.3, -0.3, -0.5), (0.3, 0.3, 0.5)), box((-0.2, -0.7, -0.1), (0.6, 0.1, 0.3))
    one, two = parts(arrange(first, "on top of", second, 0.8), first)
    sizes = [np.linalg.norm(part[1] - part[0]) for part in (one, two)]
    assert sizes[0] / sizes[1] == pytest.approx(SMALLER, abs=1e-5)
    assert one[0][2] == pytest.approx(two[1][2], abs=1e-5)
    assert one.mean(0)[:2] == pytest.approx(two.mean(0)[:2], abs=1e-5)


def test_it_stands_on_the_seat_of_a_chair_and_not_on_its_back():
    """A table of four thin legs, whose corners alone would find the back as often as the seat."""
    seat, back = box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.0)), box((-0.5, -0.5, 0.0), (-0.3, 0.5, 0.7))
    legs = [box((x, y, -0.5), (x + 0.05, y + 0.05, 0.3)) for x in (-0.6, 0.55) for y in (-0.6, 0.55)]
    table = one_of(*legs, box((-0.6, -0.6, 0.3), (0.6, 0.6, 0.4)))
    whole = arrange(table, "on top of", one_of(seat, back), 0.8)
    one, two = parts(whole, table)
    height = (two[1] - two[0])[2]
    assert (one[0] - two[0])[2] / height == pytest.approx(0.5 / 1.2, abs=1e-4)


def test_only_the_sole_says_how_high_it_stands():
    """A post with a wide plate on it, between two walls that the plate lies above and the post does not."""
    post = one_of(box((-0.05, -0.05, -0.5), (0.05, 0.05, 0.4)), box((-0.5, -0.5, 0.4), (0.5, 0.5, 0.5)))
    walls = box((-0.6, -0.6, -0.4), (-0.15, 0.6, 0.0)), box((0.15, -0.6, -0.4), (0.6, 0.6, 0.0))
    floor = box((-0.6, -0.6, -0.5), (0.6, 0.6, -0.4))
    one, two = parts(arrange(post, "on top of", one_of(floor, *walls), 0.8), post)
    assert (one[0] - two[0])[2] / (two[1] - two[0])[2] == pytest.approx(0.1 / 0.5, abs=1e-4)


def test_a_thing_that_looks_down_on_nothing_stands_at_the_height_of_the_top():
    ring = one_of(box((-0.8, -0.8, -0.2), (-0.6, 0.8, 0.2)), box((0.6, -0.8, -0.2), (0.8, 0.8, 0.2)))
    first = box((-0.2, -0.2, -0.6), (0.2, 0.2, 0.6))
    one, two = parts(arrange(first, "on top of", ring, 0.8), first)
    assert one[0][2] == pytest.approx(two[1][2], abs=1e-5)
    with pytest.raises(ValueError, match="'under'"):
        arrange(first, "under", ring, 0.8)


@pytest.mark.parametrize("second", ["chair", "table", "sofa", "cake"])
@pytest.mark.parametrize("first", ["duck", "mug", "robot", "cat"])
def test_true_things_come_to_stand_as_in_the_true_pair(first, second):
    """The toybox's own things, arranged, against its own pair: what stands on something stands there where a ray
    through its middle lands, here where most of its sole looks down. 0.03 is 4 % of the ball's radius."""
    for relation in ("on top of", "next to"):
        pair = world.named(f"a red {first} {relation} a blue {second}")
        made = arrange(blank(pair.first), relation, blank(pair.second), world.RADIUS)
        assert made.vertices == pytest.approx(world.mesh_of(pair).vertices, abs=0.03)


def test_textures_lie_side_by_side_and_each_thing_keeps_its_colours():
    """Textures that change along both sides: what is seen of the whole is what is seen of each thing."""
    grid = np.mgrid[0:256:32, 0:256:32].astype(np.uint8)
    red = box((-0.2, -0.7, -0.3), (0.2, -0.1, 0.3), texture=np.stack([255 + 0 * grid[0], *grid], -1))
    blue = box((-0.2, 0.1, -0.3), (0.2, 0.7, 0.3), texture=np.stack([*grid, 255 + 0 * grid[0]], -1))
    rough = {"roughness": np.full((8, 8), 77, np.uint8)}
    whole = join_textured(replace(red, **rough), replace(blue, **rough))
    assert whole.texture.shape == (8, 2 * (8 + 2 * GUTTER), 3)
    assert whole.roughness.shape == whole.texture.shape[:2]
    assert join_textured(replace(red, **rough), blue).roughness is None
    count, weights = len(red.faces), torch.full((2 * len(red.faces), 3), 1 / 3)
    seen = colour_at(whole, Hits(torch.zeros(2 * count), torch.arange(2 * count), weights))
    each = [colour_at(one, Hits(torch.zeros(count), torch.arange(count), weights[:count])) for one in (red, blue)]
    assert seen == pytest.approx(torch.cat(each), abs=1e-5)
    with pytest.raises(ValueError, match="has none"):
        join_textured(red, Mesh(blue.vertices, blue.faces))
    with pytest.raises(ValueError, match=r"one size; these have \[\(4, 8\), \(8, 8\)\]"):
        join_textured(red, replace(blue, texture=blue.texture[:4]))


# --- the whole ---

QUIET = replace(load(TINY).export, turntable_seconds=0.0)


def test_two_balls_are_made_and_resumed_bit_for_bit(tmp_path):
    recipe = apart(recipe_of(BALL, BALL), PROMPT)
    priors = load_priors(recipe, PROMPT, CPU)
    assert recipe.steps == 20
    with Run.create(tmp_path / "whole", PROMPT, "tiny", 0, recipe, "cpu") as run:
        scene = loop.optimise(recipe, run, priors, CPU)
    assert isinstance(scene, MeshScene)
    assert np.linalg.norm(scene.mesh().vertices, axis=1).max() == pytest.approx(0.8, abs=1e-5)
    picture = scene.render(orbit([0.0], [0.0], size=32), background=(1.0, 1.0, 1.0)).rgb[0]
    left, right = picture[:, 12:20, 4:12].mean((1, 2)), picture[:, 12:20, 20:28].mean((1, 2))
    assert left[0] > left[2] + 0.2
    assert right[2] > right[0] + 0.2
    for stop in (7, 15):
        folder = tmp_path / f"parts{stop}"
        with (
            Run.create(folder, PROMPT, "tiny", 0, recipe, "cpu") as run,
            pytest.raises(KeyboardInterrupt),
        ):
            loop.optimise(recipe, run, priors, CPU, stop_at(stop))
        with Run.resume(folder) as run:
            loop.optimise(recipe, run, priors, CPU)
        assert final(tmp_path / "whole") == final(folder)


def test_things_painted_by_networks_are_put_together_with_their_colours():
    spec = replace(BALL, paint=NET, texture_size=32)
    stage = replace(recipe_of(spec).stages[0], things=BALLS)
    scene = stage.scenes.build(CPU, Streams(0, -1))
    with torch.no_grad():
        for one, logits in zip(scene.scenes, ((9.0, -9.0, -9.0), (-9.0, -9.0, 9.0)), strict=True):
            network = one._parts[2].network
            network.table.fill_(1.0)
            network.hidden.fill_(1 / network.hidden.shape[1])
            network.output.zero_()
            network.output[:3] = torch.tensor(logits)[:, None] / network.output.shape[1]
    mesh = whole(scene, stage, CPU).mesh()
    half = mesh.texture.shape[1] // 2
    assert mesh.texture[:, :half].mean((0, 1)) == pytest.approx([255, 0, 0], abs=3)
    assert mesh.texture[:, half:].mean((0, 1)) == pytest.approx([0, 0, 255], abs=3)


def test_generate_makes_two_things_and_export_eval_and_from_see_one(tmp_path):
    (tmp_path / "balls.py").write_text(SYSTEM)
    made = api.generate(PROMPT, system=str(tmp_path / "balls.py"), out=tmp_path / "run", steps=6)
    assert [(stage.steps, stage.things) for stage in made.run.recipe.stages] == [(6, BALLS)]
    assert isinstance(made.scene, MeshScene)
    assert made.mesh.texture.shape == (32, 2 * (32 + 2 * GUTTER), 3)
    again = api.export(tmp_path / "run")
    assert again.mesh.vertices == pytest.approx(made.mesh.vertices, abs=1e-5)
    report, _ = api.evaluate([tmp_path / "run"])
    assert ["particle" in run for run in report["runs"]] == [False]
    refined = api.generate(
        PROMPT, start=tmp_path / "run", system=str(tmp_path / "balls.py"), out=tmp_path / "on", steps=1
    )
    assert [stage.things for stage in refined.run.recipe.stages] == [None]
    moved = refined.mesh.vertices - made.mesh.vertices
    assert np.abs(moved).max() < 0.1  # both stand where they stood


SYSTEM = """
from dataclasses import replace
from tests.test_apart import BALL, QUIET, recipe_of
recipe = replace(recipe_of(BALL), export=QUIET)
"""


def test_a_run_that_stops_before_things_are_meshes_shows_them_apart_and_is_to_be_finished(tmp_path):
    recipe = apart(recipe_of(Gaussians(count=20), BALL, export=QUIET), PROMPT)
    with Run.create(tmp_path / "run", PROMPT, "tiny", 0, recipe, "cpu") as run:
        state = fresh(recipe.stages[0], 0, CPU)
        save(run, replace(state, step=1))
        run.update(status="interrupted")
    shown = api.render(tmp_path / "run", views=1, size=16)
    assert [path.name for path in sorted(shown.iterdir())] == ["particle_0", "particle_1"]
    assert torch.equal(loop.four_views(state.scene)[:, 128:], loop.four_views(state.scene.scenes[1]))
    with pytest.raises(InputError, match=r"'a red ball' and 'a blue ball' apart, and at step 1 .* dreamkit resume"):
        api.export(tmp_path / "run")
    with pytest.raises(InputError, match="dreamkit resume"):
        api.generate(PROMPT, start=tmp_path / "run", out=tmp_path / "on")
