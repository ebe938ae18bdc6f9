"""Several steps at once: parallel Picard iteration over the steps of a run (DreamPropeller, arXiv:2311.17082).

A run is a chain of drifts, theta_{i+1} = step_i(theta_i). With guesses of the next few scenes, the gradients of all of
them are computed at once, each with the randomness of its own step; then the true optimiser rolls from theta_i through
those gradients. Where a rolled-out scene is near the guess it replaces, the gradient computed at the guess was nearly
right, and the step after it counts; the first bad guess ends what counts. One step always does, and it is exact: with a
threshold below zero, kept, the run is the serial one bit for bit.

The error of a guess is the mean squared difference of all parameters. After every round the threshold follows the
errors there are.

The gradients are computed by threads, one for each step of the window, each on a copy of the scene: kernels and tensor
operations release the interpreter, so threads use several cores; threads on one GPU share its stream. Several devices
take the steps of a window in turn: the first, which always counts, is the run's own. Each of the others holds the
priors too, and its gradients are moved to where the step is taken. Where a guess is worked on changes no more of a run
than the devices differ in rounding.

Rules that train or remember something are refused (`recipe.Recipe`).
"""

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, takewhile
from typing import Any

import torch
from torch import Tensor

from dreamkit.priors.prior import Prior
from dreamkit.recipe import Propeller, Stage
from dreamkit.representations.representation import Scene
from dreamkit.state import State, adam
from dreamkit.step import Take, Task, advance, differentiate
from dreamkit.streams import Streams


@dataclass(frozen=True)
class _Home:
    """A device, and the priors on it."""

    device: torch.device
    priors: dict[Any, Prior]

    def differentiate(self, stage: Stage, state: State, task: Task) -> dict[str, Any]:
        with torch.cuda.device(self.device if self.device.type == "cuda" else -1):  # every thread begins on the first
            return differentiate(stage, state, replace(task, priors=self.priors))


@dataclass(frozen=True)
class _Replica:
    """A scene that holds a guess, and the stage's source if it is needed beside it, away from the run's own device."""

    scene: Scene
    source: Scene | None


def propelled(spec: Propeller, device: torch.device, others: Sequence[torch.device] = ()) -> Take:
    """What takes the place of `take_step`: one round, which is at least one step and at most a window of them.

    `device` is where the state and its priors are; `others` share the work (`device.others`). The first round loads the
    priors onto them.
    """
    homes: list[_Home] = []
    replicas: dict[int, list[_Replica]] = {}

    def take(stage: Stage, state: State, task: Task) -> dict[str, Any]:
        if not homes:
            loaded = [{key: key.load(at) for key in task.priors} for at in others[: spec.window - 1]]
            homes.extend([_Home(device, task.priors), *(_Home(*pair) for pair in zip(others, loaded, strict=False))])
        if state.first not in replicas:
            replicas.clear()
            replicas[state.first] = [_replica(stage, state, homes, i, task.seed) for i in range(1, spec.window)]
        count = min(spec.window, state.first + stage.steps - state.step)
        states = _guessed(spec, state, replicas[state.first][: count - 1])
        with ThreadPoolExecutor(count) as pool:
            turns = zip(cycle(homes), states, strict=False)
            jobs = [pool.submit(home.differentiate, stage, each, task) for home, each in turns]
            figures = [job.result() for job in jobs]
        drifts = [_Drift(each.scene, bool(found["skipped"])) for each, found in zip(states, figures, strict=True)]
        taken = _roll(spec, stage, states, task.seed, drifts)
        return figures[taken - 1] | {"taken": taken}

    return take


def _replica(stage: Stage, state: State, homes: list[_Home], number: int, seed: int) -> _Replica:
    """For step `number` of a window, on the device whose turn it is."""
    home = homes[number % len(homes)]
    scene, source = stage.scenes.build(home.device, Streams(seed, -1)), None
    if state.source is not None and home is not homes[0]:
        source = stage.scenes.build(home.device, Streams(seed, -1))
        source.load(state.source.state())
    return _Replica(scene, source)


