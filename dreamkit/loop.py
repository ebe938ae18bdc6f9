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

from dreamkit.cameras import ring
from dreamkit.disk import plainly, write_whole
from dreamkit.errors import InputError, RunError
from dreamkit.guidance.post import clip_pixels
from dreamkit.guidance.rule import Part, check, gradient
from dreamkit.images import Images, png
from dreamkit.losses import needs_normals
from dreamkit.priors.prior import Condition, Prior, view_conditions
from dreamkit.prompts import views_of
from dreamkit.recipe import Guide, Recipe, Stage
from dreamkit.representations.canvas import CanvasScene
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


def optimise(
    recipe: Recipe, run: Run, priors: dict[Any, Prior], device: torch.device, watch: Watch | None = None
) -> Scene:
    """Run the recipe to its end, from the run's newest checkpoint if there is one, and return the scene.

    `priors` are what `load_priors` made of the recipe. Raises RunError if the run stops working, KeyboardInterrupt
    after Ctrl-C or SIGTERM; in both cases a checkpoint stands.
    """
    run.check_prior([prior.identity() for prior in priors.values()])
    state = _begin(recipe, run, device, priors)
    ended, seconds = time.perf_counter(), list[dict[str, float]]()
    with _deferred_interrupts() as interrupted:
        while state.step < recipe.steps:
            stage, first = stage_of(recipe, state.step)
            if state.step == first and first > 0:
                state = _next_stage(recipe, run.seed, state, device, priors)
            figures = take_step(stage, state, first, priors, run.prompt, run.seed)
            if state.skipped == PATIENCE:
                state = _roll_back(recipe, run, device, state, figures, priors)
                continue
            began, ended = ended, time.perf_counter()
            seconds.append(figures["seconds"] | {"step": ended - began})
            _record(recipe, run, state, figures, seconds)
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
    local, clock = state.step - first, _Clock()
    now = stage.at(local)
    streams = Streams(seed + (state.attempt << 32), state.step)
    cameras = now.cameras.sample(now.batch, streams)
    with clock("render"):
        normals = any(guide.sees == "normal" for guide in now.guides) or needs_normals(now.losses)
        images = state.scene.render(cameras, streams, now=now.representation, training=True, normals=normals)
    losses: dict[str, Tensor] = {}
    figures: dict[str, Any] = {}
    for number, guide in enumerate(now.guides):
        prior = priors[guide.prior]
        with clock("encode"):
            # Each guide looks with levels and noise of its own.
            own = streams.within(f"guide{number}")
            x = prior.encode(_clipped(seen(images, guide), fixed(guide.clip)), own)
        with clock("prior"):
            views = views_of(cameras, prior.directions) if now.view_words else [None] * len(cameras)
            conditions = view_conditions(prior, prompt, views, now.negative_prompt)
            conditions["camera"] = Condition({"camera": cameras.camera_to_world.flatten(1).to(x)})
            parts = state.parts.get(f"guide{number}")
            guidance = gradient(guide.rule, prior, x, conditions, own, local / stage.steps, parts=parts)
        # The one reduction: a sum over each view, a mean over the views.
        losses[f"guide{number}"] = fixed(guide.weight) * (guidance.gradient * x).sum() / len(x)
        figures[f"guide{number}"] = guidance.figures
    for term in now.losses:
        name = term.function.__name__
        losses[name] = losses.get(name, 0.0) + term(images, state.scene)
    groups = state.scene.parameters(now.representation)
    for mine, fresh in zip(state.optimiser.param_groups, groups, strict=True):
        mine["lr"] = fresh["lr"]
    with clock("backward"):
        state.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
    bad = _not_finite(losses, groups) + [n for n, f in figures.items() if f["dropped"] == len(cameras)]
    with clock("update"):
        if not bad:
            state.optimiser.step()
            rows = state.scene.after_step(local, streams)
            if rows is not None:
                state.optimiser = carried(state.optimiser, state.scene.parameters(now.representation), rows)
    state.step += 1
    state.skipped = state.skipped + 1 if bad else 0
    alpha = images.alpha.detach()
    return figures | {
        "losses": {name: loss.item() for name, loss in losses.items()},
        "coverage": alpha.mean().item(),
        "opacity_entropy": _entropy(alpha),
        "skipped": bad,
        "seconds": clock.seconds,
    }


def seen(images: Images, guide: Guide) -> Tensor:
    """What a guide's prior is shown, as a picture [B, 3, H, W] in [0, 1]."""
    if guide.sees == "normal":
        assert images.normal is not None
        return 0.5 * (images.normal + 1)
    if guide.sees == "depth":
        # Near is bright, as in the depth maps that priors were trained on; nothing is black.
        far = images.depth.amax(dim=(1, 2, 3), keepdim=True)
        near = torch.where(images.alpha > 0.5, images.depth, far).amin(dim=(1, 2, 3), keepdim=True)
        return ((far - images.depth) / (far - near).clamp(min=1e-6) * images.alpha).clamp(0, 1).expand(-1, 3, -1, -1)
    return images.rgb


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
        check(guide.rule, priors[guide.prior])
    for stage in recipe.stages:
        for guide in stage.guides:
            # Embedding all it will be asked for says now what it does not know, or finds too long.
            prior = priors[guide.prior]
            views = ["overhead", *prior.directions] if stage.view_words else [None]
            view_conditions(prior, prompt, views, stage.negative_prompt)
    return priors


