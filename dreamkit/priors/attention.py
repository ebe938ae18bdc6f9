"""Where a diffusers UNet looks: its attention, watched while it speaks.

Queries and keys are read off each attention layer's inputs by hooks and multiplied out again, so it does not matter by
which kernel the layer itself attends. Cross-attention says at which pixels a token is looked for; self-attention,
which pixels belong together: their product fills the object in.
"""

from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

FINEST = 32 * 32
"""Layers of more pixels than this are not watched: their self-attention would take too much memory."""


class Watched:
    """The attention of one call of a UNet on a batch; the maps are read afterwards."""

    def __init__(self, unet: Any):
        self.unet = unet
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._counts: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._hooks: list[Any] = []

    def __enter__(self) -> "Watched":
        for name, module in self.unet.named_modules():
            if name.endswith(("attn1", "attn2")):
                self._hooks.append(module.register_forward_pre_hook(self._reader(name[-5:]), with_kwargs=True))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Where the tokens marked in [B, L] are looked for, [B, 1, *size] in [0, 1], float32.

        Of the first B samples of the call. Ones for a sample of no such token, and where the UNet has no attention.
        """
        count, ones = len(tokens), torch.ones(len(tokens), 1, *size, device=tokens.device)
        shared = [pixels for kind, pixels in self._sums if kind == "attn2" and ("attn1", pixels) in self._sums]
        if not shared:
            return ones
        near, words = (self._sums[kind, max(shared)][:count] / self._counts[kind, max(shared)] for kind in KINDS)
        looked = near @ (words * tokens[:, None, :]).sum(2, keepdim=True)  # [B, N, 1]
        low, high = looked.amin(1, keepdim=True), looked.amax(1, keepdim=True)
        side = round(max(shared) ** 0.5)
        grid = ((looked - low) / (high - low).clamp(min=1e-12)).reshape(count, 1, side, side)
        grown = interpolate(grid, size, mode="bilinear", align_corners=False)
        return torch.where(tokens.any(1)[:, None, None, None], grown, ones)

    def _reader(self, kind: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def read(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen = inputs[0] if inputs else named["hidden_states"]
            if seen.shape[1] > FINEST:
                return
            told = named.get("encoder_hidden_states")
            query, key = (
                layer(value).unflatten(-1, (module.heads, -1)).transpose(1, 2).float()
                for layer, value in ((module.to_q, seen), (module.to_k, seen if told is None else told))
            )
            weights = (query @ key.transpose(-1, -2) * module.scale).softmax(-1).mean(1)  # [N, pixels, keys]
            place = (kind, seen.shape[1])
            self._sums[place] = weights + self._sums[place] if place in self._sums else weights
            self._counts[place] += 1

        return read


KINDS = ("attn1", "attn2")
"""diffusers' names for self-attention and cross-attention."""
