"""Light from all round, and how materials answer it: image-based lighting of metallic-roughness surfaces.

    maps = prefilter(Studio().radiance, size=64)                  # once
    light = shade(maps, base, roughness, metallic, normal, view)  # linear light, differentiable
    rgb = display(light)                                          # display-referred, as images.py wants it

An environment is a function of directions, in linear light: unit world directions [..., 3] -> radiance [..., 3]. 1 is
the radiance of a white diffuse surface in a uniformly white world. Base colours are given display-referred, like all
pictures here, and are made linear inside `shade`; nothing is tone-mapped before `display`.

The integral over the light is split in two (Karis, Real Shading in Unreal Engine 4, SIGGRAPH 2013 course): the light
averaged over the lobe that a rough mirror reflects, which `prefilter` keeps in a cube map for each roughness, times the
share of light that the surface reflects at all, which stands in a table over angle and roughness.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from dreamkit.disk import expanded
from dreamkit.errors import InputError
from dreamkit.kernels.texture import cube_directions, mipmap, sample, sample_cube
from dreamkit.render.hdr import read_hdr

Radiance = Callable[[Tensor], Tensor]
"""Unit world directions [..., 3] -> linear radiance [..., 3], from which light comes."""

LEVELS = 6
"""Roughnesses that light is filtered for: 0, 0.2, ... 1."""
TABLE = 48
"""Entries of the reflectance table along each axis."""
DIELECTRIC = 0.04
"""Reflectance of what is not metal at normal incidence (glTF 2.0, appendix B: index of refraction 1.5)."""
SHOULDER = 0.8
"""Linear light up to which `display` changes nothing."""
GRAZING = 1e-3
"""Smallest cosine between normal and view that is shaded; smaller ones are shaded like it."""
PAIRS = 1 << 22
"""Pairs of texels that are weighed at a time when light is filtered."""


# ---- Environments --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SoftBox:
    """A square lamp far away: towards `direction`, `width` across (2 tan of half its angle), with soft edges."""

    direction: tuple[float, float, float]
    width: float
    radiance: float
    softness: float = 0.1
    """Share of the width over which its edge fades."""

    def __post_init__(self) -> None:
        if not (any(self.direction) and self.width > 0 and self.radiance >= 0 and self.softness > 0):
            raise InputError(f"a SoftBox has a direction, a width > 0, radiance >= 0 and softness > 0; got {self}")

    def shape(self, directions: Tensor) -> Tensor:
        """[...] the lamp's light in each direction."""
        ahead, right, up = (_like(directions, axis) for axis in _frame(self.direction))
        depth = (directions * ahead).sum(-1)
        inside = [self.width / 2 - ((directions * axis).sum(-1) / depth.clamp(min=1e-6)).abs() for axis in (right, up)]
        edge = torch.minimum(*inside) / (self.softness * self.width)
        return self.radiance * torch.sigmoid(4 * edge) * (depth > 0)


@dataclass(frozen=True)
class Studio:
    """A photographer's studio: a room that brightens from the floor to the ceiling, and soft boxes.

    The lamps stand to the front left, to the right, behind, and overhead. The mean radiance is near 1, so that a grey
    thing looks about as bright lit as unlit.
    """

    boxes: tuple[SoftBox, ...] = (
        SoftBox((1.0, 0.9, 0.8), 1.1, 3.3),
        SoftBox((0.5, -1.0, 0.3), 0.8, 1.8),
        SoftBox((-1.0, 0.2, 0.7), 0.7, 2.9),
        SoftBox((0.0, 0.0, 1.0), 1.4, 1.5),
    )
    floor: float = 0.25
    """Radiance from straight below."""
    ceiling: float = 0.6
    """Radiance from straight above, between the lamps."""

    def radiance(self, directions: Tensor) -> Tensor:
        """White light: the gradient from floor to ceiling, and the lamps."""
        height = 0.5 * (directions[..., 2] + 1)
        room = self.floor + (self.ceiling - self.floor) * height * height * (3 - 2 * height)
        light = room + sum((box.shape(directions) for box in self.boxes), torch.zeros_like(room))
        return light[..., None].expand(directions.shape)


