"""One step: a scene is rendered, the guides say how its pictures should change, and it changes.

A step is a pure function of (state, step number, seed): all its randomness comes from `Streams(seed, step)`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.guidance.geometry import Geometry
from dreamkit.guidance.post import clip_pixels
from dreamkit.guidance.rule import gradient
from dreamkit.images import Images
from dreamkit.losses import binary_entropy, needs_normals
from dreamkit.priors.language import reworded
from dreamkit.priors.prior import Condition, Prior, view_conditions
from dreamkit.recipe import Guide, Stage
from dreamkit.representations.particles import members
from dreamkit.representations.representation import Scene
from dreamkit.schedule import fixed
from dreamkit.state import SECOND, State, carried
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Task:
    """What every step of a run is told: the prompt, the loaded priors by their specifications, and the seed."""

    prompt: str
    priors: dict[Any, Prior]
    seed: int = 0


Take = Callable[[Stage, State, Task], dict[str, Any]]
"""What `take_step` is: it takes at least one step of the stage, and returns the figures of the last."""


def take_step(stage: Stage, state: State, task: Task) -> dict[str, Any]:
    """One step: render, ask the guides, change the scene. Returns figures."""
    figures, clock = differentiate(stage, state, task), Clock()
    with clock("update"):
        advance(stage, state, task.seed, bool(figures["skipped"]))
    return figures | {"seconds": figures["seconds"] | clock.seconds}


def differentiate(stage: Stage, state: State, task: Task) -> dict[str, Any]:
    """The gradients of a step, left in the scene's parameters. Returns figures; "skipped" names what is not finite."""
    progress, clock = (state.step - state.first) / stage.steps, Clock()
    now, streams = stage.at(state.step - state.first), state.streams(task.seed)
    looks = [_look(now, show, state, task, progress, clock) for show in _shows(now, state, task.prompt, streams)]
    losses = {name: loss for look in looks for name, loss in look.losses.items()}
    figures = {name: guide for look in looks for name, guide in look.figures.items()}
    groups = state.scene.parameters(now.representation)
    with clock("backward"):
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = None
        torch.stack(list(losses.values())).sum().backward()
    bad = _not_finite(losses, groups) + [n for n, f in figures.items() if f["dropped"] == now.batch]
    alpha = torch.cat([look.alpha for look in looks])
    return figures | {
        "losses": {name: loss.item() for name, loss in losses.items()},
        "coverage": alpha.mean().item(),
        "opacity_entropy": float(binary_entropy(alpha)),
        "skipped": bad,
        "seconds": clock.seconds,
    }


class _Show(NamedTuple):
    """What a step shows to the guides: a scene, what it was at the start of the stage for rules that edit, and its
    words."""

    scene: Scene
    source: Scene | None
    prompt: str
    streams: Streams
    name: str = ""
    """At the end of the names of its losses and figures."""


class _Look(NamedTuple):
    """What a step found out about one `_Show`: losses and figures by name, and its opacity [B, 1, H, W]."""

    losses: dict[str, Tensor]
    figures: dict[str, Any]
    alpha: Tensor


def _shows(now: Stage, state: State, prompt: str, streams: Streams) -> list[_Show]:
    """The scene, or each of two things, under its own words and with random numbers of its own."""
    if now.things is None:
        return [_Show(state.scene, state.source, prompt, streams)]
    (first, second), sources = members(state.scene), [None, None] if state.source is None else members(state.source)
    return [
        _Show(first, sources[0], now.things.first, streams),
        _Show(second, sources[1], now.things.second, streams.within(SECOND), f"/{SECOND}"),
    ]


