"""Several scenes in one run."""

from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from dreamkit import api, cli, evaluate, loop
from dreamkit.cameras import Orbit, ring
from dreamkit.errors import InputError
from dreamkit.guidance.estimate import Guided
from dreamkit.guidance.rules import RSD, SDS, VSD
from dreamkit.priors import Bell, Gaussian
from dreamkit.recipe import Guide, Recipe, Stage, load
from dreamkit.rehearsal import load_priors
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.gaussians import Gaussians
from dreamkit.representations.gaussians.control import Densify, Statistics
from dreamkit.representations.hashgrid import HashGridScene
from dreamkit.representations.mesh import MeshSurface
from dreamkit.representations.paint import LatentTexture
from dreamkit.representations.particles import Particles, alike
from dreamkit.run import Run
from dreamkit.schedule import Linear
from dreamkit.state import fresh, handed_over, save
from dreamkit.step import Task, cameras_of, take_step
from dreamkit.streams import Streams
from tests.test_loop import CPU, TINY, final, stop_at

PRIOR = Gaussian((Bell("", 0.0, 0.5), Bell("a red ball", (0.8, -0.8, -0.8), 0.5)), size=8)


def stage_of(rule=VSD, representation=None, **settings) -> Stage:
    tiny = load(TINY).stages[0]
    changed = replace(tiny, guides=(Guide(rule, PRIOR),), representation=representation or Canvas(size=8), losses=())
    return replace(changed, **{"particles": 3, "batch": 2, "steps": 12, **settings})


def scenes(count: int = 3, representation=None):
    return Particles(representation or Canvas(size=8), count).build(CPU, Streams(0, -1))


def test_each_picture_shows_its_particle_with_gradients_for_it_alone():
    stage, scene, streams = stage_of(batch=4), scenes(), Streams(0, 5)
    cameras = cameras_of(stage, streams)
    images = scene.render(cameras, streams)
    order = scene.order(4, streams)
    assert sorted(order) == [0, 1, 2]
    for i, picture in enumerate(images.rgb):
        mine = scene.scenes[order[i % 3]].render(cameras[i : i + 1]).rgb[0]
        assert torch.equal(picture, mine)
    images.rgb[1].sum().backward()
    moved = [particle.logits.grad is not None and bool((particle.logits.grad != 0).any()) for particle in scene.scenes]
    assert moved == [i == order[1] for i in range(3)]


def test_particles_of_one_group_are_seen_by_one_camera_and_all_take_turns():
    stage = stage_of(particles=3, batch=6)
    cameras = cameras_of(stage, Streams(0, 0))
    where = cameras.camera_to_world
    assert len(cameras) == 6
    assert torch.equal(where[0], where[2])
    assert torch.equal(where[3], where[5])
    assert not torch.equal(where[0], where[3])
    assert len(cameras_of(stage_of(batch=2), Streams(0, 0))) == 2
    seen = {tuple(scenes().order(2, Streams(0, step))) for step in range(60)}
    assert len(seen) == 6  # every ordered pair


