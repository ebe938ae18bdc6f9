"""Rules that train a second network, the student, to know what the scene's own pictures look like.

Variational Score Distillation (ProlificDreamer, arXiv:2305.16213): the noise that SDS subtracts is replaced by the
prediction of a network that is trained on the scene's pictures while they change. What it cannot predict better than
the frozen prior is left as it is, so a small guidance scale is enough.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import Level, add_noise, cfg, output_of, to_eps
from dreamkit.guidance.levels import drawn
from dreamkit.guidance.networks import Trained
from dreamkit.guidance.rule import Ask, Estimate, Probe
from dreamkit.priors.prior import Condition, Prior
from dreamkit.priors.prior import Student as Network
from dreamkit.schedule import Number, fixed
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Student(Estimate):
    """The student's prediction at the main level; after every step it is trained on the same pictures.

    It is told the prompt without view words and, where the rule's conditions hold "camera", where the camera stands.
    With scale s it is eps(no camera) + s (eps(camera) - eps(no camera)); s = 1 costs one pass. A smaller s makes views
    of one scene look alike less (entropic score distillation with s = 1 - lambda: Taming Mode Collapse,
    arXiv:2401.00909).

    The training loss is |f(z', t') - target|^2, mean over all elements, at levels and noise of its own, in whatever
    the prior's network predicts.

    scale         weight of the camera; 0 asks a student that never knew it
    rate          AdamW's learning rate
    rank          of the low-rank change to the attention layers (LoRA, arXiv:2106.09685); None trains a full copy
    drop_camera   share of training samples (of objects, where views are seen together) that are not told the camera;
                  without it scale means nothing
    condition     what it is told beside the camera
    """

    needs: ClassVar[frozenset[str]] = frozenset({"student"})
    part_name: ClassVar[str] = "student"

    scale: Number = 1.0
    rate: float = 1e-4
    rank: int | None = 4
    drop_camera: float = 0.1
    condition: str = "bare"

    def asks(self) -> tuple[Ask, ...]:
        return ()

    def __call__(self, probe: Probe) -> Tensor:
        part = probe.part("student", StudentPart)
        z, level, bare = probe.z(), probe.levels["main"], probe.conditions[self.condition]
        camera, scale = probe.conditions.get("camera"), fixed(self.scale)
        told = part.eps(z, level, bare, None if scale == 0.0 else camera)
        if scale in (0.0, 1.0) or camera is None:
            return told
        return cfg(told, part.eps(z, level, bare, None), scale)

    def part(self, prior: Prior, streams: Streams) -> "StudentPart":
        return StudentPart(prior, prior.student(self.rank, streams), self.rate, self.drop_camera, self.condition)


class StudentPart(Trained):
    """The student's network and its optimiser."""

    def __init__(self, prior: Prior, network: Network, rate: float, drop_camera: float, condition: str = "bare"):
        super().__init__(network.parameters(), rate)
        self.prior, self.network, self.drop_camera, self.condition = prior, network, drop_camera, condition

    def eps(self, z: Tensor, level: Level, condition: Condition, camera: Condition | None) -> Tensor:
        """Its prediction of the noise. Differentiable in its parameters."""
        output = self.network(z, level, condition, None if camera is None else camera.tensors["camera"])
        return to_eps(self.prior.parameterization, output, z, level)

    def train(self, probe: Probe) -> float:
        camera = probe.conditions.get("camera")
        known = None
        if camera is not None:
            # Views that are seen together are told together: as it is asked later, of all of them or of none.
            draw = drawn(probe.streams, "student/camera", len(probe.x), self.prior.views)[:, None]
            known = camera.tensors["camera"] * (draw >= self.drop_camera).to(camera.tensors["camera"])
        return self.fit(probe.x, probe.conditions[self.condition], known, probe.streams.within("student"))

    def fit(self, x: Tensor, condition: Condition, camera: Tensor | None, streams: Streams) -> float:
        """One step on pictures x [N, ...] at levels and noise of its own; returns the loss."""
        x = x.detach()
        level, noise = anywhere(self.prior, x, streams)
        with torch.enable_grad():
            output = self.network(add_noise(x, noise, level), level, condition, camera)
            target = output_of(self.prior.parameterization, x, noise, level)
            return self.learn((output - target).square().mean())


def anywhere(prior: Prior, x: Tensor, streams: Streams) -> tuple[Level, Tensor]:
    """A level for each sample, or for all views that are seen together, uniform over the whole schedule, and noise: the
    streams "level" and "noise"."""
    index = (drawn(streams, "level", len(x), prior.views) * prior.schedule.steps).long()
    return prior.level_at(index), streams.normal("noise", tuple(x.shape), like=x)
