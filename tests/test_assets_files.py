"""Files: what is written comes back, and other programs read the same."""

import functools
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from dreamkit.assets.bake import bake
from dreamkit.assets.clean import drop_degenerate
from dreamkit.assets.conventions import from_gltf_frame, to_display, to_gltf_frame, to_linear
from dreamkit.assets.files import read, read_extras, write
from dreamkit.assets.gltf import open_gltf
from dreamkit.assets.unwrap import grid_atlas, unwrap
from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh, coloured
from dreamkit.metrics.compare import psnr
from dreamkit.render.mesh import render_mesh

EXTRAS = {"prompt": 'a "red" mug, 50 % full\nof tëa', "seed": 3, "prior": {"name": "toybox", "hash": "ab12"}}


def plain() -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=1)
    return Mesh((sphere.vertices * [0.3, 0.5, 0.8] + [0.1, 0, 0]).astype(np.float32), sphere.faces.astype(np.int32))


def painted() -> Mesh:
    mesh = plain()
    return replace(mesh, colours=np.random.default_rng(0).random((len(mesh.vertices), 3)).astype(np.float32))


def textured() -> Mesh:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    return replace(grid_atlas(plain(), 64), texture=picture)


def surfaced() -> Mesh:
    """Textured, with every map, the roughness in half the size."""
    numbers = np.random.default_rng(2)
    sizes = {"roughness": (32, 32), "metallic": (64, 64), "normal_map": (64, 64, 3)}
    maps = {name: numbers.integers(0, 256, size).astype(np.uint8) for name, size in sizes.items()}
    return replace(textured(), **maps)


def corners(mesh: Mesh) -> np.ndarray:
    return mesh.vertices[mesh.faces]


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_a_textured_mesh_comes_back(suffix: str, tmp_path: Path) -> None:
    mesh = textured()
    write(mesh, tmp_path / f"a.{suffix}", EXTRAS)
    back = read(tmp_path / f"a.{suffix}")
    assert mesh.uv is not None
    assert back.uv is not None
    np.testing.assert_allclose(corners(back), corners(mesh), atol=1e-6)  # OBJ holds 7 digits
    np.testing.assert_allclose(back.uv[back.faces], mesh.uv[mesh.faces], atol=1e-6)
    np.testing.assert_array_equal(back.texture, mesh.texture)


@pytest.mark.parametrize(("suffix", "step"), [("glb", 1e-5), ("obj", 0.51 / 255), ("ply", 0.51 / 255)])
def test_vertex_colours_come_back(suffix: str, step: float, tmp_path: Path) -> None:
    mesh = painted()
    write(mesh, tmp_path / f"a.{suffix}")
    back = read(tmp_path / f"a.{suffix}")
    assert back.colours is not None
    assert mesh.colours is not None
    assert back.texture is None
    np.testing.assert_allclose(corners(back), corners(mesh), atol=1e-6)
    # GLB holds floats; trimesh reads the others' colours as bytes.
    np.testing.assert_allclose(back.colours[back.faces], mesh.colours[mesh.faces], atol=step + 1e-6)


@pytest.mark.parametrize("suffix", ["glb", "obj"])
@pytest.mark.parametrize(
    "names", [("roughness",), ("metallic",), ("normal_map",), ("roughness", "metallic", "normal_map")]
)
def test_maps_come_back_exactly(suffix: str, names: tuple[str, ...], tmp_path: Path) -> None:
    whole = surfaced()
    mesh = replace(textured(), **{name: getattr(whole, name) for name in names})
    write(mesh, tmp_path / f"a.{suffix}")
    back = read(tmp_path / f"a.{suffix}")
    assert set(back.maps) == {"texture", *names}
    np.testing.assert_array_equal(back.texture, mesh.texture)
    for name in names:
        found, wanted = back.maps[name], mesh.maps[name]
        if found.shape != wanted.shape:  # glTF packs roughness and metallic into one picture: repeated to its size
            found = found[::2, ::2]
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("suffix", ["glb", "obj"])
def test_maps_need_no_texture(suffix: str, tmp_path: Path) -> None:
    mesh = replace(surfaced(), texture=None, colours=np.random.default_rng(3).random((240, 3)).astype(np.float32))
    write(mesh, tmp_path / f"a.{suffix}")
    back = read(tmp_path / f"a.{suffix}")
    assert set(back.maps) == {"roughness", "metallic", "normal_map"}
    np.testing.assert_array_equal(back.metallic, mesh.metallic)
    assert back.colours is not None
    assert mesh.colours is not None
    np.testing.assert_allclose(back.colours[back.faces], mesh.colours[mesh.faces], atol=1e-5)


