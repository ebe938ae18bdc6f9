"""What changes while a recipe runs: the state, how it begins, its checkpoints, and how scenes are handed over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dreamkit.assets.arrange import arrange
from dreamkit.assets.prepare import Placement
from dreamkit.errors import InputError, RunError, out_of_memory
from dreamkit.guidance.rule import Part
from dreamkit.nest import flatten, unflatten
from dreamkit.priors.prior import Prior
from dreamkit.recipe import Recipe, Stage
from dreamkit.representations.mesh import MeshScene, MeshSurface
from dreamkit.representations.paint import Texture
from dreamkit.representations.particles import Particles, ParticlesScene, alike, members
from dreamkit.representations.representation import Group, Representation, Scene, Startable, continued
from dreamkit.run import Run
from dreamkit.streams import Streams

SECOND = "second"
"""Names what belongs to the second of two things that are made apart: its random numbers, losses and parts."""


@dataclass
class State:
    """Everything that changes while a recipe runs; a checkpoint is exactly this."""

    scene: Scene
    optimiser: torch.optim.Optimizer
    step: int = 0
    """Steps done, over all stages."""
    first: int = 0
    """The step at which its stage began."""
    attempt: int = 0
    """Roll-backs so far. A new attempt draws new random numbers, else it would fail where the last one did."""
    skipped: int = 0
    """Steps just skipped in a row."""
    parts: dict[str, dict[str, Part]] = field(default_factory=dict)
    """What the rules train beside the scene: guide -> name -> part. Of two things that are made apart, those of the
    second are under "guide0/second" and so on."""
    source: Scene | None = None
    """For rules that edit: the scene as it was at the start of the stage."""
    ahead: dict[str, Any] | None = None
    """What the propeller expects of the steps to come (`dreamkit.propeller`)."""

    def streams(self, seed: int) -> Streams:
        """The randomness of the next step."""
        return Streams(seed, self.step, attempt=self.attempt)


@dataclass(frozen=True)
class Start:
    """A scene for a run to start from, and the specification it was made by."""

    scene: Scene
    representation: Representation
    prompt: str = ""
    """What it was made for; empty for a file, which does not say."""

    def handed(self, stage: Stage, seed: int, device: torch.device) -> Scene:
        """The scene as one of the stage's representation. Raises InputError if it cannot be."""
        try:
            return handed_over(self.scene, self.representation, stage.scenes, seed, device)
        except (ValueError, RunError) as error:
            raise InputError(f"the run cannot start from that scene: {error}") from error


def stage_of(recipe: Recipe, step: int) -> tuple[Stage, int]:
    """The stage that step number `step` belongs to, and the number of its first step."""
    first = 0
    for stage in recipe.stages:
        if step < first + stage.steps:
            return stage, first
        first += stage.steps
    return recipe.stages[-1], first - recipe.stages[-1].steps


def fresh(
    stage: Stage,
    seed: int,
    device: torch.device,
    priors: dict[Any, Prior] | None = None,
    scene: Scene | None = None,
) -> State:
    """The state in which a stage begins, with a scene of its own or with the one given; without priors, no parts."""
    scene = scene or stage.scenes.build(device, Streams(seed, -1))
    groups = scene.parameters(stage.at(0).representation)
    optimiser = adam(groups, betas=stage.adam.betas, eps=stage.adam.eps, fused=True)
    drawn = {"": Streams(seed, -1)}
    if stage.things:  # each learns of one thing alone
        drawn |= {f"/{SECOND}": drawn[""].within(SECOND)}
    parts = {
        f"guide{number}{name}": guide.rule.parts(priors[guide.prior], streams.within(f"guide{number}"))
        for name, streams in drawn.items()
        for number, guide in enumerate(stage.guides)
        if priors
    }
    source = handed_over(scene, stage.scenes, stage.scenes, seed, device) if stage.edits else None
    return State(scene, optimiser, parts=parts, source=source)


def save(run: Run, state: State) -> None:
    """Write a checkpoint of the whole state."""
    parts = {guide: {name: part.state() for name, part in found.items()} for guide, found in state.parts.items()}
    nest = {"scene": state.scene.state(), "optimiser": state.optimiser.state_dict(), "parts": parts}
    more = {"source": state.source.state()} if state.source else {}
    more |= {"ahead": state.ahead} if state.ahead else {}
    tensors, facts = flatten(nest | more)
    run.save_checkpoint(state.step, tensors, {"attempt": state.attempt, "skipped": state.skipped, "structure": facts})


