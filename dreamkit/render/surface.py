"""Triangle surfaces to pictures, differentiable in the positions, in the colours, and at the silhouettes.

Rasterise, interpolate, shade the covered pixels, smooth the silhouettes (Laine et al., arXiv:2011.03277). This file
knows no material: colour is a callable on what the pixels see.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.images import Images, on_background
from dreamkit.kernels.raster import (
    Raster,
    antialias,
    edge_neighbours,
    interpolate,
    project,
    rasterize,
    screen_derivatives,
)
from dreamkit.triangles import directions, face_normals, vertex_normals


@dataclass(frozen=True)
class Fragments:
    """What the P covered pixels of B pictures see, picture after picture, row after row."""

    position: Tensor
    """[P, 3] world positions."""
    normal: Tensor
    """[P, 3] unit outward normals, interpolated from those of the vertices."""
    face_normal: Tensor
    """[P, 3] unit outward normals of the flat faces."""
    view: Tensor
    """[P, 3] unit directions from the surface to the camera."""
    camera: Tensor
    """[P] int64, the number of the pixel's camera."""
    face: Tensor
    """[P] int64, the face that is seen."""
    barycentric: Tensor
    """[P, 3] weights of its corners."""
    uv: Tensor | None = None
    """[P, 2] texture coordinates, where the surface has some."""
    footprint: Tensor | None = None
    """[P, 2, 2], d(u, v) / d(pixel x, y), as `kernels.texture.sample` takes it; carries no gradient."""

    def __len__(self) -> int:
        return len(self.position)


Shade = Callable[[Fragments], Tensor]
"""Fragments -> colours [P, C]. P may be 0."""


def render_surface(
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    shade: Shade,
    *,
    background: Tensor,
    normals: bool = False,
    uv: Tensor | None = None,
    neighbours: Tensor | None = None,
    near: float = 0.1,
    far: float = 100.0,
    backend: str = "auto",
) -> Images:
    """Pictures [B, C, H, W] of a surface, on a background.

    Colour, opacity, depth and normal of the nearest face at each pixel centre are smoothed at silhouettes alike, so
    that all of them change when a silhouette moves: the gradient that shapes an outline. Inside, they change with what
    is interpolated. Depth is then divided by the smoothed opacity, and the normal scaled to it (`images.py`).

    Args:
        vertices:   [V, 3] world positions, float32 or float64.
        faces:      [F, 3] integers, counter-clockwise seen from outside; both sides are seen. There may be none.
        shade:      called once, with all covered pixels; C = 3 for colours.
        background: [B, C], or pictures [B, C, H, W].
        normals:    whether to give `Images.normal`, the interpolated ones.
        uv:         [F, 3, 2] texture coordinates of each face's corners. So a seam of the texture does not cut the
                    surface: vertices stay whole, and silhouettes are found across it.
        neighbours: `edge_neighbours(faces)`, if the faces stay the same from call to call; else found here.
        near, far:  nearest and farthest distance that is drawn, along the cameras' axes, world units.

    Differentiable in vertices, background, uv and whatever `shade` uses.
    Raises ValueError for other shapes of background, colours or uv, and as the operators of `kernels.raster`.

    >>> triangle = torch.tensor([[0.0, -1, -1], [0, 1, -1], [0, 0, 1]]), torch.tensor([[0, 1, 2]])
    >>> from dreamkit.cameras import orbit
    >>> views = orbit([0.0], 0.0, size=8)
    >>> red = torch.tensor([1.0, 0, 0])
    >>> images = render_surface(*triangle, views, lambda seen: red.expand(len(seen), 3), background=torch.zeros(1, 3))
    >>> images.rgb[0, :, 4, 4].tolist(), round(images.depth[0, 0, 4, 4].item(), 2)
    ([1.0, 0.0, 0.0], 3.0)
    """
    cameras, faces = cameras.to(vertices.device), faces.int()
    size = (cameras.height, cameras.width)
    if uv is not None and uv.shape != (len(faces), 3, 2):
        raise ValueError(f"render_surface expects uv [{len(faces)}, 3, 2], a row a face; got {tuple(uv.shape)}")
    clip = project(vertices, cameras, near, far)
    raster = rasterize(clip, faces, size, backend=backend)
    seen = _fragments(vertices, faces, cameras, clip, raster, uv, backend)
    colour = shade(seen)
    if colour.ndim != 2 or len(colour) != len(seen):
        raise ValueError(f"render_surface expects colours [{len(seen)}, C] of its shade; got {tuple(colour.shape)}")
    depth = (seen.position - cameras.positions.to(vertices)[seen.camera]).norm(dim=-1, keepdim=True)
    values = [colour, torch.ones_like(depth), depth] + ([seen.normal] if normals else [])
    sharp = _scatter(torch.cat([value.to(vertices) for value in values], -1), raster)
    neighbours = edge_neighbours(faces) if neighbours is None else neighbours
    return _images(antialias(sharp, raster, clip, faces, neighbours, backend=backend), colour.shape[1], background)


def _fragments(
    vertices: Tensor,
    faces: Tensor,
    cameras: Cameras,
    clip: Tensor,
    raster: Raster,
    uv: Tensor | None,
    backend: str,
) -> Fragments:
    """What the covered pixels see."""
    covered = _covered(raster)
    face = raster.face.reshape(-1)[covered].long()
    camera = covered // (cameras.height * cameras.width)

    def chosen(pictures: Tensor) -> Tensor:
        return pictures.flatten(0, 2).index_select(0, covered)

    corners = torch.cat([vertices, vertex_normals(vertices, faces)], -1)
    position, normal = chosen(interpolate(corners, raster, faces, backend=backend)).split(3, -1)
    mapped: dict[str, Any] = {}
    if uv is not None:
        # A vertex for every corner, so that each face has texture coordinates of its own.
        apart = torch.arange(faces.numel(), dtype=torch.int32, device=faces.device).view(-1, 3)
        flat, spread = uv.reshape(-1, 2).to(vertices), clip[:, faces.reshape(-1).long()]
        mapped["uv"] = chosen(interpolate(flat, raster, apart, backend=backend))
        mapped["footprint"] = chosen(screen_derivatives(flat, raster, spread, apart, backend=backend))
    return Fragments(
        position,
        directions(normal),
        face_normals(vertices, faces).index_select(0, face),
        directions(cameras.positions.to(vertices)[camera] - position),
        camera,
        face,
        chosen(raster.barycentric),
        **mapped,
    )


def _covered(raster: Raster) -> Tensor:
    """[P] numbers of the pixels that see a face."""
    return (raster.face.reshape(-1) >= 0).nonzero().squeeze(-1)


def _scatter(values: Tensor, raster: Raster) -> Tensor:
    """Values [P, C] of the covered pixels -> pictures [B, H, W, C], 0 where nothing is."""
    empty = values.new_zeros(raster.face.numel(), values.shape[1])
    return empty.index_copy(0, _covered(raster), values).view(*raster.face.shape, -1)


def _images(smooth: Tensor, channels: int, background: Tensor) -> Images:
    """Smoothed pictures [B, H, W, C + 1 + 1 (+ 3)], 0 where nothing is, on their background."""
    pictures = smooth.permute(0, 3, 1, 2)
    colour, alpha, depth, normal = pictures.split([channels, 1, 1, pictures.shape[1] - channels - 2], dim=1)
    return on_background(colour, alpha, depth, normal if normal.shape[1] else None, background)
