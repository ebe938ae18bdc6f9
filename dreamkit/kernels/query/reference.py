"""Every ray against every face, in plain torch: slow, and easy to believe."""

import torch
from torch import Tensor

from dreamkit.kernels.query import Hits, miss

RAYS_AT_ONCE = 1024


class MeshSurface:
    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        self.corners = vertices[faces.long()]  # [F, 3, 3]

    def cast(self, origins: Tensor, directions: Tensor) -> Hits:
        if len(self.corners) == 0 or len(origins) == 0:
            return miss(len(origins), origins.device)
        pairs = zip(origins.split(RAYS_AT_ONCE), directions.split(RAYS_AT_ONCE), strict=True)
        parts = [self._cast(o, d) for o, d in pairs]
        return Hits(*(torch.cat([getattr(p, name) for p in parts]) for name in ("distance", "face", "barycentric")))

    def _cast(self, origins: Tensor, directions: Tensor) -> Hits:
        """Moeller and Trumbore, 1997: solve origin + t direction = a + v (b - a) + w (c - a)."""
        a, ab, ac = self.corners[:, 0], self.corners[:, 1] - self.corners[:, 0], self.corners[:, 2] - self.corners[:, 0]
        p = torch.linalg.cross(directions[:, None], ac[None])  # [R, F, 3]
        determinant = (p * ab).sum(-1)
        inverse = 1 / torch.where(determinant == 0, torch.inf, determinant)  # parallel rays miss
        s = origins[:, None] - a
        v = (s * p).sum(-1) * inverse
        q = torch.linalg.cross(s, ab[None].expand_as(s))
        w = (directions[:, None] * q).sum(-1) * inverse
        t = (ac * q).sum(-1) * inverse
        hit = (determinant != 0) & (v >= 0) & (w >= 0) & (v + w <= 1) & (t > 0)
        distance, face = torch.where(hit, t, torch.inf).min(dim=1)
        found = distance.isfinite()
        v, w = v.gather(1, face[:, None])[:, 0], w.gather(1, face[:, None])[:, 0]
        barycentric = torch.stack([1 - v - w, v, w], dim=-1) * found[:, None]
        return Hits(distance, torch.where(found, face, -1), barycentric)
