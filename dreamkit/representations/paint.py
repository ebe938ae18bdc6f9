"""What a surface is painted with: textures, or a network over its points.

A paint answers what the pixels of a picture see: base colour [P, 3], display-referred; and for surfaces that are lit,
`Material`. Roughness and metallic are in [0, 1]; `bump` is the x and y of the unit normal in tangent space, x along u
and y along v, as in the normal map of a `Mesh`.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dreamkit.assets.bake import spread, texels, to_bytes
from dreamkit.assets.prepare import painted
from dreamkit.errors import InputError
from dreamkit.kernels.texture import mipmap, sample
from dreamkit.meshes import ROUGHNESS, Mesh
from dreamkit.render.surface import Fragments
from dreamkit.representations.network import HashNetwork, Network
from dreamkit.representations.representation import Group
from dreamkit.schedule import Number, check_rates, fixed
from dreamkit.streams import Streams

GREY = 0.5
"""Of a surface that comes without colour."""
STEEPEST = 0.8
"""Largest sine between a normal of the normal map and the surface's own: 53 degrees."""


SD_LATENTS_TO_RGB = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
"""Latents of Stable Diffusion 1.x to colours, approximately (Latent-NeRF, arXiv:2211.07600, section 3.3)."""


@dataclass(frozen=True)
class Texture:
    """Pictures that are laid over the surface and optimised texel by texel, mip-mapped.

    What a texel holds stays in its range by being cut off after every step (projected gradient descent).
    """

    size: int = 256
    """Texels along each side, where the surface comes without a texture; one that it brings keeps its size."""
    rate: Number = 1e-2
    """Of the base colour."""
    material_rate: Number = 1e-2
    """Of roughness and metallic, where the surface is lit."""
    bump_rate: Number = 2e-3
    """Of the normals, where the surface is lit."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise InputError(f"Texture.size is at least 8 texels; got {self.size}")
        check_rates(self)


@dataclass(frozen=True)
class LatentTexture:
    """A texture whose texels are numbers of a latent prior, for guides that see "latent": they are shown to the prior
    as they are, without an encoder (Latent-Paint, arXiv:2211.07600, section 4.3).

    A colour is a linear function of them, rgb = (latent @ to_rgb + 1) / 2, which is how pictures show them, and how
    backgrounds and the colours that a surface comes with are turned into latents (by the pseudo-inverse).
    """

    size: int = 64
    """Texels along each side."""
    rate: Number = 1e-1
    to_rgb: tuple[tuple[float, float, float], ...] = SD_LATENTS_TO_RGB
    """A row for each channel of the prior's latents."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise InputError(f"LatentTexture.size is at least 8 texels; got {self.size}")
        check_rates(self)
        if not self.to_rgb or any(len(row) != 3 for row in self.to_rgb):
            raise InputError(f"LatentTexture.to_rgb has a row of 3 numbers for each channel; got {self.to_rgb}")


Painting = Texture | LatentTexture | Network
"""What specifies a paint."""

LAYERS = ("texture/colour", "texture/material", "texture/bump")
LATENT = ("latent/texture", "latent/to_rgb")
NETWORK = ("paint/table", "paint/hidden", "paint/output")


class Material(NamedTuple):
    """How the visible pixels answer light: roughness [P], metallic [P], bump [P, 2]."""

    roughness: Tensor
    metallic: Tensor
    bump: Tensor


class Paint(Protocol):
    """Values on a surface, on a device."""

    def colour(self, seen: Fragments) -> Tensor:
        """[P, 3], differentiable."""
        ...

    def material(self, seen: Fragments) -> Material:
        """Differentiable."""
        ...

    def parameters(self, now: Painting, lit: bool) -> list[Group]:
        """Those that matter where the surface is lit, or is not."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """For a scene's state; the same names whether lit or not."""
        ...

    def cut_off(self) -> None:
        """After a step: bring the values back into their ranges."""
        ...

    def maps(self, mesh: Mesh, lit: bool) -> dict[str, np.ndarray]:
        """The pictures to lay over a mesh with texture coordinates, by the names of `Mesh`."""
        ...


