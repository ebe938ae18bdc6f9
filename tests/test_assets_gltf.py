"""glTF files of other programs, written here by hand: every way the format has to say a mesh."""

import base64
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from dreamkit.assets.conventions import from_gltf_frame, png_bytes, sampled, to_display, to_linear
from dreamkit.assets.files import read
from dreamkit.assets.gltf import GlbWriter
from dreamkit.assets.gltf_mesh import _scaled_normals
from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh
from dreamkit.render.mesh import render_mesh

CORNERS = np.float32([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])  # in glTF's frame
UV = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])  # v counted from the top
TWO = np.int32([[0, 1, 2], [0, 2, 3]])
KINDS = {"u1": 5121, "i1": 5120, "u2": 5123, "i2": 5122, "u4": 5125, "f4": 5126}


class File:
    """A glTF that grows: arrays become accessors, pictures become textures."""

    def __init__(self) -> None:
        self.body = b""
        self.tree: dict[str, Any] = {"asset": {"version": "2.0"}, "accessors": [], "bufferViews": []}

    def view(self, data: bytes, **more: Any) -> int:
        self.tree["bufferViews"].append({"buffer": 0, "byteOffset": len(self.body), "byteLength": len(data), **more})
        self.body += data + b"\0" * (-len(data) % 4)
        return len(self.tree["bufferViews"]) - 1

    def array(self, values: Any, kind: str = "f4", **more: Any) -> int:
        rows = np.asarray(values, f"<{kind}")
        rows = rows.reshape(len(rows), -1)
        type_ = "SCALAR" if rows.shape[1] == 1 else f"VEC{rows.shape[1]}"
        said = {"bufferView": self.view(rows.tobytes()), "componentType": KINDS[kind], "count": len(rows)}
        self.tree["accessors"].append(said | {"type": type_} | more)
        return len(self.tree["accessors"]) - 1

    def texture(self, picture: np.ndarray, **sampler: int) -> dict[str, int]:
        self.tree.setdefault("images", []).append(
            {"bufferView": self.view(png_bytes(picture)), "mimeType": "image/png"}
        )
        number = len(self.tree["images"]) - 1
        self.tree.setdefault("samplers", []).append(sampler)
        self.tree.setdefault("textures", []).append({"source": number, "sampler": number})
        return {"index": number}

    def add(self, attributes: dict[str, int], faces: Any = TWO, **more: Any) -> None:
        """A mesh of one primitive under a node of its own; `node` says more of the node, the rest of the primitive."""
        node = more.pop("node", {})
        primitive = {"attributes": attributes, **more}
        if faces is not None:
            primitive["indices"] = self.array(np.asarray(faces).reshape(-1), "u2")
        self.tree.setdefault("meshes", []).append({"primitives": [primitive]})
        self.tree.setdefault("nodes", []).append({"mesh": len(self.tree["meshes"]) - 1, **node})
        self.tree["scenes"] = [{"nodes": list(range(len(self.tree["nodes"])))}]

    def square(self, material: dict[str, Any] | None = None, **more: Any) -> None:
        attributes = {"POSITION": self.array(CORNERS), "TEXCOORD_0": self.array(UV)}
        if material is not None:
            self.tree.setdefault("materials", []).append(material)
            more["material"] = len(self.tree["materials"]) - 1
        self.add(attributes, **more)

    def save(self, path: Path) -> Path:
        """One file with everything in it, the buffer as base64."""
        uri = "data:application/octet-stream;base64," + base64.b64encode(self.body).decode()
        path.write_text(json.dumps(self.tree | {"buffers": [{"byteLength": len(self.body), "uri": uri}]}))
        return path


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def faces_of(mesh: Mesh) -> list[list[list[float]]]:
    """The corners of every face, in the file's frame again."""
    return np.round(mesh.vertices[mesh.faces][..., [1, 2, 0]], 5).tolist()


def test_external_files_and_base64_hold_the_same(tmp_path: Path) -> None:
    picture = noise(8, 8, 3)
    file = File()
    file.square({"pbrMetallicRoughness": {"baseColorTexture": file.texture(picture), "metallicFactor": 0}})
    inner = read(file.save(tmp_path / "a.gltf"))
    file.tree["images"] = [{"uri": "a%20picture.png"}]
    (tmp_path / "a picture.png").write_bytes(png_bytes(picture))
    (tmp_path / "b.bin").write_bytes(file.body)
    buffers = [{"byteLength": len(file.body), "uri": "b.bin"}]
    (tmp_path / "b.gltf").write_text(json.dumps(file.tree | {"buffers": buffers}))
    outer = read(tmp_path / "b.gltf")
    for mesh in (inner, outer):
        np.testing.assert_array_equal(mesh.texture, picture)
        np.testing.assert_array_equal(mesh.vertices, from_gltf_frame(CORNERS))
        np.testing.assert_array_equal(mesh.uv, [[0, 0], [1, 0], [1, 1], [0, 1]])
    (tmp_path / "a picture.png").unlink()
    with pytest.raises(InputError, match=r"b\.gltf cannot be read as GLTF: it names the picture a%20picture\.png"):
        read(tmp_path / "b.gltf")


