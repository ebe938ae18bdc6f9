"""A surface cut out of a tetrahedral grid: signed distances and a deformation at its vertices, colour from a network.

The surface is where the signed distance, linear in every tetrahedron, is zero (DMTet, arXiv:2111.04276); pictures are
rasterised, so they may be large. What is optimised at a vertex x of the grid is

    distance(x) = max(start(x) + s(x), |x| - radius),   position(x) = x + deformation * cell * tanh(d(x))

with s and d stored at each vertex (nvdiffrec, arXiv:2111.12503; Magic3D, arXiv:2211.10440) or given by a hash-grid
network of x (Fantasia3D, arXiv:2303.13873). The ball keeps the surface closed and where every camera sees it.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dreamkit.assets.files import read
from dreamkit.cameras import Cameras
from dreamkit.errors import InputError, RunError
from dreamkit.images import Images
from dreamkit.kernels.tets import Surface, TetGrid, marching_tetrahedra, subdivide, tet_grid
from dreamkit.meshes import Mesh
from dreamkit.render.surface import Fragments, render_surface
from dreamkit.render.volume import Light, lit
from dreamkit.representations.distil import learn_colours
from dreamkit.representations.hashgrid import HashGridScene
from dreamkit.representations.network import HashNetwork, Network
from dreamkit.representations.representation import (
    Backdrop,
    Background,
    Colour,
    Group,
    LightName,
    RandomColour,
    Scene,
    Shading,
    Solid,
    Volume,
    at_end,
)
from dreamkit.representations.surface import signed_distance, surface_of
from dreamkit.schedule import Geometric, Number, check_rates, fixed
from dreamkit.streams import Streams

CLAY = 0.5
"""The grey of a scene without colour."""
OFFSET = 0.1
"""World units by which an output of 1 of a geometry network changes the signed distance: about its range at first."""
FACES = 200_000
"""At most so many has the surface that is found in a volume to begin from; it is only measured."""
FINEST = 8
"""Less often than this a grid is cut: each time it holds eight times as many tetrahedra."""


@dataclass(frozen=True)
class Ellipsoid:
    """To begin from: an ellipsoid round the origin with these half axes, world units."""

    radii: Colour = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if not min(self.radii) > 0:
            raise InputError(f"Ellipsoid needs radii > 0; got {self.radii}")

    def distance(self, points: Tensor) -> Tensor:
        """[N, 3] -> [N], to first order in the distance; exact for a sphere."""
        radii = torch.tensor(self.radii, dtype=points.dtype, device=points.device)
        near, steep = (points / radii).norm(dim=-1), (points / radii**2).norm(dim=-1)
        return torch.where(steep > 0, (near - 1) * near / steep.clamp(min=1e-12), -radii.min())


@dataclass(frozen=True)
class MeshFile:
    """To begin from: the surface of a closed mesh in a file, moved to the origin and scaled."""

    names_files: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    """Read whenever a run starts, also one that is resumed."""
    size: float = 0.7
    """Distance from the middle to the farthest corner of the mesh's bounding box, world units."""

    def distance(self, points: Tensor) -> Tensor:
        """[N, 3] -> [N], exact. Raises InputError for a file that cannot be read."""
        mesh = read(self.path)
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        scale = self.size / max(float(((high - low) ** 2).sum() ** 0.5) / 2, 1e-12)
        return signed_distance(Mesh((mesh.vertices - (low + high) / 2) * scale, mesh.faces), points)


@dataclass(frozen=True)
class Explicit:
    """Geometry as numbers of their own at each vertex of the grid."""

    sdf_rate: Number = 1e-2
    """World units a step, about."""
    deform_rate: Number = 1e-2

    def __post_init__(self) -> None:
        check_rates(self)


FALLING = Network(table_rate=Geometric(1e-2, 2e-3), network_rate=Geometric(2e-3, 2e-4))
"""Rates that fall: the guidance's noise then leaves no grain on the surface."""


