"""Where Gaussians come from: a ball, points, a file, a surface, another scene."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.assets.files import read
from dreamkit.errors import InputError
from dreamkit.kernels.query import Hits
from dreamkit.meshes import Mesh
from dreamkit.render.mesh import colour_at
from dreamkit.representations.distil import FACES, GRID, seen_points
from dreamkit.representations.gaussians.cloud import Cloud, dc_of
from dreamkit.representations.surface import surface_of
from dreamkit.streams import Streams
from dreamkit.triangles import face_normals, on_surface

SOLID, WIDE, THIN = 0.9, 0.6, 0.18
"""Gaussians that stand for a surface: their opacity, and their deviations along it and across, in distances to their
neighbours. Wide enough that nothing shows through between them."""
INSET = 2.0
"""How far inside of the surface their middles are, in deviations across: many overlap where it is seen from the side,
and are opaque further out than one is."""
NEIGHBOURS = 3
"""A Gaussian is as wide as these are far away (3DGS)."""


@dataclass(frozen=True)
class Points:
    """A coloured point cloud, such as a text-to-points model gives."""

    points: tuple[tuple[float, float, float], ...]
    """World units."""
    colours: tuple[tuple[float, float, float], ...] = ()
    """In [0, 1]; none is grey."""

    def __post_init__(self) -> None:
        shapes = {np.shape(row) for row in (*self.points, *self.colours)}
        if not self.points or shapes != {(3,)} or len(self.colours) not in (0, len(self.points)):
            raise InputError(
                f"Points holds (x, y, z) and as many (r, g, b), or none; got {len(self.points)} points, "
                f"{len(self.colours)} colours, of shapes {sorted(shapes)}"
            )


@dataclass(frozen=True)
class File:
    """A file, read when a scene is built: Gaussians (3DGS .ply, glTF with KHR_gaussian_splatting), points (.ply), or a
    mesh (.glb, .obj, .ply), on whose surface Gaussians are then put."""

    names_files: ClassVar[tuple[str, ...]] = ("path",)

    path: str


def ball(count: int, radius: float, opacity: float, streams: Streams) -> Cloud:
    """Grey Gaussians, uniform in a ball round the origin. Streams "ball" and "ball/radius"."""
    towards = F.normalize(streams.normal("ball", (count, 3)), dim=1)
    return _from_points(towards * radius * streams.uniform("ball/radius", (count, 1)) ** (1 / 3), None, opacity)


def points(held: Points, opacity: float) -> Cloud:
    """One Gaussian for each point."""
    colours = torch.tensor(held.colours) if held.colours else None
    return _from_points(torch.tensor(held.points), colours, opacity)


def file(path: Path, count: int, opacity: float, streams: Streams) -> Cloud:
    """What a file holds; `count` and `opacity` are for those that hold no Gaussians. Raises InputError."""
    if not path.is_file():
        raise InputError(f"there is no file {path} to start Gaussians from")
    if holds_splats(path):
        from dreamkit.assets.splats import read_splats

        return cloud_of(read_splats(path))
    head = _head(path)
    if head.startswith(b"ply") and b"element face" not in head.split(b"end_header")[0]:
        return _from_points(*_read_points(path), opacity)
    return surface(read(path), count, streams)


def holds_splats(path: Path) -> bool:
    """Whether there is a file that holds Gaussians: a 3DGS .ply, or a glTF with KHR_gaussian_splatting."""
    head = _head(path) if path.is_file() else b""
    return b"KHR_gaussian_splatting" in head or (head.startswith(b"ply") and b" rot_0" in head)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 20)


def surface(mesh: Mesh, count: int, streams: Streams) -> Cloud:
    """Nearly opaque discs spread evenly over a mesh, in its colours. Stream "surface"."""
    vertices, faces = torch.as_tensor(mesh.vertices), torch.as_tensor(mesh.faces)
    points = on_surface(vertices, faces, count, streams)
    colours = colour_at(mesh, Hits(torch.zeros(count), points.face, points.barycentric))
    return _discs(points.position, face_normals(vertices, faces)[points.face], colours)


def scene(other: Any, count: int, device: torch.device | str, streams: Streams) -> Cloud:
    """Discs on the surface of another scene: on its `mesh()`, or where its silhouettes are cut from its density.

    Raises InputError for a scene that has neither, RunError for an empty one.
    """
    mesh, _ = surface_of(other, FACES, GRID)
    return _discs(*seen_points(other, mesh, count, device, streams))


def _discs(places: Tensor, normals: Tensor, colours: Tensor) -> Cloud:
    """Nearly opaque discs under a surface."""
    cloud = _from_points(places, colours, SOLID)
    log_scales = cloud.log_scales + torch.tensor([WIDE, WIDE, THIN]).log()
    means = cloud.means - INSET * log_scales[:, 2:].exp() * normals
    return replace(cloud, means=means, log_scales=log_scales, quaternions=_turn_to(normals))


def _from_points(places: Tensor, colours: Tensor | None, opacity: float) -> Cloud:
    """Round Gaussians of one opacity, as wide as their neighbours are far."""
    count = len(places)
    grey = torch.full((count, 3), 0.5) if colours is None else colours.float()
    width = _spacing(places).log()[:, None].expand(-1, 3).contiguous()
    upright = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1)
    logits = torch.logit(torch.full((count,), opacity))
    return Cloud(places.float(), width, upright, logits, dc_of(grey), torch.zeros(count, 0, 3))


def _spacing(places: Tensor) -> Tensor:
    """[N] the root mean square distance to the NEIGHBOURS nearest others; 0.1 for one that is alone."""
    from scipy.spatial import cKDTree

    array = places.numpy()
    if len(array) < 2:
        return torch.full((len(array),), 0.1)
    near = min(NEIGHBOURS, len(array) - 1)
    distance = cKDTree(array).query(array, k=near + 1)[0][:, 1:]
    return torch.as_tensor(np.sqrt((distance**2).mean(1))).float().clamp(min=1e-4)


def _turn_to(normals: Tensor) -> Tensor:
    """[N, 4] quaternions of the shortest rotations that take +z to the unit `normals` [N, 3]."""
    x, y, z = normals.unbind(1)
    turn = torch.stack([1 + z, -y, x, torch.zeros_like(x)], 1)
    half = torch.tensor([0.0, 1.0, 0.0, 0.0])  # -z is half a turn away, round any level axis
    return F.normalize(torch.where((z < -1 + 1e-6)[:, None], half, turn), dim=1)


def _read_points(path: Path) -> tuple[Tensor, Tensor | None]:
    import trimesh

    try:
        found: Any = trimesh.load(path, process=False)
        places = np.asarray(found.vertices, np.float32)
        colours = np.asarray(getattr(found, "colors", np.zeros(0)), np.float32)
    except Exception as error:  # trimesh raises whatever its parsers meet
        raise InputError(f"{path} cannot be read as points: {error}") from error
    if not len(places) or not np.isfinite(places).all():
        raise InputError(f"{path} holds no points, or some that are not finite")
    return torch.as_tensor(places), torch.as_tensor(colours[:, :3] / 255) if len(colours) == len(places) else None


def cloud_of(held: Any) -> Cloud:
    """The Gaussians of `assets.splats.Splats`."""
    arrays = (held.means, held.log_scales, held.quaternions, held.opacity_logits, held.sh[:, 0], held.sh[:, 1:])
    return Cloud(*(torch.as_tensor(np.ascontiguousarray(array, np.float32)) for array in arrays))
