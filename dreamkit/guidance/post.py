"""What is done to the finished gradient."""

from dataclasses import dataclass

from torch import Tensor

from dreamkit.guidance.rule import Post, Probe
from dreamkit.schedule import Number, fixed


@dataclass(frozen=True)
class Clamp(Post):
    """Every element held in [-limit, limit] (the score debiasing of D-SDS, arXiv:2303.15413, with a growing limit)."""

    limit: Number

    def __call__(self, gradient: Tensor, probe: Probe) -> Tensor:
        return gradient.clamp(-fixed(self.limit), fixed(self.limit))


def clip_pixels(gradient: Tensor, limit: float) -> Tensor:
    """Every pixel's gradient over its channels [B, C, H, W] shortened until no channel exceeds `limit`.

    Its direction stays (Pixel-wise Gradient Clipping, PGC-3D, arXiv:2310.12474, eq. 9). For the gradient of the
    rendered picture, behind the encoder, whose noise it cuts: `Guide.clip`. An infinite limit changes nothing.
    """
    largest = gradient.abs().amax(1, keepdim=True)
    return gradient * (limit / largest.clamp(min=1e-30)).clamp(max=1)


@dataclass(frozen=True)
class NormalizeBatch(Post):
    """The whole batch's gradient divided by its norm, so that only its direction counts. Zero stays zero."""

    def __call__(self, gradient: Tensor, probe: Probe) -> Tensor:
        norm = gradient.norm()
        return gradient / norm.clamp(min=1e-12)


@dataclass(frozen=True)
class Normalize(Post):
    """Each sample's gradient divided by its root mean square, so that every view counts the same. Zero stays zero."""

    def __call__(self, gradient: Tensor, probe: Probe) -> Tensor:
        axes = tuple(range(1, gradient.ndim))
        return gradient / gradient.square().mean(axes, keepdim=True).sqrt().clamp(min=1e-12)
