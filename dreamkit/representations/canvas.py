"""A canvas: one picture that is optimised as it is. Every rule can be watched on it without a 3D scene."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.images import Images
from dreamkit.representations.representation import Colour, Group, LightName, at_end
from dreamkit.schedule import Number, check_rates, fixed
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Canvas:
    """One picture, the same for every camera: to watch what a rule does without a 3D scene.

    It begins as noise of deviation `noise` round a middle grey, and keeps to [0, 1] by a sigmoid.
    """

    size: int = 64
    rate: Number = 5e-2
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_rates(self)

    def build(self, device: torch.device | str, streams: Streams) -> "CanvasScene":
        """A fresh picture, its noise from the stream "canvas"."""
        return CanvasScene(self, torch.device(device), streams)


class CanvasScene:
    """A picture on a device. Made by `Canvas.build`."""

    def __init__(self, spec: Canvas, device: torch.device, streams: Streams):
        self.spec = spec
        draw = streams.normal("canvas", (3, spec.size, spec.size)).to(device)
        self.logits = (4 * spec.noise * draw).requires_grad_()  # the slope of the sigmoid at 0 is 1/4

    @property
    def picture(self) -> Tensor:
        """[3, size, size] in [0, 1], differentiable."""
        return torch.sigmoid(self.logits)

    def render(
        self,
        cameras: Cameras,
        streams: Streams | None = None,
        *,
        now: Any = None,
        shading: LightName | None = None,
        normals: bool = False,
        background: Tensor | Colour | None = None,
    ) -> Images:
        """The picture once for every camera, at the cameras' size; opaque, at depth 0, facing +x. Differentiable."""
        rgb = self.picture[None]
        if (cameras.height, cameras.width) != rgb.shape[-2:]:
            size = (cameras.height, cameras.width)
            rgb = torch.nn.functional.interpolate(rgb, size, mode="bilinear", align_corners=False, antialias=True)
        rgb = rgb.expand(len(cameras), -1, -1, -1)
        flat = torch.zeros_like(rgb[:, :1])
        facing = torch.cat([flat + 1, flat, flat], 1) if normals else None
        return Images(rgb, flat + 1, flat, facing)

    def parameters(self, now: Any = None) -> list[Group]:
        """The picture's logits."""
        return [{"name": "canvas", "params": [self.logits], "lr": fixed(at_end(self.spec, now).rate)}]

    def after_step(self, step: int, streams: Streams, now: Canvas | None = None) -> None:
        """Nothing to keep up."""

    def state(self) -> dict[str, Tensor]:
        """A copy of the picture's logits."""
        return {"logits": self.logits.detach().clone()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state. Raises ValueError for a picture of another size."""
        if state.keys() != {"logits"} or state["logits"].shape != self.logits.shape:
            found = {name: tuple(value.shape) for name, value in state.items()}
            raise ValueError(f"a canvas of {self.spec.size} pixels cannot take over {found}")
        self.logits.copy_(state["logits"])
