"""How visible the cuts of a texture are: the two sides of every seam, compared along it."""

from dataclasses import dataclass

import numpy as np
import torch

from dreamkit.kernels.texture import sample
from dreamkit.meshes import Mesh


@dataclass(frozen=True)
class Seams:
    """The difference in colour across the seams of a texture, in [0, 1]: the largest of the three channels."""

    length: float
    """World units of seams, all together."""
    mean: float
    """Over their length."""
    largest: float

    def __str__(self) -> str:
        return f"seams of {self.length:.2f} units, differing by {self.mean:.4f}, {self.largest:.4f} at most"


def seams(mesh: Mesh, points: int = 16) -> Seams:
    """The texture's values on both sides of each seam, at `points` places along it, bilinear as a renderer reads them.

    A seam is an edge of two faces that wind as neighbours do, at the same two positions, to the last bit, but at
    different texture coordinates. Edges of one face, or of more than two, are none.

    Raises ValueError for a mesh without a texture. A mesh without seams has length 0 and no difference.
    """
    if mesh.texture is None or mesh.uv is None:
        raise ValueError("seams compares a texture with itself, and the mesh has none")
    here, there = _pairs(mesh)
    share = ((np.arange(points) + 0.5) / points)[None, :, None]
    picture = torch.as_tensor(mesh.texture).float() / 255

    def along(ends: np.ndarray) -> torch.Tensor:
        first, last = (mesh.uv[ends[:, i], None].astype(np.float64) for i in (0, 1))  # type: ignore[index]
        uv = (first + (last - first) * share).astype(np.float32)
        return sample(picture, torch.as_tensor(uv).reshape(-1, 2)).reshape(len(ends), points, 3)

    cut = (mesh.uv[here] != mesh.uv[there]).any((1, 2))
    here, there = here[cut], there[cut]
    if not len(here):
        return Seams(0.0, 0.0, 0.0)
    apart = (along(here) - along(there)).abs().amax(-1).double()
    length = np.linalg.norm(mesh.vertices[here[:, 0]].astype(np.float64) - mesh.vertices[here[:, 1]], axis=-1)
    mean = float((apart.mean(1) * torch.as_tensor(length)).sum() / max(length.sum(), 1e-30))
    return Seams(float(length.sum()), mean, float(apart.max()))


def _pairs(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """The edges of exactly two faces: their vertices [E, 2] in one face, and the same positions' in the other."""
    _, place = np.unique(mesh.vertices + 0.0, axis=0, return_inverse=True)
    place = place.reshape(-1)
    ends = np.stack([mesh.faces, np.roll(mesh.faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    low = place[ends].min(1).astype(np.int64)
    key = low * len(mesh.vertices) + place[ends].max(1)
    _, number, count = np.unique(key, return_inverse=True, return_counts=True)
    number = number.reshape(-1)
    twice = np.flatnonzero(count[number] == 2)
    pairs = ends[twice[np.argsort(number[twice], kind="stable")]].reshape(-1, 2, 2)
    here, there = pairs[:, 0], pairs[:, 1]
    # Neighbours run along their edge in opposite directions.
    opposite = (place[here] == place[there][:, ::-1]).all(1)
    return here[opposite], there[opposite][:, ::-1]