def test_the_glb_packs_roughness_into_green_and_metallic_into_blue(tmp_path: Path) -> None:
    mesh = surfaced()
    write(mesh, tmp_path / "a.glb")
    material = trimesh.load_scene(tmp_path / "a.glb", process=False).to_geometry().visual.material
    packed = np.asarray(material.metallicRoughnessTexture)
    np.testing.assert_array_equal(packed[::2, ::2, 1], mesh.roughness)
    np.testing.assert_array_equal(packed[..., 2], mesh.metallic)
    assert (packed[..., 0] == 255).all()
    assert (material.metallicFactor, material.roughnessFactor) == (1, 1)
    np.testing.assert_array_equal(np.asarray(material.normalTexture), mesh.normal_map)
    np.testing.assert_array_equal(np.asarray(material.baseColorTexture), mesh.texture)


def test_the_mtl_has_the_lines_of_pbr(tmp_path: Path) -> None:
    files = write(surfaced(), tmp_path / "a.obj")
    assert sorted(f.name for f in files) == sorted(f.name for f in tmp_path.iterdir())
    lines = (tmp_path / "a.mtl").read_text().splitlines()
    assert lines[-4:] == ["map_Kd a.png", "map_Pr a_roughness.png", "map_Pm a_metallic.png", "norm a_normal.png"]


@functools.cache
def smooth() -> Mesh:
    """A textured sphere with seams, in colours that change slowly."""
    sphere = trimesh.creation.icosphere(subdivisions=3)
    mesh = unwrap(Mesh(sphere.vertices.astype(np.float32) * 0.8, sphere.faces.astype(np.int32)), 256, 60.0).mesh
    return bake(mesh, lambda p: 0.5 + 0.4 * torch.sin(2 * p), 256)


# What each format does to a colour. GLB: nothing. OBJ: coordinates of 7 digits move by 1e-7, 3e-5 texels, silhouettes
# as little. PLY: an edge of 0.13 units holds a straight line for sin(2 p), off by (2 * 0.13)^2 / 8 * 0.4 = 0.0034 or
# 49 dB where it is worst, and colours are rounded to bytes, 0.5 / 255 or 54 dB.
@pytest.mark.parametrize(("suffix", "bound"), [("glb", 100), ("obj", 60), ("ply", 45)])
def test_the_written_file_looks_like_the_mesh(suffix: str, bound: float, tmp_path: Path) -> None:
    mesh, views = smooth(), orbit([20.0, 200.0], [15.0, -30.0], size=64)
    write(mesh, tmp_path / f"a.{suffix}")
    assert psnr(render_mesh(mesh, views).rgb, render_mesh(read(tmp_path / f"a.{suffix}"), views).rgb) > bound


def test_an_stl_holds_the_shape_and_no_more(tmp_path: Path) -> None:
    mesh = surfaced()
    write(mesh, tmp_path / "a.stl")
    data = (tmp_path / "a.stl").read_bytes()
    assert len(data) == 84 + 50 * len(mesh.faces)
    assert not data.startswith(b"solid")
    back = read(tmp_path / "a.stl")
    np.testing.assert_array_equal(corners(back), corners(mesh))  # float32 both, and in one frame: +z up
    assert back.colours is None
    assert len(back.vertices) == len(plain().vertices)  # welded
    other = trimesh.load_mesh(tmp_path / "a.stl")
    assert other.is_watertight
    assert other.volume > 0


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_a_white_mesh_comes_back(suffix: str, tmp_path: Path) -> None:
    write(plain(), tmp_path / f"a.{suffix}")
    np.testing.assert_allclose(corners(read(tmp_path / f"a.{suffix}")), corners(plain()), atol=1e-6)