@dataclass(frozen=True)
class Panorama:
    """An environment from a file: an equirectangular picture in linear light, twice as wide as high.

    Its middle column is what lies in front of the object, towards +x; its top row lies above. The file is a Radiance
    picture (.hdr, .pic), or a .npy of [H, W, 3] floats.
    """

    names_files: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    strength: float = 1.0

    def radiance(self, directions: Tensor) -> Tensor:
        """The picture in these directions, bilinear. Raises InputError for a file that is none."""
        picture = torch.from_numpy(_panorama(self.path)).to(directions)
        # A column at either end repeats the other end's, so that the seam behind the object does not show.
        width = picture.shape[1]
        picture = torch.cat([picture[:, -1:], picture, picture[:, :1]], dim=1)
        across = 0.5 - torch.atan2(directions[..., 1], directions[..., 0]) / (2 * math.pi)
        down = torch.acos(directions[..., 2].clamp(-1, 1)) / math.pi
        uv = torch.stack([(across * width + 1) / (width + 2), 1 - down], dim=-1)
        return self.strength * sample(picture, uv)


Environment = Studio | Panorama


@functools.lru_cache(maxsize=4)
def _panorama(path: str) -> np.ndarray:
    """The picture in a file, [H, W, 3] float32."""
    file = expanded(path)
    if not file.is_file():
        raise InputError(f"there is no environment file {file}")
    try:
        found = np.load(file, allow_pickle=False) if file.suffix.lower() == ".npy" else read_hdr(file)
    except Exception as error:  # each reader raises what it meets
        raise InputError(
            f"{file} cannot be read as an environment ({_first_line(error)}). What can is a Radiance picture, .hdr, or "
            "a .npy of [H, W, 3] floats in linear light; an .exr is to be converted first, as Blender does."
        ) from error
    if found.ndim != 3 or found.shape[2] < 3 or min(found.shape[:2]) < 2 or found.dtype.kind != "f":
        raise InputError(f"{file}: an environment is [H, W, 3] floats in linear light; got {found.shape} {found.dtype}")
    found = np.ascontiguousarray(found[..., :3], dtype=np.float32)
    if not np.isfinite(found).all() or found.min() < 0:
        raise InputError(f"{file}: radiance is finite and at least 0; the file has other values")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---- Prefiltered light ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LightMaps:
    """An environment made ready for shading, as cube maps of linear light."""

    specular: tuple[Tensor, ...]
    """[6, S_i, S_i, 3] each: the light that a rough mirror sees, for roughness 0 to 1 in equal steps; the first is the
    environment itself."""
    diffuse: Tensor
    """[6, D, D, 3] irradiance over pi: the light that a white diffuse surface of each normal reflects."""
    table: Tensor
    """[N, N, 2] of `reflectance_table`."""