def test_the_whole_scene_graph_is_followed(tmp_path: Path) -> None:
    file = File()
    file.add({"POSITION": file.array(CORNERS)}, [[0, 1, 2]])
    half = np.sqrt(0.5)
    file.tree["nodes"] = [
        {"children": [1, 2], "translation": [10, 0, 0]},
        {"mesh": 0, "rotation": [0, 0, half, half], "scale": [2, 2, 2]},  # a quarter turn, x to y
        {"mesh": 0, "matrix": [-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 5, 0, 1]},  # mirrored, 5 up
    ]
    file.tree["scenes"] = [{"nodes": [0]}]
    mesh = read(file.save(tmp_path / "a.gltf"))
    first = [[10, 0, 0], [10, 2, 0], [8, 2, 0]]
    second = [[9, 6, 0], [9, 5, 0], [10, 5, 0]]  # the mirror turned the winding, and the reader turned it back
    assert faces_of(mesh) == [first, second]
    assert (mesh.face_normals[:, 0] > 0.99).all()  # glTF's +z is our +x
    other = trimesh.load_scene(tmp_path / "a.gltf", process=False).to_geometry()
    low, high = from_gltf_frame(other.bounds)
    np.testing.assert_allclose(
        [mesh.vertices[mesh.faces].min((0, 1)), mesh.vertices[mesh.faces].max((0, 1))], [low, high], atol=1e-5
    )


def test_strips_fans_and_plain_lists_are_triangles(tmp_path: Path) -> None:
    for mode, order in ((4, [0, 1, 2, 0, 2, 3]), (5, [0, 1, 3, 2]), (6, [0, 1, 2, 3])):
        for indexed in (True, False):
            file = File()
            points = CORNERS if indexed else CORNERS[order]
            file.add({"POSITION": file.array(points)}, order if indexed else None, mode=mode)
            mesh = read(file.save(tmp_path / "a.gltf"))
            assert len(mesh.faces) == 2
            assert (mesh.face_normals[:, 0] == 1).all()
            assert set(map(tuple, mesh.vertices.tolist())) == set(map(tuple, from_gltf_frame(CORNERS).tolist()))


def test_fractions_sparse_and_interleaved_accessors(tmp_path: Path) -> None:
    picture = noise(4, 4, 3)
    file = File()
    rows = np.zeros(4, [("p", "<f4", 3), ("t", "<u2", 2)])
    rows["p"], rows["t"] = CORNERS + np.float32([0, 0, 9]), UV * 65535
    view = file.view(rows.tobytes(), byteStride=16)
    said = {"bufferView": view, "count": 4}
    file.tree["accessors"] = [
        said | {"componentType": 5126, "type": "VEC3"},
        said | {"componentType": 5123, "type": "VEC2", "byteOffset": 12, "normalized": True},
    ]
    at, new = file.view(np.uint8([3, 1]).tobytes()), file.view(np.float32([[0, 7, 0], [7, 0, 0]]).tobytes())
    indices = {"bufferView": at, "componentType": 5121}
    file.tree["accessors"][0]["sparse"] = {"count": 2, "indices": indices, "values": {"bufferView": new}}
    file.tree["materials"] = [
        {"pbrMetallicRoughness": {"baseColorTexture": file.texture(picture), "metallicFactor": 0}}
    ]
    file.add({"POSITION": 0, "TEXCOORD_0": 1}, material=0)
    mesh = read(file.save(tmp_path / "a.gltf"))
    np.testing.assert_array_equal(
        mesh.vertices, from_gltf_frame(np.float32([[0, 0, 9], [7, 0, 0], [1, 1, 9], [0, 7, 0]]))
    )
    np.testing.assert_array_equal(mesh.uv, [[0, 0], [1, 0], [1, 1], [0, 1]])