def test_a_ply_of_a_textured_mesh_is_whole_and_has_its_colours(tmp_path: Path) -> None:
    # Red in the upper half of the texture, blue in the lower; each vertex lies in one half in each of its faces.
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4, :, 0], picture[4:, :, 2] = 51, 102
    mesh = plain()
    high = mesh.vertices[:, 2] > 0
    uv = np.stack([np.full(len(high), 0.5), np.where(high, 0.75, 0.25)], axis=-1).astype(np.float32)
    split = mesh.faces.reshape(-1)  # every face with vertices of its own
    doubled = Mesh(mesh.vertices[split], np.arange(len(split), dtype=np.int32).reshape(-1, 3), uv=uv[split])
    write(replace(doubled, texture=picture), tmp_path / "a.ply")
    back = read(tmp_path / "a.ply")
    assert len(back.vertices) == len(mesh.vertices)
    assert back.colours is not None
    np.testing.assert_allclose(back.colours[:, 0] * 255, np.where(back.vertices[:, 2] > 0, 51, 0), atol=1e-4)
    np.testing.assert_allclose(back.colours[:, 2] * 255, np.where(back.vertices[:, 2] > 0, 0, 102), atol=1e-4)


def test_the_glb_says_what_gltf_wants(tmp_path: Path) -> None:
    mesh = textured()
    write(mesh, tmp_path / "a.glb", EXTRAS)
    data = (tmp_path / "a.glb").read_bytes()
    magic, version, total, length, kind = struct.unpack_from("<4sIIII", data)
    assert (magic, version, total, kind) == (b"glTF", 2, len(data), 0x4E4F534A)
    tree = json.loads(data[20 : 20 + length])
    body_length, body_kind = struct.unpack_from("<II", data, 20 + length)
    assert (body_kind, 28 + length + body_length) == (0x004E4942, len(data))
    assert length % 4 == body_length % 4 == 0
    assert tree["asset"]["generator"].startswith("dreamkit ")
    assert tree["asset"]["extras"] == EXTRAS
    primitive = tree["meshes"][0]["primitives"][0]
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    surface = tree["materials"][0]["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0, 0.9)

    def array(accessor: dict, type_: str, width: int) -> np.ndarray:
        view = tree["bufferViews"][accessor["bufferView"]]
        assert view["byteOffset"] % 4 == 0
        start = 28 + length + view["byteOffset"]
        return np.frombuffer(data, type_, accessor["count"] * width, start).reshape(-1, width)

    position = array(tree["accessors"][primitive["attributes"]["POSITION"]], "<f4", 3)
    normal = array(tree["accessors"][primitive["attributes"]["NORMAL"]], "<f4", 3)
    uv = array(tree["accessors"][primitive["attributes"]["TEXCOORD_0"]], "<f4", 2)
    indices = array(tree["accessors"][primitive["indices"]], "<u4", 1)
    np.testing.assert_array_equal(position.min(0), np.float32(tree["accessors"][0]["min"]))
    np.testing.assert_array_equal(position.max(0), np.float32(tree["accessors"][0]["max"]))
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, atol=1e-5)
    assert ((normal * (position - np.float32([0, 0, 0.1]))).sum(1) > 0.1).all()  # outward from its middle
    assert mesh.uv is not None
    np.testing.assert_allclose(uv[:, 1], 1 - mesh.uv[:, 1], atol=1e-6)  # glTF counts v from the top
    np.testing.assert_array_equal(indices.reshape(-1, 3), mesh.faces)
    # The longest side, our z, is glTF's y; our front, +x, where the mesh was shifted to, is glTF's +z.
    extent = np.ptp(position, axis=0)
    assert extent.argmax() == 1
    assert position[:, 2].mean() == pytest.approx(0.1, abs=0.01)
    picture = tree["bufferViews"][tree["images"][0]["bufferView"]]
    assert data[28 + length + picture["byteOffset"] :][:8] == b"\x89PNG\r\n\x1a\n"


def test_trimesh_reads_the_glb_alike(tmp_path: Path) -> None:
    mesh = textured()
    write(mesh, tmp_path / "a.glb")
    other = trimesh.load_mesh(tmp_path / "a.glb", process=False)
    turned = to_gltf_frame(mesh.vertices)
    np.testing.assert_allclose(other.bounds, [turned.min(0), turned.max(0)], atol=1e-6)
    assert other.visual.material.baseColorTexture.size == (64, 64)
    assert other.volume > 0  # the frames differ by a rotation, not by a reflection