class TexturePaint:
    """Three textures: `colour` [H, W, 3], `material` [H', W', 2] (roughness, metallic) and `bump` [H', W', 2]."""

    def __init__(self, colour: Tensor, material: Tensor, bump: Tensor, lit: bool, backend: str) -> None:
        if lit:  # one texel for all stands for a map that is not there
            material, bump = (x.expand(*colour.shape[:2], 2) if x.shape[:2] == (1, 1) else x for x in (material, bump))
        self.layers = {
            name: layer.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            for name, layer in zip(LAYERS, (colour, material, bump), strict=True)
        }
        self.backend = backend

    @staticmethod
    def of(mesh: Mesh, size: int, lit: bool, device: torch.device, backend: str) -> "TexturePaint":
        """Begin with the mesh's own maps; without a texture, with its vertex colours on `size` texels, or grey."""

        def texture(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.array(array, np.float32)).to(device)

        if mesh.texture is not None:
            colour = mesh.texture / 255
        else:
            colour = np.full((size, size, 3), GREY) if mesh.colours is None else painted(mesh, size, mesh.colours)
        given = [
            np.array([[plain]]) if x is None else x / 255
            for x, plain in ((mesh.roughness, ROUGHNESS), (mesh.metallic, 0.0))
        ]
        size_of_both = max((layer.shape for layer in given), key=np.prod)
        material = np.stack([_resized(layer, size_of_both) for layer in given], axis=-1)
        bump = np.zeros((1, 1, 2)) if mesh.normal_map is None else mesh.normal_map[..., :2] / 127.5 - 1
        return TexturePaint(texture(colour), texture(material), texture(bump), lit, backend)

    def colour(self, seen: Fragments) -> Tensor:
        return self._sampled("texture/colour", seen)

    def material(self, seen: Fragments) -> Material:
        roughness, metallic = self._sampled("texture/material", seen).unbind(-1)
        return Material(roughness, metallic, self._sampled("texture/bump", seen))

    def parameters(self, now: Painting, lit: bool) -> list[Group]:
        """Groups "texture/colour", and where lit "texture/material" and "texture/bump"."""
        assert isinstance(now, Texture)
        rates = {"texture/colour": now.rate}
        rates |= {"texture/material": now.material_rate, "texture/bump": now.bump_rate} if lit else {}
        return [{"name": name, "params": [self.layers[name]], "lr": fixed(rate)} for name, rate in rates.items()]

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.layers)

    @torch.no_grad()
    def cut_off(self) -> None:
        colour, material, bump = self.layers.values()
        colour.clamp_(0, 1)
        material.clamp_(0, 1)
        bump *= (STEEPEST / bump.norm(dim=-1, keepdim=True).clamp(min=1e-9)).clamp(max=1)

    def maps(self, mesh: Mesh, lit: bool) -> dict[str, np.ndarray]:
        """As they are, with the texels outside of all faces like the nearest inside; no map for a single texel."""
        colour, material, bump = (_filled(x.detach().cpu().numpy(), mesh) for x in self.layers.values())
        return _as_maps(colour, *(None if x.shape[:2] == (1, 1) else x for x in (material, bump)))

    def _sampled(self, name: str, seen: Fragments) -> Tensor:
        assert seen.uv is not None
        layer = self.layers[name]
        return sample(layer, seen.uv, seen.footprint, mipmap(layer), backend=self.backend)


