"""A signed distance in a hash grid, seen as a volume: soft while it is found, a surface in the end.

density(x) = Psi(-s(x) / beta) / beta,   Psi(t) = exp(t) / 2 for t <= 0, 1 - exp(-t) / 2 above

(VolSDF, arXiv:2106.12052, eq. 2 and 3). beta, the width over which the density rises, is learned: as it falls, the fog
closes on the surface s = 0. All else is the hash grid's (`hashgrid.py`): its network's first output, which there is a
density before its activation, is here the distance, times the slope of the blob:

    s(x) = -(f(x) + blob(x)) / (blob_strength / blob_radius)

so that the scene begins as a sphere of radius `blob_radius`, with a gradient of length 1.

Exported is, as of every volume, the level whose silhouettes the pictures show. Density falls with the distance, so that
is a level set of s: the pictures' outlines lie about 2 beta outside of s = 0, and go to it with beta.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.errors import InputError
from dreamkit.images import Images
from dreamkit.representations.distil import learn
from dreamkit.representations.hashgrid import TAPS, HashGrid, HashGridScene
from dreamkit.representations.representation import Group, Scene, at_end
from dreamkit.schedule import Number, check_rates, fixed
from dreamkit.streams import Streams

UNIT = 0.1
"""World units by which a distance may be wrong, near the surface that a scene begins from."""
PROBES = 2048
"""Points at which the eikonal loss looks, each, of where the rays went and of the whole cube."""


@dataclass(frozen=True)
class SignedDistance:
    """Specification of a signed distance in the cube [-1, 1]^3. Lengths are in world units."""

    grid: HashGrid = field(default_factory=lambda: HashGrid(step=0.04))
    """Everything that it shares with a hash-grid radiance field. It begins as a sphere of radius grid.blob_radius."""
    width: float = 0.05
    """beta at the start."""
    least: float = 0.01
    """beta does not fall below this: the samples along a ray, `grid.step` apart, must not step over the surface."""
    width_rate: Number = 2e-3
    """Learning rate of log(beta)."""
    analytic: bool = True
    """Whether normals are the exact gradient of s, or its differences over `grid.normal_step`, which are smoother and
    reach farther (Neuralangelo, arXiv:2306.03092, section 3.1)."""

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.width:
            raise InputError(f"SignedDistance needs 0 < least <= width; got least {self.least}, width {self.width}")
        if not self.grid.blob_strength > 0:
            raise InputError(
                f"SignedDistance needs grid.blob_strength > 0, which over blob_radius is the network's scale of a "
                f"distance; got {self.grid.blob_strength}"
            )
        check_rates(self)

    def build(self, device: torch.device | str, streams: Streams) -> "SignedDistanceScene":
        """A fresh scene: a grey sphere with a soft rim. Streams of `HashGrid.build`."""
        return SignedDistanceScene(self, torch.device(device), streams)

    def from_scene(self, scene: Scene, device: torch.device | str, streams: Streams) -> "SignedDistanceScene":
        """A scene that looks like another one, taught by it as a hash grid is (`distil.learn`), its fog closed."""
        new = self.build(device, streams)
        with torch.no_grad():
            new.log_width.fill_(self.least).log_()
        learn(new, scene, device, streams)
        return new


class SignedDistanceScene(HashGridScene):
    """A hash-grid scene whose density follows a signed distance."""

    def __init__(self, spec: SignedDistance, device: torch.device, streams: Streams) -> None:
        super().__init__(spec.grid, device, streams)
        self.whole = spec
        self.log_width = torch.tensor(spec.width, device=device).log().requires_grad_()
        self.probes = self.network.table.new_zeros(0, 3)  # where the eikonal loss looks: chosen by each training view
        self._seen = self.probes  # the samples of the view that is being rendered

    @property
    def width(self) -> Tensor:
        """beta, differentiable."""
        return self.log_width.exp()

    @torch.no_grad()
    def after_step(self, step: int, streams: Streams, now: Any = None) -> None:
        """Refresh the occupancy grid, and keep beta above its limit: in place, so that it has a gradient there too."""
        self.log_width.clamp_(min=math.log(self.whole.least))
        super().after_step(step, streams)

    def distance(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N] signed distances, negative inside; differentiable in the parameters."""
        return -self._raw(points) / self._scale

    def gradient(self, points: Tensor) -> Tensor:
        """[N, 3] the gradient of the signed distance, differentiable in the parameters: exact, or by differences."""
        if self.whole.analytic:
            kept = torch.is_grad_enabled()
            with torch.enable_grad():
                at = points.detach().requires_grad_()
                (found,) = torch.autograd.grad(self.distance(at).sum(), at, create_graph=kept)
            return found
        taps = torch.tensor(TAPS, dtype=points.dtype, device=points.device)
        around = (points[:, None, :] + self.spec.normal_step * taps).reshape(-1, 3)
        return self.distance(around).reshape(-1, 4) @ taps / (4 * self.spec.normal_step)

    def slopes(self) -> Tensor:
        """[N] lengths of the gradient at points of the last training view and of the whole ball; for losses."""
        return self.gradient(self.probes).norm(dim=-1)

    def render(self, cameras: Cameras, streams: Streams | None = None, *, now: Any = None, **rest: Any) -> Images:
        """As a hash-grid scene; in training also the stream "eikonal"."""
        grid = None if now is None else now.grid
        images = super().render(cameras, streams, now=grid, **rest)
        if streams is not None:
            drawn = 2 * streams.uniform("eikonal", (PROBES, 3), like=self.network.table) - 1
            probes = torch.cat([self._seen[:: max(1, len(self._seen) // PROBES)], drawn])
            self.probes = probes[probes.norm(dim=-1) < self.spec.radius - 2 * self.spec.normal_step]
        self._seen = self.probes[:0]
        return images

    def parameters(self, now: Any = None) -> list[Group]:
        """Those of the hash grid, and "width"."""
        now = at_end(self.whole, now)
        return [
            *super().parameters(now.grid),
            {"name": "width", "params": [self.log_width], "lr": fixed(now.width_rate)},
        ]

    def density(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N] density per world unit, without gradient."""
        return self.network.in_parts(points, lambda part: self._opacity(self.distance(part)))

    @property
    def _scale(self) -> float:
        return self.spec.blob_strength / self.spec.blob_radius

    def _beginning(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        outline = distance + 2 * self.width.detach()  # pictures show the surface about so far outside of s = 0
        return -self._scale * outline, self._scale * (UNIT + distance.abs())

    def _tensors(self) -> dict[str, Tensor]:
        return super()._tensors() | {"width": self.log_width}

    def _opacity(self, distance: Tensor) -> Tensor:
        """VolSDF's density, equations 2 and 3."""
        rim = 0.5 * torch.exp(-distance.abs() / self.width)
        return torch.where(distance >= 0, rim, 1 - rim) / self.width

    def _field(self, points: Tensor) -> tuple[Tensor, Tensor]:
        self._seen = points.detach()
        out = self.network(points)
        distance = -(out[:, 0] + self._blob(points)) / self._scale
        return self._opacity(distance), torch.sigmoid(out[:, 1:])

    def _normal(self, points: Tensor) -> Tensor:
        return F.normalize(self.gradient(points), dim=-1, eps=1e-6)