def test_vertex_colours_of_gltf_are_linear(tmp_path: Path) -> None:
    mesh = replace(plain(), colours=np.full((len(plain().vertices), 3), 0.5, np.float32))
    write(mesh, tmp_path / "a.glb")
    # sRGB 0.5 is 0.21404 of the light.
    gltf = open_gltf(tmp_path / "a.glb")
    stored = gltf.accessor(gltf.tree["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"])
    np.testing.assert_allclose(stored, 0.21404, atol=1e-4)


def test_another_programs_vertex_colours_are_read(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    box.visual.vertex_colors = np.tile(np.uint8([255, 0, 188, 255]), (8, 1))  # trimesh writes bytes, RGBA
    box.export(tmp_path / "box.glb")
    back = read(tmp_path / "box.glb")
    assert back.colours is not None
    # 188 / 255 of the light is 0.874 on a display.
    np.testing.assert_allclose(back.colours, np.tile([1, 0, 0.874], (8, 1)), atol=1e-3)


def test_frames_and_colours_convert_there_and_back() -> None:
    values = np.random.default_rng(0).random((100, 3))
    np.testing.assert_array_equal(from_gltf_frame(to_gltf_frame(values)), values)
    np.testing.assert_allclose(to_display(to_linear(values)), values, atol=1e-7)  # the standard's constants are rounded
    front, up = np.array([[1, 0, 0]]), np.array([[0, 0, 1]])
    assert to_gltf_frame(front).tolist() == [[0, 0, 1]]
    assert to_gltf_frame(up).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_extras_come_back(suffix: str, tmp_path: Path) -> None:
    write(painted(), tmp_path / f"a.{suffix}", EXTRAS)
    assert read_extras(tmp_path / f"a.{suffix}") == EXTRAS


def test_files_of_others_have_no_extras(tmp_path: Path) -> None:
    trimesh.creation.box().export(tmp_path / "box.obj")
    assert read_extras(tmp_path / "box.obj") == {}


def test_an_obj_names_its_files_and_spaces_do_not_break_it(tmp_path: Path) -> None:
    files = write(textured(), tmp_path / "a red mug.obj")
    assert sorted(f.name for f in files) == ["a red mug.obj", "a_red_mug.mtl", "a_red_mug.png"]
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f.name for f in files)  # nothing temporary is left
    assert read(tmp_path / "a red mug.obj").texture is not None


def test_other_suffixes_missing_broken_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"written end in \.glb, \.obj, \.ply, \.stl, \.usdz; got '\.fbx'"):
        write(plain(), tmp_path / "a.fbx")
    with pytest.raises(InputError, match=r"written end in .*; got '\.gltf'"):
        write(plain(), tmp_path / "a.gltf")
    with pytest.raises(InputError, match=r"read end in \.glb, \.gltf, .*; got 'no suffix'"):
        read(tmp_path / "a")
    with pytest.raises(InputError, match="there is no file"):
        read(tmp_path / "a.glb")
    (tmp_path / "a.glb").write_bytes(b"glTF\x02\0\0\0garbage")
    with pytest.raises(InputError, match="cannot be read as GLB"):
        read(tmp_path / "a.glb")
    with pytest.raises(InputError, match="has no faces"):
        write(Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)), tmp_path / "empty.glb")
    assert not (tmp_path / "empty.glb").exists()
    nan = plain().vertices.copy()
    nan[3, 1] = np.nan
    with pytest.raises(InputError, match="not finite"):
        write(replace(plain(), vertices=nan), tmp_path / "deep" / "nan.glb")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.glb"]


def test_which_way_is_up_can_be_said_where_files_do_not(tmp_path: Path) -> None:
    for suffix, custom in (("obj", "y"), ("ply", "z"), ("stl", "z")):
        write(plain(), tmp_path / f"a.{suffix}")
        by = {up: corners(read(tmp_path / f"a.{suffix}", up=up)) for up in ("y", "z")}
        np.testing.assert_allclose(by[custom], corners(plain()), atol=1e-6)
        np.testing.assert_array_equal(by["y"].reshape(-1, 3), from_gltf_frame(by["z"].reshape(-1, 3)))
        with pytest.raises(InputError, match="up can be y or z"):
            read(tmp_path / f"a.{suffix}", up="x")
    write(plain(), tmp_path / "a.glb")
    with pytest.raises(InputError, match=r"only for \.obj, \.ply, \.stl; got 'y'"):
        read(tmp_path / "a.glb", up="y")


