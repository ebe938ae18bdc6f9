"""Images: what a renderer returns.

Conventions, said once: tensors are [B, C, H, W]; row 0 is the top. Colours are display-referred (sRGB-like), because
that is what diffusion priors were trained on.
"""

import io
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

FAINT = 1e-5
"""The alpha below which a pixel shows nothing that has a depth or a direction."""


@dataclass
class RaySamples:
    """What a volume renderer knows along its rays, for losses that look inside the volume: S samples of all rays."""

    weight: Tensor
    """[S] its share of its pixel."""
    normal: Tensor | None
    """[S, 3] unit, outward; None if it was not asked for."""
    direction: Tensor
    """[S, 3] of its ray, unit."""
    opacity: Tensor
    """[S] 1 - exp(-density * length) of each sample."""
    position: Tensor
    """[S, 3] world units."""


@dataclass
class Images:
    """B pictures of one size; differentiable as the renderer that made them says."""

    rgb: Tensor
    """[B, 3, H, W] in [0, 1], already composited on the background."""
    alpha: Tensor
    """[B, 1, H, W] in [0, 1]."""
    depth: Tensor
    """[B, 1, H, W] distance along the unit ray in world units: the mean by compositing weights; 0 where alpha is 0."""
    normal: Tensor | None = None
    """[B, 3, H, W] unit direction in the world times alpha; None if it was not asked for."""
    samples: RaySamples | None = None
    """What lies along the rays, of volumes that are rendered at once."""
    latent: Tensor | None = None
    """[B, C, H, W] numbers of a latent prior, of scenes that are made of such; on a background too."""

    def __len__(self) -> int:
        return self.rgb.shape[0]


def on_background(colour: Tensor, alpha: Tensor, depth: Tensor, normal: Tensor | None, background: Tensor) -> Images:
    """What a renderer has summed up in every pixel, in the conventions of `Images`.

    Args:
        colour, alpha, depth, normal: [B, C, H, W], weighted sums along the rays, of which the weights' sum is alpha.
        background: colour [B, C], or pictures [B, C, H, W].

    Differentiable in all. Raises ValueError for a background of another shape.
    """
    batch, channels, *size = colour.shape
    if tuple(background.shape) not in ((batch, channels), (batch, channels, *size)):
        raise ValueError(
            f"background must be [B, C] or [B, C, H, W] with B, C, H, W = {tuple(colour.shape)}; "
            f"got {tuple(background.shape)}"
        )
    behind = background[:, :, None, None] if background.ndim == 2 else background
    # Alpha is cut off below: depth is 0 where nothing is, and its gradient stays finite where almost nothing is.
    depth = depth / alpha.clamp(min=FAINT)
    normal = None if normal is None else F.normalize(normal, dim=1, eps=FAINT) * alpha
    return Images(colour + (1 - alpha) * behind.to(alpha), alpha, depth, normal)


def png(rgb: Tensor) -> bytes:
    """One picture [3, H, W] in [0, 1] as the bytes of a PNG file; values outside are cut off."""
    from PIL import Image

    pixels = (rgb.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
