"""Rasterisation in plain torch: every face is tried on the pixels of its bounding box. The contract is in the package.

What is seen is decided without gradient, in float64; then the formulas are written once more for what is seen, and
autograd takes their derivative.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dreamkit.kernels.raster import DEPTH_STEPS, WALK

NEXT, LAST = [1, 2, 0], [2, 0, 1]  # of corner i, the corners i + 1 and i + 2


def rasterize(clip: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, V, 4] -> face [B, H, W], barycentric [B, H, W, 3], depth [B, H, W]."""
    views = [_visible(view.detach().double(), faces.long(), height, width) for view in clip]
    face = torch.stack(views) if views else faces.new_empty(0, height, width)
    covered = face >= 0
    view, row, column = covered.nonzero().unbind(1)
    corners = clip[view[:, None], faces.long()[face[covered].long()]].double()  # [P, 3, 4]
    edge = (_edges(corners) * _centre(row, column, height, width)[:, None]).sum(-1)
    weights = edge / edge.sum(1, keepdim=True)
    z, w = ((weights * corners[..., i]).sum(1) for i in (2, 3))
    barycentric = clip.new_zeros(*face.shape, 3).index_put((view, row, column), weights.to(clip.dtype))
    depth = clip.new_ones(face.shape).index_put((view, row, column), (z / w).to(clip.dtype))
    return face, barycentric, depth


def interpolate(attributes: Tensor, face: Tensor, barycentric: Tensor, faces: Tensor) -> Tensor:
    """[V, C] or [B, V, C] -> [B, H, W, C]."""
    at = _corner_values(attributes, face, faces)
    return (barycentric[..., None] * at).sum(-2) * (face >= 0)[..., None]


def screen_derivatives(attributes: Tensor, face: Tensor, barycentric: Tensor, clip: Tensor, faces: Tensor) -> Tensor:
    """[V, C] or [B, V, C] -> [B, H, W, C, 2]."""
    height, width = face.shape[1:]
    corners = _corner_values(clip, face, faces).double()
    edges = _edges(corners)
    rows, columns = (torch.arange(n, device=face.device) for n in (height, width))
    total = (edges.sum(-2) * _centre(rows[:, None], columns[None], height, width)).sum(-1)[..., None, None]
    slope = edges[..., :2] * edges.new_tensor([2 / width, -2 / height])  # of e_i, per pixel to the right and down
    change = (slope - barycentric[..., None] * slope.sum(-2, keepdim=True)) / total  # of b_i, [B, H, W, 3, 2]
    result = torch.einsum("bhwik,bhwic->bhwck", change, _corner_values(attributes, face, faces).double())
    return torch.where(face[..., None, None] >= 0, result, 0.0).to(attributes.dtype)


def antialias(picture: Tensor, face: Tensor, depth: Tensor, clip: Tensor, faces: Tensor, neighbours: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, H, W, C]."""
    along_rows = _shares(face, depth, clip, faces, neighbours, upright=True).to(picture.dtype)
    picture = _blend(picture, along_rows, dim=2)
    along_columns = _shares(face, depth, clip, faces, neighbours, upright=False).to(picture.dtype)
    return _blend(picture, along_columns, dim=1)


def _edges(corners: Tensor) -> Tensor:
    """The lines opposite each corner, [..., 3, 4] -> [..., 3, 3]: e_i at p is their product with p."""
    flat = corners[..., [0, 1, 3]]
    return torch.linalg.cross(flat[..., NEXT, :], flat[..., LAST, :])


def _centre(row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    """Pixel centres as (x, y, 1) in normalised coordinates, [..., 3] float64."""
    x, y = torch.broadcast_tensors(
        (2 * column + 1).double() * (1 / width) - 1, 1 - (2 * row + 1).double() * (1 / height)
    )
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def _corner_values(values: Tensor, face: Tensor, faces: Tensor) -> Tensor:
    """Values of vertices, [V, C] or [B, V, C], at the three corners of each pixel's face: [B, H, W, 3, C]."""
    if not len(faces):
        return values.new_zeros(*face.shape, 3, values.shape[-1])
    corners = faces.long()[face.long().clamp(min=0)]
    if values.ndim == 2:
        return values[corners]
    return values[torch.arange(len(values), device=face.device)[:, None, None, None], corners]