def restore(recipe: Recipe, run: Run, device: torch.device, priors: dict[Any, Prior] | None = None) -> State | None:
    """The state of the run's newest good checkpoint, or None if it has none; without priors, the scene's only."""
    found = run.latest_checkpoint()
    if found is None:
        return None
    step, tensors, facts = found
    # The state after a stage's last step still belongs to that stage.
    stage, first = stage_of(recipe, max(step - 1, 0))
    scene = stage.scenes.build(device, Streams(run.seed, -1))
    try:
        saved = unflatten(tensors, facts["structure"])
        scene.load(saved["scene"])
        # Only now: a scene may have grown since it was built, and the optimiser holds its tensors.
        state = fresh(stage, run.seed, device, priors, scene)
        state.optimiser.load_state_dict(saved["optimiser"])
        if state.source is not None:
            state.source.load(saved["source"])
        state.ahead = saved.get("ahead")
        for guide, parts in state.parts.items():
            for name, part in parts.items():
                part.load(saved["parts"][guide][name])
    except (KeyError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise InputError(
            f"the checkpoint of step {step} in {run.path} does not fit its recipe ({error}). It may come from another "
            "version of dreamkit: start a new run with `dreamkit generate`."
        ) from error
    return replace(state, step=step, first=first, attempt=int(facts["attempt"]), skipped=int(facts["skipped"]))


def handed_over(scene: Scene, before: Representation, spec: Representation, seed: int, device: torch.device) -> Scene:
    """The scene as one of `spec`: with the same contents if it is of that kind already and they fit, else converted.

    Raises ValueError for contents that do not fit and cannot be converted, RunError for an empty scene, InputError for
    a kind that cannot start from another.
    """
    streams = Streams(seed, -1)
    if isinstance(scene, ParticlesScene) and isinstance(before, Particles) and not isinstance(spec, Particles):
        scene, before = scene.scenes[0], before.base
    if alike(spec, before):
        return continued(spec, scene, device, streams)
    return startable(spec, before).from_scene(scene, device, streams)


def whole(scene: Scene, stage: Stage, device: torch.device) -> Scene:
    """What a stage made of the scene, as one: two things (`Stage.things`) that are meshes come to stand where they
    belong (`assets.arrange`). Any other scene stays as it is. Raises RunError if one has no extent any more."""
    spec, things = stage.representation, members(scene)
    if stage.things is None or not isinstance(spec, MeshSurface):
        return scene
    first, second = (one.mesh() for one in things if isinstance(one, MeshScene))
    try:
        mesh = arrange(first, stage.things.relation, second, spec.radius)
    except InputError as error:
        raise RunError(f"the two things cannot be put together: {error}") from error
    return replace(spec, paint=Texture()).of(mesh, Placement(), device, Streams(0, -1))


def startable(spec: Representation, before: Representation) -> Startable:
    """The specification, as one whose scenes can start from such others. Raises InputError if they cannot."""
    of_one, other = (one.base if isinstance(one, Particles) else one for one in (spec, before))
    if isinstance(spec, Particles) and isinstance(before, Particles) and spec.count != before.count:
        raise InputError(f"{spec.count} particles cannot start from {before.count}: give the stages as many.")
    if not isinstance(spec, Startable) or not (isinstance(of_one, Startable) or alike(of_one, other)):
        raise InputError(
            f"{type(of_one).__name__} cannot start from another scene, so not from one of {type(other).__name__}: "
            "give the stages the same representation."
        )
    return spec


def adam(groups: Sequence[Group], **settings: Any) -> torch.optim.Adam:
    """An optimiser of these groups, which stay as they are."""
    return torch.optim.Adam([dict(group) for group in groups], **settings)


def carried(optimiser: torch.optim.Optimizer, groups: Sequence[Group], rows: Mapping[str, Tensor]) -> torch.optim.Adam:
    """An optimiser for the new tensors of a scene whose rows were added, dropped or moved.

    The statistics of each group named in `rows` follow their rows (`Scene.after_step`); the others stay.
    """
    new = adam(groups, **optimiser.defaults)
    for old, mine in zip(optimiser.param_groups, new.param_groups, strict=True):
        source = rows.get(mine["name"])
        for before, after in zip(old["params"], mine["params"], strict=True):
            if before in optimiser.state:
                statistics = optimiser.state[before]
                new.state[after] = {
                    name: value if source is None or value.shape != before.shape else _taken(value, source)
                    for name, value in statistics.items()
                }
    return new


def _taken(value: Tensor, rows: Tensor) -> Tensor:
    """value[rows], with zeros where the row is -1."""
    known = (rows >= 0).reshape(-1, *[1] * (value.dim() - 1))
    return torch.where(known, value[rows.clamp(min=0)], torch.zeros_like(value[:1]))
