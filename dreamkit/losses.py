"""Regularisers: what a scene is asked for besides pleasing the prior.

Each is a function (images, scene) -> scalar, a mean over pixels or rays, so that its weight means the same at every
picture size and batch. `Weighted` puts one into a recipe.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.images import Images
from dreamkit.schedule import Number, fixed
from dreamkit.triangles import summed, unique_edges, vertex_normals

Loss = Callable[[Images, Any], Tensor]


@dataclass(frozen=True)
class Weighted:
    """`weight * function(images, scene)`; the weight may be a Schedule, resolved before the call."""

    function: Loss
    """Also a frozen dataclass that can be called so: a loss with data, such as a `Sketch`."""
    weight: Number = 1.0

    @property
    def name(self) -> str:
        """By which its figures are logged."""
        return str(getattr(self.function, "__name__", type(self.function).__name__.lower()))

    def __call__(self, images: Images, scene: Any) -> Tensor:
        return fixed(self.weight) * self.function(images, scene)


def needs_normals(losses: Iterable[Weighted]) -> bool:
    """Whether any of these losses looks at normals, which a scene renders only when asked."""
    return any(getattr(loss.function, "reads_normals", False) for loss in losses)


def reads_normals(loss: Loss) -> Loss:
    """Marks a loss that looks at `Images.normal` or at normals inside a volume."""
    loss.reads_normals = True  # type: ignore[attr-defined]
    return loss


def opacity(images: Images, scene: Any) -> Tensor:
    """Against fog and clutter: mean of sqrt(alpha^2 + 0.01) over pixels.

    DreamFusion (arXiv:2209.14988, appendix A.2); `sparsity` in threestudio. An empty picture costs 0.1.
    """
    return torch.sqrt(images.alpha**2 + 0.01).mean()


def entropy(images: Images, scene: Any) -> Tensor:
    """Against half-transparency: mean binary entropy of alpha over pixels, in bits, between 0 and 1.

    -a log2 a - (1 - a) log2(1 - a), with a kept in [1e-5, 1 - 1e-5] (Latent-NeRF, arXiv:2211.07600); in nats it is
    threestudio's `opaque`. Its gradient is 0 where alpha is cut off.
    """
    return binary_entropy(images.alpha)


def binary_entropy(alpha: Tensor) -> Tensor:
    """Its mean over opacities, in bits: 0 when every pixel is empty or solid, 1 when all is half fog."""
    a = alpha.clamp(1e-5, 1 - 1e-5)
    return (-a * torch.log2(a) - (1 - a) * torch.log2(1 - a)).mean()


@reads_normals
def orientation(images: Images, scene: Any) -> Tensor:
    """Against surfaces that face away from the camera that sees them: sum of w max(0, n . d)^2, mean over rays.

    d is the ray's direction, n the sample's outward normal; the weight w gets no gradient (Ref-NeRF, arXiv:2112.03907,
    eq. 11; DreamFusion, arXiv:2209.14988, appendix A.2). Raises ValueError without normals inside the volume.
    """
    samples = images.samples
    if samples is None or samples.normal is None:
        raise ValueError("orientation needs samples with normals: render the scene with normals=True")
    away = (samples.normal * samples.direction).sum(-1).clamp(min=0)
    return (samples.weight.detach() * away**2).sum() / images.alpha.numel()


def smooth_rgb(images: Images, scene: Any) -> Tensor:
    """Against speckles: total variation of the rendered picture, background included."""
    return total_variation(images.rgb)


def smooth_depth(images: Images, scene: Any) -> Tensor:
    """Against ragged surfaces: total variation of depth, in world units, between pixels weighted by both alphas."""
    return total_variation(images.depth, images.alpha)


@reads_normals
def smooth_normal(images: Images, scene: Any) -> Tensor:
    """Against bumps: total variation of the normal picture. Raises ValueError without one."""
    if images.normal is None:
        raise ValueError("smooth_normal needs a normal picture: render the scene with normals=True")
    return total_variation(images.normal)


def laplacian(images: Images, scene: Any) -> Tensor:
    """Against ragged meshes: mean over vertices of |mean of the neighbours - vertex|, world units.

    The uniform Laplacian of the surface that the pictures show (Nealen et al., Laplacian Mesh Optimization, 2006); 0
    without a surface. Raises ValueError for a scene without triangles.
    """
    vertices, faces = _triangles("laplacian", scene)
    first, second = unique_edges(faces).unbind(1)
    ends = torch.cat([first, second])
    around = summed(vertices[torch.cat([second, first])], ends, len(vertices))
    degree = ends.bincount(minlength=len(vertices))
    used = degree > 0
    lengths = (around[used] / degree[used, None] - vertices[used]).norm(dim=-1)
    return lengths.sum() / max(len(lengths), 1)


def normal_consistency(images: Images, scene: Any) -> Tensor:
    """Against crumpled meshes: mean over edges of 1 - n_a . n_b, n the unit normals of the vertices at its ends.

    As in threestudio. Of the surface that the pictures show; 0 without one. Raises ValueError for a scene without
    triangles.
    """
    vertices, faces = _triangles("normal_consistency", scene)
    normals, edges = vertex_normals(vertices, faces), unique_edges(faces)
    return (1 - (normals[edges[:, 0]] * normals[edges[:, 1]]).sum(-1)).sum() / max(len(edges), 1)


def sdf_sign(images: Images, scene: Any) -> Tensor:
    """Against sheets and bubbles inside and around a surface: signs of a signed distance should change seldom.

    Mean over the grid's edges (a, b) whose signs differ of H(sigmoid(s_a), sign s_b) + H(sigmoid(s_b), sign s_a), H the
    binary cross-entropy in nats (nvdiffrec, arXiv:2111.12503, eq. 2). Where none differ there is no surface: then the
    smallest |s|, which draws one back. Raises ValueError for a scene without a signed distance on a grid.
    """
    if not hasattr(scene, "distances"):
        raise ValueError(f"sdf_sign needs a signed distance on a grid, as a DMTet has; not a {type(scene).__name__}")
    distance, edges = scene.distances()
    first, second = distance[edges].unbind(1)
    differ = (first < 0) != (second < 0)
    if not bool(differ.any()):
        return distance.abs().min()
    pairs = torch.stack([first[differ], second[differ]])
    wanted = (pairs.detach().flip(0) >= 0).to(pairs)
    return 2 * torch.nn.functional.binary_cross_entropy_with_logits(pairs, wanted)


def eikonal(images: Images, scene: Any) -> Tensor:
    """For a signed distance to be one: mean of (|gradient| - 1)^2 at points where the last view looked, and elsewhere.

    Gropp et al., Implicit Geometric Regularization (arXiv:2002.10099), eq. 2. Raises ValueError for a scene without a
    signed distance everywhere.
    """
    if not hasattr(scene, "slopes"):
        raise ValueError(f"eikonal needs a signed distance everywhere; a {type(scene).__name__} has none")
    slopes: Tensor = scene.slopes()
    return ((slopes - 1) ** 2).mean()


def _triangles(asker: str, scene: Any) -> tuple[Tensor, Tensor]:
    """Vertices [V, 3] and faces [F, 3] of the scene's surface as the last view showed it, with its graph."""
    if not hasattr(scene, "triangles"):
        raise ValueError(f"{asker} needs a scene made of triangles, as a DMTet or a mesh; not a {type(scene).__name__}")
    found: tuple[Tensor, Tensor] = scene.triangles()
    return found


def total_variation(pictures: Tensor, alpha: Tensor | None = None) -> Tensor:
    """Mean |difference| of vertical plus that of horizontal neighbours (anisotropic, Rudin-Osher-Fatemi 1992).

    pictures: [B, C, H, W]; alpha: [B, 1, H, W] weighs each difference by the product of its two pixels', without
    gradient. 0 for a direction that has one pixel only.
    """
    total = pictures.new_zeros(())
    for axis in (2, 3):
        length = pictures.shape[axis] - 1
        if length < 1:
            continue
        differences = (pictures.narrow(axis, 1, length) - pictures.narrow(axis, 0, length)).abs()
        if alpha is not None:
            differences = differences * (alpha.narrow(axis, 1, length) * alpha.narrow(axis, 0, length)).detach()
        total = total + differences.mean()
    return total
