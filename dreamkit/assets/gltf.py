"""glTF 2.0 containers: the JSON tree, its accessors and its pictures, from GLB or glTF files and into GLB files.

Section numbers are those of the glTF 2.0 specification (Khronos, 2021). The reader is our own, because a mesh is only
as right as its accessors: integers that stand for fractions, sparse accessors and missing pictures must not pass in
silence.
"""

import base64
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from dreamkit.assets.conventions import picture_from
from dreamkit.errors import InputError

TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
UNDERSTOOD = ("KHR_mesh_quantization", "KHR_texture_transform", "KHR_materials_", "EXT_texture_webp")
"""Extensions (or their beginnings) that a file may require: read, or of no weight for what a mesh can say."""
CONVERT = {
    "KHR_draco_mesh_compression": "Its triangles are compressed: open it in Blender, which reads them, and export it "
    "as GLB without compression.",
    "EXT_meshopt_compression": "Its buffers are compressed: export it again without meshopt from the program that "
    "wrote it, or decompress it with a glTF tool that does.",
    "KHR_texture_basisu": "Its textures are KTX2: export it again with PNG or JPEG textures.",
    "KHR_gaussian_splatting": "It holds Gaussian splats, not a mesh: read it with dreamkit.assets.splats.read_splats.",
}