def test_particles_that_a_prior_sees_from_several_sides_together_come_side_by_side():
    stage = stage_of(particles=3, batch=8, cameras=Orbit(size=8, group=2))
    cameras, scene = cameras_of(stage, Streams(0, 0)), stage.scenes.build(CPU, Streams(0, -1))
    where = cameras.camera_to_world
    assert torch.equal(where[:2], where[2:4])
    assert torch.equal(where[:2], where[4:6])
    assert not torch.equal(where[:2], where[6:8])
    order, pictures = scene.order(8, Streams(0, 0)), scene.render(cameras, Streams(0, 0)).rgb
    assert sorted(order) == [0, 1, 2]
    for i, picture in enumerate(pictures):
        assert torch.equal(picture, scene.scenes[order[i // 2 % 3]].render(cameras[i : i + 1]).rgb[0])
    assert len(scene.order(4, Streams(0, 0))) == 2
    with pytest.raises(InputError, match="groups of 2"):
        cameras_of(replace(stage, batch=5), Streams(0, 0))


def test_particles_start_apart_and_a_state_goes_from_one_to_another():
    one, other = scenes(), Particles(Canvas(size=8), 3).build(CPU, Streams(1, -1))
    pictures = [scene.logits for scene in one.scenes]
    assert not torch.equal(pictures[0], pictures[1])
    other.load(one.state())
    assert all(torch.equal(a.logits, b.logits) for a, b in zip(one.scenes, other.scenes, strict=True))
    with pytest.raises(ValueError, match="2 particles cannot take over the state of 3"):
        scenes(2).load(one.state())


def test_a_single_scene_becomes_particles_and_the_first_particle_a_scene():
    single = Canvas(size=8).build(CPU, Streams(3, -1))
    spec = Particles(Canvas(size=8), 2)
    assert not alike(spec, Canvas())
    made = handed_over(single, Canvas(size=8), spec, 0, CPU)
    assert all(torch.equal(particle.logits, single.logits) for particle in made.scenes)
    back = handed_over(made, spec, Canvas(size=8), 0, CPU)
    assert torch.equal(back.logits, made.scenes[0].logits)


@pytest.mark.parametrize("grid", [False, True], ids=["canvas", "hashgrid"])
def test_a_run_of_particles_is_stopped_and_resumed_bit_for_bit(tmp_path, grid):
    """Three particles, of which a step shows two, under one student."""
    recipe = Recipe(stages=(stage_of(representation=load(TINY).stages[0].representation if grid else None),))
    priors = load_priors(recipe, "a red ball", CPU)
    with Run.create(tmp_path / "whole", "a red ball", "tiny", 0, recipe, "cpu") as run:
        loop.optimise(recipe, run, priors, CPU)
    with (
        Run.create(tmp_path / "parts", "a red ball", "tiny", 0, recipe, "cpu") as run,
        pytest.raises(KeyboardInterrupt),
    ):
        loop.optimise(recipe, run, priors, CPU, stop_at(5))
    with Run.resume(tmp_path / "parts") as run:
        loop.optimise(recipe, run, priors, CPU)
    assert final(tmp_path / "whole") == final(tmp_path / "parts")


def test_repelled_particles_end_further_apart(tmp_path):
    """Under one prior of one bell, with and without repulsion, from the same start."""

    def spread(gamma: float) -> float:
        rule = replace(RSD, trust=Guided(1.0), subtract=replace(RSD.subtract, gamma=gamma))
        stage = stage_of(rule, particles=4, batch=4, steps=30)
        priors = {PRIOR: PRIOR.load(CPU)}
        state = fresh(stage, 0, CPU, priors)
        for _ in range(30):
            take_step(stage, state, Task("a red ball", priors))
        pictures = torch.stack([torch.sigmoid(scene.logits.detach()).flatten() for scene in state.scene.scenes])
        return float(torch.pdist(pictures).mean())

    assert spread(1000.0) > 1.2 * spread(0.0)


def test_every_particle_of_canvases_is_written_and_the_preview_shows_all(tmp_path):
    settings = ("--set", "particles=2", "--set", "representation=Canvas(size=8)")
    given = ("generate", "a red ball", "--system", str(TINY), "--out", str(tmp_path / "run"), "--steps", "3", *settings)
    assert cli.main(given) == 0
    assert all((tmp_path / "run" / f"particle_{i}" / "picture.png").exists() for i in range(2))
    run = Run.open(tmp_path / "run")
    scene, _, _ = api._scene(run, CPU)
    assert loop.four_views(scene).shape == (3, 16, 8)
    assert picture(run.path / "preview.png").shape == (16, 8, 3)
    assert iio.imread(run.path / "history.gif").shape == (1, 16, 8, 3)  # the preview of step 3, of all
    with pytest.raises(InputError, match=r"Stage.particles"):
        stage_of(particles=0)


def coloured(scene: HashGridScene, logits: tuple[float, float, float]) -> None:
    """A ball of one colour: features of one everywhere, a mean of them, and that times the colour's logits."""
    with torch.no_grad():
        scene.network.table.fill_(1.0)
        scene.network.hidden.fill_(1 / scene.network.hidden.shape[1])
        scene.network.output.zero_()
        scene.network.output[1:] = torch.tensor(logits)[:, None] / scene.network.output.shape[1]


def picture(file: Path) -> np.ndarray:
    return iio.imread(file).astype(float) / 255


def test_every_particle_has_a_mesh_is_rendered_and_is_measured(tmp_path, capsys):
    """Two hash grids of one run, a red and a green ball: what is made of each shows its own colour."""
    folder, stage = tmp_path / "run", stage_of(SDS, load(TINY).stages[0].representation, particles=2, steps=1)
    recipe = Recipe((stage,), export=replace(load(TINY).export, turntable_seconds=0.0))
    with Run.create(folder, "a red ball", "tiny", 0, recipe, "cpu") as run:
        state = fresh(stage, 0, CPU)
        coloured(state.scene.scenes[0], (6.0, -6.0, -6.0))
        coloured(state.scene.scenes[1], (-6.0, 6.0, -6.0))
        save(run, replace(state, step=1))
        run.update(status="complete")
    assert cli.main(("export", str(folder))) == 0
    said = capsys.readouterr().out
    assert all(f"particle_{i}/mesh.glb" in said for i in range(2))
    facts = Run.open(folder).facts["export"]
    assert facts["files"] == ["particle_0/mesh.glb", "particle_1/mesh.glb"]
    assert [particle["files"] for particle in facts["particles"]] == [["mesh.glb"]] * 2
    shown = picture(folder / "preview.png")
    assert shown.shape == (1024, 1024, 3)  # two rows of four pictures of 256 pixels for each
    assert cli.main(("render", str(folder), "--views", "2", "--size", "16")) == 0
    for i, other in ((0, 1), (1, 0)):
        rendered = picture(folder / "images" / "render_000001_2x16_15" / f"particle_{i}" / "view_001.png")
        for seen in (rendered[8, 8], shown[128 + 512 * i, 128]):  # the middle of a ball
            assert seen[i] > 2 * max(seen[other], seen[2])
    report, file = api.evaluate([folder])
    assert [run["particle"] for run in report["runs"]] == [0, 1]
    assert report["prompts"]["a red ball"]["diversity"] > 0.01
    assert [row[1] for row in evaluate.table(report)[1]] == ["0 (0)", "0 (1)", ""]
    assert "a red ball, seed 0 (1)" in file.with_suffix(".html").read_text()


def test_latents_of_particles_are_in_the_order_of_their_pictures():
    spec = MeshSurface(cells=2, paint=LatentTexture(size=8))
    many, streams, cameras = scenes(2, spec), Streams(0, 5), ring(4, size=16)
    with torch.no_grad():
        for number, scene in enumerate(many.scenes):
            for group in scene.parameters():
                if group["name"] != "offsets":
                    group["params"][0].fill_(float(number))
    images, order = many.render(cameras, streams), many.order(4, streams)
    inside = [float(images.latent[i][:, images.alpha[i, 0] > 0.99].detach().mean()) for i in range(4)]
    assert inside == pytest.approx([float(order[i % 2]) for i in range(4)], abs=1e-4)


def test_particles_that_are_not_shown_are_kept_up_by_the_settings_of_the_step():
    """None of three was shown; all are due, and growth is there at first and gone at the end."""
    strategy = Densify(begin=0, every=1, growth=Linear(1.0, 0.0), prune_opacity=0.0)
    stage = stage_of(SDS, Gaussians(count=20, strategy=strategy), particles=3, batch=1, steps=100)
    state = fresh(stage, 0, CPU, load_priors(Recipe((stage,)), "a red ball", CPU))
    now = stage.at(0).representation
    for scene in state.scene.scenes:
        scene._seen = Statistics(torch.ones(20), torch.ones(20), torch.zeros(20))
    state.scene.after_step(0, Streams(0, 0), now)
    seen = [len(scene.cloud) for scene in state.scene.scenes]
    assert min(seen) > 20
