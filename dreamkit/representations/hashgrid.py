"""A radiance field in a hash grid: multiresolution features, a small network, a grid of what is empty.

density(x) = softplus(f(x) + blob(x)),  colour(x) = sigmoid(g(x)),  (f, g) = network(features(x))

The features are Instant-NGP's (arXiv:2201.05989). The blob makes a ball of fog at the start, so that there is something
to carve: strength * (1 - |x| / radius) (Magic3D, arXiv:2211.10440, section 4.1).
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.errors import InputError
from dreamkit.images import Images
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.kernels.march import cell_points, update_occupancy
from dreamkit.render.volume import render_volume
from dreamkit.representations.distil import learn
from dreamkit.representations.network import FOR_64_PIXELS, Network
from dreamkit.representations.representation import (
    Backdrop,
    Background,
    Colour,
    Group,
    LightName,
    RandomColour,
    Scene,
    Shading,
    at_end,
)
from dreamkit.schedule import Number, check_rates
from dreamkit.streams import Streams

TAPS = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))
"""Corners of a tetrahedron: four values give a gradient, exact for a linear function."""

NOTHING = -50.0
"""Added to the density before its activation where nothing may be: softplus makes it less than 1e-21."""

SOLID, RIM = 60.0, 0.03
"""Densities before their activation go from -SOLID to SOLID, within RIM world units to either side of a surface that
a scene begins from."""

DENSER = 2
"""Pictures that are not for training have samples so many times as dense: the scene looks like the mean of training
views, whose samples stand at random places."""

RAYS_AT_ONCE = 2**15


@dataclass(frozen=True)
class HashGrid:
    """Specification of a hash-grid scene in the cube [-1, 1]^3.

    Lengths are in world units. A cell is empty while its density is below `empty`: at most 1 - exp(-empty * chord) of
    a pixel is lost by leaving empty cells out.
    """

    encoding: HashGridShape = FOR_64_PIXELS
    hidden: int = 32
    """Width of the network's one hidden layer."""
    step: float = 0.06
    """Distance between samples along a ray of a training view; the cube's diagonal has 58."""
    radius: float = 1.8
    """The scene is empty outside this ball, so that nothing grows where not every camera sees it; 1.8 is no limit."""
    blob_strength: float = 10.0
    blob_radius: float = 0.5
    cells: int = 32
    """Cells of the occupancy grid, along each axis."""
    empty: float = 0.05
    refresh: int = 8
    """Steps between two looks at what is empty."""
    forget: float = 0.7
    """What is left at each look of a cell's remembered density."""
    normal_step: float = 0.02
    """Distance of the taps of finite-difference normals."""
    shading: Shading = field(default_factory=Shading)
    background: Background = field(default_factory=RandomColour)
    preview: Colour = (1.0, 1.0, 1.0)
    """Background of pictures outside of training."""
    table_rate: Number = 1e-2
    network_rate: Number = 1e-3
    rays_at_once: int | None = None
    """In training; fewer than a step's rays save memory, not time (`render_volume`'s chunk). None is all of them."""
    backend: str = "auto"

    def __post_init__(self) -> None:
        lengths = {"step": self.step, "blob_radius": self.blob_radius, "normal_step": self.normal_step}
        counts = {"hidden": self.hidden, "cells": self.cells, "refresh": self.refresh}
        counts |= {} if self.rays_at_once is None else {"rays_at_once": self.rays_at_once}
        for name, value in (lengths | counts).items():
            if not value > 0:
                raise InputError(f"HashGrid needs {name} > 0; got {value}")
        if not 0 <= self.forget < 1:
            raise InputError(f"HashGrid needs forget in [0, 1): the share of a density that is kept; got {self.forget}")
        check_rates(self)

    @property
    def network(self) -> Network:
        """Features and network alone."""
        return Network(self.encoding, self.hidden, self.table_rate, self.network_rate, self.backend)

    def build(self, device: torch.device | str, streams: Streams) -> "HashGridScene":
        """A fresh scene: a ball of grey fog. Streams "init/table", "init/hidden" and "init/output"."""
        return HashGridScene(self, torch.device(device), streams)

    def from_scene(self, scene: Scene, device: torch.device | str, streams: Streams) -> "HashGridScene":
        """A scene that looks like another one, with a surface or a density, taught by it (`distil.learn`).

        About ten seconds on one core, whatever the scene. Raises RunError if there is nothing, InputError for a scene
        that is neither.
        """
        new = self.build(device, streams)
        learn(new, scene, device, streams)
        return new


