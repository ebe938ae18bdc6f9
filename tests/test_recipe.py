"""Recipes: checks, systems in files, JSON and fingerprints, overrides."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dreamkit.cameras import Orbit
from dreamkit.errors import InputError
from dreamkit.guidance.rules import CSD, SDS
from dreamkit.losses import Weighted, opacity
from dreamkit.priors.analytic import Bell, Gaussian
from dreamkit.recipe import (
    Adam,
    Cadence,
    Export,
    Guide,
    Recipe,
    Stage,
    data_folder,
    fingerprint,
    from_json,
    load,
    names,
    override,
    to_json,
)
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.schedule import Linear, Switch

PRIOR = Gaussian((Bell("", 0.0, 1.0), Bell("a red mug", (0.1, -0.2, 0.3), 0.5)))
STAGE = Stage(HashGrid(), (Guide(SDS, PRIOR),), losses=(Weighted(opacity, Linear(0.0, 0.1)),), steps=10)
RECIPE = Recipe((STAGE,), description="ten steps")
TWO = Recipe((STAGE, replace(STAGE, steps=20)))

SYSTEM = """
from dreamkit.guidance.rules import SDS
from dreamkit.priors.analytic import Bell, Gaussian
from dreamkit.recipe import Guide, Recipe, Stage
from dreamkit.representations.hashgrid import HashGrid
recipe = Recipe((Stage(HashGrid(), (Guide(SDS, Gaussian((Bell("", 0.0, 1.0),))),), steps={steps}),))
"""


# ---- The values themselves


def test_a_stage_at_a_step_holds_numbers_where_it_held_schedules():
    guide = Guide(SDS, PRIOR, weight=Switch(1.0, 3.0, 0.5))
    stage = replace(STAGE, guides=(guide,), steps=10)
    assert [stage.at(step).guides[0].weight for step in (0, 4, 5, 9)] == [1.0, 1.0, 3.0, 3.0]
    assert stage.at(5).losses[0].weight == pytest.approx(0.05)
    assert stage.at(5).representation is stage.representation  # nothing to resolve, nothing copied


def test_the_steps_of_all_stages_add_up():
    assert TWO.steps == 30


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Guide(SDS, PRIOR, sees="nrmal"), "Did you mean 'normal'"),
        (lambda: Guide("sds", PRIOR), "Guide.rule is a Rule; got str"),
        (lambda: replace(STAGE, steps=0), "Stage.steps is a whole number of at least 1; got 0"),
        (lambda: replace(STAGE, batch=True), "Stage.batch is a whole number"),
        (lambda: replace(STAGE, guides=Guide(SDS, PRIOR)), r"write \(item,\)"),
        (lambda: replace(STAGE, losses=(opacity,)), "Stage.losses holds Weighteds; got function"),
        (lambda: Recipe(()), "at least one stage"),
        (lambda: Recipe([STAGE]), "Recipe.stages is a tuple; got list"),
        (lambda: Export(formats=("gltf",)), "cannot export to 'gltf'. Known: glb, obj, ply"),
        (lambda: Export(face_budget=3), "Export.face_budget is a whole number of at least 4"),
        (lambda: Export(texture_size=16384), "Export.texture_size is a whole number of at least 8 and at most 8192"),
        (lambda: Cadence(checkpoint=0), "Cadence.checkpoint"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_when_it_is_made(make, says):
    with pytest.raises(InputError, match=says):
        make()


# ---- Systems


def test_every_system_that_comes_along_loads_and_survives_json():
    assert names() == sorted(path.stem for path in data_folder("systems").glob("*.py"))
    assert "dreamfusion" in names()
    for name in names():
        recipe = load(name)
        assert from_json(json.loads(json.dumps(to_json(recipe)))) == recipe


def test_loading_systems_loads_nothing_heavy():
    code = "import sys; from dreamkit import recipe; [recipe.load(n) for n in recipe.names()]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"diffusers", "transformers", "warp", "trimesh", "xatlas", "imageio", "scipy", "rich"} & set(loaded)


def test_a_system_loads_from_any_path(tmp_path: Path):
    (tmp_path / "mine.py").write_text(SYSTEM.format(steps=7))
    assert load(tmp_path / "mine.py").stages[0].steps == load(str(tmp_path / "mine.py")).stages[0].steps == 7


def test_two_files_of_one_name_are_two_systems(tmp_path: Path):
    for steps, folder in ((3, "a"), (4, "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(SYSTEM.format(steps=steps))
    files = [tmp_path / folder / "mine.py" for folder in "ab"]
    assert [load(file).steps for file in files] == [3, 4]
    # A class defined in one is found there, not in the other.
    assert {str(file) for file in files} <= {getattr(module, "__file__", None) for module in list(sys.modules.values())}


def test_an_unknown_system_names_the_nearest():
    with pytest.raises(InputError, match=r"no system 'dreamfuson'. Did you mean 'dreamfusion'"):
        load("dreamfuson")
    with pytest.raises(InputError, match=r"no system file systems/dreamfuson\.py. Did you mean 'dreamfusion'"):
        load("systems/dreamfuson.py")
    with pytest.raises(InputError, match="no system file"):
        load("x" * 5000 + ".py")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n\ny = x +\n", r"mine\.py, line 3: invalid syntax"),
        ("a = 1\nb = a.c\n", r"mine\.py, line 2: AttributeError: 'int' object has no attribute 'c'"),
        ("def f():\n    return 1 / 0\n\nf()\n", r"mine\.py, line 2: ZeroDivisionError"),
        ("import json\n\njson.loads('{')\n", r"mine\.py, line 3: JSONDecodeError"),
        ("from dreamkit.nothing import X\n", r"mine\.py, line 1: ModuleNotFoundError"),
        ("\n" + SYSTEM.format(steps=0), r"mine\.py, line 7: Stage.steps is a whole number of at least 1; got 0"),
        ("raise SystemExit(3)\n", r"mine\.py, line 1: SystemExit: 3"),
        ("x = 1\n", "sets no `recipe`"),
        ("recipe = 3\n", "sets `recipe` to a int"),
    ],
)
def test_a_mistake_in_a_system_file_is_told_with_its_line(tmp_path: Path, text: str, says: str):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=says) as found:
        load(tmp_path / "mine.py")
    assert "\n" not in str(found.value)


# ---- JSON


def test_json_is_import_paths_and_fields():
    data = to_json(RECIPE)
    assert data["type"] == "dreamkit.recipe.Recipe"
    guide = data["stages"][0]["guides"][0]
    assert guide["rule"]["trust"] == {
        "type": "dreamkit.guidance.estimate.Guided",
        "scale": 101.0,
        "condition": "prompt",
        "against": "null",
        "level": "main",
        "image": "x",
        "rescale": 0.0,
        "spread": 0.0,
    }
    assert data["stages"][0]["losses"][0]["function"] == {"function": "dreamkit.losses.opacity"}
    assert from_json(json.loads(json.dumps(data))) == RECIPE


def test_only_a_recipe_is_read_as_one():
    with pytest.raises(InputError, match="a Recipe is expected; got Orbit"):
        from_json({"type": "dreamkit.cameras.Orbit"})


def test_equal_recipes_have_one_fingerprint_and_others_another():
    same = Recipe((replace(STAGE, adam=Adam(eps=1e-15)),), description="ten steps")
    assert fingerprint(RECIPE) == fingerprint(same) == fingerprint(to_json(RECIPE))
    changed = [
        replace(RECIPE, description="eleven"),
        replace(RECIPE, stages=(replace(STAGE, guides=(Guide(CSD, PRIOR),)),)),
        replace(RECIPE, stages=(replace(STAGE, adam=Adam(eps=1.0000000000000002e-15)),)),
        replace(RECIPE, stages=(STAGE, STAGE)),
    ]
    assert len({fingerprint(recipe) for recipe in [RECIPE, *changed]}) == 5


def test_a_fingerprint_does_not_tell_2_from_2_point_0():
    whole, real = (replace(RECIPE, stages=(replace(STAGE, cameras=Orbit(distance=d)),)) for d in ((2, 3), (2.0, 3.0)))
    assert whole == real
    assert fingerprint(whole) == fingerprint(real)


def test_a_fingerprint_is_the_same_in_every_process():
    code = "from dreamkit import recipe; print(recipe.fingerprint(recipe.load('dreamfusion')))"
    there = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert there.stdout.strip() == fingerprint(load("dreamfusion"))


# ---- Overrides (the values are tested in test_settings.py)


def test_a_whole_key_reaches_any_depth():
    changed = override(TWO, {"stages.1.guides.0.rule.trust.scale": "7.5", "export.formats": "('glb', 'obj')"})
    assert changed.stages[1].guides[0].rule.trust.scale == 7.5
    assert changed.stages[0] == TWO.stages[0]
    assert changed.export == Export(formats=("glb", "obj"))


def test_a_key_of_a_stage_is_set_in_every_stage():
    changed = override(TWO, {"steps": "300", "guides.0.rule": "CSD"})
    assert [stage.steps for stage in changed.stages] == [300, 300]
    assert [stage.guides[0].rule for stage in changed.stages] == [CSD, CSD]
    assert changed.stages[0].representation == STAGE.representation


def test_a_misspelt_first_word_names_the_fields_of_both():
    with pytest.raises(
        InputError, match=r"neither Recipe nor Stage has a field 'stpes'. Did you mean 'steps'.*cadence"
    ):
        override(RECIPE, {"stpes": "3"})


def test_changes_that_fit_together_are_taken_in_any_order():
    group, batch = {"cameras.group": "3"}, {"batch": "6"}
    first, second = (override(RECIPE, changes) for changes in (group | batch, batch | group))
    assert first == second
    assert (first.stages[0].cameras.group, first.stages[0].batch) == (3, 6)
    with pytest.raises(InputError, match="group"):
        override(RECIPE, group | {"batch": "4"})


def test_an_override_is_checked_as_the_recipe_is():
    with pytest.raises(InputError, match=r"stages.0.steps=0: Stage.steps is a whole number of at least 1; got 0"):
        override(RECIPE, {"steps": "0"})
