"""Meshes from and into glTF 2.0: the whole scene graph, and the metallic-roughness material (section 3.9)."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dreamkit.assets.bake import to_bytes, vertex_normals
from dreamkit.assets.conventions import (
    from_gltf_frame,
    of_one_size,
    png_bytes,
    to_display,
    to_gltf_frame,
    to_linear,
    version,
)
from dreamkit.assets.gltf import CONVERT, GlbWriter, Gltf, open_gltf
from dreamkit.assets.parts import PLAIN, Note, Part, coloured_by_texture, inside, merge, stack
from dreamkit.errors import InputError
from dreamkit.meshes import ROUGHNESS, Mesh

WRAPS = {10497: "repeat", 33648: "mirror", 33071: "clamp"}
POINTS, TRIANGLES, STRIP, FAN = 0, 4, 5, 6
OLDER = "KHR_materials_pbrSpecularGlossiness"


def read_gltf(path: Path, note: Note) -> Mesh:
    """The mesh of a .glb or .gltf file in the world frame: all triangles of its scene, where its nodes place them.

    Colours are folded into what a mesh can say: base colour = texture * factor * vertex colour, multiplied as light;
    roughness and metallic are the green and blue of their picture times their factors. Opacity, emission, occlusion,
    skins, morphs and animations are left out, and told.
    """
    gltf = open_gltf(path)
    groups: dict[tuple[int | None, bool, bool], list[Mesh]] = defaultdict(list)
    left_out = set()
    for node, matrix in gltf.placed():
        if "mesh" not in node:
            continue
        for primitive in gltf.tree["meshes"][node["mesh"]]["primitives"]:
            if "KHR_gaussian_splatting" in primitive.get("extensions", {}):
                raise InputError(CONVERT["KHR_gaussian_splatting"])
            if primitive.get("mode", TRIANGLES) < TRIANGLES:
                left_out.add("points or lines")
                continue
            left_out |= {"morphs"} if "targets" in primitive else set()
            number = primitive.get("material")
            found = placed(_triangles(gltf, primitive), matrix)
            groups[number, found.colours is None, found.uv is None].append(found)
    left_out |= {name for name in ("skins", "animations") if gltf.tree.get(name)}
    parts = [_dressed(gltf, number, stack(meshes), left_out, note) for (number, *_), meshes in groups.items()]
    if left_out:
        note(f"not read, for a mesh cannot say it: {', '.join(sorted(left_out))}")
    if not parts:
        raise InputError("it holds no triangles")
    mesh = merge(parts, note)
    return replace(mesh, vertices=from_gltf_frame(mesh.vertices))


def placed(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """The mesh moved by a [4, 4] matrix; one that mirrors turns the winding too (3.5.3)."""
    vertices = (mesh.vertices.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)
    faces = mesh.faces[:, ::-1] if np.linalg.det(matrix[:3, :3]) < 0 else mesh.faces
    return replace(mesh, vertices=vertices, faces=np.ascontiguousarray(faces))


def _triangles(gltf: Gltf, primitive: dict[str, Any]) -> Mesh:
    """Positions, faces, vertex colours (still light) and the coordinates that its material asks for; of the rows, those
    that its faces use, as many primitives may share an accessor."""
    names = primitive["attributes"]
    rows = gltf.accessor(names["POSITION"])
    used, order = np.arange(len(rows)), np.arange(len(rows))
    if "indices" in primitive:
        used, order = np.unique(gltf.accessor(primitive["indices"])[:, 0].astype(np.int64), return_inverse=True)
    vertices = rows[used].astype(np.float32)
    colours = uv = None
    if "COLOR_0" in names:
        colours = gltf.accessor(names["COLOR_0"])[used, :3].astype(np.float32).clip(0, 1)
    coordinates = f"TEXCOORD_{_coordinates(gltf, primitive.get('material'))}"
    if coordinates in names:
        uv = gltf.accessor(names[coordinates])[used].astype(np.float32)
    return Mesh(vertices, _faces(order, primitive.get("mode", TRIANGLES)), colours, uv)


def _faces(order: np.ndarray, mode: int) -> np.ndarray:
    """[F, 3] from a list of vertices: triangles, a strip or a fan (3.7.2.1)."""
    if mode == TRIANGLES:
        return order[: len(order) // 3 * 3].reshape(-1, 3).astype(np.int32)
    i = np.arange(max(len(order) - 2, 0))
    if mode == FAN:
        return np.stack([order[i + 1], order[i + 2], np.full(len(i), order[0] if len(order) else 0)], 1).astype(
            np.int32
        )
    odd = i % 2  # every second triangle of a strip winds the other way
    return np.stack([order[i], order[i + 1 + odd], order[i + 2 - odd]], 1).astype(np.int32)


def _pictures(gltf: Gltf, number: int | None) -> dict[str, dict[str, Any]]:
    """The pictures of a material that a mesh can say, by glTF's names, the base colour first."""
    material = {} if number is None else gltf.tree["materials"][number]
    named = _metallic(material) | material
    wanted = ("baseColorTexture", "metallicRoughnessTexture", "normalTexture")
    return {name: named[name] for name in wanted if name in named}


