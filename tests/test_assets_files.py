"""Files: what is written comes back, and other programs read the same."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dreamkit.assets.files import (
    _gltf_colours,
    from_gltf_frame,
    read,
    read_extras,
    to_display,
    to_gltf_frame,
    to_linear,
    write,
)
from dreamkit.assets.unwrap import grid_atlas
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh

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
    np.testing.assert_allclose(_gltf_colours((tmp_path / "a.glb").read_bytes()), 0.21404, atol=1e-4)


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
    with pytest.raises(InputError, match=r"end in \.glb, \.obj, \.ply; got '\.fbx'"):
        write(plain(), tmp_path / "a.fbx")
    with pytest.raises(InputError, match="there is no file"):
        read(tmp_path / "a.glb")
    (tmp_path / "a.glb").write_bytes(b"glTF\x02\0\0\0garbage")
    with pytest.raises(InputError, match="cannot be read as GLB"):
        read(tmp_path / "a.glb")
    with pytest.raises(InputError, match="has no faces"):
        write(Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)), tmp_path / "empty.glb")
    assert not (tmp_path / "empty.glb").exists()