def _visible(clip: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
    """The nearest face of one view at every pixel, [V, 4] -> [H, W] int32."""
    corners = clip[faces]
    edges = _edges(corners)
    volume = (edges[:, 0] * corners[:, 0, [0, 1, 3]]).sum(-1)
    edges = edges * volume.sign()[:, None, None]
    low, high = _boxes(corners, volume, height, width)
    extent = (high - low + 1).clamp(min=0)  # rows, columns
    count = extent.prod(1)
    face = torch.repeat_interleave(torch.arange(len(faces), device=clip.device), count)
    number = torch.arange(len(face), device=clip.device) - (count.cumsum(0) - count)[face]
    row, column = low[face, 0] + number // extent[face, 1], low[face, 1] + number % extent[face, 1]

    centre = _centre(row, column, height, width)
    edge = (edges[face] * centre[:, None]).sum(-1)
    owned = (edges[..., 0] > 0) | ((edges[..., 0] == 0) & (edges[..., 1] < 0))  # top-left
    z = (edge * corners[face, :, 2]).sum(1) / volume.abs()[face]
    drawn = ((edge > 0) | ((edge == 0) & owned[face])).all(1) & (z >= -1) & (z <= 1)
    step = ((z[drawn] + 1) * DEPTH_STEPS).long()
    nearest = torch.full((height * width,), torch.iinfo(torch.int64).max, device=clip.device)
    nearest.scatter_reduce_(0, (row * width + column)[drawn], step << 32 | face[drawn], "amin")
    return (nearest & 0xFFFFFFFF).int().view(height, width)  # the low half of int64's greatest number is -1


def _boxes(corners: Tensor, volume: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """First and last row and column of pixel centres that a face may cover, [F, 2] each; an empty box if none."""
    w = corners[..., 3]
    size = torch.tensor([height, width], device=corners.device)
    flat = torch.stack([-corners[..., 1], corners[..., 0]], dim=-1) / w[..., None]  # rows, columns
    at = (flat + 1) / 2 * size - 0.5
    low, high = at.amin(1), at.amax(1)
    whole = (w <= 0).any(1, keepdim=True)  # it crosses the camera's plane: its picture has no bounds
    low = torch.where(whole, 0.0, (low - 1e-6).ceil().nan_to_num().clamp(min=0, max=2**20))
    high = torch.where(whole, size - 1.0, (high + 1e-6).floor().nan_to_num().clamp(min=-1).minimum(size - 1.0))
    seen = corners.isfinite().all(-1).all(-1) & volume.isfinite() & (volume != 0) & (w > 0).any(1)
    return low.long(), torch.where(seen[:, None], high, -1.0).long()


def _shares(face: Tensor, depth: Tensor, clip: Tensor, faces: Tensor, neighbours: Tensor, upright: bool) -> Tensor:
    """How pairs of pixels mix: [B, H, W], for each pixel and the next of its row (or column) p and q.

    Positive: p takes this share of q. Negative: q takes this share of p.
    """
    height, width = face.shape[1:]
    step = (0, 1) if upright else (1, 0)
    face_p, face_q = _pair(face, step)
    depth_p, depth_q = _pair(depth, step)
    view, row, column = (face_p != face_q).nonzero().unbind(1)
    at = (view, row, column)
    face_p, face_q, depth_p, depth_q = (x[at] for x in (face_p, face_q, depth_p, depth_q))
    p_near = (face_q < 0) | ((face_p >= 0) & ((depth_p < depth_q) | ((depth_p == depth_q) & (face_p < face_q))))
    p = _centre(row, column, height, width)
    q = _centre(row + step[0], column + step[1], height, width)
    near, far = torch.where(p_near[:, None], p, q), torch.where(p_near[:, None], q, p)
    start = torch.where(p_near, face_p, face_q).long()
    with torch.no_grad():
        found, a, b = _walk(start, view, near, far, clip.double(), faces.long(), neighbours.long())
    a, b, view, near, far = (x[found] for x in (a, b, view, near, far))
    line = torch.linalg.cross(*(clip[view, end][:, [0, 1, 3]].double() for end in (a, b)))
    steep = (line[:, 0].abs() * height >= line[:, 1].abs() * width) == upright
    line, near, far = line[steep], near[steep], far[steep]
    here, there = (line * near).sum(1), (line * far).sum(1)
    share = 0.5 - here / (here - there)
    share = torch.where(p_near[found][steep], share, -share)
    at = tuple(x[found][steep] for x in at)  # type: ignore[assignment]
    return clip.new_zeros(face.shape, dtype=torch.float64).index_put(at, share)


def _pair(values: Tensor, step: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = values.shape[1:]
    return values[:, : height - step[0], : width - step[1]], values[:, step[0] :, step[1] :]


def _walk(
    face: Tensor, view: Tensor, near: Tensor, far: Tensor, clip: Tensor, faces: Tensor, neighbours: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Over the surface from `near` on `face` towards `far`, to the first silhouette edge: whether there is one [P],
    and the two vertices of the edge [P]."""
    found = torch.zeros_like(face, dtype=torch.bool)
    ends = torch.zeros(len(face), 2, dtype=torch.long, device=face.device)
    walking = torch.arange(len(face), device=face.device)
    came = torch.full_like(face, -1)  # the face before
    for _ in range(WALK):
        now, eye = face[walking], view[walking]
        corners = clip[eye[:, None], faces[now]]
        edges = _edges(corners)
        volume = (edges[:, 0] * corners[:, 0, [0, 1, 3]]).sum(-1)
        edges = edges * volume.sign()[:, None, None]
        here, there = ((edges * x[walking, None]).sum(-1) for x in (near, far))
        leaves = (there < 0) & (here > there) & ((neighbours[now] < 0) | (neighbours[now] != came[walking, None]))
        edge = torch.where(leaves, here / (here - there), torch.inf).argmin(1)
        each = torch.arange(len(now), device=face.device)
        across = neighbours[now, edge]
        a, b = (faces[now, (edge + i) % 3] for i in (1, 2))
        # The corner across the edge; without a face there, this face's own, as if it lay on the same side.
        other = faces[torch.where(across < 0, now, across)].sum(1) - a - b
        folds = (edges[each, edge] * clip[eye, other][:, [0, 1, 3]]).sum(-1) >= 0
        out = leaves.any(1)
        end = walking[out & folds]
        found[end] = True
        ends[end] = torch.stack([a, b], dim=1)[out & folds]
        on = out & ~folds
        came[walking[on]], face = now[on], face.index_put((walking[on],), across[on])
        walking = walking[on]
    return found, ends[:, 0], ends[:, 1]


def _blend(picture: Tensor, share: Tensor, dim: int) -> Tensor:
    """Mix every pixel with the next and the one before it along `dim`, by their shares [B, H, W]."""
    size = picture.shape[dim]
    step = picture.narrow(dim, 1, size - 1) - picture.narrow(dim, 0, size - 1)
    share = share.narrow(dim, 0, size - 1)[..., None]
    pad = [0, 0] * (3 - dim)
    return picture + F.pad(share.clamp(min=0) * step, [*pad, 0, 1]) + F.pad(share.clamp(max=0) * step, [*pad, 1, 0])
