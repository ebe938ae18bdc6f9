"""Several steps at once: where they are the serial ones bit for bit, and what is kept between rounds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkit import loop
from dreamkit.compose import compose
from dreamkit.errors import InputError
from dreamkit.guidance.rules import SDS, VSD
from dreamkit.propeller import propelled
from dreamkit.recipe import Guide, Propeller, Recipe, Stage, load
from dreamkit.rehearsal import load_priors
from dreamkit.run import Run
from dreamkit.state import fresh
from tests.test_loop import CPU, TINY, final, stop_at
from tests.test_particles import PRIOR, stage_of

SERIAL = Propeller(window=3, threshold=-1.0, decay=1.0)


def tiny(steps: int = 12) -> Recipe:
    recipe = load(TINY)
    return replace(recipe, stages=(replace(recipe.stages[0], steps=steps),))


def go(recipe: Recipe, folder: Path, spec: Propeller | None, watch: loop.Watch | None = None) -> list[int]:
    """Run to the end; the sizes of the rounds."""
    rounds: list[int] = []

    def seen(done: int, steps: int, figures: dict) -> None:
        rounds.append(figures.get("taken", 1))
        if watch:
            watch(done, steps, figures)

    priors = load_priors(recipe, "a red ball", CPU)
    take = propelled(spec, CPU) if spec else None
    opening = Run.resume(folder) if folder.exists() else Run.create(folder, "a red ball", "tiny", 0, recipe, "cpu")
    with opening as run:
        loop.optimise(recipe, run, priors, CPU, seen, take=take)
    return rounds


def scenes(folder: Path) -> dict[str, torch.Tensor]:
    """The scene and its optimiser in the last checkpoint."""
    tensors = Run.open(folder).latest_checkpoint()[1]
    return {name: value for name, value in tensors.items() if not name.startswith("ahead")}


def same(one: Path, other: Path) -> None:
    a, b = scenes(one), scenes(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_threshold_below_zero_takes_one_step_a_round_and_is_the_serial_run(tmp_path):
    assert go(tiny(), tmp_path / "serial", None) == [1] * 12
    assert go(tiny(), tmp_path / "fast", SERIAL) == [1] * 12
    same(tmp_path / "serial", tmp_path / "fast")  # scene, occupancy, Adam's moments


def test_where_the_gradient_does_not_depend_on_the_scene_a_round_is_a_window_and_exact(tmp_path):
    """Losses of weight zero and a guide of weight zero: no gradient anywhere, so every guess is right."""
    stage = stage_of(particles=1, batch=2, steps=10)
    stage = replace(stage, guides=(replace(stage.guides[0], rule=SDS, weight=0.0),))
    recipe = Recipe(stages=(stage,))
    spec = Propeller(window=4, threshold=0.0, decay=1.0)
    assert go(recipe, tmp_path / "fast", spec) == [4, 4, 2]
    go(recipe, tmp_path / "serial", None)
    same(tmp_path / "serial", tmp_path / "fast")


def test_a_wide_threshold_takes_windows_and_ends_near_the_serial_run(tmp_path):
    recipe = tiny(24)
    assert go(recipe, tmp_path / "fast", Propeller(window=3, threshold=1e9, decay=1.0)) == [3] * 8
    go(recipe, tmp_path / "serial", None)
    a, b = scenes(tmp_path / "fast")["scene/output"], scenes(tmp_path / "serial")["scene/output"]
    begun = fresh(recipe.stages[0], 0, CPU).scene.state()["output"]
    assert not torch.equal(a, b)
    assert (a - b).norm() < 0.5 * (b - begun).norm()


def test_the_threshold_follows_the_errors_and_lets_more_than_one_step_count(tmp_path):
    rounds = go(tiny(30), tmp_path / "fast", Propeller(window=4, threshold=0.0, decay=0.5))
    assert rounds[0] == 1
    assert max(rounds) > 1
    assert sum(rounds) == 30


def test_a_propelled_run_is_stopped_inside_a_window_and_resumed_bit_for_bit(tmp_path):
    spec = Propeller(window=4, threshold=0.0, decay=0.7)
    go(tiny(20), tmp_path / "whole", spec)
    with pytest.raises(KeyboardInterrupt):
        go(tiny(20), tmp_path / "parts", spec, stop_after(3))
    assert Run.open(tmp_path / "parts").facts["step"] < 20
    go(tiny(20), tmp_path / "parts", spec)
    assert final(tmp_path / "whole") == final(tmp_path / "parts")


def stop_after(rounds: int) -> loop.Watch:
    count = [0]

    def watch(done: int, steps: int, figures: dict) -> None:
        count[0] += 1
        if count[0] == rounds:
            stop_at(done)(done, steps, figures)

    return watch


def test_rounds_stop_at_the_end_of_a_stage(tmp_path):
    first: Stage = replace(tiny().stages[0], steps=5)
    two = replace(tiny(), stages=(first, replace(first, steps=4)))
    rounds = go(two, tmp_path / "run", Propeller(window=4, threshold=1e9, decay=1.0))
    assert rounds == [4, 1, 4]


def test_a_rule_that_trains_is_refused():
    stage = tiny().stages[0]
    with pytest.raises(InputError, match="cannot drive a rule that trains"):
        Recipe(stages=(replace(stage, guides=(Guide(VSD, PRIOR),)),), propeller=Propeller())
    assert compose(str(TINY), settings={"propeller": "Propeller(window=2)"}).propeller.window == 2
