"""Meshes to and from files: GLB, OBJ (with MTL and PNG) and PLY.

Frames: GLB and OBJ are written in glTF's frame, +y up and +z the front; PLY, which has no custom, keeps the world frame
of `cameras.py`, +z up and +x the front. `read` turns all of them back. Colours are display-referred, like sRGB: texture
bytes go into the files as they are, and only glTF's vertex colours, which the format defines as linear, are converted.
Every file is written to a temporary name and renamed, so that no reader ever meets half a file.
"""

import io
import json
import struct
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dreamkit.assets.bake import to_bytes, vertex_normals, weld
from dreamkit.disk import write_whole
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh

SUFFIXES = (".glb", ".obj", ".ply")


def write(mesh: Mesh, path: Path | str, extras: dict[str, Any] | None = None) -> list[Path]:
    """Write the mesh in the format that the suffix names, and return the files written.

    Args:
        mesh: with a texture, vertex colours, or neither; not empty. A PLY takes a texture's colours at its vertices.
        path: ends in .glb, .obj or .ply; its folder is made. An OBJ brings a .mtl and a .png of the same name.
        extras: anything JSON can say, kept in glTF's asset.extras or in a comment: where the mesh comes from.

    Raises InputError for another suffix or an empty mesh.
    """
    path = Path(path)
    _known(path)
    if not len(mesh.faces):
        raise InputError(f"{path} was not written: the mesh has no faces. Export it with a lower density level.")
    path.parent.mkdir(parents=True, exist_ok=True)
    extras = extras or {}
    if path.suffix.lower() == ".obj":
        return _write_obj(mesh, path, extras)
    write_whole(path, glb_bytes(mesh, extras) if path.suffix.lower() == ".glb" else ply_bytes(mesh, extras))
    return [path]


