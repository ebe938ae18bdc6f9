"""The loop: a scene is rendered, the guides say how its pictures should change, and it changes.

A step is a pure function of (state, step number, seed): all its randomness comes from `Streams(seed, step)`. So a run
that is killed and resumed ends in the same bits as one that was not (on CUDA, up to the order of atomic sums).
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from dreamkit.cameras import Cameras, ring
from dreamkit.disk import plainly, write_whole
from dreamkit.errors import InputError, RunError
from dreamkit.guidance.geometry import Geometry
from dreamkit.guidance.post import clip_pixels
from dreamkit.guidance.rule import CONDITIONS, Part, check, gradient
from dreamkit.images import Images, png
from dreamkit.losses import needs_normals
from dreamkit.priors.language import reworded
from dreamkit.priors.prior import Condition, Prior, view_conditions
from dreamkit.prompts import views_of
from dreamkit.recipe import Guide, Recipe, Stage
from dreamkit.representations.canvas import CanvasScene
from dreamkit.representations.particles import Particles, ParticlesScene, alike
from dreamkit.representations.representation import Group, Representation, Scene, Startable
from dreamkit.run import Run, flatten, unflatten
from dreamkit.schedule import fixed
from dreamkit.streams import Streams

PATIENCE = 3
"""Steps in a row that may be skipped for a gradient that is not finite, and roll-backs a run may take."""

Watch = Callable[[int, int, dict[str, Any]], None]
"""Called after every step with the number of steps done, the number of all steps, and the step's figures."""


@dataclass
class State:
    """Everything that changes while a recipe runs; a checkpoint is exactly this."""

    scene: Scene
    optimiser: torch.optim.Optimizer
    step: int = 0
    """Steps done, over all stages."""
    attempt: int = 0
    """Roll-backs so far. A new attempt draws new random numbers, else it would fail where the last one did."""
    skipped: int = 0
    """Steps just skipped in a row."""
    parts: dict[str, dict[str, Part]] = field(default_factory=dict)
    """What the rules train beside the scene: guide -> name -> part."""
    source: Scene | None = None
    """For rules that edit: the scene as it was at the start of the stage."""
    ahead: dict[str, Any] | None = None
    """What the propeller expects of the steps to come (`dreamkit.propeller`)."""

    def streams(self, seed: int) -> Streams:
        """The randomness of the next step."""
        return Streams(seed + (self.attempt << 32), self.step)


Take = Callable[[Stage, State, int, dict[Any, Prior], str, int], dict[str, Any]]
"""What `take_step` is: it takes at least one step of the stage, and returns the figures of the last."""


@dataclass(frozen=True)
class Start:
    """A scene for a run to start from, and the specification it was made by."""

    scene: Scene
    representation: Representation

    def handed(self, stage: Stage, seed: int, device: torch.device) -> Scene:
        """The scene as one of the stage's representation. Raises InputError if it cannot be."""
        try:
            return handed_over(self.scene, self.representation, stage.scenes, seed, device)
        except ValueError as error:
            raise InputError(f"the run cannot start from that scene: {error}") from error


def optimise(
    recipe: Recipe,
    run: Run,
    priors: dict[Any, Prior],
    device: torch.device,
    watch: Watch | None = None,
    start: Start | None = None,
    take: Take | None = None,
) -> Scene:
    """Run the recipe to its end, from the run's newest checkpoint if there is one, and return the scene.

    Without a checkpoint it begins with the scene of `start`, or else with a fresh one. `priors` are what `load_priors`
    made of the recipe; `take` takes a step, or several, in the place of `take_step`. Raises RunError if the run stops
    working, KeyboardInterrupt after Ctrl-C or SIGTERM; in both cases a checkpoint stands.
    """
    run.check_prior([prior.identity() for prior in priors.values()])
    state = _begin(recipe, run, device, priors, start)
    ended, seconds = time.perf_counter(), list[dict[str, float]]()
    with _deferred_interrupts() as interrupted:
        while state.step < recipe.steps:
            stage, first = stage_of(recipe, state.step)
            if state.step == first and first > 0:
                state = _next_stage(recipe, run.seed, state, device, priors)
            before = state.step
            figures = (take or take_step)(stage, state, first, priors, run.prompt, run.seed)
            if state.skipped == PATIENCE:
                state = _roll_back(recipe, run, device, state, figures, priors)
                continue
            began, ended = ended, time.perf_counter()
            seconds.append(figures["seconds"] | {"step": ended - began})
            _record(recipe, run, state, before, figures, seconds)
            if watch:
                watch(state.step, recipe.steps, figures)
            if interrupted.is_set() and state.step < recipe.steps:
                save(run, state)
                raise KeyboardInterrupt
    return state.scene


