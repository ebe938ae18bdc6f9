"""Recipes from names: a system with parts replaced, two things made apart, geometry kept, sketches, sources to edit."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dreamkit import frozen
from dreamkit.disk import expanded
from dreamkit.errors import InputError, nearest
from dreamkit.guidance import rules
from dreamkit.guidance.estimate import Denoised, Guided
from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rule import Rule
from dreamkit.losses import Weighted
from dreamkit.priors import Diffusers
from dreamkit.prompts import related
from dreamkit.recipe import Guide, Recipe, Stage, load, override
from dreamkit.representations import REPRESENTATIONS
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.gaussians.start import Points
from dreamkit.representations.mesh import MeshSurface
from dreamkit.representations.representation import Representation
from dreamkit.representations.sketch import Sketch, queries


def compose(
    system: str,
    guidance: str | None = None,
    representation: str | Representation | None = None,
    prior: str | None = None,
    steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a system with parts replaced. Raises InputError with the nearest names for an unknown one.

    Another rule keeps the system's range of levels and its guidance scales: these belong to the prior and the length of
    the run, and rules are compared by what else they are. Only a rule that goes through levels in an order of its
    own, or that is nothing but its levels, keeps them.
    """
    recipe = load(system)
    rule = None if guidance is None else rules_by_name().get(guidance.lower())
    if guidance is not None and rule is None:
        raise InputError(f"there is no guidance rule {guidance!r}. {nearest(guidance, rules_by_name())}")
    if isinstance(representation, str) and representation not in REPRESENTATIONS:
        raise InputError(f"there is no representation {representation!r}. {nearest(representation, REPRESENTATIONS)}")

    if prior not in (None, "toybox") and os.path.isdir(expanded(prior)):
        prior = str(expanded(prior).resolve())  # so that a run can be resumed from anywhere

    def changed_guide(guide: Guide) -> Guide:
        new = _in_system(rule, guide.rule) if rule else guide.rule
        return replace(guide, rule=new, prior=guide.prior if prior is None else Diffusers(prior))

    def changed(stage: Stage) -> Stage:
        own = stage.representation if representation is None else representation
        fresh = REPRESENTATIONS[own] if isinstance(own, str) else own
        # A system's own settings of the representation that is asked for are better than the general ones.
        known = [s.representation for s in (stage, *recipe.stages)] if isinstance(own, str) else []
        kept = next((spec for spec in known if type(spec) is type(fresh)), fresh)
        new = replace(stage, representation=kept, guides=tuple(changed_guide(guide) for guide in stage.guides))
        return _of_one_side(new) if isinstance(kept, Canvas) else new

    # What is said of a prior's pairs is said of the system's own.
    pairs = recipe.apart and prior in (None, "toybox")
    recipe = replace(recipe, stages=tuple(changed(stage) for stage in recipe.stages), apart=pairs)
    if steps is not None:
        recipe = with_steps(recipe, steps)
    return override(recipe, settings or {})


def apart(recipe: Recipe, prompt: str) -> Recipe:
    """The recipe for a prompt of two things in a relation (`prompts.related`), if it makes such things apart
    (`Recipe.apart`): every stage for each of them. Steps stay as many, and show both.

    What a prior hardly draws together, in few pixels, it may draw well alone (per-object guidance, as of GALA3D,
    arXiv:2402.07207; where things stand is not asked of a language model here, but read in the prompt).

    Any other recipe stays as it is, and so does one that does not end with a mesh, which is what can be put together,
    that has particles, or that begins with a file or with points.
    """
    things = related(prompt) if recipe.apart else None
    joins = isinstance(recipe.stages[-1].representation, MeshSurface)
    if things is None or not joins or not all(map(_begins_by_itself, recipe.stages)):
        return recipe
    return replace(recipe, stages=tuple(replace(stage, things=things) for stage in recipe.stages))


def _begins_by_itself(stage: Stage) -> bool:
    """Whether a stage makes one scene, of nothing that was there before."""
    source, start = (getattr(stage.representation, name, None) for name in ("source", "start"))
    begun = source or isinstance(start, Points) or frozen.files((start, stage.losses))
    return stage.particles == 1 and not begun


def _of_one_side(stage: Stage) -> Stage:
    """The stage for a canvas, which is seen from the front alone, and has nothing that the losses could look at."""
    front = replace(stage.cameras, azimuth_degrees=(0.0, 0.0), elevation_degrees=(15.0, 15.0), group=1)
    priors = [replace(g.prior, views=None) if isinstance(g.prior, Diffusers) else g.prior for g in stage.guides]
    guides = tuple(replace(guide, prior=prior) for guide, prior in zip(stage.guides, priors, strict=True))
    return replace(stage, guides=guides, cameras=front, losses=(), batch=1)


