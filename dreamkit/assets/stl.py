"""STL: triangles and nothing else, for printing. No colours, no units, no place for where a mesh comes from."""

from pathlib import Path

import numpy as np

from dreamkit.assets.bake import weld
from dreamkit.assets.conventions import from_up, version
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh

TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read_stl(path: Path, up: str) -> Mesh:
    """The mesh of an STL file, text or binary; corners at one place become one vertex."""
    import trimesh

    scene = trimesh.load_scene(path, process=False)
    solids = [g for g in scene.geometry.values() if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    if not solids:
        raise InputError(
            f"it holds no triangles: it is not text, and its {path.stat().st_size} bytes are not as many as a binary "
            "file of that header has, so it is empty, cut off or damaged"
        )
    corners = np.concatenate([np.asarray(g.vertices, np.float32)[g.faces] for g in solids]).reshape(-1, 3)
    loose = Mesh(from_up(corners, up), np.arange(len(corners), dtype=np.int32).reshape(-1, 3))
    vertices, number = weld(loose)
    return Mesh(vertices, number.reshape(-1, 3).astype(np.int32))


def stl_bytes(mesh: Mesh) -> bytes:
    """A binary STL: a header of 80 bytes, the count, and 50 bytes a triangle."""
    rows = np.zeros(len(mesh.faces), TRIANGLE)
    rows["normal"], rows["corners"] = mesh.face_normals, mesh.vertices[mesh.faces]
    # A header that began with "solid" would be taken for text.
    return f"dreamkit {version()}".encode().ljust(80, b"\0") + np.uint32(len(rows)).tobytes() + rows.tobytes()
