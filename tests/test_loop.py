"""The loop: exact resume, what it does with numbers that are not finite, what it refuses."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreamkit import loop, step
from dreamkit.cameras import orbit
from dreamkit.errors import InputError, RunError
from dreamkit.guidance import gradient
from dreamkit.guidance.levels import At
from dreamkit.guidance.rules import CSD, SDS_PERP_NEG_VIEWS, VSD
from dreamkit.images import Images
from dreamkit.priors import Bell, Gaussian
from dreamkit.priors.analytic import AnalyticPrior
from dreamkit.priors.prior import view_conditions
from dreamkit.prompts import ViewWords
from dreamkit.recipe import Guide, Recipe, load
from dreamkit.rehearsal import load_priors, rehearse
from dreamkit.representations import DMTet, Gaussians, Scene
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.dmtet import Explicit
from dreamkit.representations.gaussians.control import Densify
from dreamkit.representations.hashgrid import HashGridScene
from dreamkit.run import Run
from dreamkit.schedule import Linear, Switch
from dreamkit.state import carried, fresh
from dreamkit.step import Task, clipped, differentiate, seen, take_step
from dreamkit.streams import Streams

TINY = Path(__file__).parent / "data" / "tiny_system.py"
CPU = torch.device("cpu")


@pytest.fixture
def recipe() -> Recipe:
    return load(TINY)


def start(recipe: Recipe, folder: Path) -> Run:
    return Run.create(folder, "a red ball", "tiny", 0, recipe, "cpu")


def optimise(recipe: Recipe, run: Run, watch: loop.Watch | None = None) -> Scene:
    return loop.optimise(recipe, run, load_priors(recipe, run.prompt, CPU), CPU, watch)


def final(folder: Path) -> bytes:
    return max(folder.glob("checkpoints/*.safetensors")).read_bytes()


def figures(folder: Path) -> list[dict]:
    """The log without times, which differ from run to run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def stop_at(step: int):
    def watch(done: int, steps: int, figures: dict) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return watch


def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(recipe, tmp_path):
    with start(recipe, tmp_path / "whole") as run:
        optimise(recipe, run)
    with start(recipe, tmp_path / "parts") as run, pytest.raises(KeyboardInterrupt):
        optimise(recipe, run, stop_at(7))
    with Run.resume(tmp_path / "parts") as run:
        assert run.facts["step"] == 7  # Ctrl-C wrote a checkpoint off the cadence
        optimise(recipe, run)
    assert final(tmp_path / "whole") == final(tmp_path / "parts")
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")


GROWING = {
    "gaussians": (Gaussians(count=40, strategy=Densify(begin=0, every=3, growth=0.5)), "means", 40),
    "dmtet": (DMTet(resolution=6, geometry=Explicit(), subdivisions=Switch(0.0, 1.0, 0.4), colour=None), "sdf", None),
}


@pytest.mark.parametrize("kind", GROWING)
def test_a_scene_that_grows_is_stopped_and_resumed(recipe, kind, tmp_path):
    """Stopped after it has grown: the optimiser that is resumed moves the tensors that are there now."""
    spec, name, count = GROWING[kind]
    stage = replace(recipe.stages[0], representation=spec, losses=(), steps=14)
    recipe = replace(recipe, stages=(stage,))
    test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(recipe, tmp_path)
    at_first = count or len(spec.build(CPU, Streams(0, -1)).state()[name])
    files = sorted((tmp_path / "parts").glob("checkpoints/*.safetensors"))
    before, after = (load_file(file)[f"scene/{name}"] for file in files[-2:])
    assert len(before) > at_first
    if len(before) == len(after):
        assert not torch.equal(before, after)


def test_what_a_step_trains_is_the_scene_as_it_has_grown(recipe):
    spec = Gaussians(count=40, strategy=Densify(begin=0, every=2, growth=0.5))
    stage = replace(recipe.stages[0], representation=spec, losses=(), steps=4)
    priors = load_priors(replace(recipe, stages=(stage,)), "a red ball", CPU)
    state = fresh(stage, 0, CPU, priors)
    for _ in range(3):
        take_step(stage, state, Task("a red ball", priors))
        held = [group["params"][0] for group in state.scene.parameters()]
        assert all(a["params"][0] is b for a, b in zip(state.optimiser.param_groups, held, strict=True))
    assert len(state.scene.cloud.means) > 40