def _metallic(material: dict[str, Any]) -> dict[str, Any]:
    """What a material says of its surface, as `pbrMetallicRoughness`. One that says it in the older words of
    KHR_materials_pbrSpecularGlossiness alone is taken for no metal, of its diffuse colour."""
    older = material.get("extensions", {}).get(OLDER)
    if older is None or "pbrMetallicRoughness" in material:
        return material.get("pbrMetallicRoughness", {})
    names = {"diffuseTexture": "baseColorTexture", "diffuseFactor": "baseColorFactor"}
    said = {new: older[name] for name, new in names.items() if name in older}
    return said | {"metallicFactor": 0.0, "roughnessFactor": 1 - older.get("glossinessFactor", 1.0)}


def _coordinates(gltf: Gltf, number: int | None) -> int:
    """Which set of coordinates the first picture of a material is laid by."""
    return next((_laid(picture)[0] for picture in _pictures(gltf, number).values()), 0)


def _laid(picture: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Which set of coordinates a picture is laid by, and the transform of KHR_texture_transform."""
    moved = picture.get("extensions", {}).get("KHR_texture_transform", {})
    said = {name: moved[name] for name in ("offset", "rotation", "scale") if name in moved}
    return moved.get("texCoord", picture.get("texCoord", 0)), said


def _dressed(gltf: Gltf, number: int | None, mesh: Mesh, left_out: set[str], note: Note) -> Part:
    """A mesh as read (v downward, colours light) with its material."""
    material = {} if number is None else gltf.tree["materials"][number]
    left_out |= _unsaid(material)
    pictures = _pictures(gltf, number)
    wrap = ("repeat", "repeat")
    if mesh.uv is None and pictures:
        note(f"material {number} has pictures, but its mesh no coordinates to lay them by: left out")
        pictures = {}
    if pictures and mesh.uv is not None:
        first = next(iter(pictures.values()))
        for name in [n for n, p in pictures.items() if _laid(p) != _laid(first)]:
            note(f"the {name} of material {number} is laid by coordinates of its own: left out")
            del pictures[name]
        mesh = replace(mesh, uv=_transformed(mesh.uv, _laid(first)[1]))
        sampler = gltf.sampler(first)
        wrap = (WRAPS[sampler.get("wrapS", 10497)], WRAPS[sampler.get("wrapT", 10497)])
    if mesh.uv is not None:
        mesh = replace(mesh, uv=np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=-1))
    surface = _metallic(material)
    mesh = _coloured(gltf, mesh, pictures.get("baseColorTexture"), surface.get("baseColorFactor", (1, 1, 1)))
    maps = _surface_maps(gltf, pictures.get("metallicRoughnessTexture"), surface, number is not None)
    if maps and mesh.uv is None:
        mesh = replace(mesh, uv=np.full((len(mesh.vertices), 2), 0.5, np.float32))
    if "normalTexture" in pictures:
        maps["normal_map"] = _scaled_normals(gltf.picture(pictures["normalTexture"]), pictures["normalTexture"])
    part = Part(replace(mesh, **maps), wrap)
    if mesh.texture is not None and mesh.colours is not None:
        part = Part(coloured_by_texture(inside(part, note), note))
    return part


def _unsaid(material: dict[str, Any]) -> set[str]:
    """What a material says that a mesh cannot."""
    found = set()
    if material.get("alphaMode", "OPAQUE") != "OPAQUE":
        found.add("opacity")
    if "emissiveTexture" in material or any(material.get("emissiveFactor", (0,))):
        found.add("emission")
    if "occlusionTexture" in material:
        found.add("occlusion")
    return found | {name for name in material.get("extensions", {}) if name not in ("KHR_materials_unlit", OLDER)}


def _transformed(uv: np.ndarray, said: dict[str, Any]) -> np.ndarray:
    """Coordinates by KHR_texture_transform: scaled, turned counter-clockwise, moved; in glTF's own, v downward."""
    if not said:
        return uv
    angle = said.get("rotation", 0.0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return ((uv * said.get("scale", (1, 1))) @ turn.T + said.get("offset", (0, 0))).astype(np.float32)


def _coloured(gltf: Gltf, mesh: Mesh, texture: dict[str, Any] | None, factor: Any) -> Mesh:
    """Base colour: texture and vertex colours, display-referred, the factor and a single vertex colour folded in."""
    factor, colours = np.array(factor[:3], float), mesh.colours
    if colours is not None and len(colours) and (colours == colours[0]).all():
        factor, colours = factor * colours[0], None
    if texture is None:
        if colours is None and (factor == 1).all():
            return replace(mesh, colours=None)
        light = np.ones_like(mesh.vertices) if colours is None else colours
        return replace(mesh, colours=to_display((light * factor).clip(0, 1)).astype(np.float32))
    picture = gltf.picture(texture)
    if (factor != 1).any():
        picture = to_bytes(to_display(to_linear(picture / 255) * factor))
    display = None if colours is None else to_display(colours).astype(np.float32)
    return replace(mesh, texture=picture, colours=display)


def _surface_maps(
    gltf: Gltf, texture: dict[str, Any] | None, surface: dict[str, Any], has_material: bool
) -> dict[str, np.ndarray]:
    """Roughness and metallic, picture times factor, each left out where it says what a mesh says without it.

    The factors are 1 where a material does not say them (3.9.2); a mesh without a material says nothing.
    """
    factors = {name: surface.get(f"{name}Factor", 1.0) for name in ("roughness", "metallic")}
    if not has_material:
        return {}
    packed = np.full((1, 1, 3), 255, np.uint8) if texture is None else gltf.picture(texture)
    maps = {}
    for name, channel in (("roughness", 1), ("metallic", 2)):
        values = packed[..., channel]
        if factors[name] != 1:
            values = to_bytes(values / 255 * factors[name])
        if (values != PLAIN[name]).any():
            maps[name] = np.ascontiguousarray(values)
    return maps


def _scaled_normals(picture: np.ndarray, said: dict[str, Any]) -> np.ndarray:
    """The normal map with its strength folded in: x and y times `scale`, then unit length again (3.9.3)."""
    if said.get("scale", 1.0) == 1.0:
        return picture
    normal = (picture / 255 * 2 - 1) * np.array([said["scale"], said["scale"], 1.0])
    return to_bytes((normal / np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-9) + 1) / 2)


def glb_bytes(mesh: Mesh, extras: dict[str, Any]) -> bytes:
    """A binary glTF 2.0 file of one mesh with one material: its pictures, or its vertex colours.

    Roughness is packed into the green and metallic into the blue of one picture, as glTF asks.
    """
    writer = GlbWriter()
    attributes = {
        "POSITION": writer.attribute(to_gltf_frame(mesh.vertices), bounds=True),
        "NORMAL": writer.attribute(to_gltf_frame(vertex_normals(mesh))),
    }
    if mesh.uv is not None:
        attributes["TEXCOORD_0"] = writer.attribute(np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=-1))
    if mesh.texture is None and mesh.colours is not None:
        attributes["COLOR_0"] = writer.attribute(to_linear(mesh.colours))
    primitive = {"attributes": attributes, "indices": writer.indices(mesh.faces), "material": 0}
    return writer.pack(
        {
            "asset": {"version": "2.0", "generator": f"dreamkit {version()}", "extras": extras},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, "name": "dreamkit"}],
            "meshes": [{"primitives": [primitive]}],
            "materials": [_material(mesh, writer)],
        }
    )


def _material(mesh: Mesh, writer: GlbWriter) -> dict[str, Any]:
    """Rough and not metallic, but for what the maps say."""
    surface: dict[str, Any] = {
        "metallicFactor": 0.0 if mesh.metallic is None else 1.0,
        "roughnessFactor": ROUGHNESS if mesh.roughness is None else 1.0,
    }
    material: dict[str, Any] = {"name": "surface", "pbrMetallicRoughness": surface, "doubleSided": True}
    if mesh.texture is not None:
        surface["baseColorTexture"] = writer.texture(png_bytes(mesh.texture))
    if mesh.roughness is not None or mesh.metallic is not None:
        full = np.full((1, 1), 255, np.uint8)  # what a missing one is, times its factor
        maps = [full if m is None else m for m in (mesh.roughness, mesh.metallic)]
        packed = np.stack(of_one_size(full, *maps), axis=-1)  # red is occlusion, by custom: none
        surface["metallicRoughnessTexture"] = writer.texture(png_bytes(packed))
    if mesh.normal_map is not None:
        material["normalTexture"] = writer.texture(png_bytes(mesh.normal_map))
    return material