class LatentPaint:
    """One texture of latents [H, W, C]. It cannot be lit."""

    def __init__(self, latents: Tensor, to_rgb: Tensor, backend: str) -> None:
        self.latents, self.to_rgb = latents.detach().clone().requires_grad_(), to_rgb
        self.backend = backend

    @staticmethod
    def of(colour: Tensor, spec: LatentTexture, backend: str) -> "LatentPaint":
        """Begin with colours [H, W, 3]."""
        to_rgb = torch.tensor(spec.to_rgb, dtype=colour.dtype, device=colour.device)
        size = (spec.size, spec.size)
        coarse = torch.nn.functional.interpolate(colour.detach().permute(2, 0, 1)[None], size, mode="area")
        return LatentPaint(latents_of(coarse, to_rgb)[0].permute(1, 2, 0), to_rgb, backend)

    def latent(self, seen: Fragments) -> Tensor:
        """[P, C], differentiable."""
        assert seen.uv is not None
        return sample(self.latents, seen.uv, seen.footprint, mipmap(self.latents), backend=self.backend)

    def colour(self, seen: Fragments) -> Tensor:
        return self.shown(self.latent(seen))

    def shown(self, latents: Tensor) -> Tensor:
        """[..., C] latents as colours [..., 3] in [0, 1]."""
        return (0.5 * (latents @ self.to_rgb) + 0.5).clamp(0, 1)

    def material(self, seen: Fragments) -> Material:
        raise ValueError("latents cannot be lit: paint with a LatentTexture without an environment")

    def parameters(self, now: Painting, lit: bool) -> list[Group]:
        """Group "latent/texture"."""
        assert isinstance(now, LatentTexture)
        return [{"name": LATENT[0], "params": [self.latents], "lr": fixed(now.rate)}]

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(LATENT, (self.latents, self.to_rgb), strict=True))

    def cut_off(self) -> None:
        """Latents have no range."""

    def maps(self, mesh: Mesh, lit: bool) -> dict[str, np.ndarray]:
        """The colours that the latents stand for, approximately."""
        return _as_maps(_filled(self.shown(self.latents).detach().cpu().numpy(), mesh), None)


def latents_of(rgb: Tensor, to_rgb: Tensor) -> Tensor:
    """Pictures [B, 3, H, W], or colours [B, 3] -> latents [B, C, ...] that are shown as these colours, the smallest."""
    return torch.einsum("bi...,ic->bc...", 2 * rgb - 1, torch.linalg.pinv(to_rgb))


class NetworkPaint:
    """A network of the point seen: colour, roughness and metallic. Baked into maps of `size` texels at export."""

    def __init__(self, network: HashNetwork, size: int) -> None:
        self.network, self.size = network, size

    def colour(self, seen: Fragments) -> Tensor:
        return self.values(seen.position)[:, :3]

    def material(self, seen: Fragments) -> Material:
        roughness, metallic = self.values(seen.position)[:, 3:].unbind(-1)
        return Material(roughness, metallic, seen.position.new_zeros(len(seen), 2))

    def parameters(self, now: Painting, lit: bool) -> list[Group]:
        """Groups "paint/table" and "paint/network"."""
        assert isinstance(now, Network)
        return self.network.parameters(now, "paint/")

    def tensors(self) -> dict[str, Tensor]:
        return self.network.tensors("paint/")

    def cut_off(self) -> None:
        """Its sigmoids keep to [0, 1]."""

    @torch.no_grad()
    def maps(self, mesh: Mesh, lit: bool) -> dict[str, np.ndarray]:
        """The network's values at the point of every texel."""
        points = torch.from_numpy(painted(mesh, self.size, mesh.vertices).reshape(-1, 3))
        values = _in_range(self.network.in_parts(points)).cpu().numpy().reshape(self.size, self.size, -1)
        return _as_maps(values[..., :3], values[..., 3:] if lit else None)

    def values(self, points: Tensor) -> Tensor:
        """[N, 3] world points -> [N, 5]: colour, roughness and metallic."""
        return _in_range(self.network(points))

    @staticmethod
    def of(spec: Network, size: int, device: torch.device, streams: Streams) -> "NetworkPaint":
        """Grey everywhere, rough, not metallic. Streams as of `Network`, under "paint/"."""
        return NetworkPaint(spec.build(5, device, streams.within("paint")), size)