class HashGridScene:
    """One hash-grid scene: a network, and grids of what is occupied and what is opaque."""

    bounds = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))

    def __init__(self, spec: HashGrid, device: torch.device, streams: Streams) -> None:
        self.spec = spec
        self.network = spec.network.build(4, device, streams)
        grid = (spec.cells,) * 3
        self.remembered = torch.zeros(grid, device=device)
        self.occupied = torch.ones(grid, dtype=torch.bool, device=device)
        self.thinnest = torch.zeros(grid, device=device)
        self.blob = torch.tensor([spec.blob_strength, spec.blob_radius, spec.radius], device=device)
        self.backdrop = Backdrop(spec.background, spec.preview, device)

    def render(
        self,
        cameras: Cameras,
        streams: Streams | None = None,
        *,
        now: HashGrid | None = None,
        shading: LightName | None = None,
        normals: bool = False,
        background: Tensor | Colour | None = None,
    ) -> Images:
        """Pictures of the scene; see Scene.render. Streams "jitter", "background", "shading" and "light"."""
        now = at_end(self.spec, now)
        cameras = cameras.to(self.network.table.device)
        shading = shading or ("albedo" if streams is None else now.shading.choose(streams))
        light = now.shading.light(shading, cameras, streams)
        size = (len(cameras), cameras.height, cameras.width)
        return render_volume(
            cameras,
            self._field,
            self.occupied,
            step=now.step if streams is not None else now.step / DENSER,
            background=self.backdrop.behind(len(cameras), streams, background),
            jitter=0.5 if streams is None else streams.uniform("jitter", size, like=self.network.table),
            normal=self._normal if normals or light is not None else None,
            light=light,
            thinnest=self.thinnest,
            chunk=now.rays_at_once if torch.is_grad_enabled() else RAYS_AT_ONCE,
            backend=now.backend,
        )

    def parameters(self, now: HashGrid | None = None) -> list[Group]:
        """Groups "table", "network" and, where it is learned, "background"."""
        now = at_end(self.spec, now)
        return self.network.parameters(now.network) + self.backdrop.parameters(now.background)

    @torch.no_grad()
    def after_step(self, step: int, streams: Streams, now: HashGrid | None = None) -> None:
        """Every `refresh` steps, look at one random point of each cell (stream "occupancy")."""
        spec = self.spec
        if step % spec.refresh:
            return
        draw = streams.uniform("occupancy", (spec.cells**3, 3), like=self.network.table)
        seen = self.density(cell_points(spec.cells, draw)).reshape(self.remembered.shape)
        # A scene that is thin everywhere must not be emptied all at once.
        empty = seen.mean().clamp(max=spec.empty)
        self.remembered, occupied = update_occupancy(self.remembered, seen, threshold=empty, decay=spec.forget)
        # Neighbours count: a surface may lie between two looks, and may grow. A NaN is to be seen, not skipped.
        self.occupied = _widest((occupied | seen.isnan()).float()).bool()
        self.thinnest = -_widest(-seen)

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors, by name."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state, in place. Raises ValueError for missing or unknown names, for other shapes, and for one
        that means another density, as it adds to another blob."""
        mine = self._tensors()
        shapes = {name: tuple(tensor.shape) for name, tensor in mine.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != given:
            raise ValueError(f"not a state of this HashGrid: it has {shapes}; given {given}")
        if not torch.equal(state["blob"].cpu(), self.blob.cpu()):
            other = state["blob"].tolist()
            raise ValueError(f"what was added to a blob of {other} is another scene on one of {self.blob.tolist()}")
        for name, tensor in mine.items():
            tensor.copy_(state[name])

    def density(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N] density per world unit, without gradient."""
        return self.network.in_parts(points, lambda part: F.softplus(self._raw(part)))

    def colour(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N, 3] unlit colour in [0, 1], without gradient."""
        return self.network.in_parts(points, lambda part: self._field(part)[1])

    def misfit(self, points: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """See `distil.Student`."""
        out = self.network(points)
        want, unit = self._beginning(distance)
        error = (out[:, 0] + self._blob(points) - want) / unit
        inside = points.norm(dim=-1) < self.spec.radius
        return 4 * torch.where(inside, error, 0.0).square().mean(), torch.sigmoid(out[:, 1:])

    def _beginning(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """The network's first output, with the blob, that a surface at these signed distances wants; and its unit."""
        return (-SOLID / RIM * distance).clamp(-SOLID, SOLID), torch.full_like(distance, SOLID)

    def _tensors(self) -> dict[str, Tensor]:
        grids = {name: getattr(self, name) for name in ("remembered", "occupied", "thinnest", "blob")}
        return self.network.tensors() | grids | self.backdrop.tensors()

    def _field(self, points: Tensor) -> tuple[Tensor, Tensor]:
        out = self.network(points)
        return F.softplus(out[:, 0] + self._blob(points)), torch.sigmoid(out[:, 1:])

    def _raw(self, points: Tensor) -> Tensor:
        """[N] density before its activation."""
        return self.network(points, 1).squeeze(-1) + self._blob(points)

    def _blob(self, points: Tensor) -> Tensor:
        radius = points.norm(dim=-1)
        blob = self.spec.blob_strength * (1 - radius / self.spec.blob_radius)
        return torch.where(radius < self.spec.radius, blob, NOTHING)

    def _normal(self, points: Tensor) -> Tensor:
        """Unit outward normals [N, 3] by finite differences, which need no second derivative of the hash grid.

        Of the density before its activation: the direction is the same, and does not fade where density saturates.
        Off by an angle of about normal_step times the surface's curvature.
        """
        taps = torch.tensor(TAPS, dtype=points.dtype, device=points.device)
        around = (points[:, None, :] + self.spec.normal_step * taps).reshape(-1, 3)
        return F.normalize(-self._raw(around).reshape(-1, 4) @ taps, dim=-1, eps=1e-6)


def _widest(grid: Tensor) -> Tensor:
    """[G, G, G] the largest value among each cell and its 26 neighbours."""
    return F.max_pool3d(grid[None], 3, stride=1, padding=1)[0]
