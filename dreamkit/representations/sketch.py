"""A sketch: a rough closed mesh that a radiance field is kept near (Latent-NeRF, arXiv:2211.07600, section 3.2)."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreamkit.assets.files import read
from dreamkit.assets.prepare import place
from dreamkit.errors import InputError
from dreamkit.images import Images
from dreamkit.kernels.query import Surface, surface

EMPTY, OPAQUE = 1e-12, 1 - 1e-6
"""Opacities are kept between these, that their logarithms be finite. Beyond, the gradient is 0."""


@dataclass(frozen=True)
class Sketch:
    """A loss for `Weighted`: what a volume's rays meet should be opaque inside of the sketch, and empty outside.

    The mean over the samples of a view, of opacity o, of

        -(i log o + (1 - i) log(1 - o)) (1 - exp(-d^2 / (2 spread^2)))

    with i = 1 inside the sketch, where the winding number is over 1/2, else 0; d is the distance to its surface. At the
    surface anything may be, so that the prior draws the detail. The paper takes the sum, and a fixed length for the
    opacity where here it is the sample's own.
    Raises InputError for a file that holds no usable mesh, ValueError for a scene without samples inside of a volume.
    """

    names_files: ClassVar[tuple[str, ...]] = ("path",)

    path: str = ""
    """The sketch, a mesh file; `dreamkit generate --from` gives it where a system leaves it out."""
    radius: float = 0.7
    """It is moved and scaled so that it just fits this ball, world units."""
    spread: float = 0.1
    """World units to either side of its surface in which the field is free."""

    def __post_init__(self) -> None:
        if not (0 < self.radius <= 1 and self.spread > 0):
            raise InputError(
                f"Sketch needs a radius in (0, 1], as the scene lies in [-1, 1]^3, and spread > 0; got {self}"
            )

    def __call__(self, images: Images, scene: Any) -> Tensor:
        if images.samples is None:
            raise ValueError(
                f"a sketch constrains what is inside of a volume, and the pictures of a {type(scene).__name__} do not "
                "say that: use a nerf or sdf, rendered at once (HashGrid.rays_at_once=None)"
            )
        position, opacity = images.samples.position.detach(), images.samples.opacity
        sketch = queries(self.path, self.radius, position.device)
        distance, inside = sketch.closest(position.float()).distance.to(opacity), sketch.inside(position.float())
        kept = opacity.clamp(EMPTY, OPAQUE)
        wrong = -torch.where(inside, kept.log(), torch.log1p(-kept))
        return (wrong * -torch.expm1(-(distance**2) / (2 * self.spread**2))).sum() / max(len(opacity), 1)


@functools.lru_cache(maxsize=4)
def queries(path: str, radius: float, device: torch.device) -> Surface:
    """A mesh file, moved and scaled to fit a ball of `radius`, ready for queries. Raises InputError."""
    if not path:
        raise InputError("there is no sketch: give a mesh file with --from.")
    mesh = read(path)
    vertices = place(mesh, radius, path).to_scene(mesh.vertices)
    return surface(*(torch.as_tensor(array, device=device) for array in (vertices, mesh.faces)))
