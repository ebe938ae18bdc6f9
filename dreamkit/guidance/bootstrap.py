"""Bootstrapped Score Distillation (DreamCraft3D, arXiv:2310.16818): VSD whose teacher learns this one object too.

In turn, the teacher is fine-tuned on better copies of the scene's pictures, made by the frozen prior itself; then the
scene follows the teacher, against a student that knows the scene as it is. Both are full copies of the prior's network
and neither is told the camera.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import Level, cfg
from dreamkit.guidance.levels import drawn
from dreamkit.guidance.rule import Ask, Estimate, Part, Probe
from dreamkit.guidance.student import StudentPart
from dreamkit.priors.prior import Condition, Prior
from dreamkit.priors.sample import sample
from dreamkit.schedule import Number, fixed
from dreamkit.streams import Streams


class InTurn(Estimate):
    """An estimate that is zero while the teacher is being taught."""

    part_name: ClassVar[str] = "bootstrap"

    def asks(self) -> tuple[Ask, ...]:
        return ()

    def __call__(self, probe: Probe) -> Tensor:
        part = probe.part("bootstrap", BootstrapPart)
        return torch.zeros_like(probe.x) if part.apart(probe.progress) else self.said(part, probe)

    @abstractmethod
    def said(self, part: "BootstrapPart", probe: Probe) -> Tensor:
        """The estimate when it is the scene's turn."""


@dataclass(frozen=True)
class Personal(InTurn):
    """The guided prediction of a teacher that is fine-tuned on the object; zero while it is being taught.

    The stage is divided into `periods`. In the first part of each, the share `apart`, only the teacher is trained: at
    every step on one of the last `kept` better pictures, of which a new one is made every `every` steps, by noising the
    picture of the first view up to the fraction `strength` and sampling back (SDEdit). Where the prior sees several
    views together, all of the first object's are one such picture. In the rest of a period the student is trained
    instead. The known code has 5 periods of 1000 steps, 200 of them apart; its `strength` was not read.

    scale          of the teacher's guidance
    rate           AdamW's, for teacher and student
    steps, sample_scale    of the sampler that makes the better pictures
    drop_prompt    share of the teacher's samples that are not told the prompt
    """

    needs: ClassVar[frozenset[str]] = frozenset({"student"})

    scale: Number = 2.0
    periods: int = 5
    apart: float = 0.2
    every: int = 25
    kept: int = 10
    strength: float = 0.6
    steps: int = 25
    sample_scale: float = 7.5
    rate: float = 1e-5
    drop_prompt: float = 0.1

    def said(self, part: "BootstrapPart", probe: Probe) -> Tensor:
        z, level = probe.z(), probe.levels["main"]
        both = Condition.cat([probe.conditions["prompt"], probe.conditions["null"]])
        told, untold = part.teacher.eps(torch.cat([z, z]), Level.cat([level, level]), both, None).chunk(2)
        return cfg(told, untold, fixed(self.scale))

    def part(self, prior: Prior, streams: Streams) -> "BootstrapPart":
        return BootstrapPart(self, prior, streams)


@dataclass(frozen=True)
class Companion(InTurn):
    """What the student of a `Personal` teacher says of the scene as it is; zero while the teacher is being taught."""

    def said(self, part: "BootstrapPart", probe: Probe) -> Tensor:
        return part.student.eps(probe.z(), probe.levels["main"], probe.conditions["prompt"], None)


class BootstrapPart(Part):
    """Teacher, student, and the better pictures with what each was made for."""

    def __init__(self, spec: Personal, prior: Prior, streams: Streams):
        def copy(name: str) -> StudentPart:
            return StudentPart(prior, prior.student(None, streams.within(name)), spec.rate, 1.0, "prompt")

        self.spec, self.prior = spec, prior
        self.teacher, self.student = copy("teacher"), copy("student")
        self.pictures: Tensor | None = None
        self.made_for: Condition | None = None

    def apart(self, progress: float) -> bool:
        """Whether the teacher is being taught now: a function of the progress alone."""
        return (progress * self.spec.periods) % 1.0 < self.spec.apart

    def train(self, probe: Probe) -> float:
        prompt, streams = probe.conditions["prompt"], probe.streams.within("bootstrap")
        if not self.apart(probe.progress):
            return self.student.fit(probe.x, prompt, None, streams)
        if self.pictures is None or probe.streams.step % self.spec.every == 0:
            self._improve(probe)
        assert self.pictures is not None
        assert self.made_for is not None
        count, device, views = len(probe.x), self.pictures.device, self.prior.views
        pick = (drawn(streams, "pick", count, views) * (len(self.pictures) // views)).long() * views
        pick = (pick + torch.arange(count) % views).to(device)
        forget = drawn(streams, "forget", count, views).to(device) < self.spec.drop_prompt
        either = Condition.cat([self.made_for[pick], probe.conditions["null"]])
        told = either[torch.arange(count, device=device) + count * forget]
        return self.teacher.fit(self.pictures[pick].to(probe.x), told, None, streams)

    def state(self) -> dict[str, Any]:
        made_for = None if self.made_for is None else self.made_for.tensors
        return {
            "teacher": self.teacher.state(),
            "student": self.student.state(),
            "pictures": self.pictures,
            "made_for": made_for,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.teacher.load(state["teacher"])
        self.student.load(state["student"])
        if state["pictures"] is not None:
            device = self.prior.device
            self.pictures = state["pictures"].to(device)
            self.made_for = Condition({name: value.to(device) for name, value in state["made_for"].items()})

    def _improve(self, probe: Probe) -> None:
        """Make a better picture of the first view with the frozen prior, and forget the oldest if there are many.

        Where the prior sees several views together, it is one of all views of the first object.
        """
        spec, first = self.spec, slice(0, self.prior.views)
        oldest = -spec.kept * self.prior.views
        prompt, null = probe.conditions["prompt"][first], probe.conditions["null"][first]
        better = sample(
            self.prior,
            prompt,
            null,
            probe.streams.within("bootstrap"),
            steps=spec.steps,
            scale=spec.sample_scale,
            start=probe.x.detach()[first],
            strength=spec.strength,
        )
        if not better.isfinite().all() and self.pictures is not None:
            return
        pictures = [better] if self.pictures is None else [self.pictures, better.to(self.pictures)]
        made_for = [prompt] if self.made_for is None else [self.made_for, prompt]
        self.pictures = torch.cat(pictures)[oldest:]
        self.made_for = Condition.cat(made_for)[slice(oldest, None)]
