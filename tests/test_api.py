"""The verbs as functions: what a recipe becomes when parts of it are replaced."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamkit import api, export
from dreamkit.cameras import orbit
from dreamkit.compose import compose, editing, rules_by_name, with_steps
from dreamkit.diffusion import add_noise
from dreamkit.errors import InputError
from dreamkit.guidance import check
from dreamkit.guidance.estimate import Denoised, Drawn
from dreamkit.guidance.rules import CSD, SJC
from dreamkit.images import png
from dreamkit.priors import Diffusers
from dreamkit.recipe import Recipe, load
from dreamkit.rehearsal import load_priors, rehearse
from dreamkit.render.mesh import render_mesh
from dreamkit.representations import REPRESENTATIONS
from dreamkit.run import Run
from dreamkit.streams import Streams
from dreamkit.toybox import world

TINY = str(Path(__file__).parent / "data" / "tiny_system.py")


def composed(**parts: object) -> Recipe:
    return compose("toybox", **parts)  # type: ignore[arg-type]


def test_another_rule_keeps_the_systems_levels_and_its_mix():
    own = load("toybox").stages[0].guides[0].rule
    rule = composed(guidance="sjc").stages[0].guides[0].rule
    assert rule == replace(SJC, levels=own.levels, trust=own.trust)
    assert composed(guidance="sds").stages[0].guides[0].rule == own  # the system is SDS already


def test_another_rule_keeps_the_scale_of_a_system_that_denoises_in_steps():
    own = load("toybox").stages[1].guides[0].rule
    rule = composed(guidance="sjc").stages[1].guides[0].rule
    assert isinstance(own.trust, Denoised)
    assert rule == replace(SJC, levels=own.levels, trust=replace(SJC.trust, scale=own.trust.scale))
    assert composed(guidance="hifa").stages[1].guides[0].rule.trust.scale == own.trust.scale


def test_a_rule_without_a_mix_keeps_its_own_estimates():
    rule = composed(guidance="csd").stages[0].guides[0].rule
    assert (rule.trust, rule.subtract) == (CSD.trust, CSD.subtract)
    assert not isinstance(rule.subtract, Drawn)


def test_a_rule_of_two_levels_keeps_its_second_one_in_the_systems_range():
    own = load("toybox").stages[0].guides[0].rule
    for name in ("asd", "ism", "cds", "diverse_sd", "vsd", "nfsd", "sds_perp_neg"):
        rule = composed(guidance=name).stages[0].guides[0].rule
        published = rules_by_name()[name]
        assert type(rule.levels) is type(published.levels)
        walks = name in ("cds", "diverse_sd")  # levels in an order of their own
        assert getattr(rule.levels, "base", rule.levels) == (published.levels.base if walks else own.levels)
        assert type(rule.noise) is type(published.noise)
        assert rule.trust.scale == own.trust.scale
    pair = composed(guidance="cds").stages[0].guides[0].rule
    assert pair.trust.scale == pair.subtract.scale == pair.noise.scale


def test_a_rule_that_is_nothing_but_its_levels_keeps_them():
    for name in ("sds_annealed", "sds_dreamtime"):
        assert composed(guidance=name).stages[0].guides[0].rule.levels == rules_by_name()[name].levels


def test_no_two_rules_become_one_in_a_system():
    """Or a comparison of them would compare nothing."""
    found = [composed(guidance=name).stages[0].guides[0].rule for name in rules_by_name()]
    assert all(one != other for one, other in itertools.combinations(found, 2))


@pytest.mark.parametrize(("name", "stage"), [("gaussians", 0), ("mesh", 1)])
def test_a_representation_that_a_system_has_in_a_stage_keeps_its_settings_in_all(name, stage):
    own = load("toybox").stages[stage].representation
    assert own != REPRESENTATIONS[name]
    assert [found.representation for found in composed(representation=name).stages] == [own, own]


def test_a_folder_as_prior_is_kept_by_its_full_path(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert composed(prior="model").stages[0].guides[0].prior.source == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("stages", "steps", "want"),
    [
        ((500, 1), 3, [2, 1]),
        ((1, 1, 1), 3, [1, 1, 1]),
        ((10, 30), 100, [25, 75]),
        ((300, 200), 7, [4, 3]),
        ((9, 9, 9, 9), 6, [1, 1, 2, 2]),
    ],
)
def test_steps_are_shared_among_the_stages_and_add_up(stages, steps, want):
    stage = load("toybox").stages[0]
    recipe = Recipe(stages=tuple(replace(stage, steps=n) for n in stages))
    assert [part.steps for part in with_steps(recipe, steps).stages] == want


EDITS = {"dds", "pds", "lusd"}


@pytest.fixture(scope="module", params=[1, 4])
def toybox_prior(request):
    return Diffusers("toybox", views=request.param).load("cpu")


@pytest.mark.parametrize("name", sorted(rules_by_name()))
def test_the_toybox_serves_every_rule_that_needs_no_more_than_it_has(name, toybox_prior):
    recipe = composed(guidance=name, representation="image")
    views = toybox_prior.views
    cameras = replace(recipe.stages[0].cameras, group=views)
    recipe = replace(recipe, stages=tuple(replace(stage, cameras=cameras, batch=views) for stage in recipe.stages))
    guide = recipe.stages[0].guides[0]
    if missing := guide.rule.needs - toybox_prior.capabilities:
        with pytest.raises(InputError, match=f"needs of its prior.*{min(missing)}"):
            check(guide.rule, toybox_prior)
        return
    if name in EDITS:
        with pytest.raises(InputError, match="--source-prompt"):
            check(guide.rule, toybox_prior)
        recipe = editing(recipe, "a blue mug", "a green mug")
        assert recipe.stages[0].source_prompt == "a blue mug"
    check(guide.rule, toybox_prior, ("prompt", "bare", "null", "negative", "source"))
    rehearse(recipe, {guide.prior: toybox_prior}, "a red mug", torch.device("cpu"))


def test_mvdream_shows_the_toybox_four_views_of_one_object():
    recipe = load("mvdream")
    priors = load_priors(recipe, "a red mug", torch.device("cpu"))
    rehearse(recipe, priors, "a red mug", torch.device("cpu"))
    (prior,) = priors.values()
    assert prior.views == 4


def test_a_canvas_is_seen_alone_by_a_prior_that_could_see_several_views():
    recipe = composed(representation="image")
    priors = load_priors(recipe, "a red mug", torch.device("cpu"))
    rehearse(recipe, priors, "a red mug", torch.device("cpu"))
    assert [prior.views for prior in priors.values()] == [1]


def test_the_toybox_denoises_a_view_better_beside_views_of_the_same_thing():
    """The world's own pictures, without a word said: a mug next to three others of it, or to three of a chair."""
    prior = Diffusers("toybox", views=4).load("cpu")
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 20.0, size=64)
    things = (world.Thing("mug", "red"), world.Thing("chair", "blue"))
    grey = (0.7, 0.7, 0.7)
    mug, chair = (
        prior.encode(render_mesh(world.mesh_of(thing), cameras, background=grey, lit=True).rgb) for thing in things
    )
    level, null = prior.level(torch.full((4,), 0.75)), prior.condition([""] * 4)
    noise = Streams(0, 0).normal("noise", tuple(mug.shape), mug)
    wrong = []
    for others in (mug, chair):
        seen = torch.cat([mug[:1], others[1:]])
        wrong.append(float((prior.eps(add_noise(seen, noise, level), level, null)[0] - noise[0]).square().mean()))
    assert wrong[0] < 0.8 * wrong[1]  # about 0.6; with no view looking at another it would be 1


