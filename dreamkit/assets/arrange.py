"""Two things become one: they are put where a prompt says that they stand."""

from dataclasses import replace

import numpy as np
import torch

from dreamkit.assets.prepare import place
from dreamkit.kernels.query import surface
from dreamkit.meshes import Mesh, join_textured

SMALLER = 0.7
"""Size of what stands on something, against things that stand beside each other: those are of one size."""
GAP = 0.15
"""Between things that stand beside each other, in radii of the ball that each of them fits."""
SOLE = 0.1
"""What stands on something does so with this lowest share of its height."""


def arrange(first: Mesh, relation: str, second: Mesh, radius: float) -> Mesh:
    """Two textured meshes as one in the ball of `radius`, which each of them fits: the first "next to" the second, to
    its left seen from the front, or "on top of" it.

    What stands on something is smaller, above its middle, and as high as what its sole looks down on lies in the
    median: on the seat of a chair, not on its back. Raises ValueError for another relation.
    """
    if relation == "next to":
        (low, high), (low_2, high_2) = _box(first), _box(second)
        middle = (low_2 + high_2 - low - high) / 2
        moved = _moved(first, (middle[0], low_2[1] - high[1] - GAP * radius, low_2[2] - low[2]))
    elif relation == "on top of":
        moved = _stood(replace(first, vertices=first.vertices * SMALLER), second)
    else:
        raise ValueError(f"things stand next to or on top of each other; got {relation!r}")
    whole = join_textured(moved, second)
    return replace(whole, vertices=place(whole, radius).to_scene(whole.vertices))


def _stood(first: Mesh, second: Mesh) -> Mesh:
    """The first mesh on the second."""
    (low, high), (low_2, high_2) = _box(first), _box(second)
    middle = (low_2 + high_2 - low - high) / 2
    above = _moved(first, (middle[0], middle[1], high_2[2] - low[2] + 1.0))
    points = torch.as_tensor(above.vertices, dtype=torch.float32)
    bottom = points[:, 2].min()
    sole = points[points[:, 2] <= bottom + SOLE * float(high[2] - low[2])]
    sole[:, 2] = bottom
    tree = surface(torch.as_tensor(second.vertices), torch.as_tensor(second.faces))
    fall = tree.cast(sole, torch.tensor([[0.0, 0.0, -1.0]]).expand(len(sole), 3)).distance
    landed = fall[fall.isfinite()]
    # A sole that looks down on nothing, as on a ring, comes to stand at the height of the top.
    return _moved(above, (0.0, 0.0, -float(landed.median() if len(landed) else bottom - high_2[2])))


def _box(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    return mesh.vertices.min(0), mesh.vertices.max(0)


def _moved(mesh: Mesh, by: tuple[float, float, float]) -> Mesh:
    return replace(mesh, vertices=(mesh.vertices + np.array(by)).astype(np.float32))
