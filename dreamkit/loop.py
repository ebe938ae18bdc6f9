"""The loop: step after step, with a log, checkpoints and previews; what cannot go on is said.

A step (`dreamkit.step`) is a pure function of (state, step number, seed). So a run that is killed and resumed ends in
the same bits as one that was not (on CUDA, up to the order of atomic sums).
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from dreamkit.cameras import ring
from dreamkit.disk import plainly, write_whole
from dreamkit.errors import InputError, RunError
from dreamkit.images import png
from dreamkit.priors.prior import Prior
from dreamkit.recipe import Recipe
from dreamkit.representations.canvas import CanvasScene
from dreamkit.representations.particles import ParticlesScene
from dreamkit.representations.representation import Scene
from dreamkit.run import Run
from dreamkit.state import Start, State, fresh, handed_over, restore, save, stage_of, whole
from dreamkit.step import Take, Task, take_step

PATIENCE = 3
"""Steps in a row that may be skipped for a gradient that is not finite, and roll-backs a run may take."""

Watch = Callable[[int, int, dict[str, Any]], None]
"""Called after every step with the number of steps done, the number of all steps, and the step's figures."""


def optimise(
    recipe: Recipe,
    run: Run,
    priors: dict[Any, Prior],
    device: torch.device,
    watch: Watch | None = None,
    start: Start | None = None,
    take: Take | None = None,
) -> Scene:
    """Run the recipe to its end, from the run's newest checkpoint if there is one, and return the finished scene; of
    two things that were made apart, the one that they make together (`state.whole`).

    Without a checkpoint it begins with the scene of `start`, or else with a fresh one. `priors` are what `load_priors`
    made of the recipe; `take` takes a step, or several, in the place of `take_step`. Raises RunError if the run stops
    working, KeyboardInterrupt after Ctrl-C or SIGTERM; in both cases a checkpoint stands.
    """
    run.check_prior([prior.identity() for prior in priors.values()])
    state, task = _begin(recipe, run, device, priors, start), Task(run.prompt, priors, run.seed)
    ended, seconds = time.perf_counter(), list[dict[str, float]]()
    with _deferred_interrupts() as interrupted:
        while state.step < recipe.steps:
            stage, first = stage_of(recipe, state.step)
            if state.step == first and first > 0:
                state = next_stage(recipe, run.seed, state, device, priors)
            before = state.step
            figures = (take or take_step)(stage, state, task)
            if state.skipped == PATIENCE:
                state = _roll_back(recipe, run, device, state, figures, priors)
                continue
            began, ended = ended, time.perf_counter()
            took = figures["seconds"] | {"step": ended - began}
            seconds.append({part: value / (state.step - before) for part, value in took.items()})
            _record(recipe, run, state, before, figures, seconds)
            if watch:
                watch(state.step, recipe.steps, figures)
            if interrupted.is_set():
                # After a skipped step the scene may be broken, and the checkpoint before it leads to the same steps.
                if state.step < recipe.steps and not state.skipped:
                    save(run, state)
                raise KeyboardInterrupt
    return whole(state.scene, recipe.stages[-1], device)


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


def next_stage(recipe: Recipe, seed: int, state: State, device: torch.device, priors: dict[Any, Prior]) -> State:
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
    return replace(new, step=state.step, first=first, attempt=state.attempt, skipped=state.skipped)


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
        return scene.picture
    return torch.cat(list(scene.render(ring(4, size=128)).rgb), dim=-1)


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
