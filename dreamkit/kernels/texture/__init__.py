"""Texture lookup: bilinear, mip-mapped, and from cube maps; differentiable in the texels and in where they are read.

A texture is [H, W, C]: row 0 is the top, and the centre of texel (row i, column j) stands at
u = (j + 0.5) / W, v = 1 - (i + 0.5) / H (the origin of uv is the bottom left, as in `meshes.py`).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dreamkit.kernels import choose
from dreamkit.kernels.texture.cube import cube_directions, padded

__all__ = ["sample", "sample_cube", "mipmap", "footprint_level", "cube_directions"]

BORDERS = ("clamp", "wrap")


@dataclass(frozen=True)
class Layout:
    """How `count` textures of the same size and their mip levels stand in one list of texels [T, C], the finest level
    first, texture after texture within a level.

    border: "clamp" or "wrap", read at uv; or "cube", read in directions: 6 faces, each with a border of one texel.
    sizes: (height, width) of every level, with the border of a cube's face.
    """

    border: str
    count: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def total(self) -> int:
        """Texels."""
        return self.count * sum(height * width for height, width in self.sizes)


@functools.lru_cache(maxsize=64)
def columns(layout: Layout, device: torch.device) -> Tensor:
    """[levels, 4] int32: height, width, texels before this level, rows of texels before it."""
    height, width = zip(*layout.sizes, strict=True)
    texels = accumulate((layout.count * h * w for h, w in layout.sizes[:-1]), initial=0)
    rows = accumulate((layout.count * h for h in height[:-1]), initial=0)
    return torch.tensor([*zip(height, width, texels, rows, strict=True)], dtype=torch.int32, device=device)


def sample(
    texture: Tensor,
    uv: Tensor,
    footprint: Tensor | None = None,
    mips: Sequence[Tensor] | None = None,
    *,
    border: str = "clamp",
    backend: str = "auto",
) -> Tensor:
    """A texture's values at uv: the bilinear mean of the four nearest texels; with a footprint, trilinear in its mips.

    With x = u W - 1/2, y = (1 - v) H - 1/2, a = x - floor(x), b = y - floor(y):

        value = (1-a)(1-b) texel[y0, x0] + a (1-b) texel[y0, x0+1] + (1-a) b texel[y0+1, x0] + a b texel[y0+1, x0+1]

    With a footprint, the value is mixed linearly from those of the two levels around `footprint_level`.

    Args:
        texture:   [H, W, C], or [B, H, W, C] for B textures; float32 or float64, like all others. C >= 1.
        uv:        [..., 2], or [B, ..., 2]: uv[b] reads texture b. There may be none.
        footprint: [..., 2, 2], footprint[..., i, j] the derivative of uv[..., i] along screen axis j, per pixel.
        mips:      the levels of `texture` as `mipmap` makes them, mips[0] being the texture itself: give them where
                   several calls share them. By default they are made here. Not read without a footprint.
        border:    "clamp": outside of [0, 1], the nearest texel of the border; "wrap": the texture repeats.
        backend:   "auto", "warp" or "reference".

    Returns:
        [..., C], the leading shape of uv.

    Differentiable once in texture, mips and uv, and in the footprint through the level. The derivative in uv is that of
    the bilinear patch: it jumps at texel centres, and is 0 where the border clamps. uv of NaN give NaN.

    On a CPU no two threads add to one texel: each owns rows of the texture, and the result does not depend on their
    number. On CUDA the gradient of the texels is summed by atomic adds, or, where
    `torch.are_deterministic_algorithms_enabled()`, by the reference, which sorts; that takes some 300 bytes a lookup.
    Kept for the way back are the inputs, mips included; on a CPU it takes up to 24 bytes a lookup more.

    Raises ValueError for wrong shapes, dtypes or devices; InputError for a backend that is not there.

    >>> texture = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[..., None]
    >>> sample(texture, torch.tensor([[0.25, 0.75], [0.5, 0.75], [0.5, 0.5]]))[:, 0].tolist()
    [0.0, 0.5, 1.5]
    """
    if texture.ndim not in (3, 4) or min(texture.shape) < 1 or uv.ndim < 1 or uv.shape[-1] != 2:
        raise ValueError(
            f"sample expects texture [H, W, C] or [B, H, W, C], none of them 0, and uv [..., 2]; "
            f"got {tuple(texture.shape)} and {tuple(uv.shape)}"
        )
    if texture.ndim == 4 and (uv.ndim < 2 or len(uv) != len(texture)):
        raise ValueError(f"sample expects uv [{len(texture)}, ..., 2], one row a texture; got {tuple(uv.shape)}")
    if border not in BORDERS:
        raise ValueError(f"sample knows the borders {' and '.join(map(repr, BORDERS))}; got {border!r}")
    levels: tuple[Tensor, ...] = (texture,)
    level = None
    if footprint is not None:
        if footprint.shape != (*uv.shape, 2):
            raise ValueError(f"sample expects footprint {[*uv.shape, 2]} for its uv; got {list(footprint.shape)}")
        level = footprint_level(footprint, *texture.shape[-3:-1])
        levels = (texture, *_coarser(texture, mips))
    if texture.ndim == 3:
        levels = tuple(one[None] for one in levels)
    return _lookup("sample", border, levels, uv, level, backend)


def sample_cube(
    faces: Tensor,
    directions: Tensor,
    level: Tensor | None = None,
    mips: Sequence[Tensor] | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """A cube map's values in directions: bilinear, also across the edges of the faces, so that no seam shows.

    The faces look along +x, -x, +y, -y, +z, -z from inside the cube. Those at the sides have +z at their top; +z has
    +x at its bottom and -z has +x at its top. `cube_directions` gives the direction of every texel. Each face is lined
    with the nearest texels of its four neighbours; where three faces meet, the texel that no face has is the mean of
    the three that meet there. The value is continuous over the sphere.

    Args:
        faces:      [6, S, S, C], float32 or float64, like all others. C >= 1.
        directions: [..., 3] of any length but 0.
        level:      [...] which mip level to read: 0 is `faces`, the next is half as wide; in between, both are mixed;
                    outside of the range, the nearest. For light on a surface of roughness r, r times the last level is
                    the usual choice.
        mips:       the levels, mips[0] being `faces`: `mipmap(faces)` by default, or for instance prefiltered for a
                    lobe. Not read without a level.
        backend:    "auto", "warp" or "reference".

    Returns:
        [..., C], the leading shape of directions.

    Differentiable once in faces, mips, directions and level; sums as in `sample`. Directions of 0 or NaN give NaN.

    Raises ValueError for wrong shapes, dtypes or devices; InputError for a backend that is not there.
    """
    if faces.ndim != 4 or len(faces) != 6 or faces.shape[1] != faces.shape[2] or min(faces.shape) < 1:
        raise ValueError(f"sample_cube expects faces [6, S, S, C], none of them 0; got {tuple(faces.shape)}")
    if directions.ndim < 1 or directions.shape[-1] != 3:
        raise ValueError(f"sample_cube expects directions [..., 3]; got {tuple(directions.shape)}")
    levels: tuple[Tensor, ...] = (faces,)
    if level is not None:
        if level.shape != directions.shape[:-1]:
            raise ValueError(
                f"sample_cube expects level {list(directions.shape[:-1])} for its directions; got {list(level.shape)}"
            )
        levels = (faces, *_coarser(faces, mips))
    return _lookup("sample_cube", "cube", tuple(padded(one) for one in levels), directions, level, backend)


def mipmap(texture: Tensor, levels: int | None = None) -> tuple[Tensor, ...]:
    """The levels of a texture [..., H, W, C], from itself to one texel: each is the former filtered by a box.

    An even size halves: means of 2 x 2 texels. An odd size n = 2 m + 1 becomes m, by a box of n / m texels: exact means
    over area, three texels wide. So every level covers the same [0, 1]^2 and has the same mean. A size of 1 stays.

    Args:
        texture: at least 3 dimensions, none of the last three 0.
        levels: how many at most, the texture itself included; all, if None.

    Differentiable by autograd.

    >>> [tuple(level.shape) for level in mipmap(torch.zeros(6, 5, 3))]
    [(6, 5, 3), (3, 2, 3), (1, 1, 3)]
    """
    if texture.ndim < 3 or min(texture.shape[-3:]) < 1 or (levels is not None and levels < 1):
        raise ValueError(
            f"mipmap expects texture [..., H, W, C] and levels of at least 1; got {tuple(texture.shape)}, {levels}"
        )
    found = [texture]
    while max(found[-1].shape[-3:-1]) > 1 and len(found) != levels:
        found.append(_halved(_halved(found[-1], -3), -2))
    return tuple(found)


def footprint_level(footprint: Tensor, height: int, width: int) -> Tensor:
    """The mip level for a pixel that covers a footprint [..., 2, 2] of d(u, v) / d(pixel x, y): [...], at least 0.

    log2 of the length, in texels, of the longer of the footprint's two axes (OpenGL 4.6, 8.14.1, without a bias).
    """
    axes = (footprint[..., 0, :] * width) ** 2 + (footprint[..., 1, :] * height) ** 2
    return 0.5 * axes.amax(-1).clamp(min=1).log2()


def _halved(values: Tensor, axis: int) -> Tensor:
    """Half as many along an axis, by a box filter."""
    size, half = values.shape[axis], values.shape[axis] // 2
    if half == 0:
        return values
    if size % 2 == 0:
        even, odd = values.unflatten(axis, (half, 2)).unbind(axis)
        return (even + odd) * 0.5
    # New texel i covers the old from i n / m to (i+1) n / m: (m-i) / m of texel 2i, 2i+1, and (i+1) / m of 2i+2.
    values = values.movedim(axis, 0)
    i = torch.arange(half, dtype=values.dtype, device=values.device).view(-1, *[1] * (values.ndim - 1))
    means = ((half - i) * values[:-1:2] + half * values[1::2] + (i + 1) * values[2::2]) / size
    return means.movedim(0, axis)


def _coarser(texture: Tensor, mips: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """The levels below the texture itself, made or checked."""
    if mips is None:
        return mipmap(texture)[1:]
    outer = (*texture.shape[:-3], texture.shape[-1])
    wrong = [tuple(m.shape) for m in mips if m.ndim != texture.ndim or (*m.shape[:-3], m.shape[-1]) != outer]
    if len(mips) < 1 or mips[0].shape != texture.shape or wrong:
        raise ValueError(
            f"the mips of a texture {tuple(texture.shape)} begin with itself and have as many channels; "
            f"got {[tuple(m.shape) for m in mips]}"
        )
    return tuple(mips[1:])


def _lookup(
    asker: str, border: str, levels: tuple[Tensor, ...], at: Tensor, level: Tensor | None, backend: str
) -> Tensor:
    """Check dtypes and devices, lay levels [B, H, W, C] and positions [..., 2 or 3] flat, and look up."""
    given = [*levels, at] + ([] if level is None else [level])
    dtypes = {tensor.dtype for tensor in given}
    if len(dtypes) != 1 or at.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{asker} expects float32 or float64, the same for all; got {sorted(map(str, dtypes))}")
    if len({tensor.device for tensor in given}) != 1:
        raise ValueError(f"{asker} expects all its tensors on one device")
    layout = Layout(border, len(levels[0]), tuple((one.shape[1], one.shape[2]) for one in levels))
    if layout.total >= 2**31:
        raise ValueError(f"{asker} can number 2^31 texels, mips included; got {layout.total}")
    channels = levels[0].shape[-1]
    texels = [one.reshape(-1, channels) for one in levels]
    found: Tensor = choose.backend(__name__, backend).lookup(
        torch.cat(texels) if len(texels) > 1 else texels[0],
        at.reshape(-1, at.shape[-1]),
        None if level is None else level.reshape(-1),
        layout,
    )
    return found.reshape(*at.shape[:-1], channels)