def rules_by_name() -> dict[str, Rule]:
    """The published rules by the names the command line takes: the constants of guidance/rules.py in lower case."""
    return {name.lower(): value for name, value in vars(rules).items() if isinstance(value, Rule)}


def keeping(recipe: Recipe, keep: str | None, starts: bool) -> Recipe:
    """The recipe with what is to be kept locked.

    Raises InputError if a representation has no lock for it, or if nothing is there: a recipe that neither `starts`
    from a scene nor names a mesh.
    """
    if keep is None:
        return recipe
    if keep != "geometry":
        raise InputError(f"--keep {keep}: what can be kept is geometry.")
    kept: list[Stage] = []
    for stage in recipe.stages:
        spec = stage.representation
        if not isinstance(spec, MeshSurface):
            raise InputError(
                f"--keep geometry: the shape of a {type(spec).__name__} cannot be locked. Use --representation mesh, "
                "or --from a mesh file without another representation."
            )
        if not starts and not spec.source and not kept:
            raise InputError("--keep geometry: there is no shape to keep. Give a mesh, or a run, with --from.")
        kept.append(replace(stage, representation=replace(spec, keep_geometry=True)))
    return replace(recipe, stages=tuple(kept))


def wants_sketch(recipe: Recipe) -> bool:
    """Whether a loss of the recipe is a `Sketch` without a file."""
    return any(_is_open(loss) for stage in recipe.stages for loss in stage.losses)


def sketched(recipe: Recipe, path: str | Path | None) -> Recipe:
    """The recipe with a mesh file in its open sketches, if it has some. Raises InputError if that cannot be used, or
    there is none."""
    if not wants_sketch(recipe):
        return recipe
    file = "" if path is None else str(expanded(path).resolve())
    if path is not None and os.path.isdir(expanded(path)):
        raise InputError(f"a sketch is a mesh file, and {path} is a folder: give the mesh.glb in it with --from.")

    def filled(loss: Weighted) -> Weighted:
        if not (isinstance(loss.function, Sketch) and _is_open(loss)):
            return loss
        sketch = replace(loss.function, path=file)
        queries(sketch.path, sketch.radius, torch.device("cpu"))  # says now what is wrong with the file
        return replace(loss, function=sketch)

    stages = (replace(stage, losses=tuple(filled(loss) for loss in stage.losses)) for stage in recipe.stages)
    return replace(recipe, stages=tuple(stages))


def _is_open(loss: Weighted) -> bool:
    return isinstance(loss.function, Sketch) and not loss.function.path


def editing(recipe: Recipe, source_prompt: str | None, made_for: str | None) -> Recipe:
    """The recipe with its source prompts. Raises InputError if it edits nothing, or has no scene to edit."""
    if source_prompt and not any(stage.edits for stage in recipe.stages):
        raise InputError(
            f"--source-prompt {source_prompt!r}: no rule of this recipe edits. Choose one that does, such as "
            "--guidance dds."
        )
    if recipe.stages[0].edits and made_for is None:
        raise InputError("this rule edits a scene that is there: give the folder of a run with --from.")
    said = source_prompt or made_for or ""
    if recipe.stages[0].edits and not said:
        raise InputError("this rule edits, and a mesh file does not say what it shows: say it with --source-prompt.")
    stages = (replace(s, source_prompt=s.source_prompt or said) if s.edits else s for s in recipe.stages)
    return replace(recipe, stages=tuple(stages))


def _in_system(rule: Rule, system: Rule) -> Rule:
    """A rule with a system's range of levels, and with its guidance scale wherever it mixes predictions by one."""
    if not _is_its_levels(rule):
        rule = replace(rule, levels=rule.levels.within(system.levels))
    if not isinstance(system.trust, Guided | Denoised):
        return rule
    scale = system.trust.scale
    found = {name: getattr(rule, name) for name in ("trust", "subtract", "noise")}
    scaled: dict[str, Any] = {name: replace(piece, scale=scale) for name, piece in found.items() if piece.mixes}
    return replace(rule, **scaled)


def _is_its_levels(rule: Rule) -> bool:
    """Whether a rule is another one but for its levels, as SDS_DREAMTIME is SDS: with a system's it would be that."""
    other = replace(rule, levels=Uniform())
    return rule != other and other in rules_by_name().values()


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with `steps` steps in all; each stage keeps its share, and at least one. Raises InputError for fewer
    steps than stages."""
    if steps < len(recipe.stages):
        least = len(recipe.stages)
        raise InputError(f"--steps {steps}: one for every stage of the system is needed, so at least {least}.")
    share = [max(1, round(steps * stage.steps / recipe.steps)) for stage in recipe.stages]
    while (rest := steps - sum(share)) != 0:  # of rounding; one at a time, so that no stage is left without
        share[share.index(max(share))] += 1 if rest > 0 else -1
    stages = tuple(replace(stage, steps=n) for stage, n in zip(recipe.stages, share, strict=True))
    return replace(recipe, stages=stages)