@dataclass
class Gltf:
    """A glTF file that was read: its tree, the folder that its addresses start from, and its binary chunk."""

    tree: dict[str, Any]
    folder: Path
    chunk: bytes | None
    _loaded: dict[int, bytes] = field(default_factory=dict)

    def accessor(self, index: int) -> np.ndarray:
        """[count, width] as stored, or as float where the file says that integers stand for fractions (3.6.2.2)."""
        said = self.tree["accessors"][index]
        kind, width, count = np.dtype(TYPES[said["componentType"]]), WIDTHS[said["type"]], int(said["count"])
        if "bufferView" in said:
            values = self._rows(said["bufferView"], said.get("byteOffset", 0), kind, width, count)
        elif "sparse" in said:
            values = np.zeros((count, width), kind)
        else:
            raise InputError(f"accessor {index} has no data, so an extension that is not understood must hold it")
        if "sparse" in said:
            values = self._sparse(said["sparse"], values)
        if said.get("normalized") and kind.kind in "iu":
            return np.maximum(values / np.iinfo(kind).max, -1.0)
        return values

    def _sparse(self, said: dict[str, Any], values: np.ndarray) -> np.ndarray:
        """With the rows that a sparse accessor replaces (3.6.2.3)."""
        at, new = said["indices"], said["values"]
        kind = np.dtype(TYPES[at["componentType"]])
        rows = self._rows(at["bufferView"], at.get("byteOffset", 0), kind, 1, said["count"])[:, 0]
        values = values.copy()
        shape = (values.dtype, values.shape[1], said["count"])
        values[rows] = self._rows(new["bufferView"], new.get("byteOffset", 0), *shape)
        return values

    def _rows(self, view: int, offset: int, kind: np.dtype, width: int, count: int) -> np.ndarray:
        data, step = self.view(view), self.tree["bufferViews"][view].get("byteStride", width * kind.itemsize)
        if count and offset + step * (count - 1) + width * kind.itemsize > len(data):
            raise InputError(f"buffer view {view} is too short for {count} rows: the file is cut off or damaged")
        return np.ndarray((count, width), kind, data, offset, (step, kind.itemsize))

    def view(self, index: int) -> memoryview:
        """The bytes of a buffer view, not copied: many accessors may share a long one."""
        said = self.tree["bufferViews"][index]
        start = said.get("byteOffset", 0)
        data = memoryview(self._buffer(said["buffer"]))[start : start + said["byteLength"]]
        if len(data) < said["byteLength"]:
            raise InputError(f"buffer {said['buffer']} ends inside buffer view {index}: the file is cut off or damaged")
        return data

    def _buffer(self, index: int) -> bytes:
        if index not in self._loaded:
            said = self.tree["buffers"][index]
            if "uri" in said:
                self._loaded[index] = self._fetch(said["uri"], "buffer")
            elif index == 0 and self.chunk is not None:
                self._loaded[index] = self.chunk
            else:
                raise InputError(f"buffer {index} has neither an address nor a binary chunk")
        return self._loaded[index]

    def _fetch(self, uri: str, what: str) -> bytes:
        """What stands at an address: in the address itself (base64), or in a file beside this one."""
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            return base64.b64decode(body) if head.endswith(";base64") else unquote(body).encode("latin-1")
        if "://" in uri:
            raise InputError(f"its {what} is at {uri}, and nothing is fetched from a network: save it beside the file")
        path = self.folder / unquote(uri)
        if not os.path.isfile(path):
            raise InputError(f"it names the {what} {uri}, but there is no file {path}: put it there")
        return path.read_bytes()

    def picture(self, texture: dict[str, Any]) -> np.ndarray:
        """The picture [H, W, 3] uint8 of a texture, by its entry in a material."""
        said = self.tree["textures"][texture["index"]]
        source = said.get("source", said.get("extensions", {}).get("EXT_texture_webp", {}).get("source"))
        if source is None:
            names = ", ".join(said.get("extensions", {})) or "none"
            raise InputError(
                f"a texture has no picture that can be read (extensions: {names}). {CONVERT['KHR_texture_basisu']}"
            )
        image = self.tree["images"][source]
        data = self.view(image["bufferView"]) if "bufferView" in image else self._fetch(image["uri"], "picture")
        return picture_from(data, image.get("name") or f"{source} of the file")

    def sampler(self, texture: dict[str, Any]) -> dict[str, Any]:
        """The sampler of a texture, empty if it has none."""
        number = self.tree["textures"][texture["index"]].get("sampler")
        return {} if number is None else self.tree["samplers"][number]

    def placed(self) -> list[tuple[dict[str, Any], np.ndarray]]:
        """The nodes of the scene, each with its [4, 4] float64 matrix to the scene's frame (3.5.2)."""
        nodes, scenes = self.tree.get("nodes", []), self.tree.get("scenes", [])
        if scenes:
            roots = scenes[self.tree.get("scene", 0)].get("nodes", [])
        else:
            below = {child for node in nodes for child in node.get("children", [])}
            roots = [i for i in range(len(nodes)) if i not in below]
        found, queue = [], [(root, np.eye(4)) for root in reversed(roots)]
        while queue:
            number, above = queue.pop()
            node, matrix = nodes[number], above @ local_matrix(nodes[number])
            found.append((node, matrix))
            if len(found) > len(nodes):
                raise InputError("a node stands below itself: the file is damaged")
            queue += [(child, matrix) for child in reversed(node.get("children", []))]
        return found


