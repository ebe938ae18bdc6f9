"""Triangle meshes: plain arrays, passed between the rooms.

Positions are in the world frame of `cameras.py`. Faces wind counter-clockwise seen from outside. Colours are in
[0, 1], display-referred like `images.py`. A mesh is coloured by its texture if it has one, else by its vertex colours,
else it is white. Its roughness, metallic and normal maps, each optional and of a size of its own, are laid over it by
the same texture coordinates; they are numbers, not colours, so they are linear.
"""

from dataclasses import dataclass

import numpy as np

ROUGHNESS = 0.9
"""Of a surface without a map of it: chalk and clay, which show a colour as it is."""
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
    offsets = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    colours = [np.ones_like(m.vertices) if m.colours is None else m.colours for m in meshes]
    return Mesh(
        np.concatenate([m.vertices for m in meshes]).astype(np.float32),
        np.concatenate([m.faces + o for m, o in zip(meshes, offsets, strict=True)]).astype(np.int32),
        np.concatenate(colours).astype(np.float32),
    )


def coloured(mesh: Mesh, colour: tuple[float, float, float]) -> Mesh:
    """The mesh in one plain colour."""
    return Mesh(mesh.vertices, mesh.faces, np.tile(np.array(colour, np.float32), (len(mesh.vertices), 1)))