def rehearse(recipe: Recipe, priors: dict[Any, Prior], prompt: str, device: torch.device) -> None:
    """Take every stage's first and last step on a scene that is thrown away, so that what cannot work is said before
    anything is spent. Raises InputError."""
    for number, stage in enumerate(recipe.stages):
        before = recipe.stages[max(number - 1, 0)].representation
        if type(stage.representation) is not type(before):
            _startable(stage.representation, before)
        try:
            state = fresh(stage, 0, device, priors)
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
    scene = scene or stage.representation.build(device, Streams(seed, -1))
    groups = scene.parameters(stage.at(0).representation)
    optimiser = torch.optim.Adam(
        [dict(group) for group in groups], betas=stage.adam.betas, eps=stage.adam.eps, fused=True
    )
    parts = {
        f"guide{number}": guide.rule.parts(priors[guide.prior], Streams(seed, -1).within(f"guide{number}"))
        for number, guide in enumerate(stage.guides)
        if priors
    }
    return State(scene, optimiser, parts=parts)


def save(run: Run, state: State) -> None:
    """Write a checkpoint of the whole state."""
    parts = {guide: {name: part.state() for name, part in found.items()} for guide, found in state.parts.items()}
    tensors, facts = flatten({"scene": state.scene.state(), "optimiser": state.optimiser.state_dict(), "parts": parts})
    run.save_checkpoint(state.step, tensors, {"attempt": state.attempt, "skipped": state.skipped, "structure": facts})


def restore(recipe: Recipe, run: Run, device: torch.device, priors: dict[Any, Prior] | None = None) -> State | None:
    """The state of the run's newest good checkpoint, or None if it has none; without priors, the scene's only."""
    found = run.latest_checkpoint()
    if found is None:
        return None
    step, tensors, facts = found
    # The state after a stage's last step still belongs to that stage.
    stage, _ = stage_of(recipe, max(step - 1, 0))
    scene = stage.representation.build(device, Streams(run.seed, -1))
    try:
        saved = unflatten(tensors, facts["structure"])
        scene.load(saved["scene"])
        # Only now: a scene may have grown since it was built, and the optimiser holds its tensors.
        state = fresh(stage, run.seed, device, priors, scene)
        state.optimiser.load_state_dict(saved["optimiser"])
        for guide, parts in state.parts.items():
            for name, part in parts.items():
                part.load(saved["parts"][guide][name])
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"the checkpoint of step {step} in {run.path} does not fit its recipe ({error}). It may come from another "
            "version of dreamkit: start a new run with `dreamkit generate`."
        ) from error
    return replace(state, step=step, attempt=int(facts["attempt"]), skipped=int(facts["skipped"]))


def _begin(recipe: Recipe, run: Run, device: torch.device, priors: dict[Any, Prior]) -> State:
    state = restore(recipe, run, device, priors) or fresh(recipe.stages[0], run.seed, device, priors)
    run.rewind(state.step)
    return state


def _next_stage(recipe: Recipe, seed: int, state: State, device: torch.device, priors: dict[Any, Prior]) -> State:
    """The state a later stage starts in: the scene as it is, under the stage's own settings, and a fresh optimiser."""
    stage, first = stage_of(recipe, state.step)
    before, _ = stage_of(recipe, first - 1)
    try:
        scene = handed_over(state.scene, before.representation, stage.representation, seed, device)
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
    if type(spec) is type(before):
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


def _record(recipe: Recipe, run: Run, state: State, figures: dict[str, Any], seconds: list[dict[str, float]]) -> None:
    """Log, checkpoint and preview when it is time. Logged seconds are means over the steps since the last line."""
    last, cadence = state.step == recipe.steps, recipe.cadence
    if last or state.step % cadence.log == 0:
        mean = {part: sum(step[part] for step in seconds) / len(seconds) for part in seconds[0]}
        run.log(state.step, **figures | {"seconds": mean})
        seconds.clear()
    # A step that was skipped may mean that the scene is broken: not one to come back to.
    if last or (state.step % cadence.checkpoint == 0 and not state.skipped):
        save(run, state)
    if last or state.step % cadence.preview == 0:
        folder = run.path / "images"
        with plainly(folder):
            folder.mkdir(exist_ok=True)
        write_whole(folder / f"step_{state.step:06d}.png", png(four_views(state.scene)))


@torch.no_grad()
def four_views(scene: Scene) -> Tensor:
    """Four views of the scene from all round, in one picture [3, H, 4 W]; a canvas once."""
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
