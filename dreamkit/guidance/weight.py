"""How much each level counts: functions of k, the noise to signal, so that they mean the same under every prior.

alpha and sigma below are those of a variance-preserving schedule: alpha = 1 / sqrt(1 + k^2), sigma = k / sqrt(1 + k^2).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.guidance.rule import Weight


@dataclass(frozen=True)
class SigmaSquared(Weight):
    """sigma^2 = k^2 / (1 + k^2), DreamFusion's choice (arXiv:2209.14988)."""

    def __call__(self, k: Tensor) -> Tensor:
        return torch.where(k.isinf(), torch.ones_like(k), k**2 / (1 + k**2))


@dataclass(frozen=True)
class One(Weight):
    """1: the plain score, as in SJC (arXiv:2212.00774)."""

    def __call__(self, k: Tensor) -> Tensor:
        return torch.ones_like(k)


@dataclass(frozen=True)
class SigmaOverAlpha(Weight):
    """k: the rule then is an L2 loss to the one-step estimate, G = x - x0 for SDS."""

    def __call__(self, k: Tensor) -> Tensor:
        return k


@dataclass(frozen=True)
class InverseSigmaSquared(Weight):
    """1 / sigma^2 = 1 + 1 / k^2: low noise counts most (PGC-3D, arXiv:2310.12474, one of its two)."""

    def __call__(self, k: Tensor) -> Tensor:
        return 1 + 1 / k**2


@dataclass(frozen=True)
class Alpha(Weight):
    """alpha: high noise counts little (PlacidDreamer, arXiv:2407.13976)."""

    def __call__(self, k: Tensor) -> Tensor:
        return torch.rsqrt(1 + k**2)


@dataclass(frozen=True)
class AlphaSigmaSquared(Weight):
    """alpha sigma^2 (Latent-NeRF, arXiv:2211.07600; Fantasia3D, arXiv:2303.13873)."""

    def __call__(self, k: Tensor) -> Tensor:
        return torch.where(k.isinf(), torch.zeros_like(k), k**2 / (1 + k**2) ** 1.5)
