"""Small networks that a rule trains beside the scene: convolutions that are told a noise level, and where a camera is.

Their weights are drawn from named streams and kept in a dictionary, so that a checkpoint is that dictionary; they
compute in the dtype of what they are given.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear, silu

from dreamkit.diffusion import Level
from dreamkit.guidance.rule import Part
from dreamkit.priors.prior import CAMERA_NUMBERS
from dreamkit.streams import Streams

LEVEL_NUMBERS = 5
"""How many numbers tell a network the noise level: cos(j pi a), j = 0..4, with a = atan(k) / (pi / 2) in [0, 1]."""


def conditioning(level: Level, camera: Tensor | None, like: Tensor) -> Tensor:
    """What a network is told about each of B samples [B, LEVEL_NUMBERS + CAMERA_NUMBERS]; zeros for no camera."""
    angle = 2 * torch.atan(level.k)[:, None] * torch.arange(LEVEL_NUMBERS, dtype=torch.float64)
    where = torch.zeros(len(level), CAMERA_NUMBERS) if camera is None else camera
    return torch.cat([angle.cos().to(like), where.to(like)], 1)


LOSS_SCALE = 2.0**10
"""Of a loss on its way back. The mean over a picture's elements has a small slope in each of them, which a frozen
network in half precision would lose. A power of two changes no digit of a float32."""


class ConvNet:
    """Convolutions of 3 x 3 with SiLU between them; what it is told is added, by a linear map, before every SiLU.

    channels   of the input, of every layer, of the output
    strides    of the convolutions, one less than channels
    numbers    how many it is told
    last       factor of the last layer's first weights: 0 makes a fresh network say 0
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        numbers: int,
        last: float,
        streams: Streams,
        device: torch.device,
    ):
        self.strides, self.weights = tuple(strides), dict[str, Tensor]()
        end = len(strides) - 1
        for i, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
            # He's deviation (arXiv:1502.01852), so that signals keep their size from layer to layer.
            gain = last if i == end else 2**0.5
            self.weights[f"{i}/kernel"] = gain * streams.normal(f"{i}", (outputs, inputs, 3, 3)) / (9 * inputs) ** 0.5
            self.weights[f"{i}/bias"] = torch.zeros(outputs)
            if i < end:
                self.weights[f"{i}/told"] = streams.normal(f"{i}/told", (outputs, numbers)) / numbers**0.5
        self.weights = {name: value.to(device).requires_grad_() for name, value in self.weights.items()}

    def __call__(self, x: Tensor, facts: Tensor) -> Tensor:
        """x [B, C, h, w] and what is known about it [B, numbers] to [B, C', h', w']. Differentiable in all."""
        mine = {name: value.to(x.dtype) for name, value in self.weights.items()}
        for i, stride in enumerate(self.strides):
            x = conv2d(x, mine[f"{i}/kernel"], mine[f"{i}/bias"], stride, padding=1)
            if i < len(self.strides) - 1:
                x = silu(x + linear(facts, mine[f"{i}/told"])[..., None, None])
        return x


class Trained(Part):
    """A part that is weights and an AdamW (arXiv:1711.05101) of their own."""

    def __init__(self, weights: dict[str, Tensor], rate: float):
        self.weights = weights
        self.optimiser = torch.optim.AdamW(weights.values(), lr=rate)

    def learn(self, loss: Tensor) -> float:
        """One step down the loss, unless it or its gradient is not finite; returns it."""
        self.optimiser.zero_grad(set_to_none=True)
        (LOSS_SCALE * loss).backward()
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        torch._foreach_div_(gradients, LOSS_SCALE)
        if loss.isfinite() and all(bool(gradient.isfinite().all()) for gradient in gradients):
            self.optimiser.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        weights = {name: value.detach() for name, value in self.weights.items()}
        return {"weights": weights, "optimiser": self.optimiser.state_dict()}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        if self.weights.keys() != state["weights"].keys():
            raise ValueError("the weights of what a rule trains have other names")
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
