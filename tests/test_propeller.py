"""Several steps at once: where they are the serial ones bit for bit, and what is kept between rounds."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreamkit import device as devices
from dreamkit import loop, propeller
from dreamkit.compose import compose
from dreamkit.errors import InputError
from dreamkit.guidance.rules import DDS, SDS, VSD
from dreamkit.images import Images
from dreamkit.losses import Weighted
from dreamkit.priors import Gaussian
from dreamkit.propeller import propelled
from dreamkit.recipe import Adam, Guide, Propeller, Recipe, Stage, load
from dreamkit.rehearsal import load_priors
from dreamkit.representations.canvas import Canvas
from dreamkit.run import Run
from dreamkit.state import fresh
from dreamkit.step import Task
from dreamkit.streams import Streams
from tests.test_loop import CPU, TINY, final, stop_at
from tests.test_particles import PRIOR, stage_of

SERIAL = Propeller(window=3, threshold=-1.0, decay=1.0)


SERIAL_OPEN = Propeller(window=3, threshold=1.0, decay=1.0)


def tiny(steps: int = 12) -> Recipe:
    recipe = load(TINY)
    return replace(recipe, stages=(replace(recipe.stages[0], steps=steps),))


def go(
    recipe: Recipe, folder: Path, spec: Propeller | None, watch: loop.Watch | None = None, others: int = 0
) -> list[int]:
    """Run to the end, perhaps on more devices, all of them this one; the sizes of the rounds."""
    rounds: list[int] = []

    def seen(done: int, steps: int, figures: dict) -> None:
        rounds.append(figures.get("taken", 1))
        if watch:
            watch(done, steps, figures)

    priors = load_priors(recipe, "a red ball", CPU)
    take = propelled(spec, CPU, [CPU] * others) if spec else None
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


def half_square(images: Images, scene: Any) -> torch.Tensor:
    return 0.5 * scene.logits.square().sum()


def test_every_round_makes_one_more_step_of_a_window_exact():
    """Picard's iteration of theta' = -theta, by steps of h: after r rounds step i is the first r + 1 terms of
    (1 - h)^i theta_0, from the binomial theorem; from i = r on down that is all of it."""
    window, h, large = 5, 0.1, 1e6
    stage = stage_of(rule=SDS, particles=1, batch=1, steps=window, losses=(Weighted(half_square),))
    # Adam without memory, and with an eps that is far above any gradient, is plain descent by rate / eps.
    stage = replace(stage, representation=Canvas(size=8, rate=h * large), adam=Adam((0.0, 0.0), large))
    stage = replace(stage, guides=(replace(stage.guides[0], weight=0.0),))
    priors, take = {PRIOR: PRIOR.load(CPU)}, propelled(replace(SERIAL, window=window), CPU)
    state = fresh(stage, 0, CPU)
    begun = state.scene.logits.detach().clone()
    for rounds in range(1, window + 1):
        assert take(stage, state, Task("a red ball", priors))["taken"] == 1
        guessed = [guess["state"]["logits"] for guess in state.ahead["scenes"]] if rounds < window else []
        assert len(guessed) == window - rounds
        for i, found in enumerate([state.scene.logits.detach(), *guessed], rounds):
            terms = sum(math.comb(i, m) * (-h) ** m for m in range(rounds + 1))
            torch.testing.assert_close(found, terms * begun, atol=0, rtol=5e-6)  # float32, and large's 1e-6


@pytest.mark.parametrize("edit", [False, True], ids=["sds", "dds"])
@pytest.mark.parametrize("others", [1, 5])
def test_a_window_over_several_devices_is_the_window_on_one(edit, others, tmp_path, monkeypatch):
    """Bit for bit, where the devices are of one kind; with more of them than there are steps too."""
    first = tiny(8).stages[0]
    second = replace(first, guides=(Guide(DDS, first.guides[0].prior),), source_prompt="a red ball")
    recipe = replace(tiny(), stages=(first, second) if edit else (first,))
    spec, loaded, load_one = Propeller(window=4, threshold=0.0, decay=0.5), [], Gaussian.load
    monkeypatch.setattr(Gaussian, "load", lambda *given: loaded.append(load_one(*given)) or loaded[-1])
    rounds = go(recipe, tmp_path / "one", spec)
    assert go(recipe, tmp_path / "many", spec, others=others) == rounds
    assert final(tmp_path / "one") == final(tmp_path / "many")
    one, *many = [prior.calls for prior in loaded]
    assert len(many) == 1 + min(others, 3)  # a prior for each device that has a step of the window
    assert min(many) > 0
    assert sum(many) == one


def test_cuda_without_a_number_may_use_every_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert devices.others(torch.device("cuda")) == [torch.device("cuda", 1), torch.device("cuda", 2)]
    assert devices.others(torch.device("cuda:1")) == []
    assert devices.others(CPU) == []


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


def test_gaussians_that_go_by_their_own_renders_are_refused():
    with pytest.raises(InputError, match="a propeller cannot drive Gaussians that split or move"):
        compose("toybox", settings={"propeller": "Propeller(window=2)"})
    stages = {f"stages.{i}.representation.strategy": "none" for i in (0,)}
    assert compose("toybox", settings=stages | {"propeller": "Propeller(window=2)"}).propeller


def test_seconds_are_of_a_step_also_where_a_round_takes_several(tmp_path, monkeypatch):
    """Rounds of three steps, each as long as the clock says: three seconds."""
    ticks = itertools.count(0.0, 3.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    stage = stage_of(particles=1, batch=2, steps=9)
    still = replace(stage, guides=(replace(stage.guides[0], rule=SDS, weight=0.0),))
    recipe = Recipe((still,), cadence=replace(load(TINY).cadence, log=3))
    assert go(recipe, tmp_path / "run", SERIAL_OPEN) == [3, 3, 3]
    assert [line["seconds"]["step"] for line in Run.open(tmp_path / "run").history()] == [1.0, 1.0, 1.0]


def test_guesses_are_compared_by_their_parameters_alone():
    """Not by what a scene remembers besides, such as where something is."""
    scene = load(TINY).stages[0].representation.build(CPU, Streams(0, -1))
    guess = propeller._kept(scene)
    scene.remembered += 100
    assert propeller._error(scene, guess) == 0
    with torch.no_grad():
        scene.network.output += 0.5
    count = sum(p.numel() for group in scene.parameters() for p in group["params"])
    assert propeller._error(scene, guess) == pytest.approx(0.25 * scene.network.output.numel() / count, rel=1e-6)
