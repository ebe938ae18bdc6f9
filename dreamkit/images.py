"""Images: what a renderer returns.

Conventions, said once: tensors are [B, C, H, W]; row 0 is the top. `rgb` is in [0, 1] and display-referred (sRGB-like),
because that is what diffusion priors were trained on, and is already composited on the background. `alpha` is in
[0, 1].
`depth` is the distance along the unit ray in world units, averaged with the compositing weights and divided by alpha
(0 where alpha is 0). `normal` is a unit world-space direction times alpha, in [-1, 1].
"""

import io
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

FAINT = 1e-5
"""The alpha below which a pixel shows nothing that has a depth or a direction."""


@dataclass
class RaySamples:
    """What a volume renderer knows along its rays, for losses that look inside the volume: S samples of all rays.

    weight [S] is each sample's share of its pixel; normal [S, 3] the unit outward normal; direction [S, 3] the unit ray
    direction.
    """

    weight: Tensor
    normal: Tensor | None
    direction: Tensor
    opacity: Tensor
    """[S] 1 - exp(-density * length) of each sample."""
    position: Tensor
    """[S, 3] world units."""


@dataclass
class Images:
    rgb: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor | None = None
    samples: RaySamples | None = None
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
