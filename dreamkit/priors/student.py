"""A trainable student of a diffusers UNet: a low-rank change to its attention layers, or a full copy of it.

The low-rank student shares the frozen network's weights: it adds up(down(x)) to the output of every attention layer
(LoRA, arXiv:2106.09685) by hooks that act only while the student speaks, so it costs a few megabytes. Where the camera
stands (the 12 numbers of camera_to_world) is embedded and added to the embedding of time. Every `up` and the camera's
embedding start at zero, so a fresh student says what the frozen network says.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from dreamkit.streams import Streams

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class UNetStudent:
    """A changed UNet; `speaking(camera)` is the time in which `unet` is the student."""

    def __init__(self, unet: Any, rank: int | None, camera_numbers: int, streams: Streams):
        self._weights: dict[str, Tensor] = {}
        self._camera: Tensor | None = None
        self._speaking = False
        self.unet = unet if rank is not None else copy.deepcopy(unet).float()
        device = next(unet.parameters()).device
        if rank is None:
            self._weights |= {name: value.requires_grad_() for name, value in self.unet.named_parameters()}
        else:
            self._add_low_rank(rank, streams, device)
        width = self.unet.time_embedding.linear_2.out_features
        self._weights["camera/down"] = streams.normal("camera", (64, camera_numbers)).to(device) / camera_numbers**0.5
        self._weights["camera/up"] = torch.zeros(width, 64, device=device)
        self.unet.time_embedding.register_forward_hook(self._add_camera)
        for value in self._weights.values():
            value.requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return self._weights

    @contextmanager
    def speaking(self, camera: Tensor | None) -> Iterator[Any]:
        """Inside, `unet` answers as the student; camera [N, numbers], zeros or None where it is not told."""
        self._speaking, self._camera = True, camera
        try:
            yield self.unet
        finally:
            self._speaking, self._camera = False, None

    def _add_low_rank(self, rank: int, streams: Streams, device: torch.device) -> None:
        for name, module in self.unet.named_modules():
            if isinstance(module, nn.Linear) and name.endswith(ATTENTION):
                shape = (rank, module.in_features)
                self._weights[f"{name}/down"] = streams.normal(name, shape).to(device) / module.in_features**0.5
                self._weights[f"{name}/up"] = torch.zeros(module.out_features, rank, device=device)
                module.register_forward_hook(self._low_rank(name))

    def _low_rank(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self._speaking:
                return output
            down, up = (self._weights[f"{name}/{half}"].to(output.dtype) for half in ("down", "up"))
            return output + linear(linear(inputs[0], down), up)

        return hook

    def _add_camera(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not self._speaking or self._camera is None:
            return output
        down, up = (self._weights[f"camera/{half}"].to(output.dtype) for half in ("down", "up"))
        return output + linear(silu(linear(self._camera.to(output.dtype), down)), up)