def told(mesh: Mesh, path: Path) -> list[str]:
    said: list[str] = []
    write(mesh, path)
    back = read(path, note=said.append)
    np.testing.assert_allclose(corners(back), corners(mesh), rtol=1e-6)  # nothing is changed
    return said


def test_a_ply_without_a_coordinate_says_which(tmp_path: Path) -> None:
    lines = ["ply", "format ascii 1.0", "element vertex 1", "property float x", "property float y", "end_header", "0 0"]
    (tmp_path / "a.ply").write_text("\n".join(lines))
    with pytest.raises(InputError, match="cannot be read as PLY: its vertices lack z"):
        read(tmp_path / "a.ply")


def test_what_is_odd_is_told_and_left_as_it_is(tmp_path: Path) -> None:
    mesh, path = plain(), tmp_path / "a.glb"
    assert told(mesh, path) == []
    assert told(textured(), path) == []  # seams are no holes
    assert told(replace(mesh, faces=mesh.faces[1:]), path) == ["not closed: 3 edges have one face"]
    (said,) = told(replace(mesh, faces=np.ascontiguousarray(mesh.faces[:, ::-1])), path)
    assert said.startswith("inside out")
    fin = np.int32([[mesh.faces[0, 0], mesh.faces[0, 1], len(mesh.vertices)]])
    finned = Mesh(np.concatenate([mesh.vertices, [[0, 0, 2]]]).astype(np.float32), np.concatenate([mesh.faces, fin]))
    assert told(finned, path) == [
        "not closed: 2 edges have one face",
        "not a manifold: 1 edges have more than two faces",
    ]
    (said,) = told(replace(mesh, vertices=mesh.vertices * np.float32(1e4)), path)
    assert "1.6e+04" in said
    assert "world units; scenes live in" in said
    (said,) = told(replace(mesh, vertices=mesh.vertices * np.float32(1e-6)), path)
    assert "world units; scenes live in" in said


def test_a_large_mesh_is_written_and_read(tmp_path: Path) -> None:
    """The work grows with the number of faces, not faster: minutes here would be a fault."""
    side = 150
    u, v = np.meshgrid(*2 * [np.linspace(-1, 1, side, dtype=np.float32)], indexing="ij")
    first = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1)
    quads = np.stack([first, first + side, first + side + 1, first, first + side + 1, first + 1], axis=-1)
    mesh = Mesh(np.stack([u, v, u * v], axis=-1).reshape(-1, 3), quads.reshape(-1, 3).astype(np.int32))
    for suffix in ("glb", "ply", "stl", "obj"):
        write(mesh, tmp_path / f"a.{suffix}")
        assert len(read(tmp_path / f"a.{suffix}").faces) == len(mesh.faces) == 44_402


# ---- What a mesh can be


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"uv": np.zeros((4, 3), np.float32)}, r"uv \[V, 2\]; got \(4, 3\) for 42"),
        ({"colours": np.zeros((4, 3), np.float32)}, r"colours \[V, 3\]; got \(4, 3\) for 42"),
        ({"roughness": np.zeros((4, 4, 3), np.uint8)}, r"roughness as \[H, W\]; got \(4, 4, 3\)"),
        ({"metallic": np.zeros((4, 4), np.float32)}, "metallic as uint8; got float32"),
        ({"normal_map": np.zeros((4, 4), np.uint8)}, r"normal_map as \[H, W, 3\]; got \(4, 4\)"),
        ({"texture": np.zeros((4, 0, 3), np.uint8)}, r"texture as \[H, W, 3\]; got \(4, 0, 3\)"),
        ({"roughness": np.zeros((4, 4), np.uint8)}, "a roughness needs texture coordinates"),
    ],
)
def test_maps_of_other_shapes_are_refused(fields: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(plain(), **fields)


def test_a_plain_colour_replaces_every_map() -> None:
    assert coloured(surfaced(), (1.0, 0.0, 0.0)).maps == {}
    assert set(drop_degenerate(surfaced()).maps) == {"texture", "roughness", "metallic", "normal_map"}
