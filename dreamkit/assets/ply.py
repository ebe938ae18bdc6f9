"""PLY: a mesh with colours at its vertices, its seams welded."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dreamkit.assets.bake import to_bytes, vertex_normals, weld
from dreamkit.assets.conventions import from_up, picture_from, version, vertex_colours
from dreamkit.assets.parts import Note, Part, merge
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh

SPLATS = ("f_dc_0", "opacity", "scale_0", "rot_0")
"""Properties by which a file of Gaussian splats is known."""


def read_ply(path: Path, up: str, note: Note) -> Mesh:
    """The mesh of a PLY file, text or binary: polygons cut into triangles, colours of vertices or of faces, or the
    texture that a `TextureFile` comment names."""
    import trimesh

    data = path.read_bytes()
    _check_whole(data)
    picture = None
    for line in header_lines(data):
        if line.lower().startswith("comment texturefile"):
            name = line[len("comment texturefile") :].strip()
            file = path.parent / name.replace("\\", "/")
            if not file.is_file():
                raise InputError(f"it names the picture {name}, but there is no {file}: put it there")
            picture = picture_from(file.read_bytes(), name)
    # Coordinates without a picture must not split vertices, for trimesh would lose their colours.
    scene = trimesh.load_scene(path, process=False, fix_texture=picture is not None)
    found = next((g for g in scene.geometry.values() if isinstance(g, trimesh.Trimesh) and len(g.faces)), None)
    if found is None:
        raise InputError("it holds no triangles; points alone are no surface")
    mesh = Mesh(np.asarray(found.vertices, np.float32), np.asarray(found.faces, np.int32))
    visual: Any = found.visual
    uv = getattr(visual, "uv", None)
    if uv is not None and picture is not None:
        mesh = replace(mesh, uv=np.asarray(uv, np.float32), texture=picture)
    elif uv is not None:
        colours: Any = found.vertex_attributes.get("color")
        if colours is not None:
            most = np.iinfo(colours.dtype).max if colours.dtype.kind == "u" else 1
            mesh = replace(mesh, colours=(np.asarray(colours)[:, :3] / most).astype(np.float32))
    elif visual.kind == "face":
        mesh = _split(mesh, (np.asarray(visual.face_colors)[:, :3] / 255).astype(np.float32))
    elif visual.kind == "vertex":
        mesh = replace(mesh, colours=(np.asarray(visual.vertex_colors)[:, :3] / 255).astype(np.float32))
    mesh = merge([Part(mesh)], note)
    return replace(mesh, vertices=from_up(mesh.vertices, up))


def _split(mesh: Mesh, colours: np.ndarray) -> Mesh:
    """The mesh with three vertices of its own for each face, in the face's colour [F, 3]."""
    corners = np.arange(mesh.faces.size, dtype=np.int32).reshape(-1, 3)
    return Mesh(mesh.vertices[mesh.faces.reshape(-1)], corners, np.repeat(colours, 3, axis=0))


def header_lines(data: bytes) -> list[str]:
    """The lines of a PLY's header. Raises InputError if it is not one, or does not end."""
    head, found, _ = data.partition(b"end_header")
    if data[:3] != b"ply" or not found:
        raise InputError("it does not begin with the header of a PLY, or the header does not end")
    return [line.strip() for line in head.decode("ascii", errors="replace").splitlines()]


def elements(data: bytes) -> Iterator[tuple[str, int]]:
    """The elements that a PLY's header announces, and how many there are of each."""
    for line in header_lines(data):
        if line.startswith("element "):
            _, name, count = line.split()
            yield name, int(count)


def _check_whole(data: bytes) -> None:
    """Raise InputError for splats, and for a text that has fewer rows than its header says: trimesh reads what is
    there."""
    lines = header_lines(data)
    names = {line.split()[-1] for line in lines if line.startswith("property")}
    if lacking := {"x", "y", "z"} - names:
        raise InputError(f"its vertices lack {', '.join(sorted(lacking))}")
    if names.issuperset(SPLATS):
        raise InputError(
            "it holds Gaussian splats, not a mesh: read it with dreamkit.assets.splats.read_splats, or render the scene"
        )
    if any(line.startswith("format ascii") for line in lines):
        rows = sum(1 for line in data.partition(b"end_header")[2].splitlines() if line.strip())
        wanted = sum(count for _, count in elements(data))
        if rows < wanted:
            raise InputError(f"it is cut off: {rows} rows of {wanted}")


def ply_bytes(mesh: Mesh, extras: dict[str, Any]) -> bytes:
    """A binary PLY with normals and 8-bit colours, seams welded; a texture's colours are taken at the vertices."""
    positions, number = weld(mesh)
    count = np.bincount(number, minlength=len(positions))[:, None]
    colours, normals = np.zeros((len(positions), 3)), np.zeros((len(positions), 3), np.float32)
    np.add.at(colours, number, vertex_colours(mesh))
    normals[number] = vertex_normals(mesh)
    columns = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    vertex = np.zeros(len(positions), dtype=[*columns, ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    rows = [*positions.T, *normals.T, *to_bytes(colours / count).T]
    for name, row in zip(vertex.dtype.names or (), rows, strict=True):
        vertex[name] = row
    face = np.zeros(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    face["count"], face["corners"] = 3, number[mesh.faces]
    header = [
        *opening(extras),
        f"element vertex {len(vertex)}",
        *(f"property float {name}" for name, _ in columns),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(face)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return "\n".join(header).encode("ascii") + b"\n" + vertex.tobytes() + face.tobytes()


def opening(extras: dict[str, Any]) -> list[str]:
    """The first lines of a binary PLY that we write."""
    comments = [f"comment dreamkit {version()}", f"comment dreamkit-extras {json.dumps(extras)}"]
    return ["ply", "format binary_little_endian 1.0", *comments]
