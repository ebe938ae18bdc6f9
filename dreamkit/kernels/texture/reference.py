"""Texture lookup in plain torch: gather four texels a level, and mix. The contract is in the package's docstring."""

import torch
from torch import Tensor

from dreamkit.kernels.texture import Layout, columns
from dreamkit.kernels.texture.cube import project


def lookup(texels: Tensor, at: Tensor, level: Tensor | None, layout: Layout) -> Tensor:
    """texels [T, C], uv [N, 2] or directions [N, 3], level [N] -> [N, C]."""
    if layout.border == "cube":
        texture, x, y = project(at)
    else:
        texture = torch.arange(len(at), device=at.device) * layout.count // max(len(at), 1)
        x, y = at[:, 0], 1 - at[:, 1]
    if level is None:
        return _bilinear(texels, texture, x, y, torch.zeros_like(texture), layout)
    last = len(layout.sizes) - 1
    level = level.clamp(0, last)
    lower = level.detach().nan_to_num().long()
    near = _bilinear(texels, texture, x, y, lower, layout)
    far = _bilinear(texels, texture, x, y, (lower + 1).clamp(max=last), layout)
    return near + (level - lower)[:, None] * (far - near)


def _bilinear(texels: Tensor, texture: Tensor, x: Tensor, y: Tensor, level: Tensor, layout: Layout) -> Tensor:
    """[N, C]: on one level each; x [N] to the right and y [N] down, the texture being [0, 1]^2."""
    height, width, before, _ = columns(layout, texels.device).long()[level].unbind(1)
    x0, x1, right = _neighbours(x, width, layout.border)
    y0, y1, down = _neighbours(y, height, layout.border)
    first = before + texture * height * width

    def row(i: Tensor) -> Tensor:
        a, b = texels[first + i * width + x0], texels[first + i * width + x1]
        return a + right[:, None] * (b - a)

    top, bottom = row(y0), row(y1)
    return top + down[:, None] * (bottom - top)


def _neighbours(x: Tensor, size: Tensor, border: str) -> tuple[Tensor, Tensor, Tensor]:
    """The texels before and after x along an axis of `size` texels, and how far x is on the way between their
    centres."""
    if border == "wrap":
        x = x - x.floor()
    # Of a cube's face the first texel and the last are its neighbours': what is between them makes [0, 1].
    position = x * (size - 2) + 0.5 if border == "cube" else x * size - 0.5
    # Farther out there is no news. Beyond this, whole numbers would lose their way to int64.
    position = torch.minimum(position.clamp(min=-1), size.to(x))
    before = position.detach().floor()
    index = before.nan_to_num().long()
    ends = [index, index + 1]
    if border == "wrap":
        ends = [end % size for end in ends]
    lower, upper = (torch.minimum(end.clamp(min=0), size - 1) for end in ends)
    return lower, upper, position - before