def test_a_learning_rates_schedule_reaches_the_optimiser(recipe):
    stage = replace(recipe.stages[0], representation=Canvas(size=8, rate=Linear(0.0, 0.4)), losses=(), steps=4)
    priors = load_priors(replace(recipe, stages=(stage,)), "a red ball", CPU)
    state = fresh(stage, 0, CPU, priors)
    for i in range(4):
        take_step(stage, state, Task("a red ball", priors))
        assert state.optimiser.param_groups[0]["lr"] == pytest.approx(stage.at(i).representation.rate)
    assert state.optimiser.param_groups[0]["lr"] > 0.25


def test_a_student_is_stopped_and_resumed_with_the_scene(recipe, tmp_path):
    stage = recipe.stages[0]
    taught = replace(stage, guides=(replace(stage.guides[0], rule=VSD),))
    test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits(replace(recipe, stages=(taught,)), tmp_path)
    tensors = load_file(max((tmp_path / "parts").glob("checkpoints/*.safetensors")))
    assert tensors["parts/guide0/student/weights/move"].abs().max() > 0


def test_losing_the_last_checkpoint_costs_only_time(recipe, tmp_path):
    """The newest checkpoint is damaged: the one before it serves, and the end is the same."""
    with start(recipe, tmp_path / "whole") as run:
        optimise(recipe, run)
    with start(recipe, tmp_path / "parts") as run, pytest.raises(KeyboardInterrupt):
        optimise(recipe, run, stop_at(12))
    newest = max((tmp_path / "parts").glob("checkpoints/*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-10])
    with Run.resume(tmp_path / "parts") as run, pytest.warns(UserWarning, match="passed over"):
        optimise(recipe, run)
    assert final(tmp_path / "whole") == final(tmp_path / "parts")


def test_the_scene_moves_towards_what_the_prior_wants(recipe, tmp_path):
    recipe = replace(recipe, stages=(replace(recipe.stages[0], steps=60),))
    with start(recipe, tmp_path / "run") as run:
        scene = optimise(recipe, run)
    red, green, blue = scene.colour(torch.zeros(1, 3))[0].tolist()
    # The fresh scene is grey, 0.5 each; the prior's mean is (0.9, 0.1, 0.1).
    assert red > 0.6
    assert max(green, blue) < 0.4


def test_a_prior_is_asked_in_its_own_words_for_the_directions(recipe, monkeypatch):
    priors, stage, asked = load_priors(recipe, "a red ball", CPU), recipe.stages[0], set[str]()
    (prior,) = priors.values()
    monkeypatch.setattr(prior, "view_words", ViewWords(("front", "left", "back", "right")))
    monkeypatch.setattr(prior, "embed", lambda prompt: asked.add(prompt) or type(prior).embed(prior, prompt))
    state = fresh(stage, 0, CPU, priors)
    for _ in range(20):
        take_step(stage, state, Task("a red ball", priors))
    assert {f"a red ball, {word} view" for word in ("left", "right")} <= asked
    assert "a red ball, side view" not in asked


@pytest.mark.parametrize("batch", [1, 4])
def test_the_scene_gets_the_mean_over_the_views_of_the_rule_s_gradient(recipe, batch):
    """CSD between Gaussians of one width is the same for every noise: so it is for any number of views, too."""
    bells = (Bell("", 0.0, 0.5), Bell("a red ball", (0.8, -0.8, -0.8), 0.5))
    spec, rule = Gaussian(bells, size=8), replace(CSD, levels=At(0.5))
    stage = replace(recipe.stages[0], representation=Canvas(size=8), guides=(Guide(rule, spec, weight=0.7),))
    stage = replace(stage, losses=(), batch=batch, cameras=replace(stage.cameras, size=8))
    prior = spec.load(CPU)
    state = fresh(stage, 0, CPU, {spec: prior})
    differentiate(stage, state, Task("a red ball", {spec: prior}))
    colour = torch.sigmoid(state.scene.logits.detach())
    asked = view_conditions(prior, "a red ball", [None])
    said = gradient(rule, prior, 2 * colour[None] - 1, asked, Streams(0, 0)).gradient[0]
    # x = 2 sigmoid(logits) - 1, and float32.
    torch.testing.assert_close(state.scene.logits.grad, 0.7 * said * 2 * colour * (1 - colour), rtol=1e-4, atol=1e-7)


def test_a_guides_clip_bounds_the_gradient_of_its_picture(recipe):
    picture = torch.rand(1, 3, 4, 4, requires_grad=True)
    (clipped(picture, 0.25) * 3).sum().backward()
    assert torch.equal(picture.grad, torch.full_like(picture, 0.25))
    picture.grad = None
    ((clipped(picture, 0.25) * 3).sum() + picture.sum()).backward()  # another guide's 1 stays
    assert torch.equal(picture.grad, torch.full_like(picture, 1.25))


def spoil(monkeypatch, bad: set[int]) -> list[int]:
    """Make the training render of these calls NaN; returns the steps and attempts of the calls made."""
    calls: list[tuple[int, int]] = []
    render = HashGridScene.render

    def spoiled(self, cameras, streams=None, **rest) -> Images:
        images = render(self, cameras, streams, **rest)
        if streams is not None:
            calls.append((streams.step, streams.attempt))
            if len(calls) in bad:
                images.alpha = images.alpha * math.nan
        return images

    monkeypatch.setattr(HashGridScene, "render", spoiled)
    return calls


def test_a_step_that_is_not_finite_is_named_skipped_and_survived(recipe, tmp_path, monkeypatch):
    spoil(monkeypatch, {4})
    with start(recipe, tmp_path / "run") as run:
        scene = optimise(recipe, run)
    log = figures(tmp_path / "run")
    assert [line["step"] for line in log if line["skipped"]] == [4]
    assert log[3]["skipped"] == ["loss opacity"]
    assert all(group.isfinite().all() for group in scene.state().values() if group.is_floating_point())


def test_three_bad_steps_in_a_row_go_back_to_the_checkpoint(recipe, tmp_path, monkeypatch):
    calls = spoil(monkeypatch, {8, 9, 10})
    with start(recipe, tmp_path / "run") as run:
        optimise(recipe, run)
    # Steps are numbered from 0: the tenth call was step 9, and checkpoint 5 was the last; its draws are others now.
    assert calls[9:12] == [(9, 0), (5, 1), (6, 1)]
    assert [line["step"] for line in figures(tmp_path / "run")] == list(range(1, 31))


def test_a_run_that_went_back_is_resumed_with_the_draws_it_has_since(recipe, tmp_path, monkeypatch):
    for name in ("whole", "parts"):
        with monkeypatch.context() as patch, start(recipe, tmp_path / name) as run:
            spoil(patch, {8, 9, 10})
            if name == "whole":
                optimise(recipe, run)
            else:
                with pytest.raises(KeyboardInterrupt):
                    optimise(recipe, run, stop_at(12))
    with Run.resume(tmp_path / "parts") as run:
        assert run.latest_checkpoint()[2]["attempt"] == 1
        optimise(recipe, run)
    assert final(tmp_path / "whole") == final(tmp_path / "parts")


def test_a_run_that_cannot_recover_says_so_and_keeps_its_checkpoint(recipe, tmp_path, monkeypatch):
    spoil(monkeypatch, set(range(8, 100)))
    with (
        start(recipe, tmp_path / "run") as run,
        pytest.raises(RunError, match="loss opacity not finite 3 times in a row"),
    ):
        optimise(recipe, run)
    assert (tmp_path / "run" / "checkpoints" / "step_000005.safetensors").exists()


def test_a_stop_after_a_skipped_step_keeps_the_checkpoint_before_it_and_ends_in_the_same_bits(
    recipe, tmp_path, monkeypatch
):
    """Step 6 and 7 are skipped, Ctrl-C comes with the first: what is resumed is step 5, and goes the same way."""
    with monkeypatch.context() as patch, start(recipe, tmp_path / "whole") as run:
        spoil(patch, {7, 8})
        optimise(recipe, run)
    with monkeypatch.context() as patch, start(recipe, tmp_path / "parts") as run:
        spoil(patch, {7, 8})
        with pytest.raises(KeyboardInterrupt):
            optimise(recipe, run, stop_at(7))
    assert Run.open(tmp_path / "parts").latest_checkpoint()[0] == 5
    with Run.resume(tmp_path / "parts") as run:
        spoil(monkeypatch, {2, 3})
        optimise(recipe, run)
    assert final(tmp_path / "whole") == final(tmp_path / "parts")


def test_a_stop_at_the_last_step_is_heard(recipe, tmp_path):
    with start(recipe, tmp_path / "run") as run, pytest.raises(KeyboardInterrupt):
        optimise(recipe, run, stop_at(30))
    with Run.resume(tmp_path / "run") as run:
        assert run.latest_checkpoint()[0] == 30
        optimise(recipe, run)  # nothing is left to do


def test_stages_follow_one_another_on_the_same_scene(recipe, tmp_path):
    """A second stage that does nothing (no learning rate) leaves the first one's scene as it was."""
    first = replace(recipe.stages[0], steps=6)
    still = replace(first.representation, table_rate=0.0, network_rate=0.0)
    two = replace(recipe, stages=(first, replace(first, representation=still)))
    with start(replace(recipe, stages=(first,)), tmp_path / "one") as run:
        one = optimise(run.recipe, run)
    with start(two, tmp_path / "two") as run:
        both = optimise(two, run)
    assert torch.equal(one.state()["table"], both.state()["table"])


def test_a_stage_that_is_resumed_right_at_its_start_ends_in_the_same_bits(recipe, tmp_path):
    first = replace(recipe.stages[0], steps=6)
    two = replace(recipe, stages=(first, replace(first, steps=5)))
    with start(two, tmp_path / "whole") as run:
        optimise(two, run)
    with start(two, tmp_path / "parts") as run, pytest.raises(KeyboardInterrupt):
        optimise(two, run, stop_at(6))
    with Run.resume(tmp_path / "parts") as run:
        optimise(two, run)
    assert final(tmp_path / "whole") == final(tmp_path / "parts")


def test_a_prompt_the_prior_does_not_know_is_refused_before_anything_runs(recipe):
    with pytest.raises(InputError, match="a green ball"):
        load_priors(recipe, "a green ball", CPU)


def test_two_guides_add_up(recipe, tmp_path):
    """Two guides of half the weight with one prior and one rule are one guide, where no chance is in the rule.

    CSD between Gaussians of one width is the same for every noise, and here looks always at one level.
    """
    stage = recipe.stages[0]
    guide = replace(stage.guides[0], rule=replace(CSD, levels=At(0.5)))
    results = []
    for name, guides in (("one", (guide,)), ("two", (replace(guide, weight=0.5), replace(guide, weight=0.5)))):
        changed = replace(recipe, stages=(replace(stage, guides=guides, steps=3),))
        with start(changed, tmp_path / name) as run:
            results.append(optimise(changed, run).state()["output"])
    # Two halves are summed in another order than one whole, and Adam divides small by small: float32 over 3 steps.
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sees", ["rgb", "normal", "depth"])
def test_a_guide_can_look_at_colour_normals_or_depth(recipe, tmp_path, sees):
    prior = Gaussian((Bell("", 0.0, 0.5), Bell("a red ball", 0.5, 0.5)), size=8)
    stage = replace(recipe.stages[0], guides=(Guide(CSD, prior, sees=sees),), losses=(), steps=2)
    changed = replace(recipe, stages=(stage,))
    with start(changed, tmp_path / sees) as run:
        before = fresh(stage, 0, CPU).scene.state()["output"]
        after = optimise(changed, run).state()["output"]
    assert not torch.equal(before, after)


def test_what_a_guide_is_shown_of_normals_and_of_depth(recipe):
    """Near is 1, far is 0, and so is what is not there; a normal's -1 to 1 becomes 0 to 1."""
    guide = recipe.stages[0].guides[0]
    depth, alpha = (torch.tensor(row).reshape(1, 1, 1, 4) for row in ([2.0, 3.0, 4.0, 0.0], [1.0, 1.0, 1.0, 0.0]))
    rgb, normal = (torch.full((1, 3, 1, 4), value) for value in (0.3, -0.5))
    images = Images(rgb, alpha, depth, normal)
    near = seen(images, replace(guide, sees="depth"))
    torch.testing.assert_close(near, torch.tensor([1.0, 0.5, 0.0, 0.0]).expand(1, 3, 1, 4))
    torch.testing.assert_close(seen(images, replace(guide, sees="normal")), torch.full((1, 3, 1, 4), 0.25))
    assert seen(images, guide) is rgb


def test_a_step_tells_the_prior_the_negative_prompt_and_the_words_that_are_left(recipe, monkeypatch):
    bells = (Bell("", 0.0, 0.5), Bell("a red ball", 0.5, 0.5), Bell("a blue ball", -0.5, 0.5), Bell("bad", 1.0, 0.5))
    prior = Gaussian(bells, size=8).load(CPU)
    stage = replace(recipe.stages[0], debias="some/model", negative_prompt="bad")
    monkeypatch.setattr(step, "reworded", lambda *given: {"back": "a blue ball"})
    told = step._conditions(stage, stage.guides[0], prior, "a red ball", orbit([0.0, 180.0], 0.0))
    for name, said in (("prompt", ["a red ball", "a blue ball"]), ("negative", ["bad", "bad"])):
        assert torch.equal(told[name].tensors["mean"], prior.condition(said).tensors["mean"])
    turned = replace(stage.guides[0], rule=SDS_PERP_NEG_VIEWS)
    between = step._conditions(stage, turned, prior, "a red ball", orbit([0.0, 180.0], 0.0))["between"]
    assert torch.equal(between.tensors["mean"], told["prompt"].tensors["mean"])


def test_a_prior_that_answers_nan_is_named_and_not_silently_left_out(recipe, tmp_path, monkeypatch):
    network = AnalyticPrior.network
    monkeypatch.setattr(AnalyticPrior, "network", lambda self, z, level, c: network(self, z, level, c) * math.nan)
    with start(recipe, tmp_path / "run") as run, pytest.raises(RunError, match="guide0 not finite"):
        optimise(recipe, run)


def test_statistics_follow_the_rows_of_a_scene_that_changed_its_tensors():
    """Against Adam's own recurrence for each row: one that was kept, one that was doubled, one that is new."""
    first = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    other = torch.zeros(3, requires_grad=True)
    groups = [{"name": "rows", "params": [first], "lr": 0.1}, {"name": "other", "params": [other], "lr": 0.2}]
    old = torch.optim.Adam([dict(group) for group in groups], betas=(0.9, 0.99), eps=1e-15, fused=True)
    first.grad, other.grad = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.ones(3)
    old.step()

    rows = torch.tensor([1, -1, 0, 1])
    second = torch.zeros(4, 2, requires_grad=True)
    groups[0]["params"] = [second]
    new = carried(old, groups, {"rows": rows})
    second.grad, other.grad = torch.full((4, 2), 2.0), torch.ones(3)
    new.step()

    for row, source in enumerate(rows.tolist()):
        for axis in range(2):
            before = 0.0 if source < 0 else first.grad[source, axis].item()
            mean = 0.9 * 0.1 * before + 0.1 * 2.0
            square = 0.99 * 0.01 * before**2 + 0.01 * 4.0
            step = 0.1 * (mean / (1 - 0.9**2)) / math.sqrt(square / (1 - 0.99**2))
            assert second[row, axis].item() == pytest.approx(-step, rel=1e-5)  # float32
    assert torch.allclose(other, torch.full((3,), -0.4))  # a constant gradient moves Adam by its rate


def test_a_representation_that_cannot_start_from_another_is_refused_before_anything_runs(recipe):
    stages = (*recipe.stages, replace(recipe.stages[0], representation=Canvas()))
    priors = load_priors(recipe, "a red ball", CPU)
    with pytest.raises(InputError, match="Canvas cannot start from another scene"):
        rehearse(replace(recipe, stages=stages), priors, "a red ball", CPU)


def canvases(*sizes: int, particles: tuple[int, int] = (1, 1)) -> Recipe:
    """Stages of canvases of these sizes."""
    one = load(TINY).stages[0]
    made = zip(sizes, particles, strict=True)
    return Recipe(stages=tuple(replace(one, representation=Canvas(n), particles=p, batch=p) for n, p in made))


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (canvases(16, 32), "stage 1 of this recipe cannot run"),
        (canvases(16, 16, particles=(4, 2)), "2 particles cannot"),
    ],
)
def test_a_scene_that_does_not_fit_the_next_stage_is_refused_before_anything_runs(recipe, says):
    priors = load_priors(recipe, "a red ball", CPU)
    with pytest.raises(InputError, match=says):
        rehearse(recipe, priors, "a red ball", CPU)