@torch.no_grad()
def prefilter(
    radiance: Radiance, size: int = 64, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LightMaps:
    """An environment's light averaged over the lobes of rough mirrors and of diffuse surfaces.

    With normal, view and reflection taken to be one direction n, as Karis does, the average for roughness r is

        sum over l of  w(n . l) L(l) dw  /  sum of w dw,   w(c) = max(c, 0) / ((1 - c) + a^2 (1 + c))^2,  a = r^2

    which is D(h) (n . l) for the GGX distribution D, since n . h is the cosine of half the angle between n and l; for
    diffuse surfaces w(c) = max(c, 0). The sum runs over all texels, with their exact solid angles: nothing is drawn.

    Args:
        size: texels along the edges of the sharpest map, a power of 2 and at least 8. What a smooth mirror shows is no
            finer than 90 / size degrees. The work grows with its fourth power: a second or two for 64 on one core.
    """
    if size < 8 or size & (size - 1):
        raise InputError(f"light maps are a power of 2 texels wide, at least 8; got {size}")
    # Four samples a texel along each axis: lamps that are smaller than a texel keep their light.
    sharp = mipmap(radiance(cube_directions(4 * size, dtype, device)).to(dtype))[2].contiguous()
    specular = [sharp]
    for level in range(1, LEVELS):
        spread = (level / (LEVELS - 1)) ** 4
        # Wider lobes want fewer texels, of the source and of the result.
        source = mipmap(sharp)[max(0, min(level - 1, int(math.log2(size)) - 5))]
        specular.append(_averaged(source, max(16, size >> level), functools.partial(_lobe, spread)))
    coarse = mipmap(sharp)[max(0, int(math.log2(size)) - 5)]
    diffuse = _averaged(coarse, 16, lambda cosine: cosine.clamp(min=0))
    return LightMaps(tuple(specular), diffuse, reflectance_table().to(device, dtype))


def _lobe(spread: float, cosine: Tensor) -> Tensor:
    """The weight of light from this angle off the mirror direction; spread is a^2."""
    return cosine.clamp(min=0) / ((1 - cosine) + spread * (1 + cosine)).square()


def _averaged(source: Tensor, size: int, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """[6, size, size, 3] the source's light around every direction, weighed by the cosine of the angle to it."""
    towards = cube_directions(source.shape[1], source.dtype, source.device).reshape(-1, 3)
    angle = solid_angles(source.shape[1], source.dtype, source.device).reshape(-1, 1)
    light = torch.cat([source.reshape(-1, 3) * angle, angle], dim=-1)
    normals = cube_directions(size, source.dtype, source.device).reshape(-1, 3)
    sums = [weight(part @ towards.T) @ light for part in normals.split(max(1, PAIRS // len(towards)))]
    total = torch.cat(sums)
    return (total[:, :3] / total[:, 3:]).reshape(6, size, size, 3)


def solid_angles(size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
    """[6, S, S] the exact solid angle of every texel of a cube map, in steradians; together 4 pi.

    The corner of the face from its centre to (x, y) covers atan(x y / sqrt(x^2 + y^2 + 1)).
    """
    edge = torch.linspace(-1, 1, size + 1, dtype=torch.float64, device=device)
    x, y = edge[:, None], edge[None, :]
    corner = torch.atan(x * y / (x * x + y * y + 1).sqrt())
    one = corner[1:, 1:] - corner[:-1, 1:] - corner[1:, :-1] + corner[:-1, :-1]
    return one.to(dtype).expand(6, -1, -1)


@functools.cache
def reflectance_table(size: int = TABLE, samples: int = 48) -> Tensor:
    """[size, size, 2] float64: A and B of the share F0 A + B of uniform light that a rough surface reflects once.

    With Schlick's Fresnel term F = F0 + (1 - F0) (1 - v . h)^5 the share is linear in F0 (Karis 2013):

        A = E[W (1 - f)],  B = E[W f],  f = (1 - v . h)^5,  W = G2(v, l) / G1(v)

    over the half vectors h that the viewer sees (Heitz, Sampling the GGX Distribution of Visible Normals, JCGT 7(4),
    2018, appendix A), for the GGX distribution with a = roughness^2 and Smith's height-correlated G2. The mean is taken
    over a grid of `samples` (an even number) by half as many midpoints: nothing is drawn.
    Rows run from roughness 1 (top) to 0, columns over sqrt(n . v) from 0 to 1; both ends stand at centres of texels.
    """
    along = torch.linspace(0, 1, size, dtype=torch.float64)
    facing = along.square().clamp(min=GRAZING)[None, :, None, None]
    rough = along.flip(0).square().clamp(min=1e-3)[:, None, None, None]
    middles = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    # Half of a disc, the other mirrors it, by height over it: the integrand is smooth in that, not in the radius.
    out, turn = middles[:, None], (middles[::2] + middles[1::2] - 1) * (math.pi / 2)
    radius = (1 - out**2).sqrt()
    # The view, in the plane y = 0, where the surface is stretched to a hemisphere; its visible half is a disc.
    sine = (1 - facing**2).sqrt()
    length = (rough * rough * sine * sine + facing**2).sqrt()
    x, z = rough * sine / length, facing / length
    across = radius * torch.cos(turn)
    seen = (1 + z) / 2
    along_view = (1 - seen) * (1 - across**2).sqrt() + seen * radius * torch.sin(turn)
    depth = (1 - across**2 - along_view**2).clamp(min=0).sqrt()
    tilted = torch.stack(
        [rough * (x * depth - z * along_view), rough * across.expand_as(depth), z * depth + x * along_view]
    )
    half = tilted / tilted.norm(dim=0)
    half_view = (half[0] * sine + half[2] * facing).clamp(0, 1)
    lit = (2 * half_view * half[2] - facing).clamp(min=0)

    def slant(cosine: Tensor) -> Tensor:
        return (rough**2 + (1 - rough**2) * cosine**2).sqrt()

    # G2 / G1 (Heitz, Understanding the Masking-Shadowing Function, JCGT 3(2), 2014, eq. 99 over eq. 43).
    weight = lit * (facing + slant(facing)) / (lit * slant(facing) + facing * slant(lit))
    weight, fresnel = weight * 2 * out, (1 - half_view) ** 5
    return torch.stack([(weight * (1 - fresnel)).mean((-2, -1)), (weight * fresnel).mean((-2, -1))], dim=-1)


# ---- Shading -------------------------------------------------------------------------------------------------------


def shade(maps: LightMaps, base: Tensor, roughness: Tensor, metallic: Tensor, normal: Tensor, view: Tensor) -> Tensor:
    """The light that surfaces send to the camera, linear, [P, 3].

    glTF 2.0's material (appendix B): metallic mixes a dielectric, which reflects F0 = 0.04 and scatters the rest in its
    base colour, with a metal, which reflects F0 = base colour. Light reflected more than once between the bumps is kept
    (Fdez-Agüera, A Multiple-Scattering Microfacet Model for Real-Time Image-based Lighting, JCGT 8(1), 2019), so that
    a white surface in a uniformly white world is exactly as bright as the world, of whatever roughness and metallic.
    No shadows, no light from one part of the surface to another.

    Args:
        base:      [P, 3] display-referred base colour in [0, 1].
        roughness: [P] perceptual roughness in [0, 1].
        metallic:  [P] in [0, 1].
        normal:    [P, 3] unit, towards the side that is seen.
        view:      [P, 3] unit, towards the camera.

    Differentiable in all five.
    """
    colour = to_linear(base)
    cosine = (normal * view).sum(-1)
    facing = cosine.clamp(GRAZING, 1)
    mirror = 2 * cosine[:, None] * normal - view
    sharp = sample_cube(maps.specular[0], mirror, roughness * (LEVELS - 1), maps.specular)
    soft = sample_cube(maps.diffuse, normal)
    size = len(maps.table)
    at = (torch.stack([facing.sqrt(), roughness], dim=-1) * (size - 1) + 0.5) / size
    scale, offset = sample(maps.table, at).split(1, dim=-1)

    def reflected(normal_incidence: Tensor) -> tuple[Tensor, Tensor]:
        """The shares of light that are reflected once, and more often."""
        lost = 1 - scale - offset
        once = normal_incidence * scale + offset
        mean = normal_incidence + (1 - normal_incidence) / 21
        return once, lost * once * mean / (1 - lost * mean)

    once, again = reflected(torch.full_like(scale, DIELECTRIC))
    dielectric = once * sharp + (again + (1 - once - again) * colour) * soft
    once, again = reflected(colour)
    return torch.lerp(dielectric, once * sharp + again * soft, metallic[:, None])


def display(light: Tensor) -> Tensor:
    """Linear light [..., 3], at least 0, to display-referred colour in [0, 1].

    The largest channel x is compressed above SHOULDER s, to 1 - (1 - s)^2 / (x + 1 - 2 s), whose slope goes on from 1
    and never ends; the others follow it in proportion, so that highlights keep their hue. Then the sRGB curve.
    """
    peak = light.amax(-1, keepdim=True)
    above = peak.clamp(min=SHOULDER)
    ratio = (1 - (1 - SHOULDER) ** 2 / (above + 1 - 2 * SHOULDER)) / above
    return to_display(light * torch.where(peak > SHOULDER, ratio, 1.0))


def to_linear(colour: Tensor) -> Tensor:
    """Display-referred (sRGB) values in [0, 1] to linear light (IEC 61966-2-1); differentiable."""
    power = ((colour.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(colour <= 0.04045, colour / 12.92, power)


def to_display(light: Tensor) -> Tensor:
    """The inverse of `to_linear`; differentiable."""
    power = 1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, power)


def _frame(direction: tuple[float, float, float]) -> tuple[list[float], list[float], list[float]]:
    """Unit axes: along the direction, to its right, and up."""
    ahead = np.array(direction, np.float64)
    ahead /= np.linalg.norm(ahead)
    level = np.array([-ahead[1], ahead[0], 0.0])
    right = level / np.linalg.norm(level) if np.linalg.norm(level) > 1e-9 else np.array([0.0, 1.0, 0.0])
    return ahead.tolist(), right.tolist(), np.cross(ahead, right).tolist()


def _like(tensor: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=tensor.dtype, device=tensor.device)
