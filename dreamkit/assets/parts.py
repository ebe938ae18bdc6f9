"""The surfaces of one file, each with a material of its own, become one mesh with one set of pictures.

One surface keeps its pictures and coordinates to the last bit. The pictures of several are laid side by side in an
atlas, each with a border of its own edge texels; a picture that a surface repeats is laid out as often as it is
repeated. What that loses is told to `note`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dreamkit.assets.bake import spread, texels, to_bytes
from dreamkit.assets.conventions import of_one_size, sampled, to_display, to_linear
from dreamkit.assets.unwrap import grid_atlas
from dreamkit.meshes import MAPS, ROUGHNESS, Mesh

Note = Callable[[str], None]
"""Told, in one sentence each, what a file holds that a mesh cannot say, and what is odd about it."""

LARGEST = 8192
"""Texels on a side of an atlas, and of a repeated picture: what every GPU of the last decade can hold."""
BORDER = 2
"""Texels of its own edge round each picture of an atlas: enough for bilinear lookup and the first mip."""
PLAIN = {"texture": 255, "roughness": round(ROUGHNESS * 255), "metallic": 0, "normal_map": (128, 128, 255)}
"""The texel that says what a mesh without this map says."""


@dataclass(frozen=True)
class Part:
    """A mesh whose coordinates may leave the unit square, and what its pictures do there: "repeat", "mirror" or
    "clamp", along u and along v."""

    mesh: Mesh
    wrap: tuple[str, str] = ("repeat", "repeat")


def merge(parts: Sequence[Part], note: Note) -> Mesh:
    """One mesh from all parts, in their order.

    With a picture anywhere, colours become texels: a plain colour one of them, vertex colours a grid of triangles.
    Without, vertex colours stay what they are, white where a part has none.
    """
    meshes = [inside(part, note) for part in parts]
    if len(meshes) == 1:
        return meshes[0]
    if not any(mesh.maps for mesh in meshes):
        return stack([replace(mesh, uv=None) for mesh in meshes])
    if any(mesh.texture is not None for mesh in meshes):
        meshes = [mesh if mesh.texture is not None else coloured_by_texture(mesh, note) for mesh in meshes]
    note(f"the pictures of {len(meshes)} materials were laid side by side in one atlas")
    return atlas(meshes, note)


def stack(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh from several that share the pictures of the first: vertices after vertices, faces after faces."""
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    colours = None
    if any(mesh.colours is not None for mesh in meshes):
        colours = np.concatenate([np.ones_like(m.vertices) if m.colours is None else m.colours for m in meshes])
    uv = [mesh.uv for mesh in meshes if mesh.uv is not None]
    return replace(
        meshes[0],
        vertices=np.concatenate([mesh.vertices for mesh in meshes]),
        faces=np.concatenate([mesh.faces + o for mesh, o in zip(meshes, offsets, strict=True)]).astype(np.int32),
        colours=colours,
        uv=np.concatenate(uv) if len(uv) == len(meshes) else None,
    )


def inside(part: Part, note: Note) -> Mesh:
    """The part's mesh with coordinates in the unit square; a picture that was repeated is laid out in full."""
    mesh = part.mesh
    if mesh.uv is None or not len(mesh.faces):
        return mesh
    if part.wrap == ("repeat", "repeat") and not _in_unit_square(mesh.uv):
        mesh = into_first_tile(mesh)
    assert mesh.uv is not None
    uv = mesh.uv.astype(np.float64)
    first = np.floor(uv.min(0) + 1e-6).astype(int)
    count = np.maximum(np.ceil(uv.max(0) - 1e-6).astype(int) - first, 1)
    if not first.any() and (count == 1).all():
        return replace(mesh, uv=mesh.uv.clip(0, 1))
    if (count > LARGEST).any():
        note(f"texture coordinates run over {count[0]} x {count[1]} repeats: cut off at {LARGEST}")
        count = np.minimum(count, LARGEST)
    pictures = {name: _repeated(p, part.wrap, first, count, note) for name, p in mesh.maps.items()}
    return replace(mesh, uv=((uv - first) / count).clip(0, 1).astype(np.float32), **pictures)


