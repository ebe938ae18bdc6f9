"""Two things become one: they are put where a prompt says that they stand."""

from dataclasses import replace

import numpy as np
import torch

from dreamkit.assets.prepare import place
from dreamkit.kernels.query import surface
from dreamkit.meshes import Mesh, join_textured

SMALLER = 0.7
"""Size of what stands on something, against what it stands on."""
GAP = 0.15
"""Between things that stand beside each other, in radii of the ball that each of them fits."""
SOLE = 0.1
"""What stands on something does so with this lowest share of its height."""
RAYS = 16
"""Along each side of the sole's box: where they land, it is found how high that is."""


def arrange(first: Mesh, relation: str, second: Mesh, radius: float) -> Mesh:
    """Two textured meshes, first made to fit one ball each, as one in the ball of `radius`: the first "next to" the
    second, to its left seen from the front, or "on top of" it.

    What stands on something is smaller, above its middle, and as high as what its sole looks down on lies in the
    median: on the seat of a chair, not on its back. Raises ValueError for another relation and for pictures that cannot
    be joined (`join_textured`), InputError for a mesh without extent.
    """
    first, second = _fitted(first, radius), _fitted(second, radius)
    if relation == "next to":
        (low, high), (low_2, _) = _box(first), _box(second)
        moved = _moved(first, (0.0, low_2[1] - high[1] - GAP * radius, low_2[2] - low[2]))
    elif relation == "on top of":
        moved = _stood(replace(first, vertices=first.vertices * SMALLER), second)
    else:
        raise ValueError(f"things stand next to or on top of each other; got {relation!r}")
    return _fitted(join_textured(moved, second), radius)


def _stood(first: Mesh, second: Mesh) -> Mesh:
    """The first mesh on the second; the middles of both are above each other as they are."""
    (low, high), (_, top) = _box(first), _box(second)
    sole = first.vertices[first.vertices[:, 2] <= low[2] + SOLE * (high[2] - low[2])]
    sides = (torch.linspace(a, b, RAYS) for a, b in zip(sole.min(0)[:2], sole.max(0)[:2], strict=True))
    above = torch.cartesian_prod(*sides, torch.tensor([float(top[2]) + 1.0]))
    tree = surface(torch.as_tensor(second.vertices), torch.as_tensor(second.faces))
    fall = tree.cast(above, torch.tensor([[0.0, 0.0, -1.0]]).expand(len(above), 3)).distance
    landed = fall[fall.isfinite()]
    # A sole that looks down on nothing, as on a ring, comes to stand at the height of the top.
    ground = float(top[2]) + 1.0 - float(landed.median() if len(landed) else 1.0)
    return _moved(first, (0.0, 0.0, ground - low[2]))


def _fitted(mesh: Mesh, radius: float) -> Mesh:
    return replace(mesh, vertices=place(mesh, radius).to_scene(mesh.vertices))


def _box(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    return mesh.vertices.min(0), mesh.vertices.max(0)


def _moved(mesh: Mesh, by: tuple[float, float, float]) -> Mesh:
    return replace(mesh, vertices=(mesh.vertices + np.array(by)).astype(np.float32))
