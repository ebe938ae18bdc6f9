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

    def closest(self, points: Tensor) -> Hits:
        if len(self.corners) == 0 or len(points) == 0:
            return miss(len(points), points.device)
        parts = [self._closest(some) for some in points.split(RAYS_AT_ONCE)]
        return Hits(*(torch.cat([getattr(p, name) for p in parts]) for name in ("distance", "face", "barycentric")))

    def inside(self, points: Tensor) -> Tensor:
        if len(points) == 0:
            return torch.zeros(0, dtype=torch.bool, device=points.device)
        return torch.cat([self._winding(some) > 0.5 for some in points.split(RAYS_AT_ONCE)])

    def _closest(self, points: Tensor) -> Hits:
        """The nearest of four candidates on every face: inside it, and on each of its edges."""
        weights = torch.stack([self._within(points), *(self._on_edge(points, i) for i in range(3))], dim=2)
        places = torch.einsum("pfcw,fwx->pfcx", weights, self.corners)
        distance = (places - points[:, None, None]).norm(dim=-1)  # [P, F, 4]
        best, index = distance.flatten(1).min(dim=1)
        barycentric = weights.flatten(1, 2)[torch.arange(len(points), device=points.device), index]
        return Hits(best, index // 4, barycentric)

    def _within(self, points: Tensor) -> Tensor:
        """Weights [P, F, 3] of the foot of the perpendicular; of the first corner where that lies outside."""
        a, ab, ac = self.corners[:, 0], self.corners[:, 1] - self.corners[:, 0], self.corners[:, 2] - self.corners[:, 0]
        ap = points[:, None] - a
        d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
        d20, d21 = (ap * ab).sum(-1), (ap * ac).sum(-1)
        area = (d00 * d11 - d01 * d01).clamp(min=1e-30)
        v, w = (d11 * d20 - d01 * d21) / area, (d00 * d21 - d01 * d20) / area
        found = torch.stack([1 - v - w, v, w], dim=-1)
        corner = torch.tensor([1.0, 0.0, 0.0]).to(points)
        return torch.where((found >= 0).all(-1, keepdim=True), found, corner)

    def _on_edge(self, points: Tensor, first: int) -> Tensor:
        """Weights [P, F, 3] of the nearest place on the edge from corner `first` to the next."""
        second = (first + 1) % 3
        start, along = self.corners[:, first], self.corners[:, second] - self.corners[:, first]
        share = ((points[:, None] - start) * along).sum(-1) / (along * along).sum(-1).clamp(min=1e-30)
        share = share.clamp(0, 1)
        weights = torch.zeros(*share.shape, 3).to(points)
        weights[..., first], weights[..., second] = 1 - share, share
        return weights

    def _winding(self, points: Tensor) -> Tensor:
        """The solid angle of all faces over 4 pi (van Oosterom and Strackee, 1983)."""
        a, b, c = (self.corners[None, :, i] - points[:, None] for i in range(3))
        la, lb, lc = a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1)
        top = (a * torch.linalg.cross(b, c)).sum(-1)
        bottom = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        return torch.atan2(top, bottom).sum(1) / (2 * torch.pi)

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