def begun(
    spec: Painting, size: int, mesh: Mesh, lit: bool, device: torch.device, streams: Streams, backend: str
) -> Paint:
    """Fresh paint for a mesh. `size` in texels, of what has to be made."""
    if isinstance(spec, Network):
        return NetworkPaint.of(spec, size, device, streams)
    own = TexturePaint.of(mesh, size, lit, device, backend)
    return LatentPaint.of(own.tensors()[LAYERS[0]], spec, backend) if isinstance(spec, LatentTexture) else own


def restored(spec: Painting, size: int, tensors: dict[str, Tensor], lit: bool, backend: str) -> Paint:
    """The paint whose `tensors()` these are; between a Texture and a LatentTexture colours are carried over.

    Raises ValueError for those of another kind.
    """
    kind = next((names for names in (NETWORK, LATENT, LAYERS) if tensors.keys() == set(names)), ())
    given = [tensors[name] for name in kind]
    if isinstance(spec, Network) and kind == NETWORK:
        shapes = [(spec.encoding.total, spec.encoding.features), (spec.hidden, spec.encoding.width), (5, spec.hidden)]
        if [tuple(tensor.shape) for tensor in given] != shapes:
            raise ValueError(f"a surface painted with {spec} cannot go on with a network of other sizes")
        first, second, third = (x.detach().clone().requires_grad_() for x in given)
        return NetworkPaint(HashNetwork(spec, first, second, third), size)
    if kind == LATENT and not isinstance(spec, Network):
        latent = LatentPaint(given[0], given[1], backend)
        if isinstance(spec, LatentTexture):
            return latent
        material, bump = (given[0].new_tensor([[values]]) for values in ([ROUGHNESS, 0.0], [0.0, 0.0]))
        return TexturePaint(_finer(latent.shown(latent.latents), spec.size), material, bump, lit, backend)
    if kind == LAYERS and not isinstance(spec, Network):
        if isinstance(spec, LatentTexture):
            return LatentPaint.of(given[0], spec, backend)
        return TexturePaint(given[0], given[1], given[2], lit, backend)
    raise ValueError(f"a surface painted with a {type(spec).__name__} cannot go on with {', '.join(tensors) or 'none'}")


def _finer(texture: Tensor, size: int) -> Tensor:
    """A texture [H, W, C], bilinear between its texels if it has fewer than size x size."""
    if min(texture.shape[:2]) >= size:
        return texture
    layers = texture.movedim(-1, 0)[None]
    found = torch.nn.functional.interpolate(layers, (size, size), mode="bilinear", align_corners=False)
    return found[0].movedim(0, -1).contiguous()


def _in_range(raw: Tensor) -> Tensor:
    """Outputs of a network [N, 5] -> values in [0, 1]. An output of 0 is grey, rough and hardly metallic; at the very
    end of a sigmoid metallic could not grow."""
    middle = raw.new_tensor([GREY, GREY, GREY, ROUGHNESS, 0.05])
    return torch.sigmoid(raw + torch.logit(middle))


def _as_maps(colour: np.ndarray, material: np.ndarray | None, bump: np.ndarray | None = None) -> dict[str, np.ndarray]:
    maps = {"texture": to_bytes(colour)}
    if material is not None:
        maps |= {"roughness": to_bytes(material[..., 0]), "metallic": to_bytes(material[..., 1])}
    if bump is not None:
        up = np.sqrt((1 - (bump**2).sum(-1, keepdims=True)).clip(1 - STEEPEST**2))
        maps["normal_map"] = to_bytes(0.5 * np.concatenate([bump, up], axis=-1) + 0.5)
    return maps


def _filled(picture: np.ndarray, mesh: Mesh) -> np.ndarray:
    """A picture whose texels outside of all faces are like the nearest inside, for readers that make mips of it."""
    height, width = picture.shape[:2]
    if height != width or height == 1:
        return picture
    inside = np.zeros(height * width, bool)
    for texel, _, _ in texels(mesh, height):
        inside[texel] = True
    return spread(picture, inside.reshape(height, width))


def _resized(layer: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A map [H, W] at another size, bilinear."""
    if layer.shape == size:
        return layer
    from PIL import Image

    picture = Image.fromarray(layer.astype(np.float32))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
