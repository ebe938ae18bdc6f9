"""Triangle surfaces as tensors, differentiable: normals, the edges they are smoothed along, points spread over them.

Everywhere: vertices [V, 3] in world units, faces [F, 3] integers into them, counter-clockwise seen from outside.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.streams import Streams

LEAST = 1e-20
"""Squared lengths below this have no direction: 0, without gradient."""


def cross_products(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F, 3] outward along each face's normal, as long as twice its area."""
    a, b, c = vertices[faces.long()].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def face_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F, 3] unit normals; 0 for faces without area."""
    return directions(cross_products(vertices, faces))


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[V, 3] unit normals, the mean of the faces at a vertex weighted by area; 0 where there is none."""
    each = cross_products(vertices, faces).repeat_interleave(3, dim=0)
    return directions(summed(each, faces.reshape(-1).long(), len(vertices)))


def summed(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """[count, C] the sums of rows [N, C] by index [N], added up in the same order whenever it is asked."""
    zeros = rows.new_zeros(count, *rows.shape[1:])
    # On CUDA index_add is atomic, in any order; index_put sorts.
    return zeros.index_put((index,), rows, accumulate=True) if rows.is_cuda else zeros.index_add(0, index, rows)


def directions(vectors: Tensor) -> Tensor:
    """Vectors [..., 3] at length 1, or 0 with a gradient of 0 for those too short to have a direction."""
    squared = (vectors * vectors).sum(-1, keepdim=True)
    long_enough = squared > LEAST
    # The inner where keeps the gradient of what is not taken finite.
    return torch.where(long_enough, vectors * torch.where(long_enough, squared, 1.0).rsqrt(), 0.0)


def unique_edges(faces: Tensor) -> Tensor:
    """[E, 2] int64, every edge of the faces once, the lower vertex first, in increasing order.

    >>> unique_edges(torch.tensor([[0, 1, 2], [2, 1, 3]])).tolist()
    [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    """
    ends = faces.long()[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).sort(-1).values
    count = int(ends.max()) + 1 if len(ends) else 1
    keys = (ends[:, 0] * count + ends[:, 1]).unique()
    return torch.stack([keys // count, keys % count], -1)


class SurfacePoints(NamedTuple):
    """N points on a surface."""

    position: Tensor
    """[N, 3] world units."""
    face: Tensor
    """[N] int64, the face each lies on."""
    barycentric: Tensor
    """[N, 3] weights of its corners."""


def on_surface(vertices: Tensor, faces: Tensor, count: int, streams: Streams) -> SurfacePoints:
    """`count` points drawn evenly over a surface, from the stream "surface"; differentiable in the vertices.

    A face by its share of the area, then (1 - sqrt(r)) a + sqrt(r) (1 - t) b + sqrt(r) t c with r and t even in [0, 1)
    (Osada et al., Shape Distributions, 2002, eq. 1). Raises InputError for a surface without area.
    """
    area = cross_products(vertices.detach().double(), faces).norm(dim=-1).cumsum(0)
    if not len(area) or not float(area[-1]) > 0:
        raise InputError("a mesh without area has no points on its surface")
    draw = streams.uniform("surface", (3, count), like=area)
    # By the cumulative area, not by torch.multinomial, which takes no more than 2^24 faces. On the right of equal sums
    # is a face with area.
    face = torch.searchsorted(area, draw[0] * area[-1], right=True).clamp(max=len(area) - 1)
    root, along = draw[1].sqrt(), draw[2]
    weight = torch.stack([1 - root, root * (1 - along), root * along], dim=-1).to(vertices)
    return SurfacePoints((weight[..., None] * vertices[faces[face].long()]).sum(1), face, weight)
