"""Gaussian splatting in plain torch: blocks of pixels against all Gaussians that reach them. The contract is in the
package.

A block keeps nothing for the backward pass but its inputs: it is computed again there (checkpoint), so that memory is
that of one block.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dreamkit.kernels.splat import BLUR, DARK, LEAST_ALPHA, MARGIN, MOST_ALPHA, SH0, SH1, SH2, SH3, Projected, Scene

BLOCK = 16  # pixels along a side


def project(scene: Scene, size: tuple[int, int], near: float, antialiased: bool) -> Projected:
    """The Gaussians on the screen, those that are not seen as 0."""
    means, quaternions, scales, opacities, frames, focal = scene
    height, width = size
    turn = frames[:, :3]  # [B, 3, 3] world -> right, down, ahead
    local = torch.einsum("bij,bnj->bni", turn, means - frames[:, 3:])
    ahead = local[..., 2] > near
    z = torch.where(ahead, local[..., 2], 1.0)
    f = focal[:, None]
    slope = local[..., :2] / z[..., None]
    screen = slope * f[..., None] + slope.new_tensor([width / 2, height / 2])

    limit = MARGIN * slope.new_tensor([width / 2, height / 2]) / f[..., None]
    x, y = torch.minimum(torch.maximum(slope, -limit), limit).unbind(-1)
    zero = torch.zeros_like(x)
    jacobian = torch.stack([torch.stack([f / z, zero, -f * x / z], -1), torch.stack([zero, f / z, -f * y / z], -1)], -2)
    root = torch.einsum("bnij,bjk,nkl->bnil", jacobian, turn, _rotation(quaternions) * scales[:, None])
    before = root @ root.mT
    a, b, c = before[..., 0, 0] + BLUR, before[..., 0, 1], before[..., 1, 1] + BLUR
    # |m0 x m1|^2 is m0.m0 m1.m1 - (m0.m1)^2 without the cancellation.
    area = torch.linalg.cross(root[..., 0, :], root[..., 1, :])
    det_before = area.square().sum(-1)
    det = det_before + BLUR * (before[..., 0, 0] + before[..., 1, 1]) + BLUR**2
    conics = torch.stack([c, -b, a], -1) / det[..., None]
    opacity = opacities.expand(len(frames), -1)
    if antialiased:
        nonzero = det_before > 0  # the square root has no derivative at 0
        opacity = opacity * torch.where(nonzero, torch.where(nonzero, det_before, 1.0).sqrt(), 0.0) / det.sqrt()

    with torch.no_grad():
        strong = opacity >= LEAST_ALPHA
        reach = (2 * torch.where(strong, opacity / LEAST_ALPHA, 1.0).log()).sqrt()
        extent = reach[..., None] * torch.stack([a, c], -1).sqrt()
        first = (screen - extent - 0.5).ceil().clamp(min=0)
        last = torch.minimum((screen + extent - 0.5).floor(), screen.new_tensor([width - 1, height - 1]))
        seen = ahead & strong & (first <= last).all(-1) & det.isfinite()
        longer = (a + c) / 2 + (((a - c) / 2).square() + b.square()).sqrt()
        radii = torch.where(seen, 3 * longer.sqrt(), 0.0)

    def only(values: Tensor) -> Tensor:
        return torch.where(seen if values.ndim == 2 else seen[..., None], values, 0.0)

    return Projected(only(screen), only(conics), only(opacity), only(z), only(extent), radii)


def _rotation(quaternions: Tensor) -> Tensor:
    """[N, 4] -> [N, 3, 3]."""
    w, x, y, z = F.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def colour(means: Tensor, coefficients: Tensor, positions: Tensor, degree: int, radii: Tensor) -> Tensor:
    """[N, (degree + 1)^2, 3] spherical harmonics seen from [B, 3] positions -> [B, N, 3], 0 where radii are 0."""
    x, y, z = F.normalize(means - positions[:, None], dim=-1).unbind(-1)
    terms = [torch.full_like(x, SH0)]
    if degree > 0:
        terms += [-SH1 * y, SH1 * z, -SH1 * x]
    if degree > 1:
        m, n, o = SH2
        terms += [m * x * y, -m * y * z, n * (2 * z * z - x * x - y * y), -m * x * z, o * (x * x - y * y)]
    if degree > 2:
        p, q, r, s, t = SH3
        terms += [
            -p * y * (3 * x * x - y * y),
            q * x * y * z,
            -r * y * (4 * z * z - x * x - y * y),
            s * z * (2 * z * z - 3 * x * x - 3 * y * y),
            -r * x * (4 * z * z - x * x - y * y),
            t * z * (x * x - y * y),
            -p * x * (x * x - 3 * y * y),
        ]
    colours = torch.einsum("bnk,nkc->bnc", torch.stack(terms, -1), coefficients) + 0.5
    return torch.where(radii[..., None] > 0, colours.clamp(min=0), 0.0)


def rasterise(
    found: Projected, features: Tensor, size: tuple[int, int], spread: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, ...] -> features [B, C, H, W], alpha [B, H, W], depth [B, H, W]."""
    screen, conics, opacity, depth, extent, _ = found
    height, width = size
    pictures = []
    for b in range(len(screen)):
        order = torch.argsort(depth[b], stable=True)
        order = order[extent[b, order, 0] > 0]
        columns = [screen[b], conics[b], opacity[b, :, None], features[b], depth[b, :, None]]
        table = torch.cat(columns, 1)[order]
        shift = torch.zeros_like(screen[b]) if spread is None else spread[b]
        low, high = (screen[b] - extent[b])[order], (screen[b] + extent[b])[order]
        bands = []
        for top in range(0, height, BLOCK):
            bottom = min(top + BLOCK, height)
            band = []
            for left in range(0, width, BLOCK):
                right = min(left + BLOCK, width)
                # Pixel centres lie half a pixel inside the block; the other half is a margin for rounding.
                meets = (low < low.new_tensor([right, bottom])) & (high > low.new_tensor([left, top]))
                here = meets.all(1)
                box = (left, top, right, bottom)
                band.append(checkpoint(_block, table[here], shift[order[here]], box, use_reentrant=False))
            bands.append(torch.cat(band, 2))
        pictures.append(torch.cat(bands, 1))
    seen = torch.stack(pictures)
    return seen[:, :-2], seen[:, -2], seen[:, -1]


