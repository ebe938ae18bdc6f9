"""A triangle mesh of fixed topology, painted: for texturing a shape that is there, and for refining it.

    position(v) = base(v) + smoothed(offset)(v)

Offsets stand at the distinct positions of the base mesh, so that seams of the texture stay closed, and are averaged
`smoothing` times over neighbours, so that what moves is a patch and not a vertex: descent in the averaged space is the
explicit form of Nicolet, Jacobson and Jakob, Large Steps in Inverse Rendering of Geometry (2021), whose (I + lambda L)
is solved for instead. Colour is a texture or a network (`paint.py`); pictures are unlit, or lit by an environment.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dreamkit.assets.bake import weld
from dreamkit.assets.files import read
from dreamkit.assets.parts import Note
from dreamkit.assets.prepare import Placement, cube_sphere, place, with_texture_coordinates
from dreamkit.cameras import Cameras
from dreamkit.disk import expanded
from dreamkit.errors import InputError
from dreamkit.images import Images
from dreamkit.kernels.query import surface as mesh_queries
from dreamkit.kernels.raster import edge_neighbours
from dreamkit.meshes import Mesh
from dreamkit.render.lighting import Environment, LightMaps, display, prefilter, shade
from dreamkit.render.mesh import colour_at
from dreamkit.render.surface import Fragments, render_surface
from dreamkit.render.volume import Light, lit
from dreamkit.representations.distil import learn_colours
from dreamkit.representations.network import Network
from dreamkit.representations.paint import (
    LatentPaint,
    LatentTexture,
    Material,
    NetworkPaint,
    Paint,
    Texture,
    begun,
    latents_of,
    restored,
)
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
from dreamkit.representations.surface import baked, surface_of
from dreamkit.schedule import Number, check_rates, fixed
from dreamkit.streams import Streams
from dreamkit.triangles import directions, summed, unique_edges

SHAPE = ("vertices", "faces", "uv", "placement")
"""What a state says of the base mesh; all else follows from it."""


@dataclass(frozen=True)
class MeshSurface:
    """Specification of a painted mesh. Lengths are in world units."""

    names_files: ClassVar[tuple[str, ...]] = ("source",)

    source: str = ""
    """A mesh file (`assets.files.READ`); without one, a ball of `ball` world units."""
    radius: float = 0.8
    """A file's mesh is moved and scaled so that it just fits this ball; what is exported has its old place and size."""
    ball: float = 0.5
    cells: int = 16
    """The ball has 12 cells^2 faces."""
    keep_geometry: bool = False
    """Whether the shape stays as it is, to the bit, and only the paint changes."""
    vertex_rate: Number = 5e-3
    smoothing: int = 8
    paint: Texture | LatentTexture | Network = field(default_factory=Texture)
    texture_size: int = 1024
    """Texels along each side of the maps that a network paint is baked into."""
    environment: Environment | None = None
    """Light from all round, from `render.lighting`; without it, pictures show the colour as it is (or `shading`)."""
    light_size: int = 64
    """Texels along the edges of the environment's map: mirrors show no finer detail than 90 / light_size degrees."""
    shading: Shading = field(default_factory=Shading)
    """How training views are lit where there is no environment."""
    background: Background = field(default_factory=RandomColour)
    preview: Colour = (1.0, 1.0, 1.0)
    """Background of pictures outside of training."""
    face_budget: int = 10_000
    """Faces that the surface of a volume is cut down to, where the scene begins from one."""
    grid_resolution: int = 96
    """Nodes along each side of the grid on which that surface is found."""
    opaque: float = 0.5
    """Opacity above which a picture of the volume shows the object. Less keeps thin parts that are still faint: a mesh
    can make them thinner, but not put together what begins in pieces."""
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in ("radius", "ball", "cells", "texture_size", "light_size"):
            if not getattr(self, name) > 0:
                raise InputError(f"MeshSurface needs {name} > 0; got {getattr(self, name)}")
        if not max(self.radius, self.ball) <= 1:
            raise InputError(
                f"MeshSurface needs radius and ball of at most 1, so that cameras see all of it; got {self}"
            )
        if self.environment is not None and isinstance(self.paint, LatentTexture):
            raise InputError("latents cannot be lit: a MeshSurface with a LatentTexture has no environment")
        if not 0 < self.opaque < 1:
            raise InputError(f"MeshSurface needs opaque between 0 and 1; got {self.opaque}")
        if self.smoothing < 0:
            raise InputError(f"MeshSurface needs smoothing of at least 0 times; got {self.smoothing}")
        check_rates(self)

    def build(self, device: torch.device | str, streams: Streams) -> "MeshScene":
        """A fresh scene. Its source is read when it is first needed: never, if a state is loaded before.

        Streams of a network paint, under "paint/". What uses the scene raises InputError for a file that is missing, or
        has no usable mesh in it.
        """
        return MeshScene(self, torch.device(device), streams, self._begin)

    def from_scene(self, scene: Scene, device: torch.device | str, streams: Streams) -> "MeshScene":
        """A scene in the shape and colour of another one: of a surface, or of a volume's, found as export finds it.

        Raises RunError if there is nothing, InputError for a scene that is neither.
        """
        mesh, _ = surface_of(scene, self.face_budget, self.grid_resolution, opaque=self.opaque)
        assert isinstance(scene, Solid | Volume)
        if mesh.texture is None:
            size = self.texture_size if isinstance(self.paint, Network) else self.paint.size
            mapped, _ = with_texture_coordinates(mesh, size)
            mesh = baked(scene, mapped, size, device)
        placement = scene.placement if isinstance(scene, MeshScene) else Placement()
        source = replace(mesh, vertices=placement.to_source(mesh.vertices))
        new = self.of(source, placement, device, streams)
        new.learn_paint(scene, streams)
        return new

    def of(self, mesh: Mesh, placement: Placement, device: torch.device | str, streams: Streams) -> "MeshScene":
        """A scene of a mesh that is at hand, brought into it by its placement."""
        return MeshScene(self, torch.device(device), streams, lambda: (mesh, placement))

    def _begin(self, note: Note | None = None) -> tuple[Mesh, Placement]:
        """The mesh to begin with, as its source has it, and how it is brought into the scene."""
        if not self.source:
            return cube_sphere(self.cells, self.ball), Placement()
        mesh = read(self.source, note=note)
        return mesh, place(mesh, self.radius, self.source)