def _look(now: Stage, show: _Show, state: State, task: Task, progress: float, clock: "Clock") -> _Look:
    """Render a scene, and ask the guides and the losses."""
    streams, cameras = show.streams, cameras_of(now, show.streams)
    with clock("render"):
        normals = any(guide.sees == "normal" for guide in now.guides) or needs_normals(now.losses)
        images = show.scene.render(cameras, streams, now=now.representation, normals=normals)
        source = _source(show.source, cameras, streams, now, normals)
    losses: dict[str, Tensor] = {}
    figures: dict[str, Any] = {}
    for number, guide in enumerate(now.guides):
        prior = task.priors[guide.prior]
        with clock("encode"):
            # Each guide looks with levels and noise of its own.
            own = streams.within(f"guide{number}")
            x = _encoded(prior, clipped(seen(images, guide), fixed(guide.clip)), guide, own)
        with clock("prior"):
            conditions = _conditions(now, guide, prior, show.prompt, cameras)
            parts = state.parts.get(f"guide{number}{show.name}")
            where = Geometry(cameras, images.depth.detach(), images.alpha.detach())
            others = {} if source is None else {"source": _encoded(prior, seen(source, guide), guide, own).detach()}
            guidance = gradient(guide.rule, prior, x, conditions, own, progress, others, parts, where)
        # The one reduction: a sum over each view, a mean over the views.
        name = f"guide{number}{show.name}"
        losses[name] = fixed(guide.weight) * (guidance.gradient * x).sum() / len(x)
        figures[name] = guidance.figures
    for term in now.losses:
        name = f"{term.name}{show.name}"
        losses[name] = losses.get(name, 0.0) + term(images, show.scene)
    return _Look(losses, figures, images.alpha.detach())


def _conditions(now: Stage, guide: Guide, prior: Prior, prompt: str, cameras: Cameras) -> dict[str, Condition]:
    """What the rule may name: the usual conditions, those of its pieces, and where the cameras stand."""
    views = prior.view_words.of(cameras) if now.view_words else [None] * len(cameras)
    said = reworded(now.debias, prompt, prior.view_words.every) if now.debias else None
    conditions = view_conditions(prior, prompt, views, now.negative_prompt, now.source_prompt, said)
    conditions |= guide.rule.conditions(prior, prompt, cameras, now.view_words, said)
    numbers = cameras.camera_to_world.flatten(1).to(prior.device)
    return conditions | {"camera": Condition({"camera": numbers})}


def advance(stage: Stage, state: State, seed: int, skip: bool) -> bool:
    """Change the scene by the gradients in its parameters, unless they are to be skipped; count the step.

    Returns whether the scene has other tensors now.
    """
    local = state.step - state.first
    now, streams = stage.at(local), state.streams(seed)
    for mine, group in zip(state.optimiser.param_groups, state.scene.parameters(now.representation), strict=True):
        mine["lr"] = group["lr"]
    rows = None
    if not skip:
        state.optimiser.step()
        rows = state.scene.after_step(local, streams, now.representation)
        if rows is not None:
            state.optimiser = carried(state.optimiser, state.scene.parameters(now.representation), rows)
    state.step += 1
    state.skipped = state.skipped + 1 if skip else 0
    return rows is not None


def cameras_of(now: Stage, streams: Streams) -> Cameras:
    """The cameras of a step: one a picture, or one (one group) for as many particles as a batch holds."""
    group = now.cameras.group
    shared = min(now.particles, now.batch // group)
    if shared <= 1 or now.batch % group:
        return now.cameras.sample(now.batch, streams)
    picture = torch.arange(now.batch)
    of_group = picture // group // shared
    return now.cameras.sample((int(of_group[-1]) + 1) * group, streams)[of_group * group + picture % group]


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
def _source(before: Scene | None, cameras: Cameras, streams: Streams, now: Stage, normals: bool) -> Images | None:
    """For rules that edit: the same views, light and background of the scene as it was at the start of the stage."""
    if before is None:
        return None
    return before.render(cameras, streams, now=now.representation, normals=normals)


def _encoded(prior: Prior, picture: Tensor, guide: Guide, streams: Streams) -> Tensor:
    """x, what the prior works on: the picture encoded, unless the guide sees latents."""
    return picture if guide.sees == "latent" else prior.encode(picture, streams)


def clipped(picture: Tensor, limit: float) -> Tensor:
    """The picture, with its gradient clipped pixel by pixel where there is a limit."""
    if limit == 0:
        return picture
    picture = picture.view_as(picture)  # its own node: other guides' gradients of the same picture stay as they are
    picture.register_hook(lambda gradient: clip_pixels(gradient, limit))
    return picture


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


@dataclass
class Clock:
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