@dataclass(frozen=True)
class DMTet:
    """Specification of a surface in a tetrahedral grid. Lengths are in world units."""

    resolution: int = 24
    """Cubes of the first grid along each axis; each is worth twelve tetrahedra."""
    subdivisions: Number = 0.0
    """How often the grid has been cut twice as fine: `Switch(0, 1, 0.5)` does it half-way, `Linear(0, 3)` twice."""
    radius: float = 0.9
    """The surface stays inside this ball; the grid fills the cube round it."""
    start: Ellipsoid | MeshFile = Ellipsoid()
    geometry: Explicit | Network = FALLING
    colour: Network | None = field(default_factory=Network)
    """None shows grey clay: for a stage that looks at normals only."""
    deformation: float = 0.2
    """How far a vertex moves along each axis, in cells: up to 0.2, no tetrahedron of the first grid turns over."""
    shading: Shading = field(default_factory=Shading)
    background: Background = field(default_factory=RandomColour)
    preview: Colour = (1.0, 1.0, 1.0)
    """Background of pictures outside of training."""
    backend: str = "auto"

    def __post_init__(self) -> None:
        if self.resolution < 2:
            raise InputError(f"DMTet needs a resolution of at least 2; got {self.resolution}")
        if not 0 < self.radius <= 1:
            raise InputError(f"DMTet needs a radius in (0, 1], as the scene lies in [-1, 1]^3; got {self.radius}")
        if not 0 <= self.deformation < 0.5:
            raise InputError(f"DMTet needs a deformation in [0, 0.5) cells; got {self.deformation}")

    def build(self, device: torch.device | str, streams: Streams) -> "DMTetScene":
        """A fresh scene in the shape of `start`. Streams of the networks, under "geometry/" and "colour/"."""
        grid = _first_grid(self, torch.device(device))
        return DMTetScene(self, streams, grid, self.start.distance(grid.vertices), grid.vertices)

    def from_scene(self, scene: Scene, device: torch.device | str, streams: Streams) -> "DMTetScene":
        """A scene in the shape and colour of another one.

        Of a surface, its signed distance; of a volume, that of the density level whose silhouettes its pictures show.
        Its colour network goes on as it is if this one is alike, else this one is fitted to the colours seen on the
        surface (`distil.learn_colours`, about three seconds on one core).
        Raises RunError if there is nothing, InputError for a scene that is neither.
        """
        same = (self.resolution, self.radius)
        if isinstance(scene, DMTetScene) and (scene.spec.resolution, scene.spec.radius) == same:
            grid = TetGrid(*(part.to(device) for part in scene.grid))
            sdf, position = (value.detach().to(device) for value in scene.values())
        else:
            grid = _first_grid(self, torch.device(device))
            position = grid.vertices
            mesh, _ = surface_of(scene, FACES, 2 * self.resolution)
            sdf = signed_distance(mesh, position)
        new = DMTetScene(self, streams, grid, sdf, position)
        albedo = new.albedo
        if not new.take_colour(scene) and albedo is not None and isinstance(scene, Solid | Volume):
            learn_colours(lambda p: torch.sigmoid(albedo(p)), albedo.weights, new.mesh(), scene, device, streams)
        return new