def local_matrix(node: dict[str, Any]) -> np.ndarray:
    """[4, 4] from a node's frame to its parent's: its matrix, or translation * rotation * scale."""
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", (0, 0, 0, 1)), float)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_matrices(np.array([[w, x, y, z]]))[0] * np.array(node.get("scale", (1, 1, 1)), float)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """[N, 3, 3] from quaternions [N, 4] (w, x, y, z) of any length but 0."""
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def open_gltf(path: Path, understood: Sequence[str] = UNDERSTOOD) -> Gltf:
    """A .glb or .gltf file, its tree read and its required extensions checked.

    Raises InputError if it is damaged, of another version, or requires an extension that is not `understood`.
    """
    data = path.read_bytes()
    gltf = Gltf(*_tree_and_chunk(data, path))
    version = str(gltf.tree.get("asset", {}).get("version", "2.0"))
    if not version.startswith("2."):
        raise InputError(f"it is glTF {version}; 2.0 is read")
    for name in gltf.tree.get("extensionsRequired", []):
        if not name.startswith(tuple(understood)):
            ways = CONVERT.get(name, "Export it again without it.")
            raise InputError(f"it requires the extension {name}, which is not read. {ways}")
    return gltf


def _tree_and_chunk(data: bytes, path: Path) -> tuple[dict[str, Any], Path, bytes | None]:
    if data[:4] != b"glTF":
        if path.suffix.lower() == ".glb":
            raise InputError(f"it does not begin as a GLB does, with glTF; its {len(data)} bytes are something else")
        return json.loads(data), path.parent, None
    tree, start = glb_tree(data)
    (total,) = struct.unpack_from("<I", data, 8)
    if total > len(data):
        raise InputError(f"it is cut off: {len(data)} bytes of {total}")
    if start + 8 > total:
        return tree, path.parent, None
    (length,) = struct.unpack_from("<I", data, start)
    return tree, path.parent, data[start + 8 : start + 8 + length]


def glb_tree(data: bytes) -> tuple[dict[str, Any], int]:
    """The JSON of a GLB file, and where its next chunk begins (4.4)."""
    version, _, length, kind = struct.unpack_from("<IIII", data, 4)
    if version != 2 or kind != 0x4E4F534A:
        raise InputError(f"it is a GLB of version {version}, or damaged; version 2 is read")
    return json.loads(data[20 : 20 + length]), 20 + length


class GlbWriter:
    """Collects accessors and pictures, then packs them with a tree into a GLB file."""

    def __init__(self) -> None:
        self.blobs: list[bytes] = []
        self.views: list[dict[str, int]] = []
        self.accessors: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []

    def _view(self, blob: bytes, **target: int) -> int:
        start = self.views[-1]["byteOffset"] + len(self.blobs[-1]) if self.views else 0
        self.views.append({"buffer": 0, "byteOffset": start, "byteLength": len(blob), **target})
        self.blobs.append(blob + b"\0" * (-len(blob) % 4))
        return len(self.views) - 1

    def attribute(self, values: np.ndarray, bounds: bool = False) -> int:
        """Vertex data [V, width] as float32; the number of its accessor. Positions must tell their bounds (3.7.2.1)."""
        rows = np.ascontiguousarray(values, dtype="<f4")
        kind = "SCALAR" if rows.shape[1] == 1 else f"VEC{rows.shape[1]}"
        said: dict[str, Any] = {"componentType": 5126, "count": len(rows), "type": kind}
        if bounds:
            said |= {"min": rows.min(0).tolist(), "max": rows.max(0).tolist()}
        self.accessors.append({"bufferView": self._view(rows.tobytes(), target=34962)} | said)
        return len(self.accessors) - 1

    def indices(self, faces: np.ndarray) -> int:
        """Faces [F, 3]; the number of their accessor."""
        view = self._view(faces.astype("<u4").tobytes(), target=34963)
        self.accessors.append({"bufferView": view, "componentType": 5125, "count": faces.size, "type": "SCALAR"})
        return len(self.accessors) - 1

    def texture(self, png: bytes) -> dict[str, int]:
        """A picture; its entry for a material."""
        self.images.append({"bufferView": self._view(png), "mimeType": "image/png"})
        return {"index": len(self.images) - 1}

    def pack(self, tree: dict[str, Any]) -> bytes:
        """Header, JSON chunk and binary chunk (4.4). All textures share one bilinear, clamped sampler."""
        body = b"".join(self.blobs)
        tree = tree | {"accessors": self.accessors, "bufferViews": self.views, "buffers": [{"byteLength": len(body)}]}
        if self.images:
            tree["images"] = self.images
            tree["textures"] = [{"source": i, "sampler": 0} for i in range(len(self.images))]
            tree["samplers"] = [{"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}]
        text = json.dumps(tree, allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + len(body)
        if total >= 1 << 32:
            raise InputError(f"a GLB file holds less than 4 GiB, and this would be {total / 2**30:.1f}: write a PLY")
        head = struct.pack("<4sIIII", b"glTF", 2, total, len(text), 0x4E4F534A)
        return head + text + struct.pack("<II", len(body), 0x004E4942) + body