def _block(table: Tensor, shift: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """[n, 6 + C + 1] sorted Gaussians -> [C + 2, rows, columns]: features, alpha, depth of one block of pixels."""
    left, top, right, bottom = box
    x = torch.arange(left, right, device=table.device).to(table) + 0.5
    y = torch.arange(top, bottom, device=table.device).to(table) + 0.5
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    screen, conic, opacity, features = table.split([2, 3, 1, table.shape[1] - 6], dim=1)
    # [pixels, n, 2]. AbsGS: its gradient at each pixel is made absolute before the pixels are summed.
    centre = screen + _Absolute.apply(shift.expand(len(grid), -1, -1))
    dx, dy = (grid[:, None] - centre).unbind(-1)
    power = conic[:, 0] * dx * dx / 2 + conic[:, 1] * dx * dy + conic[:, 2] * dy * dy / 2
    alpha = (opacity[:, 0] * torch.exp(-power)).clamp(max=MOST_ALPHA)
    alpha = torch.where(alpha >= LEAST_ALPHA, alpha, 0.0)
    after = torch.cumsum(torch.log1p(-alpha), dim=1)
    alpha = torch.where(after.exp() >= DARK, alpha, 0.0)  # it only falls: what comes later is left out, too
    through = torch.cumsum(torch.log1p(-alpha), dim=1)
    weight = alpha * torch.exp(F.pad(through, (1, 0))[:, :-1])
    seen = weight @ features
    covered = weight.sum(1, keepdim=True)
    return torch.cat([seen[:, :-1], covered, seen[:, -1:]], 1).T.reshape(-1, len(y), len(x))


class _Absolute(torch.autograd.Function):
    """The identity, whose gradient is |gradient|."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        return gradients[0].abs()