def test_stages_of_one_kind_that_fit_are_rehearsed():
    for recipe in (canvases(16, 16), canvases(16, 16, particles=(4, 4)), canvases(16, 16, particles=(4, 1))):
        rehearse(recipe, load_priors(recipe, "a red ball", CPU), "a red ball", CPU)


# What a run is made of ----------------------------------------------------------------------------------------------


def run_with(recipe: Recipe, folder: Path, take, seed: int = 0) -> None:
    """A whole run with another way to take its steps."""
    with Run.create(folder, "a red ball", "tiny", seed, recipe, "cpu") as run:
        loop.optimise(recipe, run, load_priors(recipe, run.prompt, CPU), CPU, take=take)


def test_the_scene_and_the_steps_are_those_of_the_runs_seed(recipe, tmp_path):
    seen = []

    def take(stage, state, task):
        seen.append((task.seed, {name: value.clone() for name, value in state.scene.state().items()}))
        return take_step(stage, state, task)

    run_with(replace(recipe, stages=(replace(recipe.stages[0], steps=1),)), tmp_path / "run", take, seed=5)
    ((seed, held),) = seen
    fresh_one = recipe.stages[0].representation.build(CPU, Streams(5, -1)).state()
    assert seed == 5
    assert all(torch.equal(held[name], fresh_one[name]) for name in fresh_one)
    other = recipe.stages[0].representation.build(CPU, Streams(0, -1)).state()
    assert any(not torch.equal(held[name], other[name]) for name in other)


