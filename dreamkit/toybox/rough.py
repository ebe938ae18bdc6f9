"""Pictures made worse than the world's own renders, so that a judge trained on renders can read other pictures too.

What it will be shown are samples of a prior and pictures of optimised scenes: softer, noisier, blotchy, a little off in
colour, place and shape, on any background. None of those is needed to imitate them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate

from dreamkit.streams import Streams


def lifted(pictures: Tensor, alpha: Tensor) -> Tensor:
    """Pictures [N, 3, H, W] without their backgrounds, each of one colour that fills the upper left corner: colour
    times alpha, and alpha, [N, 4, H, W]."""
    ground = pictures[:, :, :1, :1]
    return torch.cat([pictures - ground * (1 - alpha), alpha], 1)


def laid(things: Tensor, grounds: Tensor) -> Tensor:
    """The things [N, 4, H, W] of `lifted` on backgrounds that broadcast to [N, 3, H, W]."""
    return things[:, :3] + grounds * (1 - things[:, 3:])


def moved(things: Tensor, streams: Streams) -> Tensor:
    """Lifted things, each shifted by up to 5 % of the picture, scaled by 0.85 to 1.15, rolled by up to 4 degrees, and
    bent by about a pixel."""
    return grid_sample(things, _warp(things, streams), align_corners=False)


def worn(things: Tensor, streams: Streams) -> Tensor:
    """Pictures [N, 3, H, W] in [0, 1] of lifted things [N, 4, H, W], each spoilt in its own random measure.

    Blotches of 15 % and a tint of 5 % on the thing; any background; contrast off by up to 10 %, blur of up to 1.6
    pixels, and noise of up to 0.08.
    """
    count = len(things)
    blotches = 1 + 0.15 * strength(streams, "blotches", things) * smooth(streams, "blotch", 3, 8, things)
    tint = 1 + 0.1 * (streams.uniform("tint", (count, 3, 1, 1), things) - 0.5)
    coloured = torch.cat([(things[:, :3] * blotches * tint), things[:, 3:]], 1)
    pictures = laid(coloured, grounds(count, streams, things))
    contrast = 1 + 0.2 * (streams.uniform("contrast", (count, 1, 1, 1), things) - 0.5)
    pictures = (pictures - 0.5) * contrast + 0.5
    pictures = blurred(pictures, 1.6 * strength(streams, "blur", things))
    noise = 0.08 * strength(streams, "noisy", things) * streams.normal("noise", tuple(pictures.shape), pictures)
    return (pictures + noise).clamp(0, 1)


def strength(streams: Streams, name: str, like: Tensor) -> Tensor:
    """How much of something each picture gets, [N, 1, 1, 1] in [0, 1]: nothing for a third of them."""
    return (streams.uniform(name, (len(like), 1, 1, 1), like) * 1.5 - 0.5).clamp(min=0)


def plain(count: int, streams: Streams, like: Tensor) -> Tensor:
    """Backgrounds [N, 3, 1, 1] of one grey or colour each."""
    colour = streams.uniform("ground/0", (count, 3, 1, 1), like)
    return torch.where(streams.uniform("ground/grey", (count, 1, 1, 1), like) < 0.5, colour[:, :1], colour)


def grounds(count: int, streams: Streams, like: Tensor) -> Tensor:
    """Backgrounds [N, 3, H, W]: a third of one grey or colour, a third run from one to another, a third blotchy."""
    one, other = plain(count, streams, like), streams.uniform("ground/1", (count, 3, 1, 1), like)
    across = torch.linspace(-1, 1, like.shape[-1], device=like.device)
    angle = 6.3 * streams.uniform("ground/angle", (count, 1, 1, 1), like)
    ramp = (across * angle.cos() + across[:, None] * angle.sin()).mul(0.5).add(0.5).clamp(0, 1)
    blotchy = 0.5 + 0.3 * smooth(streams, "ground/blotch", 1, 6, like)
    which = streams.uniform("ground/which", (count, 1, 1, 1), like)
    mix = torch.where(which < 1 / 3, 0.0, torch.where(which < 2 / 3, ramp, blotchy.clamp(0, 1)))
    return one + (other - one) * mix


def smooth(streams: Streams, name: str, channels: int, cells: int, like: Tensor) -> Tensor:
    """A smooth random field [N, channels, H, W] of about unit size, with bumps of a `cells`-th of the picture."""
    coarse = streams.normal(name, (len(like), channels, cells, cells), like)
    return interpolate(coarse, like.shape[-2:], mode="bicubic", align_corners=False)


def blurred(pictures: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, each picture [3, H, W] with its own sigma [N, 1, 1, 1] in pixels (0 leaves it), cut at 4."""
    count, channels, height, width = pictures.shape
    offsets = torch.arange(-4, 5, device=pictures.device, dtype=pictures.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.reshape(-1, 1).clamp(min=1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    padded = torch.nn.functional.pad(pictures, (4, 4, 4, 4), mode="replicate").reshape(1, -1, height + 8, width + 8)
    rows = conv2d(padded, kernel[:, :, None, :], groups=count * channels)
    return conv2d(rows, kernel[:, :, :, None], groups=count * channels).reshape(pictures.shape)


def _warp(things: Tensor, streams: Streams) -> Tensor:
    """Sampling positions [N, H, W, 2] that scale, shift, roll a little and bend."""
    count = len(things)
    draw = 2 * streams.uniform("warp", (4, count), things) - 1
    scale, roll, right, down = 1 / (1 + 0.15 * draw[0]), 0.07 * draw[1], 0.1 * draw[2], 0.1 * draw[3]
    rows: Sequence[Sequence[Tensor]] = (
        (scale * roll.cos(), -scale * roll.sin(), right),
        (scale * roll.sin(), scale * roll.cos(), down),
    )
    straight = affine_grid(torch.stack([torch.stack(list(row), -1) for row in rows], 1), list(things.shape), False)
    pixel = 2 / things.shape[-1]
    bend = pixel * strength(streams, "bent", things) * smooth(streams, "bend", 2, 6, things)
    return straight + bend.permute(0, 2, 3, 1)