def read(path: Path | str) -> Mesh:
    """The mesh in a .glb, .obj or .ply file, in the world frame. Several meshes in one file become one.

    Raises InputError if the file is missing, unknown, broken or without triangles.
    """
    import trimesh

    path = Path(path)
    _known(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        found = trimesh.load(path, process=False, maintain_order=True)
        found = found.to_geometry() if isinstance(found, trimesh.Scene) else found
    except Exception as error:  # trimesh raises whatever its parsers meet
        raise InputError(f"{path} cannot be read as {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(found, trimesh.Trimesh) or not len(found.faces):
        raise InputError(f"{path} holds no triangles")
    mesh = Mesh(np.asarray(found.vertices, np.float32), np.asarray(found.faces, np.int32))
    mesh = _with_visual(mesh, found.visual)
    if path.suffix.lower() == ".glb" and mesh.texture is None:
        light = _gltf_colours(path.read_bytes())
        if light is not None and len(light) == len(mesh.vertices):
            mesh = replace(mesh, colours=to_display(light).astype(np.float32))
    return mesh if path.suffix.lower() == ".ply" else replace(mesh, vertices=from_gltf_frame(mesh.vertices))


def read_extras(path: Path | str) -> dict[str, Any]:
    """The `extras` that `write` put into a file; empty for a file of another program."""
    data = Path(path).read_bytes()
    if data[:4] == b"glTF":
        return dict(_gltf_tree(data)[0].get("asset", {}).get("extras", {}))
    head = data[:65536].decode("utf-8", errors="replace")
    for line in head.splitlines():
        if " dreamkit-extras " in line:
            return dict(json.loads(line.split(" dreamkit-extras ", 1)[1]))
    return {}


def to_gltf_frame(vectors: np.ndarray) -> np.ndarray:
    """World (+z up, +x front) to glTF (+y up, +z front): (x, y, z) becomes (y, z, x), a rotation."""
    return np.ascontiguousarray(vectors[:, [1, 2, 0]])


def from_gltf_frame(vectors: np.ndarray) -> np.ndarray:
    """The inverse of `to_gltf_frame`."""
    return np.ascontiguousarray(vectors[:, [2, 0, 1]])


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture [H, W, 3] uint8 as a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def glb_bytes(mesh: Mesh, extras: dict[str, Any]) -> bytes:
    """A binary glTF 2.0 file: one mesh, one material (rough, not metallic), and the texture or vertex colours."""
    attributes = {"POSITION": to_gltf_frame(mesh.vertices), "NORMAL": to_gltf_frame(vertex_normals(mesh))}
    textured = mesh.texture is not None and mesh.uv is not None
    if textured and mesh.uv is not None:
        attributes["TEXCOORD_0"] = np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=-1)
    elif mesh.colours is not None:
        attributes["COLOR_0"] = to_linear(mesh.colours)
    blobs = [np.ascontiguousarray(a, dtype="<f4").tobytes() for a in attributes.values()]
    blobs.append(mesh.faces.astype("<u4").tobytes())
    accessors: list[dict[str, Any]] = [
        {"bufferView": i, "componentType": 5126, "count": len(a), "type": f"VEC{a.shape[1]}"}
        for i, a in enumerate(attributes.values())
    ]
    position = attributes["POSITION"].astype(np.float32)
    accessors[0] |= {"min": position.min(0).tolist(), "max": position.max(0).tolist()}
    accessors.append({"bufferView": len(accessors), "componentType": 5125, "count": mesh.faces.size, "type": "SCALAR"})
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    tree: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"dreamkit {_version()}", "extras": extras},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "dreamkit"}],
        "meshes": [
            {
                "primitives": [
                    {
                        "attributes": {name: i for i, name in enumerate(attributes)},
                        "indices": len(attributes),
                        "material": 0,
                    }
                ]
            }
        ],
        "materials": [{"name": "surface", "pbrMetallicRoughness": surface, "doubleSided": True}],
        "accessors": accessors,
    }
    if textured and mesh.texture is not None:
        surface["baseColorTexture"] = {"index": 0}
        tree["textures"] = [{"source": 0, "sampler": 0}]
        tree["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
        tree["images"] = [{"bufferView": len(blobs), "mimeType": "image/png"}]
        blobs.append(png_bytes(mesh.texture))
    return _pack_glb(tree, blobs, vertex_views=len(attributes))


def _pack_glb(tree: dict[str, Any], blobs: list[bytes], vertex_views: int) -> bytes:
    """Header, JSON chunk and binary chunk (glTF 2.0, section 4.4); blobs become buffer views in their order."""
    views: list[dict[str, int]] = []
    body = b""
    for i, blob in enumerate(blobs):
        views.append({"buffer": 0, "byteOffset": len(body), "byteLength": len(blob)})
        if i <= vertex_views:
            views[-1]["target"] = 34962 if i < vertex_views else 34963  # vertex attributes, then indices
        body += blob + b"\0" * (-len(blob) % 4)
    text = json.dumps(tree | {"bufferViews": views, "buffers": [{"byteLength": len(body)}]}, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sIIII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(body), len(text), 0x4E4F534A)
    return head + text + struct.pack("<II", len(body), 0x004E4942) + body


def ply_bytes(mesh: Mesh, extras: dict[str, Any]) -> bytes:
    """A binary PLY with normals and 8-bit colours, seams welded."""
    positions, number = weld(mesh)
    count = np.bincount(number, minlength=len(positions))[:, None]
    colours, normals = np.zeros((len(positions), 3)), np.zeros((len(positions), 3), np.float32)
    np.add.at(colours, number, _vertex_colours(mesh))
    normals[number] = vertex_normals(mesh)
    columns = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    vertex = np.zeros(len(positions), dtype=[*columns, ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    rows = [*positions.T, *normals.T, *to_bytes(colours / count).T]
    for name, row in zip(vertex.dtype.names or (), rows, strict=True):
        vertex[name] = row
    face = np.zeros(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    face["count"], face["corners"] = 3, number[mesh.faces]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment dreamkit {_version()}",
        f"comment dreamkit-extras {json.dumps(extras)}",
        f"element vertex {len(vertex)}",
        *(f"property float {name}" for name, _ in columns),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(face)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return "\n".join(header).encode("ascii") + b"\n" + vertex.tobytes() + face.tobytes()


def _write_obj(mesh: Mesh, path: Path, extras: dict[str, Any]) -> list[Path]:
    """The OBJ comes last, so that once it is there all it names is."""
    name = "_".join(path.stem.split())  # MTL file names cannot hold spaces
    written = []
    if mesh.texture is not None and mesh.uv is not None:
        picture, material = path.with_name(f"{name}.png"), path.with_name(f"{name}.mtl")
        write_whole(picture, png_bytes(mesh.texture))
        lines = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 1", f"map_Kd {picture.name}"]
        write_whole(material, "\n".join([*lines, ""]).encode())
        written = [material, picture]
    write_whole(path, _obj_text(mesh, extras, f"{name}.mtl" if written else None).encode())
    return [path, *written]


def _obj_text(mesh: Mesh, extras: dict[str, Any], material: str | None) -> str:
    """Positions (followed by the vertex colours, if there are), coordinates, normals and faces, numbered from 1."""
    vertices, normals = to_gltf_frame(mesh.vertices), to_gltf_frame(vertex_normals(mesh))
    plain = material is None and mesh.colours is not None
    rows = np.concatenate([vertices, mesh.colours], axis=1) if plain and mesh.colours is not None else vertices
    lines = [f"# dreamkit {_version()}", f"# dreamkit-extras {json.dumps(extras)}"]
    lines += [f"mtllib {material}", "usemtl surface"] if material else []
    lines += [f"v {' '.join(f'{x:.7g}' for x in row)}" for row in rows.tolist()]
    if material and mesh.uv is not None:
        lines += [f"vt {u:.7g} {v:.7g}" for u, v in mesh.uv.tolist()]
    lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in normals.tolist()]
    corner = "{0}/{0}/{0}" if material else "{0}//{0}"
    lines += ["f " + " ".join(corner.format(i) for i in face) for face in (mesh.faces + 1).tolist()]
    return "\n".join([*lines, ""])


def _vertex_colours(mesh: Mesh) -> np.ndarray:
    """[V, 3] in [0, 1]: from the texture (nearest texel) if there is one, else the vertex colours, else white."""
    if mesh.texture is not None and mesh.uv is not None:
        height, width = mesh.texture.shape[:2]
        column = np.clip(mesh.uv[:, 0] * width, 0, width - 1).astype(int)
        row = np.clip((1 - mesh.uv[:, 1]) * height, 0, height - 1).astype(int)
        return mesh.texture[row, column] / 255
    return np.ones_like(mesh.vertices) if mesh.colours is None else mesh.colours


def _gltf_tree(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON of a GLB file, and where its binary chunk's data begins."""
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length]), 28 + length


def _gltf_colours(data: bytes) -> np.ndarray | None:
    """The vertex colours [V, 3] of a GLB file of one primitive, as stored: linear. None if it has none.

    trimesh would round them to bytes, which in linear light leaves steps in dark colours, or drop them.
    """
    tree, start = _gltf_tree(data)
    primitives = [p for m in tree.get("meshes", []) for p in m["primitives"]]
    if len(primitives) != 1 or "COLOR_0" not in primitives[0]["attributes"]:
        return None
    accessor = tree["accessors"][primitives[0]["attributes"]["COLOR_0"]]
    if "bufferView" not in accessor:
        return None
    view = tree["bufferViews"][accessor["bufferView"]]
    kind = np.dtype({5121: "u1", 5123: "<u2", 5126: "<f4"}[accessor["componentType"]])
    width = int(accessor["type"][-1])  # VEC3 or VEC4
    strides = (view.get("byteStride", width * kind.itemsize), kind.itemsize)
    offset = start + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    found = np.ndarray((accessor["count"], width), kind, data, offset, strides)[:, :3]
    return found / (np.iinfo(kind).max if kind.kind == "u" else 1)


def _with_visual(mesh: Mesh, visual: Any) -> Mesh:
    """The mesh with the texture or the vertex colours that trimesh found."""
    material = getattr(visual, "material", None)
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    uv = getattr(visual, "uv", None)
    if picture is not None and uv is not None:
        return replace(mesh, uv=np.asarray(uv, np.float32), texture=np.array(picture.convert("RGB")))
    if visual.kind not in ("vertex", "face"):
        return mesh
    return replace(mesh, colours=(np.asarray(visual.vertex_colors)[:, :3] / 255).astype(np.float32))


def to_linear(colour: np.ndarray) -> np.ndarray:
    """Display-referred (sRGB) values in [0, 1] to linear light (IEC 61966-2-1)."""
    return np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)


def to_display(light: np.ndarray) -> np.ndarray:
    """The inverse of `to_linear`."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def _known(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: mesh files end in {', '.join(SUFFIXES)}; got {path.suffix or 'no suffix'!r}")


def _version() -> str:
    try:
        return metadata.version("dreamkit")
    except metadata.PackageNotFoundError:
        return "from source"