class DMTetScene:
    """One such surface: the grid, what is optimised, and what it began from."""

    def __init__(self, spec: DMTet, streams: Streams, grid: TetGrid, sdf: Tensor, position: Tensor) -> None:
        """On the first grid of `spec`, or one cut from it, with signed distances [V] and positions [V, 3] to begin
        with."""
        device, count = sdf.device, len(sdf)
        self.spec, self.grid = spec, grid
        # What the numbers of a state mean hangs on these two.
        self.frame = torch.tensor([spec.radius, spec.deformation], device=device)
        self.network: HashNetwork | None = None
        if isinstance(spec.geometry, Network):
            self.network = spec.geometry.build(4, device, streams.within("geometry"))
        else:
            self.sdf = sdf.new_zeros(count).requires_grad_()
            self.deform = sdf.new_zeros(count, 3).requires_grad_()
        with torch.no_grad():  # so that they begin there whatever the parameters say
            offset, move = self._offsets()
            self.start, self.anchor = sdf - offset, position - move
        self.albedo = None if spec.colour is None else spec.colour.build(3, device, streams.within("colour"))
        self.backdrop = Backdrop(spec.background, spec.preview, device)
        self.wanted = self.cuts  # how often the grid should have been cut by the last training view
        self.shown: tuple[Tensor, Surface] | None = None  # by the last view: `cut`, with its graph

    @property
    def cuts(self) -> int:
        """How often the grid has been cut finer."""
        return next(n for n in range(FINEST) if _vertices(self.spec.resolution << n) >= len(self.grid.vertices))

    @property
    def cell(self) -> float:
        """Length of a cube of the grid, world units."""
        return 2 * self.spec.radius / (self.spec.resolution << self.cuts)

    # ---- The surface ------------------------------------------------------------------------------------------------

    def values(self) -> tuple[Tensor, Tensor]:
        """Signed distances [V] and positions [V, 3] at the grid's vertices, differentiable in the parameters."""
        offset, move = self._offsets()
        outside = self.grid.vertices.norm(dim=-1) - self.spec.radius
        return torch.maximum(self.start + offset, outside), self.anchor + move

    def cut(self) -> tuple[Tensor, Surface]:
        """Signed distances [V] as they are now, and the surface cut out by them."""
        sdf, position = self.values()
        return sdf, marching_tetrahedra(position, sdf, self.grid.tets, backend=self.spec.backend)

    def triangles(self) -> tuple[Tensor, Tensor]:
        """Vertices [M, 3] and faces [F, 3] of the surface that the last view showed, with its graph; for losses."""
        _, surface = self.shown or self.cut()
        return surface.vertices, surface.faces

    def distances(self) -> tuple[Tensor, Tensor]:
        """Signed distances [V] at the grid's vertices, as in the last view, and its edges [E, 2]; for losses."""
        sdf, _ = self.shown or self.cut()
        return sdf, self.grid.edges

    def mesh(self) -> Mesh:
        """The surface now. Raises RunError if there is none."""
        with torch.no_grad():
            _, found = self.cut()
        if not len(found.faces):
            raise RunError(
                "There is no surface: the signed distance has the same sign everywhere. Look at the run's images to "
                "see when it went; then lower the weights of losses that shrink the object (opacity) and the learning "
                "rate of the geometry, or add losses.sdf_sign, which brings it back, or begin from a larger shape."
            )
        return Mesh(found.vertices.float().cpu().numpy(), found.faces.int().cpu().numpy())

    @torch.no_grad()
    def colour(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N, 3] unlit colour in [0, 1], without gradient."""
        if self.albedo is None:
            return torch.full_like(points, CLAY)
        return torch.sigmoid(self.albedo.in_parts(points))

    # ---- A scene of the loop ----------------------------------------------------------------------------------------

    def render(
        self,
        cameras: Cameras,
        streams: Streams | None = None,
        *,
        now: DMTet | None = None,
        shading: LightName | None = None,
        normals: bool = False,
        background: Tensor | Colour | None = None,
    ) -> Images:
        """Pictures of the surface; see Scene.render. Streams "background", "shading" and "light".

        Without a surface they show the background, and their gradient is 0. A scene without colour is shown as clay
        outside of training.
        """
        now = at_end(self.spec, now)
        if streams is not None:
            self.wanted = max(self.wanted, int(fixed(now.subdivisions)))
        if shading is None:
            plain: LightName = "albedo" if self.albedo is not None else "textureless"
            shading = plain if streams is None else now.shading.choose(streams)
        cameras = cameras.to(self.anchor.device)
        light = now.shading.light(shading, cameras, streams)
        self.shown = self.cut()
        _, surface = self.shown
        return render_surface(
            surface.vertices,
            surface.faces,
            cameras,
            partial(self._shade, light=light),
            background=self.backdrop.behind(len(cameras), streams, background),
            normals=normals,
            backend=now.backend,
        )

    def parameters(self, now: DMTet | None = None) -> list[Group]:
        """Groups "sdf" and "deform", or "geometry/table" and "geometry/network"; those of "colour" and "background"."""
        now = at_end(self.spec, now)
        groups: list[Group] = []
        if self.network is not None and isinstance(now.geometry, Network):
            groups = self.network.parameters(now.geometry, "geometry/")
        elif isinstance(now.geometry, Explicit):
            groups = [
                {"name": "sdf", "params": [self.sdf], "lr": fixed(now.geometry.sdf_rate)},
                {"name": "deform", "params": [self.deform], "lr": fixed(now.geometry.deform_rate)},
            ]
        if self.albedo is not None and now.colour is not None:
            groups += self.albedo.parameters(now.colour, "colour/")
        return groups + self.backdrop.parameters(now.background)

    @torch.no_grad()
    def after_step(self, step: int, streams: Streams, now: DMTet | None = None) -> dict[str, Tensor] | None:
        """Cut the grid finer when it is time. The surface stays where it is.

        Returns, for each parameter group whose shape changed, which old row each new row continues (-1: none), or None.
        """
        self.shown = None
        if now is not None:
            self.wanted = max(self.wanted, int(fixed(now.subdivisions)))
        if self.wanted <= self.cuts:
            return None
        sdf, position = self.values()
        old, kept = len(sdf), self._parts()
        edges, self.grid = self.grid.edges, subdivide(self.grid)

        def finer(values: Tensor) -> Tensor:
            return torch.cat([values, values[edges].mean(1)])

        for name, tensor in kept.items():
            setattr(self, name, finer(tensor).requires_grad_())
        # What the finer parameters say is taken off what the surface began from, so that the sum is as before.
        offset, move = self._offsets()
        self.start, self.anchor = finer(sdf) - offset, finer(position) - move
        rows = torch.arange(len(self.start), device=self.start.device)
        return {name: torch.where(rows < old, rows, -1) for name in kept} or None

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors, by name."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state, also one whose grid has been cut finer; the parameters stay the same tensors, at the
        state's sizes. Raises ValueError for a state of another specification."""
        mine = {name: list(tensor.shape) for name, tensor in self._tensors().items()}
        given = {name: list(tensor.shape) for name, tensor in state.items()}
        grid = {"start", "anchor", *self._parts()}
        # One size, of a grid that comes from the first one; all else as it is.
        sizes = {shape[0] for name, shape in given.items() if name in grid and shape}
        same = {name: shape[1:] if name in grid else shape for name, shape in mine.items()}
        also = {name: shape[1:] if name in grid else shape for name, shape in given.items()}
        known = {_vertices(self.spec.resolution << n) for n in range(FINEST)}
        if same != also or len(sizes) != 1 or not sizes <= known:
            raise ValueError(f"not a state of this DMTet: it has {mine}; given {given}")
        if not torch.equal(state["frame"].to(self.frame), self.frame):
            raise ValueError(
                f"not a state of this DMTet: its radius and deformation are {self.frame.tolist()}; given "
                f"{state['frame'].tolist()}"
            )
        self._regrid(sizes.pop())
        for name, tensor in self._tensors().items():
            tensor.data = state[name].to(tensor).clone()
        self.wanted, self.shown = self.cuts, None

    @torch.no_grad()
    def take_colour(self, scene: Scene) -> bool:
        """Go on with the colour network of another scene, and its background, if they are of the same kind.

        Returns whether the networks are.
        """
        if isinstance(scene, HashGridScene):
            table, hidden, output = scene.network.weights
            found = (table, hidden, output[1:])
        elif isinstance(scene, DMTetScene) and scene.albedo is not None:
            found = scene.albedo.weights
        else:
            return False
        if self.backdrop.learned is not None and scene.backdrop.learned is not None:
            self.backdrop.learned.copy_(scene.backdrop.learned)
        mine = () if self.albedo is None else self.albedo.weights
        alike = [a.shape for a in mine] == [b.shape for b in found]
        for a, b in zip(mine, found if alike else mine, strict=True):
            a.copy_(b)
        return alike

    def _parts(self) -> dict[str, Tensor]:
        """The parameters that stand at the grid's vertices, by the names of their groups."""
        return {} if self.network is not None else {"sdf": self.sdf, "deform": self.deform}

    def _tensors(self) -> dict[str, Tensor]:
        networks = {} if self.network is None else self.network.tensors("geometry/")
        networks |= {} if self.albedo is None else self.albedo.tensors("colour/")
        begun = {"start": self.start, "anchor": self.anchor, "frame": self.frame}
        return begun | self._parts() | networks | self.backdrop.tensors()

    def _offsets(self) -> tuple[Tensor, Tensor]:
        """What the parameters add to the signed distance [V] and to the position [V, 3] of each vertex."""
        limit = self.spec.deformation * self.cell
        if self.network is None:
            return self.sdf, limit * torch.tanh(self.deform)
        out = self.network(self.grid.vertices)
        return OFFSET * out[:, 0], limit * torch.tanh(out[:, 1:])

    def _shade(self, seen: Fragments, light: Light | None) -> Tensor:
        albedo = torch.full_like(seen.position, CLAY)
        if self.albedo is not None:
            albedo = torch.sigmoid(self.albedo(seen.position))
        if light is None:
            return albedo
        return lit(light, light.position[seen.camera], seen.position, albedo, seen.normal)

    def _regrid(self, count: int) -> None:
        """The grid with `count` vertices that comes from the first one."""
        if len(self.grid.vertices) > count:
            self.grid = _first_grid(self.spec, self.grid.vertices.device)
        while len(self.grid.vertices) < count:
            self.grid = subdivide(self.grid)


def _first_grid(spec: DMTet, device: torch.device) -> TetGrid:
    grid = tet_grid(spec.resolution, device=device)
    return grid._replace(vertices=grid.vertices * spec.radius)


def _vertices(resolution: int) -> int:
    """How many vertices a grid has, whether made at this resolution or cut finer to it."""
    return (resolution + 1) ** 3 + resolution**3
