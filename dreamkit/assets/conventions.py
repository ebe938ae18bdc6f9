"""Where file formats differ from the world of `cameras.py` and `images.py`: axes, light, and how pictures are stored.

Light: a texture's bytes are display-referred (sRGB) in every format here and go through untouched. glTF's and USD's
vertex colours and factors are linear light, and are converted. OBJ and PLY say nothing about light; their colours are
taken as display-referred, as the programs that write them mean them. Roughness, metallic and normal maps are linear
numbers everywhere.
"""

import io
import warnings
from importlib import metadata

import numpy as np

from dreamkit.errors import InputError
from dreamkit.meshes import Mesh

UPS = ("y", "z")


def to_gltf_frame(vectors: np.ndarray) -> np.ndarray:
    """World (+z up, +x front) to glTF (+y up, +z front): (x, y, z) becomes (y, z, x), a rotation."""
    return np.ascontiguousarray(vectors[:, [1, 2, 0]])


def from_gltf_frame(vectors: np.ndarray) -> np.ndarray:
    """The inverse of `to_gltf_frame`."""
    return np.ascontiguousarray(vectors[:, [2, 0, 1]])


def from_up(vectors: np.ndarray, up: str) -> np.ndarray:
    """To the world: from glTF's frame for "y"; as they are for "z"."""
    return from_gltf_frame(vectors) if up == "y" else vectors


def to_linear(colour: np.ndarray) -> np.ndarray:
    """Display-referred (sRGB) values in [0, 1] to linear light (IEC 61966-2-1)."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def to_display(light: np.ndarray) -> np.ndarray:
    """The inverse of `to_linear`."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture [H, W, 3] or [H, W] uint8 as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def picture_from(data: bytes | memoryview, name: str) -> np.ndarray:
    """The picture [H, W, 3] uint8 in a PNG, JPEG, WebP, ... file; opacity is dropped.

    Raises InputError, with the picture's `name`, if it is broken.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(io.BytesIO(data))
        with image:
            if image.mode.startswith("I"):  # 16 bits a texel, which `convert` would cut off instead of scale
                grey = np.asarray(image, np.int64).clip(0, 65535)
                return np.repeat(np.rint(grey[..., None] / 257).astype(np.uint8), 3, axis=-1)
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises whatever its decoders meet
        raise InputError(f"the picture {name} is broken or of no known format: {error}") from error


def sampled(picture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """The nearest texel of a picture [H, W, ...] at each uv [N, 2] of the unit square."""
    height, width = picture.shape[:2]
    column = np.clip(uv[:, 0] * width, 0, width - 1).astype(int)
    row = np.clip((1 - uv[:, 1]) * height, 0, height - 1).astype(int)
    return picture[row, column]


def vertex_colours(mesh: Mesh) -> np.ndarray:
    """[V, 3] in [0, 1]: from the texture (nearest texel) if there is one, else the vertex colours, else white."""
    if mesh.texture is not None and mesh.uv is not None:
        return sampled(mesh.texture, mesh.uv) / 255
    return np.ones_like(mesh.vertices) if mesh.colours is None else mesh.colours


def of_one_size(*pictures: np.ndarray) -> list[np.ndarray]:
    """The pictures [H, W, ...] uint8, each repeated (or, where that cannot be, stretched) to the largest size."""
    from PIL import Image

    height, width = (max(p.shape[i] for p in pictures) for i in (0, 1))

    def fitted(picture: np.ndarray) -> np.ndarray:
        if height % picture.shape[0] == 0 and width % picture.shape[1] == 0:
            return picture.repeat(height // picture.shape[0], 0).repeat(width // picture.shape[1], 1)
        return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))

    return [fitted(picture) for picture in pictures]


def version() -> str:
    """Of this package, as files name it."""
    try:
        return metadata.version("dreamkit")
    except metadata.PackageNotFoundError:
        return "from source"
