"""Triangle meshes: plain arrays, passed between the rooms.

Positions are in the world frame of `cameras.py`. Faces wind counter-clockwise seen from outside. Colours are in
[0, 1], display-referred like `images.py`. A mesh is coloured by its texture if it has one, else by its vertex colours,
else it is white. Its roughness, metallic and normal maps, each optional and of a size of its own, are laid over it by
the same texture coordinates; they are numbers, not colours, so they are linear.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROUGHNESS = 0.9
"""Of a surface without a map of it: chalk and clay, which show a colour as it is."""
GUTTER = 16
"""Texels around a texture that lies beside another one, like its edge, for readers that look between texels."""
MAPS = ("texture", "roughness", "metallic", "normal_map")


@dataclass(frozen=True)
class Mesh:
    vertices: np.ndarray
    """[V, 3] float32, world units."""
    faces: np.ndarray
    """[F, 3] int32 into vertices."""
    colours: np.ndarray | None = None
    """[V, 3] float32 in [0, 1]."""
    uv: np.ndarray | None = None
    """[V, 2] float32 in [0, 1], origin at the bottom left (OpenGL, OBJ); row 0 of the texture is the top, v = 1."""
    texture: np.ndarray | None = None
    """[H, W, 3] uint8."""
    roughness: np.ndarray | None = None
    """[H, W] uint8, 0 a mirror and 255 fully rough (glTF 2.0, section 3.9.2); without a map, ROUGHNESS everywhere."""
    metallic: np.ndarray | None = None
    """[H, W] uint8, 0 a dielectric and 255 a metal; without a map, no metal anywhere."""
    normal_map: np.ndarray | None = None
    """[H, W, 3] uint8, unit normals n in tangent space as (n + 1) / 2 * 255: x along u, y along v (OpenGL), z out."""

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 3 or self.faces.ndim != 2 or self.faces.shape[1] != 3:
            raise ValueError(
                f"a Mesh needs vertices [V, 3] and faces [F, 3]; got {self.vertices.shape}, {self.faces.shape}"
            )
        if len(self.faces) and (self.faces.min() < 0 or self.faces.max() >= len(self.vertices)):
            raise ValueError(
                f"faces name vertices {self.faces.min()}..{self.faces.max()}, but there are {len(self.vertices)}"
            )
        for name, width in (("colours", 3), ("uv", 2)):
            rows = getattr(self, name)
            if rows is not None and rows.shape != (len(self.vertices), width):
                raise ValueError(
                    f"a Mesh needs {name} [V, {width}]; got {rows.shape} for {len(self.vertices)} vertices"
                )
        for name, texels in self.maps.items():
            channels = "" if name in ("roughness", "metallic") else ", 3"
            if texels.ndim != (3 if channels else 2) or texels.shape[2:] not in ((), (3,)) or not texels.size:
                raise ValueError(f"a Mesh needs its {name} as [H, W{channels}]; got {texels.shape}")
            if texels.dtype != np.uint8:
                raise ValueError(f"a Mesh needs its {name} as uint8; got {texels.dtype}")
            if self.uv is None:
                raise ValueError(f"a Mesh with a {name} needs texture coordinates: unwrap it first")

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """The pictures it has, of texture, roughness, metallic and normal_map."""
        named = {name: getattr(self, name) for name in MAPS}
        return {name: texels for name, texels in named.items() if texels is not None}

    @property
    def face_normals(self) -> np.ndarray:
        """[F, 3] unit normals by the winding (0 for a degenerate face)."""
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        normals = np.cross(b - a, c - a)
        return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def join(*meshes: Mesh) -> Mesh:
    """One mesh from several, keeping vertex colours (white where a part has none); textures and maps are not joined."""
    colours = [np.ones_like(m.vertices) if m.colours is None else m.colours for m in meshes]
    return Mesh(*_joined(meshes), np.concatenate(colours).astype(np.float32))


def join_textured(*meshes: Mesh) -> Mesh:
    """One mesh from several with textures, which come to lie side by side in one, GUTTER texels apart; so do the other
    maps that all of them have.

    Raises ValueError for a mesh without a texture, and for pictures that are not all of one size.
    """
    places = [m.uv for m in meshes if m.uv is not None and m.texture is not None]
    if len(places) < len(meshes):
        raise ValueError("join_textured joins meshes with textures, and one of these has none")
    shared = [name for name in MAPS if all(name in m.maps for m in meshes)]
    sizes = {m.maps[name].shape[:2] for m in meshes for name in shared}
    if len(sizes) > 1:
        raise ValueError(f"join_textured joins pictures of one size; these have {sorted(sizes)}")

    def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
        edges = [(0, 0), (GUTTER, GUTTER)]
        return np.concatenate([np.pad(p, [*edges, (0, 0)][: p.ndim], mode="edge") for p in pictures], axis=1)

    ((_, width),) = sizes
    each = width + 2 * GUTTER
    places = [(uv * [width, 1] + [i * each + GUTTER, 0]) / [len(meshes) * each, 1] for i, uv in enumerate(places)]
    maps = {name: side_by_side([m.maps[name] for m in meshes]) for name in shared}
    return Mesh(*_joined(meshes), uv=np.concatenate(places).astype(np.float32), **maps)


def _joined(meshes: Sequence[Mesh]) -> tuple[np.ndarray, np.ndarray]:
    """The vertices and the faces of all."""
    offsets = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return (
        np.concatenate([m.vertices for m in meshes]).astype(np.float32),
        np.concatenate([m.faces + o for m, o in zip(meshes, offsets, strict=True)]).astype(np.int32),
    )


def coloured(mesh: Mesh, colour: tuple[float, float, float]) -> Mesh:
    """The mesh in one plain colour."""
    return Mesh(mesh.vertices, mesh.faces, np.tile(np.array(colour, np.float32), (len(mesh.vertices), 1)))