def test_a_folder_of_that_name_is_not_the_toybox(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toybox").mkdir()
    assert composed(prior="toybox").stages[0].guides[0].prior == Diffusers("toybox")


def test_measurements_are_not_lost_to_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").write_text("mine")
    with pytest.raises(InputError, match="nothing can be written into outputs"):
        api.evaluate(["one", "two"])


# What the verbs hand on ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished run of a tiny system, and the meshes that were read back while it was exported."""
    read, kept = export.read, []
    quick = {"export.turntable_seconds": 0, "export.texture_size": 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "read", lambda path: kept.append(read(path)) or kept[-1])
        out = tmp_path_factory.mktemp("small") / "run"
        result = api.generate("a red ball", system=TINY, seed=7, steps=20, out=out, device="cpu", settings=quick)
    return result, kept


def test_a_run_has_the_seed_that_was_asked_for_and_its_mesh_is_the_one_in_the_file(small):
    result, kept = small
    assert Run.open(result.run.path).seed == 7
    assert result.mesh is kept[-1]


def test_pictures_are_rendered_from_the_height_that_was_asked_for(small):
    result, _ = small
    folder = api.render(result.run.path, views=2, size=16, elevation=80.0, device="cpu")
    for number, azimuth in enumerate((0.0, 180.0)):
        with torch.no_grad():
            want = png(result.scene.render(orbit([azimuth], 80.0, size=16)).rgb[0])
        assert (folder / f"view_{number:03d}.png").read_bytes() == want


def test_another_prior_brings_another_system(monkeypatch):
    def stop(system, *rest):
        raise InputError(f"composed {system}")

    monkeypatch.setattr(api, "compose", stop)
    for prior, system in ((None, "toybox"), ("toybox", "toybox"), ("some/model", "dreamfusion")):
        with pytest.raises(InputError, match=f"^composed {system}$"):
            api.generate("a red mug", prior=prior)


def test_a_run_whose_files_changed_is_not_resumed(small, monkeypatch):
    def refuse(run):
        raise InputError("changed")

    result, _ = small
    monkeypatch.setattr(Run, "status", property(lambda run: "interrupted"))
    monkeypatch.setattr(Run, "check_files", refuse)
    with pytest.raises(InputError, match=r"^changed$"):
        api.resume(result.run.path)
