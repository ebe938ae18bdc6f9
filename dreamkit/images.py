"""Images: what a renderer returns.

Conventions, said once: tensors are [B, C, H, W]; row 0 is the top. `rgb` is in [0, 1] and display-referred (sRGB-like),
because that is what diffusion priors were trained on, and is already composited on the background. `alpha` is in
[0, 1].
`depth` is the distance along the unit ray in world units, averaged with the compositing weights and divided by alpha
(0 where alpha is 0). `normal` is a unit world-space direction times alpha, in [-1, 1].
"""

import io
from dataclasses import dataclass

from torch import Tensor


@dataclass
class RaySamples:
    """What a volume renderer knows along its rays, for losses that look inside the volume. All [S] or [S, 3].

    weight is each sample's share of its pixel; normal is the unit outward normal; direction the unit ray direction.
    """

    weight: Tensor
    normal: Tensor | None
    direction: Tensor
    opacity: Tensor
    """1 - exp(-density * length) of each sample."""
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

    def detach(self) -> "Images":
        """The pictures without their graph (and without the samples inside)."""
        normal = None if self.normal is None else self.normal.detach()
        latent = None if self.latent is None else self.latent.detach()
        return Images(self.rgb.detach(), self.alpha.detach(), self.depth.detach(), normal, latent=latent)


def png(rgb: Tensor) -> bytes:
    """One picture [3, H, W] in [0, 1] as the bytes of a PNG file; values outside are cut off."""
    from PIL import Image

    pixels = (rgb.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()