def take_step(
    stage: Stage, state: State, first: int, priors: dict[Any, Prior], prompt: str, seed: int
) -> dict[str, Any]:
    """One step of a stage that began after `first` steps: render, ask the guides, change the scene. Returns figures."""
    figures, clock = differentiate(stage, state, first, priors, prompt, seed), _Clock()
    with clock("update"):
        advance(stage, state, first, seed, bool(figures["skipped"]))
    return figures | {"seconds": figures["seconds"] | clock.seconds}


def differentiate(
    stage: Stage, state: State, first: int, priors: dict[Any, Prior], prompt: str, seed: int
) -> dict[str, Any]:
    """The gradients of a step, left in the scene's parameters. Returns figures; "skipped" names what is not finite."""
    local, clock = state.step - first, _Clock()
    now, streams = stage.at(local), state.streams(seed)
    cameras = _cameras(now, streams)
    with clock("render"):
        normals = any(guide.sees == "normal" for guide in now.guides) or needs_normals(now.losses)
        images = state.scene.render(cameras, streams, now=now.representation, training=True, normals=normals)
        source = _source(state, cameras, streams, now, normals)
    losses: dict[str, Tensor] = {}
    figures: dict[str, Any] = {}
    for number, guide in enumerate(now.guides):
        prior = priors[guide.prior]
        with clock("encode"):
            # Each guide looks with levels and noise of its own.
            own = streams.within(f"guide{number}")
            x = _encoded(prior, _clipped(seen(images, guide), fixed(guide.clip)), guide, own)
        with clock("prior"):
            views = views_of(cameras, prior.directions) if now.view_words else [None] * len(cameras)
            said = reworded(now.debias, prompt, prior.directions) if now.debias else None
            conditions = view_conditions(prior, prompt, views, now.negative_prompt, now.source_prompt, said)
            conditions |= guide.rule.conditions(prior, prompt, cameras, now.view_words)
            numbers = cameras.camera_to_world.flatten(1).to(x)
            conditions = {name: prior.placed(condition, numbers) for name, condition in conditions.items()}
            conditions["camera"] = Condition({"camera": numbers})
            parts = state.parts.get(f"guide{number}")
            where = Geometry(cameras, images.depth.detach(), images.alpha.detach())
            others = {} if source is None else {"source": _encoded(prior, seen(source, guide), guide, own).detach()}
            guidance = gradient(guide.rule, prior, x, conditions, own, local / stage.steps, others, parts, where)
        # The one reduction: a sum over each view, a mean over the views.
        losses[f"guide{number}"] = fixed(guide.weight) * (guidance.gradient * x).sum() / len(x)
        figures[f"guide{number}"] = guidance.figures
    for term in now.losses:
        name = term.function.__name__
        losses[name] = losses.get(name, 0.0) + term(images, state.scene)
    groups = state.scene.parameters(now.representation)
    with clock("backward"):
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = None
        torch.stack(list(losses.values())).sum().backward()
    bad = _not_finite(losses, groups) + [n for n, f in figures.items() if f["dropped"] == len(cameras)]
    alpha = images.alpha.detach()
    return figures | {
        "losses": {name: loss.item() for name, loss in losses.items()},
        "coverage": alpha.mean().item(),
        "opacity_entropy": _entropy(alpha),
        "skipped": bad,
        "seconds": clock.seconds,
    }