def test_colours_multiply_as_light(tmp_path: Path) -> None:
    factor = [0.5, 0.25, 1.0]
    file = File()
    picture = noise(8, 8, 3)
    surface = {"baseColorTexture": file.texture(picture), "baseColorFactor": [*factor, 1], "metallicFactor": 0}
    file.square({"pbrMetallicRoughness": surface})
    mesh = read(file.save(tmp_path / "a.gltf"))
    wanted = to_display(to_linear(picture / 255) * factor) * 255
    np.testing.assert_allclose(mesh.texture, wanted, atol=0.5001)  # rounded to bytes
    # Without a picture, the factor times each vertex colour, to rounding of float32.
    light = np.random.default_rng(0).random((4, 3))
    for bare in (True, False):
        file = File()
        names = {"POSITION": file.array(CORNERS)} | ({} if bare else {"COLOR_0": file.array(light)})
        file.tree["materials"] = [{"pbrMetallicRoughness": {"baseColorFactor": [*factor, 1], "metallicFactor": 0}}]
        file.add(names, material=0)
        mesh = read(file.save(tmp_path / "a.gltf"))
        wanted = to_display(np.ones((4, 3)) * factor if bare else light * factor)
        np.testing.assert_allclose(mesh.colours, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_vertex_colours_of_bytes_are_fractions_of_light(kind: str, tmp_path: Path) -> None:
    file = File()
    most = np.iinfo(kind).max
    values = np.random.default_rng(1).integers(0, most + 1, (4, 4))
    file.add({"POSITION": file.array(CORNERS), "COLOR_0": file.array(values, kind, normalized=True)})
    mesh = read(file.save(tmp_path / "a.gltf"))
    np.testing.assert_allclose(mesh.colours, to_display(values[:, :3] / most), atol=1e-6)


def test_a_texture_under_vertex_colours_is_their_product(tmp_path: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, :32], picture[:, 32:] = 200, 100
    light = np.float32([[0, 0, 0], [1, 1, 1], [1, 1, 1], [0, 0, 0]])  # dark on the left, full on the right
    file = File()
    material = {"pbrMetallicRoughness": {"baseColorTexture": file.texture(picture), "metallicFactor": 0}}
    file.tree["materials"] = [material]
    names = {"POSITION": file.array(CORNERS), "TEXCOORD_0": file.array(UV), "COLOR_0": file.array(light)}
    file.add(names, material=0)
    said: list[str] = []
    mesh = read(file.save(tmp_path / "a.gltf"), note=said.append)
    assert any("laid into a texture" in text for text in said)
    weights = np.random.default_rng(0).dirichlet([1, 1, 1], 500)
    assert mesh.uv is not None
    assert mesh.texture is not None
    uv, at = ((weights @ rows[mesh.faces]).reshape(-1, rows.shape[1]) for rows in (mesh.uv, mesh.vertices))
    u = at[:, 1]  # glTF's x, which is u here
    wanted = to_display(to_linear(np.where(u < 0.5, 200, 100) / 255) * u)
    clear = (np.abs(u - 0.5) > 0.02) & (u > 0.1)
    # The grid has about 90 texels a side; below 0.1 the curve of sRGB is too steep for that, 1.7 a side there.
    np.testing.assert_allclose(sampled(mesh.texture, uv)[clear, 1] / 255, wanted[clear], atol=1.7 / 90 + 1 / 255)


def test_metallic_and_roughness_are_unpacked_and_their_factors_folded_in(tmp_path: Path) -> None:
    packed = noise(8, 8, 3)
    normals = noise(8, 8, 3, seed=2)
    file = File()
    surface = {"metallicRoughnessTexture": file.texture(packed)}
    file.square({"pbrMetallicRoughness": surface, "normalTexture": file.texture(normals)})
    mesh = read(file.save(tmp_path / "a.gltf"))
    np.testing.assert_array_equal(mesh.roughness, packed[..., 1])
    np.testing.assert_array_equal(mesh.metallic, packed[..., 2])
    np.testing.assert_array_equal(mesh.normal_map, normals)
    surface |= {"roughnessFactor": 0.5, "metallicFactor": 0.0}
    mesh = read(file.save(tmp_path / "a.gltf"))
    np.testing.assert_allclose(mesh.roughness, packed[..., 1] / 2, atol=0.5001)
    assert mesh.metallic is None
    # Factors alone are maps of one texel; what a mesh says anyway is no map at all.
    for roughness, metallic, wanted in ((0.2, 1.0, (51, 255)), (0.9, 0.0, (None, None))):
        file = File()
        file.square({"pbrMetallicRoughness": {"roughnessFactor": roughness, "metallicFactor": metallic}})
        mesh = read(file.save(tmp_path / "a.gltf"))
        found = tuple(None if m is None else int(m.item()) for m in (mesh.roughness, mesh.metallic))
        assert found == wanted


def test_a_texture_transform_moves_the_coordinates(tmp_path: Path) -> None:
    """The example of the specification: the lower left quadrant of the picture, turned."""
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[4:, :4, 0] = noise(4, 4, seed=3) | 1
    file = File()
    moved = {"offset": [0, 1], "rotation": np.pi / 2, "scale": [0.5, 0.5]}
    texture = file.texture(picture) | {"extensions": {"KHR_texture_transform": moved}}
    file.square({"pbrMetallicRoughness": {"baseColorTexture": texture, "metallicFactor": 0}})
    file.tree["extensionsRequired"] = file.tree["extensionsUsed"] = ["KHR_texture_transform"]
    mesh = read(file.save(tmp_path / "a.gltf"))
    assert mesh.uv is not None
    np.testing.assert_allclose(mesh.uv.min(0), [0, 0], atol=1e-6)
    np.testing.assert_allclose(mesh.uv.max(0), [0.5, 0.5], atol=1e-6)
    assert (mesh.texture[4:, :4, 0] > 0).all()  # type: ignore[index]


def materials_file() -> tuple[File, list[Mesh]]:
    """Three squares of different materials, the last one repeating its picture; and each alone."""
    file, alone = File(), []
    pictures = [np.kron(noise(4, 4, 3, seed=s), np.ones((16, 16, 1), np.uint8)) for s in range(3)]
    for i, picture in enumerate(pictures):
        uv = UV * (2 if i == 2 else 1)
        file.tree.setdefault("materials", []).append(
            {
                "pbrMetallicRoughness": {
                    "baseColorTexture": file.texture(picture),
                    "metallicFactor": 0,
                    "roughnessFactor": 0.9,
                }
            }
        )
        at = [1.1 * i - 1.6, -0.5, 0]
        file.add({"POSITION": file.array(CORNERS), "TEXCOORD_0": file.array(uv)}, material=i, node={"translation": at})
        placed = from_gltf_frame(CORNERS + np.float32(at))
        texture = np.tile(picture, (2, 2, 1)) if i == 2 else picture
        alone.append(Mesh(placed, TWO, uv=np.float32([[0, 0], [1, 0], [1, 1], [0, 1]]), texture=texture))
    return file, alone


def test_primitives_share_accessors_and_a_material_and_keep_what_is_theirs(tmp_path: Path) -> None:
    """Two triangles of the square by one accessor, of which one has no coordinates, and so no picture."""
    file, picture = File(), noise(8, 8, 3)
    file.tree["materials"] = [
        {"pbrMetallicRoughness": {"baseColorTexture": file.texture(picture), "metallicFactor": 0}}
    ]
    corners, uv = file.array(CORNERS), file.array(UV)
    file.add({"POSITION": corners, "TEXCOORD_0": uv}, TWO[:1], material=0)
    file.add({"POSITION": corners}, TWO[1:], material=0)
    notes: list[str] = []
    mesh = read(file.save(tmp_path / "a.gltf"), note=notes.append)
    assert len(mesh.faces) == 2
    assert len(mesh.vertices) == 6
    assert mesh.texture is not None
    assert mesh.uv is not None
    assert any("no coordinates" in note for note in notes)
    at = mesh.uv[mesh.faces].mean(1)
    want = sampled(picture, np.float32([[2 / 3, 1 / 3]]))
    # The picture is laid beside a white one: to a texel's rounding.
    np.testing.assert_allclose(sampled(mesh.texture, at)[0], want[0], atol=2)
    np.testing.assert_allclose(sampled(mesh.texture, at)[1], 255)


def test_the_older_words_for_a_surface_are_understood(tmp_path: Path) -> None:
    file, picture = File(), noise(8, 8, 3)
    older = {"diffuseTexture": file.texture(picture), "glossinessFactor": 0.25}
    file.square({"extensions": {"KHR_materials_pbrSpecularGlossiness": older}})
    mesh = read(file.save(tmp_path / "a.gltf"))
    np.testing.assert_array_equal(mesh.texture, picture)
    assert mesh.metallic is None
    np.testing.assert_allclose(mesh.roughness, 0.75 * 255, atol=0.5)


def test_several_materials_look_as_before(tmp_path: Path) -> None:
    file, alone = materials_file()
    said: list[str] = []
    whole = read(file.save(tmp_path / "a.gltf"), note=said.append)
    assert any("3 materials" in text for text in said)
    views = orbit([0.0, 20.0], [0.0, 10.0], 4.0, size=96)
    ours = render_mesh(whole, views, background=(0.0, 0.0, 0.0)).rgb
    theirs = sum(render_mesh(mesh, views, background=(0.0, 0.0, 0.0)).rgb for mesh in alone)
    # The texels are the same; coordinates are rounded once more, by up to 2^-24 of the atlas: 1e-5 texels.
    error = (ours - theirs).abs()
    assert float(error.max()) < 2e-3


def test_what_a_mesh_cannot_say_is_told(tmp_path: Path) -> None:
    file = File()
    material = {"alphaMode": "BLEND", "emissiveFactor": [1, 0, 0], "occlusionTexture": file.texture(noise(4, 4, 3))}
    file.square(material | {"extensions": {"KHR_materials_transmission": {}}})
    file.tree["animations"] = [{}]
    said: list[str] = []
    read(file.save(tmp_path / "a.gltf"), note=said.append)
    assert (
        "not read, for a mesh cannot say it: KHR_materials_transmission, animations, emission, occlusion, opacity"
        in said
    )


REQUIRED = {
    "KHR_draco_mesh_compression": "open it in Blender",
    "EXT_meshopt_compression": "export it again without meshopt",
    "KHR_texture_basisu": "PNG or JPEG",
    "ACME_secret": "Export it again without it",
}


@pytest.mark.parametrize("name", REQUIRED)
def test_an_extension_that_is_required_and_not_read_is_named(name: str, tmp_path: Path) -> None:
    file = File()
    file.square()
    file.tree["extensionsRequired"] = [name]
    with pytest.raises(InputError, match=f"requires the extension {name}, which is not read.*{REQUIRED[name]}"):
        read(file.save(tmp_path / "a.gltf"))


def broken(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    def save(path: Path) -> Path:
        file = File()
        file.square({"pbrMetallicRoughness": {"baseColorTexture": file.texture(noise(4, 4, 3))}})
        change(file.tree)
        return file.save(path)

    return save


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t["accessors"][0].update(count=10**6), "too short for 1000000 rows"),
        (lambda t: t["bufferViews"][0].update(byteLength=10**6), "ends inside buffer view 0"),
        (lambda t: t["nodes"].append({"children": [1]}) or t.update(scenes=[{"nodes": [1]}]), "stands below itself"),
        (lambda t: t["asset"].update(version="1.0"), "it is glTF 1.0"),
        (lambda t: t["accessors"][0].pop("bufferView"), "an extension that is not understood must hold it"),
        (lambda t: t["meshes"][0]["primitives"][0].update(mode=0), "it holds no triangles"),
        (lambda t: t["images"][0].update(bufferView=1), "the picture 0 of the file is broken"),
        (lambda t: t["images"].__setitem__(0, {"uri": "https://example.org/a.png"}), "nothing is fetched"),
        (lambda t: t["textures"].__setitem__(0, {"extensions": {"KHR_texture_basisu": {"source": 0}}}), "KTX2"),
        (lambda t: t["meshes"][0]["primitives"][0].update(material=7), r"damaged \(IndexError"),
    ],
)
def test_damage_is_named(change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path) -> None:
    path = broken(change)(tmp_path / "a.gltf")
    with pytest.raises(InputError, match=rf"a\.gltf cannot be read as GLTF: .*{says}"):
        read(path)


