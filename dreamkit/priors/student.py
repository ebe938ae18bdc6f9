"""A trainable student of a diffusers UNet: a low-rank change to its attention layers, or a full copy of it.

The low-rank student shares the frozen network's weights: it adds up(down(x)) to the output of every attention layer
(LoRA, arXiv:2106.09685) by hooks that are there only while the student speaks, so it costs a few megabytes. Where the
camera stands (the 12 numbers of camera_to_world) is embedded and added to the embedding of time. Every `up` and the
camera's embedding start at zero, so a fresh student says what the frozen network says.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from dreamkit.streams import Streams

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class UNetStudent:
    """A changed UNet; `speaking(camera)` is the time in which `unet` is the student."""

    def __init__(self, unet: Any, rank: int | None, camera_numbers: int, streams: Streams):
        self.unet = unet if rank is not None else copy.deepcopy(unet).float()
        self._layers: dict[str, nn.Linear] = {} if rank is None else dict(_attention(unet))
        device, width = next(unet.parameters()).device, self.unet.time_embedding.linear_2.out_features

        def pair(name: str, rank: int, inputs: int, outputs: int) -> dict[str, Tensor]:
            down = streams.normal(name, (rank, inputs)).to(device) / inputs**0.5
            return {f"{name}/down": down, f"{name}/up": torch.zeros(outputs, rank, device=device)}

        self._weights = dict(self.unet.named_parameters()) if rank is None else {}
        for name, layer in self._layers.items():
            self._weights |= pair(name, rank or 0, layer.in_features, layer.out_features)
        self._weights |= pair("camera", 64, camera_numbers, width)
        for value in self._weights.values():
            value.requires_grad_()

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return self._weights

    @contextmanager
    def speaking(self, camera: Tensor | None) -> Iterator[Any]:
        """Inside, `unet` answers as the student; camera [N, numbers], zeros or None where it is not told."""
        hooks = [layer.register_forward_hook(partial(self._low_rank, name)) for name, layer in self._layers.items()]
        if camera is not None:
            hooks.append(self.unet.time_embedding.register_forward_hook(partial(self._add_camera, camera)))
        try:
            yield self.unet
        finally:
            for hook in hooks:
                hook.remove()

    def _low_rank(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = self._halves(name, output)
        return output + linear(linear(inputs[0], down), up)

    def _add_camera(self, camera: Tensor, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        down, up = self._halves("camera", output)
        return output + linear(silu(linear(camera.to(output.dtype), down)), up)

    def _halves(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._weights[f"{name}/down"].to(like.dtype), self._weights[f"{name}/up"].to(like.dtype)


def _attention(unet: Any) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(ATTENTION):
            yield name, module