def advance(stage: Stage, state: State, first: int, seed: int, skip: bool) -> bool:
    """Change the scene by the gradients in its parameters, unless they are to be skipped; count the step.

    Returns whether the scene has other tensors now.
    """
    local = state.step - first
    now, streams = stage.at(local), state.streams(seed)
    for mine, group in zip(state.optimiser.param_groups, state.scene.parameters(now.representation), strict=True):
        mine["lr"] = group["lr"]
    rows = None
    if not skip:
        state.optimiser.step()
        rows = state.scene.after_step(local, streams)
        if rows is not None:
            state.optimiser = carried(state.optimiser, state.scene.parameters(now.representation), rows)
    state.step += 1
    state.skipped = state.skipped + 1 if skip else 0
    return rows is not None


def _cameras(now: Stage, streams: Streams) -> Cameras:
    """The cameras of a step: one a picture, or one for as many particles as a batch holds."""
    shared = min(now.particles, now.batch)
    if shared == 1:
        return now.cameras.sample(now.batch, streams)
    return now.cameras.sample(-(-now.batch // shared), streams)[torch.arange(now.batch) // shared]


def seen(images: Images, guide: Guide) -> Tensor:
    """What a guide's prior is shown, as a picture [B, 3, H, W] in [0, 1]; two of them [B, 6, H, W] for "rgb_depth"."""
    if guide.sees == "rgb_depth":
        return torch.cat([images.rgb, seen(images, replace(guide, sees="depth"))], dim=1)
    if guide.sees == "latent":
        if images.latent is None:
            raise ValueError("a guide sees latents, but the scene has none: paint a MeshSurface with a LatentTexture")
        return images.latent
    if guide.sees == "normal":
        assert images.normal is not None
        return 0.5 * (images.normal + 1)
    if guide.sees == "depth":
        # Near is bright, as in the depth maps that priors were trained on; nothing is black.
        far = images.depth.amax(dim=(1, 2, 3), keepdim=True)
        near = torch.where(images.alpha > 0.5, images.depth, far).amin(dim=(1, 2, 3), keepdim=True)
        return ((far - images.depth) / (far - near).clamp(min=1e-6) * images.alpha).clamp(0, 1).expand(-1, 3, -1, -1)
    return images.rgb


@torch.no_grad()
def _source(state: State, cameras: Cameras, streams: Streams, now: Stage, normals: bool) -> Images | None:
    """For rules that edit: the same views, light and background of the scene as it was at the start of the stage."""
    if state.source is None:
        return None
    return state.source.render(cameras, streams, now=now.representation, training=True, normals=normals)


def _encoded(prior: Prior, picture: Tensor, guide: Guide, streams: Streams) -> Tensor:
    """What the prior works on: latents are that already."""
    return picture if guide.sees == "latent" else prior.encode(picture, streams)


def _clipped(picture: Tensor, limit: float) -> Tensor:
    """The picture, with its gradient clipped pixel by pixel where there is a limit."""
    if limit == 0:
        return picture
    picture = picture.view_as(picture)  # its own node: other guides' gradients of the same picture stay as they are
    picture.register_hook(lambda gradient: clip_pixels(gradient, limit))
    return picture


def load_priors(recipe: Recipe, prompt: str, device: torch.device) -> dict[Any, Prior]:
    """Every prior of the recipe, once each, checked against its rules and the prompt. Raises InputError."""
    guides = [guide for stage in recipe.stages for guide in stage.guides]
    priors: dict[Any, Prior] = {}
    for guide in guides:
        if guide.prior not in priors:
            priors[guide.prior] = guide.prior.load(device)
            priors[guide.prior].check_prompt(prompt)
    for stage in recipe.stages:
        for guide in stage.guides:
            check(guide.rule, priors[guide.prior], (*CONDITIONS, *(["source"] if stage.source_prompt else [])))
            # Embedding all it will be asked for says now what it does not know, or finds too long.
            prior = priors[guide.prior]
            views = ["overhead", *prior.directions] if stage.view_words else [None]
            said = reworded(stage.debias, prompt, prior.directions) if stage.debias else None
            view_conditions(prior, prompt, views, stage.negative_prompt, stage.source_prompt, said)
            guide.rule.conditions(prior, prompt, ring(8), stage.view_words)
            _check_sight(guide, stage, prior)
    return priors


def _check_sight(guide: Guide, stage: Stage, prior: Prior) -> None:
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
    for number, stage in enumerate(recipe.stages):
        before = recipe.stages[max(number - 1, 0)].scenes
        if not alike(stage.scenes, before):
            _startable(stage.scenes, before)
        try:
            scene = start.handed(stage, 0, device) if start and number == 0 else None
            state = fresh(stage, 0, device, priors, scene)
            for state.step in dict.fromkeys((0, stage.steps - 1)):
                take_step(stage, state, 0, priors, prompt, 0)
        except (ValueError, RuntimeError, ArithmeticError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"stage {number} of this recipe cannot run: {error}") from error


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
    optimiser = torch.optim.Adam(
        [dict(group) for group in groups], betas=stage.adam.betas, eps=stage.adam.eps, fused=True
    )
    parts = {
        f"guide{number}": guide.rule.parts(priors[guide.prior], Streams(seed, -1).within(f"guide{number}"))
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
    stage, _ = stage_of(recipe, max(step - 1, 0))
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
        raise InputError(
            f"the checkpoint of step {step} in {run.path} does not fit its recipe ({error}). It may come from another "
            "version of dreamkit: start a new run with `dreamkit generate`."
        ) from error
    return replace(state, step=step, attempt=int(facts["attempt"]), skipped=int(facts["skipped"]))


def _begin(recipe: Recipe, run: Run, device: torch.device, priors: dict[Any, Prior], start: Start | None) -> State:
    state, stage = restore(recipe, run, device, priors), recipe.stages[0]
    if state is None and start is None and run.facts.get("start"):
        raise InputError(
            f"{run.path} was to start from the scene of {run.facts['start']}, but was stopped before it had it. "
            "Start a new run with `dreamkit generate`."
        )
    if state is None:
        scene = start.handed(stage, run.seed, device) if start else None
        state = fresh(stage, run.seed, device, priors, scene)
    run.rewind(state.step)
    if state.step == 0 and start is not None:
        save(run, state)  # from now on the run needs nobody else's folder
    return state


def _next_stage(recipe: Recipe, seed: int, state: State, device: torch.device, priors: dict[Any, Prior]) -> State:
    """The state a later stage starts in: the scene as it is, under the stage's own settings, and a fresh optimiser."""
    stage, first = stage_of(recipe, state.step)
    before, _ = stage_of(recipe, first - 1)
    try:
        scene = handed_over(state.scene, before.scenes, stage.scenes, seed, device)
    except ValueError as error:
        raise RunError(
            f"the stage that starts at step {first} cannot go on with the scene of the stage before it: {error}"
        ) from error
    new = fresh(stage, seed, device, priors, scene)
    return replace(new, step=state.step, attempt=state.attempt, skipped=state.skipped)


def handed_over(scene: Scene, before: Representation, spec: Representation, seed: int, device: torch.device) -> Scene:
    """The scene as one of `spec`: with the same contents if it is of that kind already, else converted to it.

    Raises ValueError for contents that do not fit, InputError for a kind that cannot start from another scene.
    """
    streams = Streams(seed, -1)
    if isinstance(scene, ParticlesScene) and isinstance(before, Particles) and not isinstance(spec, Particles):
        scene, before = scene.scenes[0], before.base
    if alike(spec, before):
        new = spec.build(device, streams)
        new.load(scene.state())
        return new
    return _startable(spec, before).from_scene(scene, device, streams)


def _startable(spec: Representation, before: Representation) -> Startable:
    if not isinstance(spec, Startable):
        raise InputError(
            f"{type(spec).__name__} cannot start from another scene, so not from one of {type(before).__name__}: "
            "give the stages the same representation."
        )
    return spec


def carried(optimiser: torch.optim.Optimizer, groups: Sequence[Group], rows: Mapping[str, Tensor]) -> torch.optim.Adam:
    """An optimiser for the new tensors of a scene whose rows were added, dropped or moved.

    The statistics of each group named in `rows` follow their rows (`Scene.after_step`); the others stay.
    """
    new = torch.optim.Adam([dict(group) for group in groups], **optimiser.defaults)
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


def _roll_back(
    recipe: Recipe, run: Run, device: torch.device, state: State, figures: dict[str, Any], priors: dict[Any, Prior]
) -> State:
    """Back to the last good checkpoint (or the beginning), to go on with other random numbers. Raises RunError."""
    named = ", ".join(figures["skipped"])
    if state.attempt == PATIENCE:
        raise RunError(
            f"step {state.step}: {named} not finite {PATIENCE} times in a row, after {PATIENCE} roll-backs. The last "
            f"good checkpoint stands in {run.path}. Try a smaller learning rate or guidance scale, or another seed."
        )
    back = restore(recipe, run, device, priors) or fresh(recipe.stages[0], run.seed, device, priors)
    back.attempt = state.attempt + 1
    run.rewind(back.step)
    return back


def _record(
    recipe: Recipe, run: Run, state: State, before: int, figures: dict[str, Any], seconds: list[dict[str, float]]
) -> None:
    """Log, checkpoint and preview when it is time. Logged seconds are means over the steps since the last line."""
    last, cadence = state.step == recipe.steps, recipe.cadence

    def due(every: int) -> bool:
        return last or state.step // every > before // every

    if due(cadence.log):
        mean = {part: sum(step[part] for step in seconds) / len(seconds) for part in seconds[0]}
        run.log(state.step, **figures | {"seconds": mean})
        seconds.clear()
    # A step that was skipped may mean that the scene is broken: not one to come back to.
    if last or (due(cadence.checkpoint) and not state.skipped):
        save(run, state)
    if due(cadence.preview):
        folder = run.path / "images"
        with plainly(folder):
            folder.mkdir(exist_ok=True)
        write_whole(folder / f"step_{state.step:06d}.png", png(four_views(state.scene)))


@torch.no_grad()
def four_views(scene: Scene) -> Tensor:
    """Four views of the scene from all round, in one picture [3, H, 4 W]; a canvas once; particles in rows."""
    if isinstance(scene, ParticlesScene):
        return torch.cat([four_views(particle) for particle in scene.scenes], dim=-2)
    if isinstance(scene, CanvasScene):
        return torch.sigmoid(scene.logits)
    return torch.cat(list(scene.render(ring(4, size=128)).rgb), dim=-1)


def _not_finite(losses: dict[str, Tensor], groups: list[Any]) -> list[str]:
    """The names of the losses, or else of the parameter groups' gradients, that are not finite."""
    named = [f"loss {name}" for name, loss in losses.items() if not bool(loss.isfinite())]
    if named:
        return named
    return [
        f"gradient of {group['name']}"
        for group in groups
        if not all(bool(p.grad.sum().isfinite()) for p in group["params"] if p.grad is not None)
    ]


def _entropy(alpha: Tensor) -> float:
    """Mean binary entropy of opacity in bits: 0 when every pixel is empty or solid, 1 when all is half fog."""
    a = alpha.clamp(1e-6, 1 - 1e-6)
    return float(-(a * a.log2() + (1 - a) * (1 - a).log2()).mean())


@dataclass
class _Clock:
    """Wall-clock seconds by part of a step; on CUDA, where work is queued, each part waits for its own."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = self._now()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + self._now() - began

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


@contextmanager
def _deferred_interrupts() -> Iterator[threading.Event]:
    """While inside, the first Ctrl-C or SIGTERM only sets the event, so that a step is never cut; a second one cuts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, old in before.items():
            signal.signal(number, old)