def test_a_glb_cut_anywhere_is_refused(tmp_path: Path) -> None:
    writer = GlbWriter()
    names = {"POSITION": writer.attribute(CORNERS, bounds=True)}
    primitive = {"attributes": names, "indices": writer.indices(TWO)}
    tree = {"asset": {"version": "2.0"}, "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}]}
    data = writer.pack(tree)
    (tmp_path / "a.glb").write_bytes(data)
    assert len(read(tmp_path / "a.glb").faces) == 2
    for end in (0, 3, 10, 19, 100, len(data) - 1):
        (tmp_path / "a.glb").write_bytes(data[:end])
        with pytest.raises(InputError, match="cannot be read as GLB"):
            read(tmp_path / "a.glb")
    (tmp_path / "a.glb").write_text("a page that says: not found")
    with pytest.raises(InputError, match="it does not begin as a GLB does, with glTF; its 27 bytes are something else"):
        read(tmp_path / "a.glb")


def test_the_strength_of_a_normal_map_bends_normals_and_leaves_them_unit_vectors():
    """glTF 2.0, 3.9.3: normalize((sampled * 2 - 1) * (scale, scale, 1))."""
    picture = np.uint8([[[round((x + 1) * 127.5) for x in (0.6, 0.0, 0.8)]]])
    bent = _scaled_normals(picture, {"scale": 0.5}) / 255 * 2 - 1
    length = math.hypot(0.3, 0.8)
    np.testing.assert_allclose(bent[0, 0], [0.3 / length, 0.0, 0.8 / length], atol=0.01)  # bytes
    assert _scaled_normals(picture, {}) is picture
