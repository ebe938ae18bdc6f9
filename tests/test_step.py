"""A step: where in its stage it stands, what it looks at with which random numbers, and what it counts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkit import losses, step
from dreamkit.cameras import orbit
from dreamkit.guidance.levels import At
from dreamkit.guidance.rules import DDS, F_DIV, SDS
from dreamkit.losses import Weighted
from dreamkit.priors.analytic import AnalyticPrior
from dreamkit.recipe import Stage, load
from dreamkit.representations.canvas import Canvas
from dreamkit.schedule import Linear
from dreamkit.state import State, fresh
from dreamkit.step import Task, cameras_of, differentiate, take_step

CPU = torch.device("cpu")
(TINY,) = load(Path(__file__).parent / "data" / "tiny_system.py").stages
(GUIDE,) = TINY.guides
PROMPT = "a red ball"


def begin(stage: Stage, at: int = 0, seed: int = 0) -> tuple[State, Task]:
    """The state in which a stage begins whose first step is number `at` of its run, and what its steps are for."""
    priors = {GUIDE.prior: GUIDE.prior.load(CPU)}
    state = fresh(stage, seed, CPU, priors)
    state.step = state.first = at
    return state, Task(PROMPT, priors, seed)


def test_every_stage_begins_at_the_beginning_of_its_schedules():
    """Levels by the rule's progress, weights when gradients are made, rates when the scene is changed."""
    guide = replace(GUIDE, rule=replace(SDS, levels=At(Linear(0.9, 0.1))))
    terms = (Weighted(losses.opacity, Linear(1.0, 5.0)),)
    stage = replace(TINY, representation=Canvas(size=8, rate=Linear(0.1, 0.4)), guides=(guide,), losses=terms, steps=4)
    found = []
    for at in (0, 3):
        state, task = begin(stage, at)
        for _ in range(2):
            figures = take_step(stage, state, task)
            found.append((figures["guide0"]["t"], figures["losses"]["opacity"], state.optimiser.param_groups[0]["lr"]))
    assert found[:2] == found[2:]
    assert all(a != b for a, b in zip(found[0], found[1], strict=True))


def test_a_rule_is_told_how_far_its_stage_is(monkeypatch):
    stage, told, ask = replace(TINY, steps=4), [], step.gradient
    monkeypatch.setattr(step, "gradient", lambda *given: told.append(given[5]) or ask(*given))
    state, task = begin(stage, at=3)
    for _ in range(3):
        take_step(stage, state, task)
    assert told == [0.0, 0.25, 0.5]


def test_a_scene_is_kept_up_as_its_stage_is_now(monkeypatch):
    stage = replace(TINY, representation=Canvas(size=8, rate=Linear(0.1, 0.4)), losses=(), steps=4)
    (state, task), told = begin(stage, 7), []
    monkeypatch.setattr(state.scene, "after_step", lambda number, streams, now: told.append((number, now.rate)))
    take_step(stage, state, task)
    take_step(stage, state, task)
    assert told == [(0, pytest.approx(0.1)), (1, pytest.approx(stage.at(1).representation.rate))]


def test_two_guides_draw_levels_of_their_own():
    stage = replace(TINY, guides=(GUIDE, GUIDE))
    figures = differentiate(stage, *begin(stage))
    assert figures["guide0"]["t"] != figures["guide1"]["t"]


def test_an_edit_encodes_both_pictures_with_the_same_random_numbers(monkeypatch):
    """Else the difference of the two would hold the encoder's noise."""
    stage = replace(TINY, guides=(replace(GUIDE, rule=DDS),), source_prompt=PROMPT)
    drawn, encode = [], AnalyticPrior.encode
    monkeypatch.setattr(
        AnalyticPrior, "encode", lambda self, rgb, streams: drawn.append(streams) or encode(self, rgb, streams)
    )
    differentiate(stage, *begin(stage))
    assert len(drawn) == 2
    assert drawn[0] == drawn[1]


def test_terms_of_one_name_add_up():
    def pull(*weights: float) -> float:
        stage = replace(TINY, losses=tuple(Weighted(losses.opacity, weight) for weight in weights))
        return differentiate(stage, *begin(stage))["losses"]["opacity"]

    assert pull(1.0, 2.0) == pytest.approx(3 * pull(1.0), rel=1e-6)  # of float32


def test_one_broken_picture_is_left_out_and_the_step_is_taken(monkeypatch):
    network = AnalyticPrior.network

    def breaks_the_first(self, z, level, condition):
        found = network(self, z, level, condition).clone()
        found[0] = torch.nan
        return found

    monkeypatch.setattr(AnalyticPrior, "network", breaks_the_first)
    figures = differentiate(TINY, *begin(TINY))
    assert figures["guide0"]["dropped"] == 1 < TINY.batch
    assert figures["skipped"] == []


def test_coverage_is_the_mean_opacity_of_the_pictures():
    state, task = begin(TINY)
    now, streams = TINY.at(0), state.streams(0)
    images = state.scene.render(cameras_of(now, streams), streams, now=now.representation)
    figures = differentiate(TINY, state, task)
    assert figures["coverage"] == pytest.approx(float(images.alpha.detach().mean()), rel=1e-6)  # of float32
    assert float(images.alpha.detach().max()) > figures["coverage"]


@pytest.mark.parametrize("words", [True, False])
def test_prompts_have_view_words_if_the_stage_says_so(words, monkeypatch):
    prior, told = GUIDE.prior.load(CPU), list[str]()
    condition = prior.condition
    monkeypatch.setattr(prior, "condition", lambda texts: told.extend(texts) or condition(texts))
    step._conditions(replace(TINY, view_words=words), GUIDE, prior, PROMPT, orbit([0.0, 180.0], 0.0))
    assert (f"{PROMPT}, back view" in told) == words
    assert any(text.endswith(" view") for text in told) == words


@pytest.mark.parametrize(("term", "asked"), [(losses.orientation, True), (losses.opacity, False)])
def test_normals_are_rendered_for_the_losses_that_read_them(term, asked, monkeypatch):
    stage = replace(TINY, losses=(Weighted(term),))
    (state, task), told, render = (
        begin(stage),
        [],
        type(TINY.representation.build(CPU, begin(TINY)[0].streams(0))).render,
    )
    monkeypatch.setattr(
        type(state.scene), "render", lambda *given, **rest: told.append(rest["normals"]) or render(*given, **rest)
    )
    differentiate(stage, state, task)
    assert told == [asked]


def test_what_a_rule_trains_begins_by_the_seed():
    stage = replace(TINY, guides=(replace(GUIDE, rule=F_DIV),))
    first, again, other = (
        begin(stage, seed=seed)[0].parts["guide0"]["discriminator"].state()["weights"] for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
