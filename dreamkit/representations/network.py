"""A hash grid and a small network: points -> some numbers, smooth, cheap, and learned fast."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.kernels.hashgrid import HashGridShape, hashgrid
from dreamkit.representations.representation import Group
from dreamkit.schedule import Number, check_rates, fixed
from dreamkit.streams import Streams

FOR_64_PIXELS = HashGridShape(levels=8, features=2, log2_entries=15, coarsest=8, finest=128)
"""The finest cells are half a pixel wide in pictures of 64 x 64. Larger pictures want more levels."""

POINTS_AT_ONCE = 2**17


@dataclass(frozen=True)
class Network:
    """Specification of a hash-grid network on the cube [-1, 1]^3: output(relu(hidden(features(x))))."""

    encoding: HashGridShape = FOR_64_PIXELS
    hidden: int = 32
    """Width of the one hidden layer."""
    table_rate: Number = 1e-2
    network_rate: Number = 1e-3
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise InputError(f"Network needs hidden > 0; got {self.hidden}")
        check_rates(self)

    def build(self, outputs: int, device: torch.device, streams: Streams) -> "HashNetwork":
        """Near 0 everywhere. Streams "init/table", "init/hidden" and "init/output"."""

        def layer(name: str, rows: int, columns: int) -> Tensor:
            return (2 * streams.uniform(name, (rows, columns)) - 1) * (3 / columns) ** 0.5

        shape = (self.encoding.total, self.encoding.features)
        values = (
            2e-4 * streams.uniform("init/table", shape) - 1e-4,
            layer("init/hidden", self.hidden, self.encoding.width),
            layer("init/output", outputs, self.hidden),
        )
        return HashNetwork(self, *(value.to(device).requires_grad_() for value in values))


@dataclass
class HashNetwork:
    """A network on a device: the leaf tensors that are optimised. Made by `Network.build`."""

    spec: Network
    table: Tensor
    hidden: Tensor
    output: Tensor

    def __call__(self, points: Tensor, outputs: int | None = None) -> Tensor:
        """[N, 3] world points -> [N, outputs]: the first `outputs`, or all; differentiable in the tensors, and twice in
        the points."""
        features = hashgrid((points + 1) / 2, self.table, self.spec.encoding, backend=self.spec.backend)
        return F.linear(F.relu(F.linear(features, self.hidden)), self.output[:outputs])

    @torch.no_grad()
    def in_parts(self, points: Tensor, function: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The outputs, or a function of points that uses them, at any number of points; without gradient."""
        function = self if function is None else function
        return torch.cat([function(part) for part in points.to(self.table).split(POINTS_AT_ONCE)])

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that is optimised: table, hidden, output."""
        return self.table, self.hidden, self.output

    def parameters(self, now: Network, inside: str = "") -> list[Group]:
        """Groups "table" and "network", their names with `inside` before them."""
        return [
            {"name": f"{inside}table", "params": [self.table], "lr": fixed(now.table_rate)},
            {"name": f"{inside}network", "params": [self.hidden, self.output], "lr": fixed(now.network_rate)},
        ]

    def tensors(self, inside: str = "") -> dict[str, Tensor]:
        """For a scene's state, their names with `inside` before them."""
        return {f"{inside}{part}": getattr(self, part) for part in ("table", "hidden", "output")}