class _Drift:
    """The gradients of a step, to be taken from another scene."""

    def __init__(self, scene: Scene, bad: bool):
        self.gradients = [None if p.grad is None else p.grad.clone() for p in _parameters(scene)]
        self.bad = bad

    def move(self, stage: Stage, state: State, seed: int) -> bool:
        """Take the step; returns whether guesses are worth nothing after it: no step, or other tensors."""
        for parameter, gradient in zip(_parameters(state.scene), self.gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        return advance(stage, state, seed, self.bad) or self.bad


def _guessed(spec: Propeller, state: State, replicas: list[_Replica]) -> list[State]:
    """The state itself, and one with a guessed scene for each of the steps after it."""
    if state.ahead is None or state.ahead["attempt"] != state.attempt:
        state.ahead = {"scenes": [_kept(state.scene)], "threshold": spec.threshold, "attempt": state.attempt}
    guesses, states = state.ahead["scenes"], [state]
    for i, replica in enumerate(replicas):
        replica.scene.load(guesses[min(i, len(guesses) - 1)]["state"])  # beyond what was guessed, the last guess stands
        source = replica.source or state.source
        states.append(replace(state, scene=replica.scene, source=source, step=state.step + 1 + i))
    return states


def _roll(spec: Propeller, stage: Stage, states: list[State], seed: int, drifts: list[_Drift]) -> int:
    """Roll the state through the drifts as far as they count, and guess anew; returns how many steps that was."""
    state, expected = states[0], states[0].ahead or {}
    guesses, threshold = expected["scenes"], expected["threshold"]
    usable = max(1, len(list(takewhile(lambda drift: not drift.bad, drifts))))
    errors: list[float] = []
    taken, worthless = 0, False
    while taken < usable and not worthless and not (errors and errors[-1] > threshold):
        worthless = drifts[taken].move(stage, state, seed)
        taken += 1
        if not worthless:
            errors.append(_error(state.scene, guesses[min(taken, len(guesses)) - 1]))
    ahead: list[dict[str, Any]] = []
    if taken < usable and not worthless:
        further = _copied(state, states[1].scene)
        for i in range(taken, usable):
            if drifts[i].move(stage, further, seed):
                break
            ahead.append(_kept(further.scene))
            errors.append(_error(further.scene, guesses[min(i, len(guesses) - 1)]))
    if errors:
        follow = errors[len(errors) // 2] if spec.error == "middle" else sum(errors) / len(errors)
        threshold = spec.decay * threshold + (1 - spec.decay) * follow
    state.ahead = {"scenes": ahead or [_kept(state.scene)], "threshold": threshold, "attempt": state.attempt}
    return taken


def _copied(state: State, scene: Scene) -> State:
    """The state on another scene, with an optimiser of its own."""
    scene.load(state.scene.state())
    optimiser = adam(scene.parameters(), **state.optimiser.defaults)
    optimiser.load_state_dict(copy.deepcopy(state.optimiser.state_dict()))
    return replace(state, scene=scene, optimiser=optimiser)


def _parameters(scene: Scene) -> list[Tensor]:
    return [parameter for group in scene.parameters() for parameter in group["params"]]


def _kept(scene: Scene) -> dict[str, Any]:
    """A guess: the scene's state, and its parameters, by which guesses are compared."""
    state = {name: value.detach().clone() for name, value in scene.state().items()}
    return {"state": state, "parameters": [value.detach().clone() for value in _parameters(scene)]}


def _error(scene: Scene, guess: dict[str, Any]) -> float:
    """Mean squared difference of the parameters."""
    pairs = list(zip(_parameters(scene), guess["parameters"], strict=True))
    total = sum(float((a.detach() - b.to(a)).double().square().sum()) for a, b in pairs)
    return total / sum(a.numel() for a, _ in pairs)
