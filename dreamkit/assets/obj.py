"""OBJ with MTL: the text formats that every program reads.

Materials are read and written with the PBR lines that Blender and others understand: Pr and map_Pr (roughness), Pm and
map_Pm (metallic), norm (normal map).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dreamkit.assets.bake import to_bytes, vertex_normals
from dreamkit.assets.conventions import from_up, picture_from, png_bytes, to_gltf_frame, version
from dreamkit.assets.parts import Note, Part, merge
from dreamkit.disk import plainly, write_whole
from dreamkit.errors import InputError
from dreamkit.meshes import ROUGHNESS, Mesh

Material = dict[str, list[str]]
"""The lines of a material: the words after each key, keys in small letters."""
MAP_LINES = {"texture": "map_kd", "roughness": "map_pr", "metallic": "map_pm", "normal_map": "norm"}
FILES = {"texture": "", "roughness": "_roughness", "metallic": "_metallic", "normal_map": "_normal"}
UNSAID = {"map_d": "opacity", "map_ke": "emission"} | dict.fromkeys(("bump", "map_bump", "disp"), "bump maps")
OPTIONS = {"-s": 3, "-o": 3, "-t": 3, "-mm": 2} | dict.fromkeys(
    ("-blendu", "-blendv", "-bm", "-boost", "-cc", "-clamp", "-imfchan", "-texres", "-type"), 1
)
"""How many words, at most, follow an option of a picture."""


def read_obj(path: Path, up: str, note: Note) -> Mesh:
    """The mesh of an OBJ file: all groups of it; polygons are cut into triangles.

    A picture is taken as it is, even where the material gives a colour (Kd) beside it, as most programs do.
    """
    import trimesh

    text = path.read_text(encoding="utf-8", errors="replace")
    _only_absolute(text)
    materials = _materials(path, text)
    # maintain_order=True would mix up the coordinates of vertices on seams (trimesh 5.2).
    scene = trimesh.load_scene(path, process=False, maintain_order=False)
    parts = []
    for found in scene.geometry.values():
        if not isinstance(found, trimesh.Trimesh) or not len(found.faces):
            continue
        vertices, faces = np.asarray(found.vertices, np.float32), np.asarray(found.faces, np.int32)
        colours, uv = _colours(found), getattr(found.visual, "uv", None)
        mesh = Mesh(vertices, faces, colours, None if uv is None else np.asarray(uv, np.float32))
        name = getattr(getattr(found.visual, "material", None), "name", None)
        parts.append(_dressed(mesh, materials.get(name or "", {}), path, note))
    if not parts:
        raise InputError("it holds no triangles")
    mesh = merge(parts, note)
    return replace(mesh, vertices=from_up(mesh.vertices, up))


def _only_absolute(text: str) -> None:
    """Raise InputError for corners that count back from where they stand, between vertices: trimesh would count them
    from the end of the file."""
    first = re.search(r"^f[^\n]*[ \t/]-\d", text, re.MULTILINE)
    if first and re.search(r"^vt?\s", text[first.start() :], re.MULTILINE):
        raise InputError("its faces count vertices backwards (negative numbers): export it again with absolute ones")


def _colours(found: Any) -> np.ndarray | None:
    """The vertex colours [V, 3] that trimesh found: as written, or as bytes where it has made them so."""
    if "color" in found.vertex_attributes:
        return np.asarray(found.vertex_attributes["color"], np.float32)[:, :3].clip(0, 1)
    if found.visual.kind not in ("vertex", "face"):
        return None
    return (np.asarray(found.visual.vertex_colors)[:, :3] / 255).astype(np.float32)


def _materials(path: Path, text: str) -> dict[str, Material]:
    """The materials of the files that `mtllib` lines name, by name."""
    materials: dict[str, Material] = {}
    libraries = list(dict.fromkeys(re.findall(r"^\s*mtllib\s+(.+?)\s*$", text, re.MULTILINE)))
    if len(libraries) > 1:  # of which trimesh takes the first for all
        raise InputError(f"it names {len(libraries)} files of materials ({', '.join(libraries)}): join them into one")
    for line in libraries:
        file = path.parent / line
        if not file.is_file():
            raise InputError(
                f"it names the materials {line}, but there is no {file}: put it there, or cut the line out"
            )
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        material: Material = {}
        for words in filter(None, (line.split() for line in lines)):
            if words[0].lower() == "newmtl":
                material = materials[" ".join(words[1:])] = {}
            else:
                material[words[0].lower()] = words[1:]
    return materials


def _dressed(mesh: Mesh, material: Material, path: Path, note: Note) -> Part:
    """A mesh with its material; without coordinates, its plain colour at least."""
    left_out = {UNSAID[key] for key in material if key in UNSAID}
    if _number(material, "d") not in (None, 1.0) or _number(material, "tr") not in (None, 0.0):
        left_out.add("opacity")
    if left_out:
        note(f"not read, for a mesh cannot say it: {', '.join(sorted(left_out))}")
    maps = {name: _picture(material[key], path, note) for name, key in MAP_LINES.items() if key in material}
    if maps and mesh.uv is None:
        note("a material has pictures, but its mesh no coordinates to lay them by: left out")
        maps = {}
    for name, key, plain in (("roughness", "pr", ROUGHNESS), ("metallic", "pm", 0.0)):
        value = _number(material, key)
        if name in maps:
            maps[name] = np.ascontiguousarray(maps[name][..., 0])
        elif value is not None and abs(value - plain) > 1e-6:
            maps[name] = to_bytes(np.full((1, 1), value))
    if maps and mesh.uv is None:
        mesh = replace(mesh, uv=np.full((len(mesh.vertices), 2), 0.5, np.float32))
    colour = np.array([float(word) for word in material.get("kd", [])[:3]], np.float32)
    if "texture" not in maps and mesh.colours is None and len(colour) == 3 and (colour != 1).any():
        mesh = replace(mesh, colours=np.tile(colour.clip(0, 1), (len(mesh.vertices), 1)))
    clamp = "clamp" if material.get("map_kd", [])[:2] == ["-clamp", "on"] else "repeat"
    if "texture" in maps and mesh.colours is not None and (mesh.colours == 1).all():
        mesh = replace(mesh, colours=None)
    return Part(replace(mesh, **maps), (clamp, clamp))


def _number(material: Material, key: str) -> float | None:
    words = material.get(key)
    return float(words[0]) if words else None


def _picture(words: Sequence[str], path: Path, note: Note) -> np.ndarray:
    """The picture that a line of a material names, after its options."""
    rest = list(words)
    while len(rest) > 1 and rest[0] in OPTIONS:
        option = rest.pop(0)
        if option in ("-s", "-o", "-t"):
            note(f"the option {option} of a picture is not followed")
        for _ in range(OPTIONS[option]):
            if len(rest) > 1 and (option in ("-type", "-imfchan") or rest[0] in ("on", "off") or _is_number(rest[0])):
                rest.pop(0)
    name = " ".join(rest).replace("\\", "/")
    file = path.parent / name
    if not file.is_file():
        raise InputError(f"it names the picture {name}, but there is no file {file}: put it there")
    return picture_from(file.read_bytes(), name)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def write_obj(mesh: Mesh, path: Path, extras: dict[str, Any]) -> list[Path]:
    """Write an OBJ with its material and pictures. The OBJ comes last, so that once it is there all it names is; one
    that was there goes before new pictures come, which are not its own."""
    name = "_".join(path.stem.split())  # MTL file names cannot hold spaces
    pictures = {kind: path.with_name(f"{name}{FILES[kind]}.png") for kind in mesh.maps}
    if pictures:
        with plainly(path):
            path.unlink(missing_ok=True)
    for kind, file in pictures.items():
        write_whole(file, png_bytes(mesh.maps[kind]))
    written = list(pictures.values())
    if pictures:
        material = path.with_name(f"{name}.mtl")
        lines = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "illum 1", f"Pr {ROUGHNESS}", "Pm 0"]
        keys = {"texture": "map_Kd", "roughness": "map_Pr", "metallic": "map_Pm", "normal_map": "norm"}
        lines += [f"{keys[kind]} {file.name}" for kind, file in pictures.items()]
        write_whole(material, "\n".join([*lines, ""]).encode())
        written = [material, *written]
    write_whole(path, _obj_text(mesh, extras, f"{name}.mtl" if pictures else None).encode())
    return [path, *written]


def _obj_text(mesh: Mesh, extras: dict[str, Any], material: str | None) -> str:
    """Positions (followed by the vertex colours, if they count), coordinates, normals and faces, numbered from 1."""
    vertices, normals = to_gltf_frame(mesh.vertices), to_gltf_frame(vertex_normals(mesh))
    plain = mesh.texture is None and mesh.colours is not None
    rows = np.concatenate([vertices, mesh.colours], axis=1) if plain and mesh.colours is not None else vertices
    lines = [f"# dreamkit {version()}", f"# dreamkit-extras {json.dumps(extras)}"]
    lines += [f"mtllib {material}", "usemtl surface"] if material else []
    lines += [f"v {' '.join(f'{x:.9g}' for x in row)}" for row in rows.tolist()]
    if mesh.uv is not None:
        lines += [f"vt {u:.7g} {v:.7g}" for u, v in mesh.uv.tolist()]
    lines += [f"vn {x:.4f} {y:.4f} {z:.4f}" for x, y, z in normals.tolist()]
    corner = "{0}/{0}/{0}" if mesh.uv is not None else "{0}//{0}"
    lines += ["f " + " ".join(corner.format(i) for i in face) for face in (mesh.faces + 1).tolist()]
    return "\n".join([*lines, ""])
