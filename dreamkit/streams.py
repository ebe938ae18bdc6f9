"""Named, counter-based random streams: randomness as a pure function of (seed, step, name).

No generator lives from one step to the next, so nothing random needs to be checkpointed: a resumed run draws what
the uninterrupted one would have drawn, a step can be replayed alone, and a new consumer of randomness, having a name
of its own, shifts nobody else's draws.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Streams:
    """The random streams of one step of one run.

    Numbers are drawn on the CPU and then moved, so that a seed means the same scene on every device.

    >>> s = Streams(seed=0, step=3)
    >>> torch.equal(s.normal("noise", (2,)), s.normal("noise", (2,)))
    True
    >>> torch.equal(s.normal("noise", (2,)), s.normal("level", (2,)))
    False
    """

    seed: int
    step: int
    scope: str = ""
    attempt: int = 0
    """Of a run that rolled back: each attempt draws new numbers, but for what is `still`."""

    def within(self, scope: str) -> "Streams":
        """The same step's streams for one of several consumers that would use the same names."""
        return replace(self, scope=f"{self.scope}{scope}/")

    def still(self) -> "Streams":
        """Streams that are the same at every step of the run: for noise that is drawn once and kept."""
        return replace(self, step=-2, attempt=0)

    def generator(self, name: str) -> torch.Generator:
        """A fresh CPU generator for the stream `name`, always in the same state."""
        seed = self.seed + (self.attempt << 32)
        digest = hashlib.blake2b(f"{seed}/{self.step}/{self.scope}{name}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def normal(self, name: str, shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
        """Independent N(0, 1) draws of the given shape, in the dtype and on the device of `like`."""
        return _as(torch.randn(shape, generator=self.generator(name), dtype=torch.float64), like)

    def uniform(self, name: str, shape: tuple[int, ...], like: Tensor | None = None) -> Tensor:
        """Independent U[0, 1) draws of the given shape, in the dtype and on the device of `like`."""
        return _as(torch.rand(shape, generator=self.generator(name), dtype=torch.float64), like)


def _as(draw: Tensor, like: Tensor | None) -> Tensor:
    if like is None:
        return draw.float()
    return draw.to(dtype=like.dtype, device=like.device, non_blocking=like.is_cuda)  # waits for no GPU
