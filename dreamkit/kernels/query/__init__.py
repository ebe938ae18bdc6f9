"""Questions to a triangle mesh: which face does a ray hit first, which point is closest, what is inside?

Not differentiable: for previews, baking, ground truth and visibility.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dreamkit.kernels import choose


@dataclass(frozen=True)
class Hits:
    """A place on the mesh for every ray or point: distance [R] from it (inf where there is none), face [R] (-1 where
    there is none), barycentric [R, 3] weights of the face's three corners (0 where there is none)."""

    distance: Tensor
    face: Tensor
    barycentric: Tensor


class Surface(Protocol):
    """A mesh made ready for queries."""

    def cast(self, origins: Tensor, directions: Tensor) -> Hits:
        """The first hit of each ray. origins and unit directions: [R, 3] float32, world units."""
        ...

    def closest(self, points: Tensor) -> Hits:
        """The closest place on the mesh to each point [R, 3] float32, world units."""
        ...

    def inside(self, points: Tensor) -> Tensor:
        """[R] bool: whether each point [R, 3] is inside, that is, whether the winding number there is over 1/2.

        Sound for a closed mesh whose faces wind counter-clockwise seen from outside; for one with holes it is the best
        guess (Jacobson et al., Robust Inside-Outside Segmentation using Generalized Winding Numbers, 2013).
        """
        ...


def surface(vertices: Tensor, faces: Tensor, *, backend: str = "auto") -> Surface:
    """Make a mesh ready for queries.

    Args:
        vertices: [V, 3] float32, world units.
        faces: [F, 3] integers into vertices; both sides of a face are hit.
        backend: "warp" (a bounding volume hierarchy), "reference" (every ray against every face), or "auto" = warp.

    Memory: 24 bytes an answer, beside Warp's hierarchy over the faces; the reference holds every face against 1024 rays
    or points at a time.

    Raises ValueError for other shapes, InputError for a backend that is not there.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(
            f"surface expects vertices [V, 3] and faces [F, 3]; got {tuple(vertices.shape)}, {tuple(faces.shape)}"
        )
    return choose.backend(__name__, backend).MeshSurface(vertices, faces)


def miss(count: int, device: torch.device) -> Hits:
    """`count` rays that hit nothing."""
    return Hits(
        torch.full((count,), float("inf"), device=device),
        torch.full((count,), -1, dtype=torch.int64, device=device),
        torch.zeros(count, 3, device=device),
    )
