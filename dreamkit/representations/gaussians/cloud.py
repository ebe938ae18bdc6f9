"""What a scene of Gaussians is made of: tensors with one row for each."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dreamkit.kernels.splat import SH0


@dataclass(frozen=True)
class Cloud:
    """N Gaussians as they are optimised, and as 3DGS files hold them."""

    means: Tensor
    """[N, 3] world units."""
    log_scales: Tensor
    """[N, 3] logarithms of the standard deviations along the axes, world units."""
    quaternions: Tensor
    """[N, 4] (w, x, y, z), of any length."""
    opacity_logits: Tensor
    """[N]; the opacity is their sigmoid."""
    dc: Tensor
    """[N, 3] spherical harmonics of degree 0: the colour from everywhere is 0.5 + SH0 dc (`colour_of`)."""
    rest: Tensor
    """[N, K - 1, 3] those of degrees 1 to 3."""

    def __len__(self) -> int:
        return len(self.means)

    @property
    def scales(self) -> Tensor:
        """[N, 3] standard deviations."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """[N] in [0, 1]."""
        return self.opacity_logits.sigmoid()

    def tensors(self) -> dict[str, Tensor]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def each(self, change: Callable[[Tensor], Tensor]) -> "Cloud":
        """The cloud with every tensor changed alike."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})

    def take(self, rows: Tensor) -> "Cloud":
        """The Gaussians of these row numbers [M] (or of a mask [N])."""
        return self.each(lambda tensor: tensor[rows])

    def with_degree(self, degree: int) -> "Cloud":
        """Spherical harmonics up to `degree`: zeros are added, or higher ones left out."""
        missing = (degree + 1) ** 2 - 1 - self.rest.shape[1]
        pad = self.rest.new_zeros(len(self), max(missing, 0), 3)
        return replace(self, rest=torch.cat([self.rest, pad], 1)[:, : (degree + 1) ** 2 - 1])


def colour_of(dc: Tensor) -> Tensor:
    """Degree-0 coefficients -> the colour they show from everywhere."""
    return 0.5 + SH0 * dc


def dc_of(colour: Tensor) -> Tensor:
    """A colour -> the degree-0 coefficients that show it."""
    return (colour - 0.5) / SH0