def several(count: int):
    """Takes so many steps at once, as the propeller does."""

    def take(stage, state, task):
        return [take_step(stage, state, task) for _ in range(count)][-1]

    return take


def test_steps_that_are_taken_together_are_logged_when_they_pass_the_time(recipe, tmp_path):
    recipe = replace(recipe, stages=(replace(recipe.stages[0], steps=12),), cadence=replace(recipe.cadence, log=4))
    run_with(recipe, tmp_path / "run", several(3))
    assert [line["step"] for line in figures(tmp_path / "run")] == [6, 9, 12]


def test_logged_seconds_are_the_mean_since_the_last_line(recipe, tmp_path):
    recipe = replace(recipe, stages=(replace(recipe.stages[0], steps=4),), cadence=replace(recipe.cadence, log=2))
    seconds = iter((1.0, 3.0, 5.0, 7.0))

    def take(stage, state, task):
        return take_step(stage, state, task) | {"seconds": {"render": next(seconds)}}

    run_with(recipe, tmp_path / "run", take)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["seconds"]["render"] for line in lines] == [2.0, 6.0]


def test_previews_are_made_on_the_way(recipe, tmp_path):
    recipe = replace(recipe, stages=(replace(recipe.stages[0], steps=5),), cadence=replace(recipe.cadence, preview=2))
    run_with(recipe, tmp_path / "run", take_step)
    names = sorted(file.name for file in (tmp_path / "run" / "images").glob("step_*.png"))
    assert names == ["step_000002.png", "step_000004.png", "step_000005.png"]


def test_a_later_stage_knows_how_often_was_rolled_back(recipe):
    stages = (replace(recipe.stages[0], steps=3), recipe.stages[0])
    recipe = replace(recipe, stages=stages)
    priors = load_priors(recipe, "a red ball", CPU)
    state = fresh(stages[0], 0, CPU, priors)
    state.step, state.attempt, state.skipped = 3, 2, 1
    state = loop.next_stage(recipe, 0, state, CPU, priors)
    assert (state.step, state.first, state.attempt, state.skipped) == (3, 3, 2, 1)


def test_a_run_with_another_prior_is_not_gone_on_with(recipe, tmp_path):
    with start(recipe, tmp_path / "run") as run:
        run.check_prior([{"name": "another", "weights": "other"}])
        with pytest.raises(InputError, match="was begun with the prior"):
            optimise(recipe, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_for_the_step_and_the_second_does_not(number):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with loop._deferred_interrupts() as interrupted:
        os.kill(os.getpid(), number)
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
