"""How close a mesh is to the true one. Both in the same pose and units: nothing is aligned."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dreamkit.kernels.query import surface
from dreamkit.meshes import Mesh
from dreamkit.streams import Streams
from dreamkit.triangles import cross_products, on_surface


@dataclass(frozen=True)
class Likeness:
    """A mesh against the true one."""

    f_score: float
    """Harmonic mean of precision and recall, in [0, 1]."""
    precision: float
    """Share of the mesh's surface that lies within the tolerance of the true one."""
    recall: float
    """Share of the true surface that lies within the tolerance of the mesh."""
    chamfer: float
    """Mean distance from each surface to the other, the two directions averaged, world units."""
    tolerance: float
    """World units."""


def likeness(mesh: Mesh, truth: Mesh, share: float = 0.05, points: int = 20_000, seed: int = 0) -> Likeness:
    """F-score and Chamfer distance between two surfaces (Tanks and Temples, Knapitsch et al. 2017, section 5).

    Points are drawn evenly over each surface, and those that cannot be seen from outside left out (the world's things
    are parts that reach into one another); their distances are to the other surface itself, not to points of it, so
    that equal surfaces score exactly 1 and 0.

    Args:
        share: the tolerance, in diagonals of the true mesh's bounding box.
        points: drawn on each surface; an F-score of p has a standard error of about sqrt(p (1 - p) / points).

    Raises ValueError for a truth without area. A mesh without any has F-score 0 and infinite distance.
    """
    extent = truth.vertices.max(0) - truth.vertices.min(0) if len(truth.vertices) else np.zeros(3)
    tolerance = share * float(np.linalg.norm(extent))
    if tolerance <= 0 or not surface_area(truth) > 0:
        raise ValueError("the true mesh has no extent to measure by")
    if not surface_area(mesh) > 0:
        return Likeness(0.0, 0.0, 0.0, float("inf"), tolerance)
    there = _distances(mesh, truth, points, Streams(seed, 0))
    back = _distances(truth, mesh, points, Streams(seed, 1))
    precision, recall = (float((d <= tolerance).double().mean()) for d in (there, back))
    f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Likeness(f_score, precision, recall, float((there.mean() + back.mean()) / 2), tolerance)


def surface_area(mesh: Mesh) -> float:
    """In square world units; 0 without faces."""
    each = cross_products(torch.as_tensor(mesh.vertices).double(), torch.as_tensor(mesh.faces))
    return float(each.norm(dim=-1).sum()) / 2


def _distances(mesh: Mesh, other: Mesh, count: int, streams: Streams) -> Tensor:
    """[N] from those of `count` points of one mesh that can be seen to the other."""
    vertices, faces = torch.as_tensor(mesh.vertices), torch.as_tensor(mesh.faces)
    points = on_surface(vertices, faces, count, streams).position
    points = points[seen_from_outside(points, vertices, faces)]
    return surface(torch.as_tensor(other.vertices), torch.as_tensor(other.faces)).closest(points).distance


def seen_from_outside(points: Tensor, vertices: Tensor, faces: Tensor, count: int = 64) -> Tensor:
    """Whether points [N, 3] on a surface can be seen: bool [N], from one of `count` sides, evenly all round."""
    own, number = surface(vertices, faces), torch.arange(count, dtype=torch.float64)
    # A golden spiral, taken in jumps, so that what can be seen is found after a few sides.
    height, turn = 1 - (2 * number + 1) / count, number * math.pi * (3 - 5**0.5)
    sides = torch.stack([(1 - height**2).sqrt() * turn.cos(), (1 - height**2).sqrt() * turn.sin(), height], 1)
    off = 1e-4 * float((vertices.amax(0) - vertices.amin(0)).norm())  # so that no ray meets the face it starts from
    seen = torch.zeros(len(points), dtype=torch.bool)
    for side in sides[(number * 23 % count).long()].to(points):
        left = (~seen).nonzero()[:, 0]
        if not len(left):
            break
        rays = side.expand(len(left), 3).contiguous()
        seen[left] = own.cast(points[left] + off * side, rays).face < 0
    return seen