def from_file(path: str | Path, note: Note | None = None) -> MeshSurface:
    """The specification of the mesh in a file. Raises InputError if there is no usable one in it.

    `note` is told what the file holds that a mesh cannot say, and what is odd about its shape, as `files.read` says.
    """
    spec = MeshSurface(source=str(expanded(path).resolve()))
    spec._begin(note)
    return spec


@dataclass(frozen=True)
class _Shape:
    """What does not change while a scene is optimised: how the base mesh hangs together, on the scene's device."""

    vertices: Tensor
    """[V, 3] of the source, in its own units; float32, as in the file."""
    faces: Tensor
    """[F, 3] int32 into them."""
    uv: Tensor
    """[V, 2]."""
    placement: Tensor
    """[4] float64: centre and scale of its `Placement`."""
    number: Tensor
    """[V] int64: which of the W distinct positions each vertex has."""
    welded: Tensor
    """[F, 3] int32 into the distinct positions."""
    neighbours: Tensor
    """[F, 3] int32, `edge_neighbours(welded)`."""
    edges: Tensor
    """[E, 2] int64, between distinct positions."""
    degree: Tensor
    """[W, 1] how many of them end at each, or 1 where none does; float32."""
    base: Tensor
    """[W, 3] the distinct positions, in the scene."""

    @staticmethod
    def of(vertices: Tensor, faces: Tensor, uv: Tensor, placement: Tensor) -> "_Shape":
        """Worked out on the CPU, from what a state holds."""
        device, array = vertices.device, vertices.cpu().numpy()
        positions, number = weld(Mesh(array, faces.cpu().numpy()))
        base = _placement(placement).to_scene(positions)
        numbers = torch.from_numpy(number.astype(np.int64)).to(device)
        welded = numbers[faces.long()].int()
        edges = unique_edges(welded)
        degree = torch.bincount(edges.reshape(-1), minlength=len(positions)).clamp(min=1).float()[:, None]
        return _Shape(
            vertices,
            faces,
            uv,
            placement,
            numbers,
            welded,
            edge_neighbours(welded),
            edges,
            degree,
            torch.from_numpy(base).to(device),
        )

    def smoothed(self, values: Tensor, times: int) -> Tensor:
        """Values [W, C], each replaced `times` times by the mean of itself and its neighbours' mean."""
        if times == 0:
            return values
        ends, others = torch.cat([self.edges, self.edges.flip(1)]).unbind(1)
        share = 0.5 / self.degree.to(values)
        for _ in range(times):
            values = 0.5 * values + share * summed(values[others], ends, len(values))
        return values


