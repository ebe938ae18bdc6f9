"""Rules that train a second network, the student, to know what the scene's own pictures look like.

Variational Score Distillation (ProlificDreamer, arXiv:2305.16213): the noise that SDS subtracts is replaced by the
prediction of a network that is trained on the scene's pictures while they change. What it cannot predict better than
the frozen prior is left as it is, so a small guidance scale is enough.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import Level, add_noise, cfg, output_of, to_eps
from dreamkit.guidance.rule import Ask, Estimate, Part, Probe
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

    scale         weight of the camera
    rate          AdamW's learning rate
    rank          of the low-rank change to the attention layers (LoRA, arXiv:2106.09685); None trains a full copy
    drop_camera   share of training samples that are not told the camera; without it scale means nothing
    """

    needs: ClassVar[frozenset[str]] = frozenset({"student"})
    part_name: ClassVar[str] = "student"

    scale: Number = 1.0
    rate: float = 1e-4
    rank: int | None = 4
    drop_camera: float = 0.1

    def asks(self) -> tuple[Ask, ...]:
        return ()

    def __call__(self, probe: Probe) -> Tensor:
        part = probe.parts["student"]
        if not isinstance(part, StudentPart):
            raise ValueError(f"the part named 'student' is a {type(part).__name__}")
        z, level, bare = probe.z(), probe.levels["main"], probe.conditions["bare"]
        camera, scale = probe.conditions.get("camera"), fixed(self.scale)
        told = part.eps(z, level, bare, camera)
        if scale == 1.0 or camera is None:
            return told
        return cfg(told, part.eps(z, level, bare, None), scale)

    def part(self, prior: Prior, streams: Streams) -> "StudentPart":
        return StudentPart(prior, prior.student(self.rank, streams), self.rate, self.drop_camera)


class StudentPart(Part):
    """The student's network and its optimiser."""

    def __init__(self, prior: Prior, network: Network, rate: float, drop_camera: float):
        self.prior, self.network, self.drop_camera = prior, network, drop_camera
        self.optimiser = torch.optim.AdamW(network.parameters().values(), lr=rate)

    def eps(self, z: Tensor, level: Level, condition: Condition, camera: Condition | None) -> Tensor:
        """Its prediction of the noise. Differentiable in its parameters."""
        output = self.network(z, level, condition, None if camera is None else camera.tensors["camera"])
        return to_eps(self.prior.parameterization, output, z, level)

    def train(self, probe: Probe) -> float:
        x, streams, count = probe.x.detach(), probe.streams, len(probe.x)
        draw = streams.uniform("student/level", (count,), like=torch.zeros((), dtype=torch.float64))
        level = self.prior.level_at((draw * self.prior.schedule.steps).long())
        noise = streams.normal("student/noise", tuple(x.shape), like=x)
        camera = probe.conditions.get("camera")
        told = None
        if camera is not None:
            kept = streams.uniform("student/camera", (count, 1), like=x) >= self.drop_camera
            told = camera.tensors["camera"] * kept.to(camera.tensors["camera"])
        with torch.enable_grad():
            output = self.network(add_noise(x, noise, level), level, probe.conditions["bare"], told)
            target = output_of(self.prior.parameterization, x, noise, level)
            loss = (output - target).square().mean()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        if loss.isfinite():
            self.optimiser.step()
        return float(loss)

    def state(self) -> dict[str, Any]:
        weights = {name: value.detach() for name, value in self.network.parameters().items()}
        return {"weights": weights, "optimiser": self.optimiser.state_dict()}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        mine = self.network.parameters()
        if mine.keys() != state["weights"].keys():
            raise ValueError("the student's weights have other names")
        for name, value in state["weights"].items():
            mine[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