def into_first_tile(mesh: Mesh) -> Mesh:
    """Each face moved by whole repeats, so that its lowest coordinates lie in the first; vertices that faces of
    different repeats share are doubled."""
    assert mesh.uv is not None
    tile = np.floor(mesh.uv[mesh.faces].min(1) + 1e-6).astype(np.int64)  # [F, 2]
    keys = np.concatenate([mesh.faces.reshape(-1, 1), np.repeat(tile, 3, axis=0)], axis=1)
    rows, number = np.unique(keys, axis=0, return_inverse=True)
    origin = rows[:, 0]
    return replace(
        mesh,
        vertices=mesh.vertices[origin],
        faces=number.reshape(-1, 3).astype(np.int32),
        colours=None if mesh.colours is None else mesh.colours[origin],
        uv=(mesh.uv[origin] - rows[:, 1:]).astype(np.float32),
    )


def _in_unit_square(uv: np.ndarray) -> bool:
    return bool((uv > -1e-6).all() and (uv < 1 + 1e-6).all())


def _repeated(
    picture: np.ndarray, wrap: tuple[str, str], first: np.ndarray, count: np.ndarray, note: Note
) -> np.ndarray:
    """`count` repeats of a picture along u and v, from repeat number `first` on; made smaller if need be."""
    wanted = [min(picture.shape[1 - i], max(LARGEST // int(count[i]), 1)) for i in (0, 1)]
    if wanted != [picture.shape[1], picture.shape[0]]:
        note(f"a picture repeated {count[0]} x {count[1]} times was made smaller, to {wanted[0]} x {wanted[1]}")
        picture = shrunk(picture, (wanted[1], wanted[0]))
    column = _wrapped(wrap[0], picture.shape[1], int(first[0]), int(count[0]))
    # Rows run from the top, v from the bottom: the topmost repeat is the last one.
    row = picture.shape[0] - 1 - _wrapped(wrap[1], picture.shape[0], int(first[1]), int(count[1]))[::-1]
    return picture[row[:, None], column[None]]


def _wrapped(wrap: str, size: int, first: int, count: int) -> np.ndarray:
    """Which texel stands at each of `count` x `size` places from repeat `first` on."""
    place = np.arange(first * size, (first + count) * size)
    if wrap == "clamp":
        return place.clip(0, size - 1)
    if wrap == "mirror":
        return np.where(place // size % 2, size - 1 - place % size, place % size)
    return place % size


def shrunk(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A picture [H, W, ...] in fewer texels, each the mean of those it stands for."""
    from PIL import Image

    return np.array(Image.fromarray(picture).resize((shape[1], shape[0]), Image.Resampling.BOX))


def coloured_by_texture(mesh: Mesh, note: Note) -> Mesh:
    """The mesh with its vertex colours, times its texture if it has one, as a texture: one texel if there is only one
    colour, else a grid of triangles."""
    colours = np.ones_like(mesh.vertices) if mesh.colours is None else mesh.colours
    if mesh.texture is None and (np.ptp(colours, axis=0) < 1e-6).all():
        uv = np.full((len(mesh.vertices), 2), 0.5, np.float32) if mesh.uv is None else mesh.uv
        return replace(mesh, colours=None, uv=uv, texture=to_bytes(colours[:1]).reshape(1, 1, 3))
    cells = int(np.ceil(np.sqrt((len(mesh.faces) + 1) // 2)))
    detail = 0 if mesh.texture is None else 2 * int(np.sqrt(mesh.texture[..., 0].size))
    size = min(max(10 * cells, detail, 16), LARGEST // 2)
    note(f"vertex colours were laid into a texture of {size} x {size} texels")
    if mesh.normal_map is not None:
        note("its normal map was left out, as it lies along the old coordinates")
    return on_grid(mesh, colours, size)


def on_grid(mesh: Mesh, colours: np.ndarray, size: int) -> Mesh:
    """The mesh in a grid of triangles, its pictures drawn anew: `colours` [V, 3], times its texture if it has one."""
    grid = grid_atlas(mesh, size)
    names = [name for name in mesh.maps if name not in ("texture", "normal_map")]  # tangents turn with the triangles
    pictures = {name: np.zeros((size * size,), np.uint8) for name in names}
    picture, filled = np.zeros((size * size, 3), np.uint8), np.zeros(size * size, bool)
    corner_uv = None if mesh.uv is None else mesh.uv[mesh.faces]
    for texel, face, weight in texels(grid, size):
        value = (colours[mesh.faces[face]] * weight[..., None]).sum(1)
        if corner_uv is not None:
            uv = (corner_uv[face] * weight[..., None]).sum(1)
            if mesh.texture is not None:  # only glTF multiplies, and between vertices too it does so in light
                light = (to_linear(colours)[mesh.faces[face]] * weight[..., None]).sum(1)
                value = to_display(light * to_linear(sampled(mesh.texture, uv) / 255))
            for name in names:
                pictures[name][texel] = sampled(mesh.maps[name], uv)
        picture[texel], filled[texel] = to_bytes(value), True
    shape = filled.reshape(size, size)
    made = {name: spread(p.reshape(size, size), shape) for name, p in pictures.items()}
    texture = spread(picture.reshape(size, size, 3), shape)
    return replace(grid, colours=None, texture=texture, normal_map=None, **made)


def atlas(meshes: Sequence[Mesh], note: Note) -> Mesh:
    """One mesh whose pictures hold those of all, side by side."""
    names = [name for name in MAPS if any(name in mesh.maps for mesh in meshes)]
    cells = [_cell(mesh, names) for mesh in meshes]
    shapes = [cell[names[0]].shape[:2] for cell in cells]
    halved = 0
    while True:
        places, (height, width) = shelves([(h + 2 * BORDER, w + 2 * BORDER) for h, w in shapes])
        if max(height, width) <= LARGEST or max(max(s) for s in shapes) == 1:
            break
        largest = max(max(s) for s in shapes)
        shapes = [(max(h // 2, 1), max(w // 2, 1)) if max(h, w) == largest else (h, w) for h, w in shapes]
        halved += 1
    if halved:
        note(f"the atlas would be larger than {LARGEST} texels on a side: its largest pictures were made smaller")
    made = {}
    for name in names:
        made[name] = np.zeros((height, width, *cells[0][name].shape[2:]), np.uint8)
        for cell, (h, w), (top, left) in zip(cells, shapes, places, strict=True):
            picture = cell[name] if cell[name].shape[:2] == (h, w) else shrunk(cell[name], (h, w))
            around = ((BORDER, BORDER), (BORDER, BORDER), (0, 0))[: picture.ndim]
            made[name][top : top + h + 2 * BORDER, left : left + w + 2 * BORDER] = np.pad(picture, around, "edge")
    placed = []
    for mesh, (h, w), (top, left) in zip(meshes, shapes, places, strict=True):
        uv = np.full((len(mesh.vertices), 2), 0.5) if mesh.uv is None else mesh.uv.astype(np.float64)
        u = (left + BORDER + uv[:, 0] * w) / width
        v = 1 - (top + BORDER + (1 - uv[:, 1]) * h) / height
        placed.append(Mesh(mesh.vertices, mesh.faces, mesh.colours, np.stack([u, v], axis=-1).astype(np.float32)))
    return replace(stack(placed), **made)


def _cell(mesh: Mesh, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The mesh's pictures of these names, all of one size; plain where it has none."""
    plain = {name: np.full((1, 1, 3)[: 3 if name in ("texture", "normal_map") else 2], PLAIN[name]) for name in names}
    pictures = [mesh.maps.get(name, plain[name].astype(np.uint8)) for name in names]
    return dict(zip(names, of_one_size(*pictures), strict=True))


def shelves(sizes: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Places (top, left) of rectangles (height, width) that do not overlap, and the (height, width) that holds them.

    In rows, the highest first; a row is as wide as a square of the same area, or as the widest of them.
    """
    wide = max(int(np.ceil(np.sqrt(sum(h * w for h, w in sizes)))), max(w for _, w in sizes))
    places, top, left, row = [(0, 0)] * len(sizes), 0, 0, 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i][0], -sizes[i][1], i)):
        height, width = sizes[i]
        if left + width > wide:
            top, left, row = top + row, 0, 0
        places[i], left, row = (top, left), left + width, max(row, height)
    return places, (top + row, wide)
