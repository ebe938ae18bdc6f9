"""The door for meshes: `read` and `write`, by what a file's name ends in. Each format has a file of its own beside it.

| suffix | read | written | up | colours | materials |
|---|---|---|---|---|---|
| .glb | yes | yes | +y | texture, or vertex colours in light | roughness, metallic, normal map |
| .gltf | yes | no | +y | the same | the same |
| .obj | yes | yes, with .mtl and .png | +y, or `up` | texture, or vertex colours | the same |
| .ply | yes | yes | +z, or `up` | vertex colours of 8 bits | none |
| .stl | yes | yes | +z, or `up` | none | none |
| .usdz | yes | yes, with usd-core installed | +y | texture, or vertex colours in light | the same |

Frames: with +y up, +z is the front, as in glTF; with +z up, a file holds the world frame of `cameras.py`, +x the front.
`read` turns all of them to the world frame. glTF's and USD's unit is the metre, the others have none; a world unit is
written as one, and read as one. Light: see `conventions.py`. Every file is written to a temporary name and renamed, so
that no reader ever meets half a file. Gaussian splats have a door of their own, `splats.py`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dreamkit.assets.bake import weld
from dreamkit.assets.conventions import UPS
from dreamkit.assets.extract import signed_volume
from dreamkit.assets.gltf import glb_tree
from dreamkit.assets.gltf_mesh import glb_bytes, read_gltf
from dreamkit.assets.obj import read_obj, write_obj
from dreamkit.assets.parts import Note
from dreamkit.assets.ply import ply_bytes, read_ply
from dreamkit.assets.stl import read_stl, stl_bytes
from dreamkit.assets.usd import read_usdz, usdz_bytes, usdz_extras
from dreamkit.disk import make_folder, write_whole
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh

WRITTEN = (".glb", ".obj", ".ply", ".stl", ".usdz")
READ = (".glb", ".gltf", ".obj", ".ply", ".stl", ".usdz")
UP = {".obj": "y", ".ply": "z", ".stl": "z"}
"""Which way is up, by custom, in formats that do not say it."""


def write(mesh: Mesh, path: Path | str, extras: dict[str, Any] | None = None) -> list[Path]:
    """Write the mesh in the format that the suffix names, and return the files written.

    Args:
        mesh: with a texture, vertex colours, or neither; not empty. A PLY takes a texture's colours at its vertices; an
            STL has no colours.
        path: ends in one of WRITTEN; its folder is made. An OBJ brings a .mtl and a .png for each picture.
        extras: anything JSON can say, kept in glTF's asset.extras, USD's customLayerData, or a comment: where the mesh
            comes from. An STL has no place for it.

    Raises InputError for another suffix, an empty mesh, positions that are not finite, or a USDZ without usd-core;
    nothing is written then. A file is made in memory, so that takes a few times its size, and grows with it.
    """
    path = Path(path)
    suffix = _suffix(path, WRITTEN)
    if not len(mesh.faces):
        raise InputError(f"{path} was not written: the mesh has no faces. Export it with a lower density level.")
    if not np.isfinite(mesh.vertices).all():
        raise InputError(f"{path} was not written: some positions of the mesh are not finite.")
    extras = extras or {}
    if suffix == ".obj":
        make_folder(path.parent)
        return write_obj(mesh, path, extras)
    made: dict[str, Callable[[], bytes]] = {
        ".glb": lambda: glb_bytes(mesh, extras),
        ".ply": lambda: ply_bytes(mesh, extras),
        ".stl": lambda: stl_bytes(mesh),
        ".usdz": lambda: usdz_bytes(mesh, extras),
    }
    data = made[suffix]()
    make_folder(path.parent)
    write_whole(path, data)
    return [path]


def read(path: Path | str, *, up: str | None = None, note: Note | None = None) -> Mesh:
    """The mesh in a file, in the world frame. Several meshes in one file become one, their pictures one atlas.

    Args:
        path: ends in one of READ.
        up: "y" or "z", for OBJ, PLY and STL, where the custom (UP) is not what the file's program did.
        note: told, a sentence each, what the file holds that a mesh cannot say, and what is odd about the mesh: not
            closed, inside out, very large or small. Without it nobody looks; nothing odd is refused or changed.

    Raises InputError if the file is missing, of another suffix, cut off, damaged or without triangles; if a picture or
    material that it names is missing; or if it requires an extension that is not read. A file is read into memory
    whole, with some copies of its arrays; millions of faces are fine, though an OBJ, which is text, takes its time.
    """
    path = Path(path)
    suffix = _suffix(path, READ)
    if up is not None and (suffix not in UP or up not in UPS):
        raise InputError(f"up can be y or z, and only for {', '.join(UP)}; got {up!r} for {path}")
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    upward, told = up or UP.get(suffix, "y"), note or (lambda text: None)
    readers: dict[str, Callable[[], Mesh]] = {
        ".glb": lambda: read_gltf(path, told),
        ".gltf": lambda: read_gltf(path, told),
        ".obj": lambda: read_obj(path, upward, told),
        ".ply": lambda: read_ply(path, upward, told),
        ".stl": lambda: read_stl(path, upward),
        ".usdz": lambda: read_usdz(path, told),
    }
    try:
        mesh = readers[suffix]()
        if not np.isfinite(mesh.vertices).all():
            raise InputError("some positions are not finite")
    except InputError as error:
        raise InputError(f"{path} cannot be read as {suffix[1:].upper()}: {error}") from error
    except Exception as error:  # a damaged file fails wherever it is looked at; trimesh raises what its parsers meet
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} cannot be read as {suffix[1:].upper()}: it is damaged ({said})") from error
    if note is not None:
        tell_oddities(mesh, note)
    return mesh


def tell_oddities(mesh: Mesh, note: Note) -> None:
    """Tell what of a mesh's shape may surprise: holes, edges of three faces, inside out, size."""
    corners = weld(mesh)[1][mesh.faces].astype(np.int64)
    corners = corners[(corners != np.roll(corners, 1, axis=1)).all(1)]  # not those collapsed to an edge or a point
    ends = np.sort(np.stack([corners, np.roll(corners, -1, axis=1)], axis=-1).reshape(-1, 2), axis=1)
    count = np.unique(ends[:, 0] * len(mesh.vertices) + ends[:, 1], return_counts=True)[1]
    if (count == 1).any():
        note(f"not closed: {int((count == 1).sum())} edges have one face")
    if (count > 2).any():
        note(f"not a manifold: {int((count > 2).sum())} edges have more than two faces")
    if not (count != 2).any() and signed_volume(mesh.vertices, mesh.faces) < 0:
        note("inside out: its faces wind clockwise seen from outside; swap two columns of its faces to turn it")
    extent = float(np.ptp(mesh.vertices, axis=0).max())
    if not 0.02 <= extent <= 20:
        note(f"its largest side is {extent:.3g} world units; scenes live in [-1, 1]^3, so scale it to about 1")


def read_extras(path: Path | str) -> dict[str, Any]:
    """The `extras` that `write` put into a file; empty for a file of another program."""
    if Path(path).suffix.lower() == ".usdz":
        return usdz_extras(Path(path))
    data = Path(path).read_bytes()
    if data[:4] == b"glTF":
        return dict(glb_tree(data)[0].get("asset", {}).get("extras", {}))
    head = data[:65536].decode("utf-8", errors="replace")
    for line in head.splitlines():
        if " dreamkit-extras " in line:
            return dict(json.loads(line.split(" dreamkit-extras ", 1)[1]))
    return {}


def _suffix(path: Path, known: tuple[str, ...]) -> str:
    suffix = path.suffix.lower()
    if suffix not in known:
        way = "read" if known is READ else "written"
        raise InputError(f"{path}: meshes {way} end in {', '.join(known)}; got {suffix or 'no suffix'!r}")
    return suffix
