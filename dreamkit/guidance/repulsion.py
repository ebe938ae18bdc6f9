"""Repulsive Score Distillation (RSD, arXiv:2406.16683): particles that are pushed apart while all follow the prior.

A run of several particles (`Stage.particles`) shows some of them through one camera. What they show is compared by a
kernel between features, and each is moved to where the sum of its kernels is smaller.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion import over, preserved
from dreamkit.errors import InputError
from dreamkit.guidance.networks import LOSS_SCALE
from dreamkit.guidance.rule import Ask, Estimate, Probe
from dreamkit.priors.analytic import resized
from dreamkit.schedule import Number, fixed


@dataclass(frozen=True)
class Repelled(Estimate):
    """`base` - gamma sigma R, with R_i the gradient of log sum_j exp(-|f_i - f_j|^2 / h) in z_i: to be subtracted.

    R points towards the others; as the rule subtracts this estimate, descent moves particle i away. sigma and z are
    those of a variance-preserving path. f = features(decode(z)), by default the pixels themselves; the sum is over the
    samples seen by the same camera (all, where no camera is known), itself included.
    h = median_i(median_j |f_i - f_j|)^2 / log(max(N - 1, 2)), one h for all; N is the number of samples that a camera
    sees, the most of all cameras. The published code of one front end has the other sign, which attracts.

    gamma      strength
    features   the folder of a vision transformer that transformers reads, such as DINO; its class token is the feature
    """

    names_files: ClassVar[tuple[str, ...]] = ("features",)

    base: Estimate
    gamma: Number = 40.0
    features: str = ""

    def asks(self) -> tuple[Ask, ...]:
        return self.base.asks()

    def __call__(self, probe: Probe) -> Tensor:
        base, level = self.base(probe), probe.levels["main"]
        if fixed(self.gamma) == 0:
            return base
        sigma = preserved(level.over(base)[1], level)
        return base - fixed(self.gamma) * sigma * self.repulsion(probe)

    def repulsion(self, probe: Probe) -> Tensor:
        """R, in the shape of x; zero for a sample without company."""
        z = preserved(probe.z(), probe.levels["main"]).detach()
        good = z.isfinite().flatten(1).all(1)
        together = _together(probe) & good & good[:, None]
        with torch.enable_grad():
            z.requires_grad_()
            rgb = probe.prior.decode(torch.where(over(good, z) > 0, z, torch.zeros_like(z)))
            found = self._features(rgb).flatten(1)
            squared = (found[:, None] - found.detach()[None]).square().sum(-1)
            kernel = torch.exp(-squared / bandwidth(squared.detach(), together)) * together
            crowded = kernel.sum(1).clamp(min=1e-12).log().sum()
            return torch.autograd.grad(LOSS_SCALE * crowded, z)[0] / LOSS_SCALE

    def _features(self, rgb: Tensor) -> Tensor:
        if not self.features:
            return rgb
        model = _transformer(self.features, str(rgb.device))
        mean, std = (rgb.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        picture = (resized(rgb, int(model.config.image_size)) - mean) / std
        return model(picture.to(model.dtype)).last_hidden_state[:, 0].to(rgb.dtype)


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bandwidth(squared: Tensor, together: Tensor) -> Tensor:
    """h of `Repelled`, for squared distances [B, B] and who is compared with whom [B, B]."""
    alone = torch.eye(len(squared), dtype=torch.bool, device=squared.device)
    others = torch.where(together & ~alone, squared.sqrt(), math.nan)
    count = int(together.sum(1).max())
    median = others.nanmedian(1).values.nanmedian()
    return median.nan_to_num(1.0).square().clamp(min=1e-12) / math.log(max(count - 1, 2))


def _together(probe: Probe) -> Tensor:
    """[B, B]: which samples are seen by the same camera."""
    camera = probe.conditions.get("camera")
    if camera is None:
        return torch.ones(len(probe.x), len(probe.x), dtype=torch.bool, device=probe.x.device)
    where = camera.tensors["camera"]
    return (where[:, None] == where[None]).all(-1)


@functools.cache
def _transformer(folder: str, device: str) -> Any:
    from transformers import AutoModel

    try:
        model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"features={folder!r} is not the folder of a vision transformer: {error}") from error
    return model.eval().requires_grad_(False).to(device)
