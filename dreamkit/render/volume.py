"""Volume rendering: a density and colour field, seen through cameras.

Emission and absorption by quadrature along each ray (NeRF, arXiv:2003.08934, eq. 3). This file knows no
representation: a field is a callable on points, and what is empty or opaque is told by grids over the cube [-1, 1]^3,
indexed [x, y, z].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dreamkit.cameras import Cameras
from dreamkit.images import Images, RaySamples, on_background
from dreamkit.kernels.composite import composite
from dreamkit.kernels.march import Samples, march, visible

Field = Callable[[Tensor], tuple[Tensor, Tensor]]
"""points [S, 3] -> density [S] per world unit, >= 0, and colour [S, 3] in [0, 1]."""

NormalField = Callable[[Tensor], Tensor]
"""points [S, 3] -> unit outward normals [S, 3]."""

LEAST_LIGHT = 1e-3
"""Samples that less than this share of the light reaches are hidden."""

FAINT_WEIGHT = 1e-3
"""Samples that weigh less than this in their pixel get no normal, and only the ambient light."""


@dataclass(frozen=True)
class Light:
    """A point light per view, and a soft rest from everywhere (DreamFusion, arXiv:2209.14988, eq. 7):

    colour = albedo * (diffuse * max(0, n . (l - x) / |l - x|) + ambient);  textureless puts albedo = 1.
    """

    position: Tensor
    """[B, 3] world position l."""
    ambient: float = 0.1
    diffuse: float = 0.9
    textureless: bool = False


def render_volume(
    cameras: Cameras,
    field: Field,
    occupancy: Tensor,
    *,
    step: float,
    background: Tensor,
    jitter: Tensor | float = 0.5,
    normal: NormalField | None = None,
    light: Light | None = None,
    thinnest: Tensor | None = None,
    near: float = 0.0,
    chunk: int | None = None,
    backend: str = "auto",
) -> Images:
    """Pictures [B, C, H, W] of a field, on a background.

    Args:
        field: density and colour at points; asked once per chunk of rays.
        occupancy: bool [G, G, G]; the field is taken as empty where it is False.
        step: distance between samples along a ray, world units.
        background: colour [B, 3], or pictures [B, 3, H, W].
        jitter: where in its step a ray's samples stand, in [0, 1): one number, or [B, H, W].
        normal: the field's normals; asked only where a sample weighs at least FAINT_WEIGHT. Gives `Images.normal`.
        light: shade by it, sample by sample; needs `normal`. None shows the colour itself.
        thinnest: [G, G, G] lower bounds of the field's density; what these alone hide (LEAST_LIGHT) is not asked for.
        near: distance from the camera where rays begin.
        chunk: rays at a time, for pictures too big for the memory at once; then without `Images.samples`. With
            gradients on, each chunk is rendered again when its gradient is wanted: the same results for the time of
            one more forward pass and the memory of one chunk.

    Differentiable in the field's outputs and the background. Raises ValueError for a light without normals or a
    background of another shape.
    """
    if light is not None and normal is None:
        raise ValueError("a light needs the field's normals: pass normal=")
    shape = (len(cameras), cameras.height, cameras.width)
    origins, directions = (x.reshape(-1, 3).contiguous() for x in cameras.rays())
    offset = torch.as_tensor(jitter, dtype=origins.dtype, device=origins.device).expand(shape).reshape(-1)
    lamp = None if light is None else light.position.repeat_interleave(shape[1] * shape[2], dim=0)

    def trace(rays: slice) -> _Pixels:
        samples = march(
            origins[rays], directions[rays], occupancy, step=step, jitter=offset[rays], near=near, backend=backend
        )
        points, samples = _seen(samples, origins[rays], directions[rays], thinnest, backend)
        density, colour = field(points)
        normals = None if normal is None else _normals(normal, points, density, samples, backend)
        if light is not None and lamp is not None and normals is not None:
            colour = lit(light, lamp[rays].index_select(0, samples.ray), points, colour, normals)
        pixels = _composite(samples, directions[rays], points, density, colour, normals, backend)
        return pixels if chunk is None else replace(pixels, samples=None)  # which would outweigh the picture

    count = len(origins)
    size = max(count if chunk is None else chunk, 1)
    again = torch.is_grad_enabled() and size < count
    traced = partial(checkpoint, trace, use_reentrant=False, preserve_rng_state=False) if again else trace
    pieces = [traced(slice(i, i + size)) for i in range(0, max(count, 1), size)]
    return _images(pieces, shape, background)


@dataclass
class _Pixels:
    colour: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor | None
    samples: RaySamples | None


def _seen(
    samples: Samples, origins: Tensor, directions: Tensor, thinnest: Tensor | None, backend: str
) -> tuple[Tensor, Samples]:
    """The samples' points, and the samples, without those that are certainly hidden."""
    points = samples.positions(origins, directions)
    if thinnest is None:
        return points, samples
    cells = thinnest.shape[0]
    x, y, z = ((points + 1) * (cells / 2)).long().clamp_(0, cells - 1).unbind(-1)
    depth = thinnest.reshape(-1).index_select(0, (x * cells + y) * cells + z) * samples.length
    samples, chosen = visible(samples, depth, least=LEAST_LIGHT, backend=backend)
    return points.index_select(0, chosen), samples


def _normals(normal: NormalField, points: Tensor, density: Tensor, samples: Samples, backend: str) -> Tensor:
    """Unit normals [S, 3], 0 at the samples too faint to matter: most of them, once there is a surface."""
    density = density.detach()
    weight = composite(density, density[:, None], samples.t, samples.length, samples.offsets, backend=backend).weight
    chosen = (~(weight < FAINT_WEIGHT)).nonzero().squeeze(-1)
    return torch.zeros_like(points).index_copy(0, chosen, normal(points.index_select(0, chosen)))


def lit(light: Light, lamp: Tensor, points: Tensor, albedo: Tensor, normals: Tensor) -> Tensor:
    """Colours [S, 3] of points lit by lamps, each [S, 3], as `Light` says."""
    towards = F.normalize(lamp.to(points) - points, dim=-1)
    shading = light.diffuse * (normals * towards).sum(-1, keepdim=True).clamp(min=0) + light.ambient
    return shading.expand_as(albedo) if light.textureless else albedo * shading


def _composite(
    samples: Samples,
    directions: Tensor,
    points: Tensor,
    density: Tensor,
    colour: Tensor,
    normals: Tensor | None,
    backend: str,
) -> _Pixels:
    features = colour if normals is None else torch.cat([colour, normals], dim=-1)
    sums = composite(density, features, samples.t, samples.length, samples.offsets, backend=backend)
    opacity = -torch.expm1(-density * samples.length)
    inside = RaySamples(sums.weight, normals, directions.index_select(0, samples.ray), opacity, points)
    across = None if normals is None else sums.features[:, 3:]
    return _Pixels(sums.features[:, :3], sums.alpha, sums.depth, across, inside)


def _images(pieces: list[_Pixels], shape: tuple[int, int, int], background: Tensor) -> Images:
    """Pixels on their background, in the conventions of images.py."""

    def picture(values: list[Tensor]) -> Tensor:
        return torch.cat(values).reshape(*shape, -1).permute(0, 3, 1, 2)

    colour, alpha, depth = (picture([getattr(p, name) for p in pieces]) for name in ("colour", "alpha", "depth"))
    sums = [p.normal for p in pieces if p.normal is not None]
    images = on_background(colour, alpha, depth, picture(sums) if sums else None, background)
    return replace(images, samples=pieces[0].samples)
