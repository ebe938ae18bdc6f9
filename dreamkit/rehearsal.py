"""Before a run: everything that can be checked is, so that what cannot work costs nothing."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from dreamkit.cameras import ring
from dreamkit.errors import InputError, RunError, out_of_memory
from dreamkit.guidance.rule import CONDITIONS, check
from dreamkit.priors.language import reworded
from dreamkit.priors.prior import Prior, view_conditions
from dreamkit.recipe import Guide, Recipe, Stage
from dreamkit.representations.particles import Particles, alike
from dreamkit.representations.representation import Representation, Scene
from dreamkit.state import Start, fresh, handed_over, startable
from dreamkit.step import Task, take_step


def load_priors(recipe: Recipe, prompt: str, device: torch.device) -> dict[Any, Prior]:
    """Every prior of the recipe, once each, checked against its rules and the prompt. Raises InputError."""
    guides = [guide for stage in recipe.stages for guide in stage.guides]
    priors: dict[Any, Prior] = {}
    for guide in guides:
        if guide.prior not in priors:
            with _plainly("the prior cannot be loaded"):
                priors[guide.prior] = guide.prior.load(device)
            priors[guide.prior].check_prompt(prompt)
    for stage in recipe.stages:
        for guide in stage.guides:
            prior = priors[guide.prior]
            check(guide.rule, prior, (*CONDITIONS, *(["source"] if stage.source_prompt else [])))
            for words in (stage.things.first, stage.things.second) if stage.things else (prompt,):
                _check_words(guide, stage, prior, words)
            check_sight(guide, stage, prior)
    return priors


def _check_words(guide: Guide, stage: Stage, prior: Prior, prompt: str) -> None:
    """Embed all that the prior will be asked for, which says now what it does not know, or finds too long."""
    views = prior.view_words.every if stage.view_words else [None]
    said = reworded(stage.debias, prompt, prior.view_words.every) if stage.debias else None
    view_conditions(prior, prompt, views, stage.negative_prompt, stage.source_prompt, said)
    guide.rule.conditions(prior, prompt, ring(8), stage.view_words, said)


def check_sight(guide: Guide, stage: Stage, prior: Prior) -> None:
    """Raise InputError if the prior would be shown another number of pictures than it sees together."""
    if ("multimodal" in prior.capabilities) != (guide.sees == "rgb_depth"):
        wants = "rgb_depth" if "multimodal" in prior.capabilities else "rgb, normal or depth"
        raise InputError(
            f"a guide shows {guide.sees} to the prior {prior.name!r}, which looks at {wants}: set Guide.sees to that, "
            "or choose another prior with --prior."
        )
    if prior.views > 1 and stage.cameras.group != prior.views:
        raise InputError(
            f"the prior {prior.name!r} sees {prior.views} views of an object together, but the cameras stand in groups "
            f"of {stage.cameras.group}: set cameras.group={prior.views} and batch to a multiple of it."
        )


def rehearse(
    recipe: Recipe, priors: dict[Any, Prior], prompt: str, device: torch.device, start: Start | None = None
) -> None:
    """Take every stage's first and last step on a scene that is thrown away, so that what cannot work is said before
    anything is spent. Raises InputError."""
    last: Scene | None = None
    for number, stage in enumerate(recipe.stages):
        with _plainly(f"stage {number} of this recipe cannot run"):
            if last is not None:
                _rehearse_handing_over(last, recipe.stages[number - 1].scenes, stage.scenes, device)
            scene = start.handed(stage, 0, device) if start and number == 0 else None
            state = fresh(stage, 0, device, priors, scene)
            for step in dict.fromkeys((0, stage.steps - 1)):
                state.step = step
                take_step(stage, state, Task(prompt, priors))
            last = state.scene


def _rehearse_handing_over(scene: Scene, before: Representation, spec: Representation, device: torch.device) -> None:
    """Whether a stage's scene can become the next one's. A conversion, which takes its time, is asked for by its kind
    only; whether the numbers of scenes of one kind fit is tried."""
    of_one = before.base if isinstance(before, Particles) and not isinstance(spec, Particles) else before
    if not alike(spec, of_one):
        startable(spec, of_one)
        return
    with suppress(RunError):  # of what does not fit and is converted: there is nothing in it yet
        handed_over(scene, before, spec, 0, device)


@contextmanager
def _plainly(what: str) -> Iterator[None]:
    """Whatever a recipe's parts say of one another becomes an InputError: nothing was begun yet."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        said = error if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{what}: {said}") from error