def _placement(numbers: Tensor) -> Placement:
    x, y, z, scale = numbers.tolist()
    return Placement((x, y, z), scale)


class MeshScene:
    """One painted mesh, on a device. Made by `MeshSurface`."""

    def __init__(
        self,
        spec: MeshSurface,
        device: torch.device,
        streams: Streams,
        begin: Callable[[], tuple[Mesh, Placement]],
    ) -> None:
        self.spec, self.device = spec, device
        self.backdrop = Backdrop(spec.background, spec.preview, device)
        self._streams, self._begin = streams, begin

    @cached_property
    def _parts(self) -> tuple[_Shape, Tensor, Paint]:
        """Shape, offsets [W, 3] and paint: made of the source at first use, or loaded."""
        spec = self.spec
        source, placement = self._begin()
        placed = replace(source, vertices=placement.to_scene(source.vertices))
        mesh, origin = with_texture_coordinates(placed, self._texels)
        assert mesh.uv is not None
        where = np.array([*placement.centre, placement.scale], np.float64)
        arrays = (source.vertices[origin], mesh.faces, mesh.uv, where)
        shape = _Shape.of(*(torch.from_numpy(np.array(array)).to(self.device) for array in arrays))
        paint = begun(spec.paint, self._texels, mesh, self._is_lit, self.device, self._streams, spec.backend)
        return shape, torch.zeros_like(shape.base).requires_grad_(), paint

    @property
    def offsets(self) -> Tensor:
        """[W, 3] of the distinct positions, before they are smoothed; world units."""
        return self._parts[1]

    def vertices(self) -> Tensor:
        """[W, 3] distinct positions now, world units; differentiable in the offsets unless the geometry is kept."""
        shape, offsets, _ = self._parts
        offsets = offsets.detach() if self.spec.keep_geometry else offsets
        return shape.base + shape.smoothed(offsets, self.spec.smoothing)

    def triangles(self) -> tuple[Tensor, Tensor]:
        """The distinct positions [W, 3] and the faces [F, 3] into them; for losses."""
        return self.vertices(), self._parts[0].welded

    # ---- A scene of the loop ----------------------------------------------------------------------------------------

    def render(
        self,
        cameras: Cameras,
        streams: Streams | None = None,
        *,
        now: MeshSurface | None = None,
        shading: LightName | None = None,
        normals: bool = False,
        background: Tensor | Colour | None = None,
    ) -> Images:
        """Pictures of the surface; see Scene.render. Streams "background", "shading" and "light".

        In the light of the environment, if there is one and no `shading` is asked for: "albedo" shows the colour alone.
        """
        now = at_end(self.spec, now)
        environment = now.environment if shading is None else None
        if shading is None:
            shading = "albedo" if streams is None or environment is not None else now.shading.choose(streams)
        cameras = cameras.to(self.device)
        shape, _, paint = self._parts
        vertices = self.vertices()
        maps = None
        if environment is not None:
            maps = light_maps(environment, now.light_size, self.device, vertices.dtype)
        light = now.shading.light(shading, cameras, streams)
        behind = self.backdrop.behind(len(cameras), streams, background).to(vertices)
        if isinstance(paint, LatentPaint):
            behind = torch.cat([behind, latents_of(behind, paint.to_rgb)], dim=1)
        images = render_surface(
            vertices,
            shape.welded,
            cameras,
            partial(self._shade, paint, light, maps),
            background=behind,
            normals=normals,
            uv=shape.uv[shape.faces.long()].to(vertices),
            neighbours=shape.neighbours,
            backend=now.backend,
        )
        if isinstance(paint, LatentPaint):
            return replace(images, rgb=images.rgb[:, :3], latent=images.rgb[:, 3:])
        return images

    def parameters(self, now: MeshSurface | None = None) -> list[Group]:
        """Group "offsets" unless the geometry is kept; those of the paint and of the background."""
        now = at_end(self.spec, now)
        _, offsets, paint = self._parts
        groups: list[Group] = []
        if not self.spec.keep_geometry:
            groups = [{"name": "offsets", "params": [offsets], "lr": fixed(now.vertex_rate)}]
        return groups + paint.parameters(now.paint, self._is_lit) + self.backdrop.parameters(now.background)

    def after_step(self, step: int, streams: Streams, now: MeshSurface | None = None) -> None:
        """Bring colours and materials back into their ranges."""
        self._parts[2].cut_off()

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors, by name; the base mesh too, which may come from a file or an earlier scene."""
        shape, offsets, paint = self._parts
        tensors = {name: getattr(shape, name) for name in SHAPE}
        tensors |= {"offsets": offsets, "smoothing": torch.tensor(self.spec.smoothing)}
        tensors |= paint.tensors() | self.backdrop.tensors()
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state, whatever its mesh is; its tensors are new ones. Raises ValueError for one of another kind
        of paint or background."""
        given = {name: tensor.to(self.device).clone() for name, tensor in state.items()}
        missing = {*SHAPE, "offsets", "smoothing", *self.backdrop.tensors()} - given.keys()
        if missing:
            raise ValueError(f"not a state of this MeshSurface: it has no {', '.join(sorted(missing))}")
        vertices, faces, uv, placement = (given.pop(name) for name in SHAPE)
        shape, offsets = _Shape.of(vertices, faces, uv, placement), given.pop("offsets")
        if offsets.shape != shape.base.shape:
            raise ValueError(f"{list(offsets.shape)} offsets do not fit {len(shape.base)} distinct positions")
        smoothing = int(given.pop("smoothing"))
        if smoothing != self.spec.smoothing:  # these offsets would mean another shape here: it becomes the base
            moved = shape.smoothed(offsets, smoothing)[shape.number].double() * placement[3]
            shape = _Shape.of((vertices.double() + moved).float(), faces, uv, placement)
            offsets = torch.zeros_like(shape.base)
        for name, tensor in self.backdrop.tensors().items():
            tensor.copy_(given.pop(name))
        paint = restored(self.spec.paint, self._texels, given, self._is_lit, self.spec.backend)
        self._parts = (shape, offsets.requires_grad_(), paint)

    # ---- The surface, for export ------------------------------------------------------------------------------------

    @torch.no_grad()
    def mesh(self) -> Mesh:
        """The surface now, in the scene, with its texture coordinates and maps."""
        shape, _, paint = self._parts
        vertices = self.vertices()[shape.number].float().cpu().numpy()
        mesh = Mesh(vertices, shape.faces.cpu().numpy(), uv=shape.uv.cpu().numpy())
        return replace(mesh, **paint.maps(mesh, self._is_lit))

    @torch.no_grad()
    def to_source(self, mesh: Mesh) -> Mesh:
        """`mesh()` in the units and at the place of the source. A vertex that has not moved has the source's bits."""
        shape, _, _ = self._parts
        moved = (self.vertices() - shape.base)[shape.number].double() * shape.placement[3]
        return replace(mesh, vertices=(shape.vertices.double() + moved).float().cpu().numpy())

    @property
    def placement(self) -> Placement:
        """Where the scene stands in its source."""
        return _placement(self._parts[0].placement)

    def to_scene(self, mesh: Mesh) -> Mesh:
        """A mesh in the units and at the place of the source, brought into the scene."""
        return replace(mesh, vertices=self.placement.to_scene(mesh.vertices))

    @torch.no_grad()
    def colour(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N, 3] unlit colour in [0, 1] at the closest points of the surface."""
        points, paint = points.to(self.device), self._parts[2]
        if isinstance(paint, NetworkPaint):
            return paint.values(points.to(paint.network.table))[:, :3]
        mesh = self.mesh()
        tree = mesh_queries(*(torch.as_tensor(x, device=self.device) for x in (mesh.vertices, mesh.faces)))
        return colour_at(mesh, tree.closest(points.float()))

    def learn_paint(self, scene: Solid | Volume, streams: Streams) -> None:
        """Fit a network paint to the colours that are seen of another scene on the surface; a texture has them."""
        paint = self._parts[2]
        if isinstance(paint, NetworkPaint):
            learn_colours(
                lambda p: paint.values(p)[:, :3], paint.network.weights, self.mesh(), scene, self.device, streams
            )

    @property
    def _is_lit(self) -> bool:
        return self.spec.environment is not None

    @property
    def _texels(self) -> int:
        return self.spec.texture_size if isinstance(self.spec.paint, Network) else self.spec.paint.size

    def _shade(self, paint: Paint, light: Light | None, maps: LightMaps | None, seen: Fragments) -> Tensor:
        if isinstance(paint, LatentPaint):
            latent = paint.latent(seen)
            return torch.cat([paint.shown(latent), latent], dim=-1)
        colour = paint.colour(seen)
        if light is not None:
            return lit(light, light.position[seen.camera], seen.position, colour, seen.normal)
        if maps is None:
            return colour
        found = paint.material(seen)
        # Where faces of both sides meet, as on a card, their normals cancel: there it is the face's own.
        lies = (seen.normal * seen.normal).sum(-1, keepdim=True) > 0
        seen = replace(seen, normal=torch.where(lies, seen.normal, seen.face_normal))
        normal = self._bumped(seen, found)
        # Both sides are seen: a normal that looks away belongs to the other one.
        facing = torch.where((seen.face_normal * seen.view).sum(-1, keepdim=True) < 0, -normal, normal)
        return display(shade(maps, colour, found.roughness, found.metallic, facing, seen.view))

    def _bumped(self, seen: Fragments, material: Material) -> Tensor:
        """[P, 3] normals by the normal map: x along the surface's u, y along its v, both made square to the normal."""
        tangent, side = self._tangents(seen)
        along = directions(tangent - (tangent * seen.normal).sum(-1, keepdim=True) * seen.normal)
        across = torch.linalg.cross(seen.normal, along) * side
        x, y = material.bump.split(1, dim=-1)
        up = (1 - x * x - y * y).clamp(min=1e-2).sqrt()
        return directions(x * along + y * across + up * seen.normal)

    @torch.no_grad()
    def _tangents(self, seen: Fragments) -> tuple[Tensor, Tensor]:
        """[P, 3] the direction in which u grows, the mean of the faces at a vertex, and [P, 1] whether v grows to the
        left of it (1) or to the right (-1), where the texture is mirrored."""
        shape, _, _ = self._parts
        corners = self.vertices()[shape.welded.long()]
        uv = shape.uv[shape.faces.long()].to(corners)
        (e1, e2), (d1, d2) = (((x[:, 1] - x[:, 0]), (x[:, 2] - x[:, 0])) for x in (corners, uv))
        area = d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]
        side = torch.where(area < 0, -1.0, 1.0).to(corners)[:, None]
        # Solves e_i = d_i,u T + d_i,v B for T, but for its length: the mean is weighted by area.
        tangent = (e1 * d2[:, 1:] - e2 * d1[:, 1:]) * side
        each = tangent.repeat_interleave(3, dim=0)
        total = summed(each, shape.faces.reshape(-1).long(), len(shape.uv))
        at = directions(total)[shape.faces.long()[seen.face]]
        return (seen.barycentric[..., None] * at).sum(1), side[seen.face]


@functools.lru_cache(maxsize=4)
def light_maps(environment: Environment, size: int, device: torch.device, dtype: torch.dtype) -> LightMaps:
    """`prefilter` of an environment, kept: every scene of a run asks for the same."""
    return prefilter(environment.radiance, size, device, dtype)
