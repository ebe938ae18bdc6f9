"""OBJ, PLY and STL files of other programs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh

from dreamkit.assets.conventions import picture_from, png_bytes
from dreamkit.assets.files import read, write
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh

POINTS = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
PLACES = "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvt 0.5 0.5\n"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def save(path: Path, text: str, materials: str = "", **pictures: np.ndarray) -> Path:
    """An OBJ, with its materials if there are any, and pictures by name."""
    path.write_text(("mtllib my materials.mtl\n" if materials else "") + text)
    if materials:
        (path.parent / "my materials.mtl").write_text(materials)
    for name, picture in pictures.items():
        (path.parent / f"{name}.png").write_bytes(png_bytes(picture))
    return path


def corners(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the file's frame, and coordinates, of every corner of every face."""
    assert mesh.uv is not None
    return mesh.vertices[mesh.faces][..., [1, 2, 0]], mesh.uv[mesh.faces]


def test_coordinates_on_seams_stay_where_they_belong(tmp_path: Path) -> None:
    """Vertex 1 has coordinate 5 in one face and 1 in the other: a seam, as every unwrapped OBJ has them."""
    text = POINTS + PLACES + "usemtl one\nf 1/5 2/2 3/3\nf 1/1 3/3 4/4\n"
    mesh = read(save(tmp_path / "a.obj", text, "newmtl one\nmap_Kd t.png\n", t=noise(4, 4, 3)))
    at, uv = corners(mesh)
    assert at[:, 0].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert uv.tolist() == [[[0.5, 0.5], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]]


def test_polygons_are_cut_and_sides_kept(tmp_path: Path) -> None:
    mesh = read(save(tmp_path / "a.obj", POINTS + "v 0.5 -1 0\nf 1 5 2 3 4\n"))
    assert len(mesh.faces) == 3
    assert (mesh.face_normals[:, 0] == 1).all()  # the file's +z is our +x
    area = np.linalg.norm(np.cross(*(np.diff(mesh.vertices[mesh.faces], axis=1)[:, i] for i in (0, 1))), axis=1) / 2
    assert area.sum() == pytest.approx(1.5)


def test_pbr_lines_are_read(tmp_path: Path) -> None:
    maps = {"c": noise(8, 8, 3), "r": noise(8, 8, seed=1), "m": noise(8, 8, seed=2), "n": noise(8, 8, 3, seed=3)}
    text = POINTS + PLACES + "usemtl one\nf 1/1 2/2 3/3 4/4\n"
    lines = "newmtl one\nKd 0.8 0.8 0.8\nmap_Kd -s 1 1 1 -bm 2 c.png\nmap_Pr r.png\nmap_Pm m.png\nnorm -bm 1.0 n.png\n"
    mesh = read(save(tmp_path / "a.obj", text, lines, **maps))
    np.testing.assert_array_equal(mesh.texture, maps["c"])
    np.testing.assert_array_equal(mesh.roughness, maps["r"])
    np.testing.assert_array_equal(mesh.metallic, maps["m"])
    np.testing.assert_array_equal(mesh.normal_map, maps["n"])
    said: list[str] = []
    constants = "newmtl one\nPr 0.2\nPm 1\nd 0.5\nKd 1 0.5 0\nmap_Bump b.png\n"
    mesh = read(save(tmp_path / "a.obj", text, constants), note=said.append)
    assert said[0] == "not read, for a mesh cannot say it: bump maps, opacity"
    assert (mesh.roughness.item(), mesh.metallic.item()) == (51, 255)  # type: ignore[union-attr]
    np.testing.assert_allclose(mesh.colours, np.tile([1, 0.5, 0], (len(mesh.vertices), 1)))


def test_materials_without_pictures_are_vertex_colours(tmp_path: Path) -> None:
    text = POINTS + "usemtl one\nf 1 2 3\nusemtl two\nf 1 3 4\n"
    mesh = read(save(tmp_path / "a.obj", text, "newmtl one\nKd 1 0 0\nnewmtl two\nKd 0 0 1\n"))
    assert mesh.colours is not None
    lower = mesh.vertices[mesh.faces].mean(1)[:, 2] < 0.5  # the first face, by the height of its middle, 1/3
    assert sorted(lower) == [False, True]
    assert mesh.colours[mesh.faces[lower]].tolist() == [[[1, 0, 0]] * 3]
    assert mesh.colours[mesh.faces[~lower]].tolist() == [[[0, 0, 1]] * 3]


@pytest.mark.parametrize("name", ["looks/a.mtl", "./looks/a.mtl"])
def test_materials_may_lie_in_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "looks").mkdir()
    (tmp_path / "looks" / "a.mtl").write_text("newmtl red\nKd 1 0 0\n")
    (tmp_path / "a.obj").write_text(f"mtllib {name}\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl red\nf 1 2 3\n")
    np.testing.assert_allclose(read(tmp_path / "a.obj").colours, [[1, 0, 0]] * 3)


def test_vertex_colours_beside_a_material(tmp_path: Path) -> None:
    text = "v 0 0 0 1 0 0.25\nv 1 0 0 0 1 0.25\nv 0 1 0 0 0 0.25\nusemtl one\nf 1 2 3\n"
    mesh = read(save(tmp_path / "a.obj", text, "newmtl one\nKd 0.8 0.8 0.8\n"))
    np.testing.assert_allclose(mesh.colours, [[1, 0, 0.25], [0, 1, 0.25], [0, 0, 0.25]])


@pytest.mark.parametrize(
    ("text", "materials", "says"),
    [
        ("mtllib gone.mtl\n" + POINTS + "f 1 2 3\n", "", r"names the materials gone\.mtl, but there is no .*put it"),
        (POINTS + "usemtl one\nf 1 2 3\n", "newmtl one\nmap_Kd gone.png\n", r"names the picture gone\.png, but there"),
        ("mtllib a.mtl\nmtllib b.mtl\n" + POINTS + "f 1 2 3\n", "", r"2 files of materials \(a\.mtl, b\.mtl\): join"),
        (POINTS, "", "no triangles"),
        (POINTS + "f 1 2 9\n", "", "damaged"),
        (POINTS + "f 1 2 x\n", "", "damaged"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 5 5 5\n", "", "count vertices backwards"),
        ("v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "", "not finite"),
        ("", "", "no triangles|damaged"),
    ],
)
def test_damaged_objs_are_named(text: str, materials: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"a\.obj cannot be read as OBJ: .*({says})"):
        read(save(tmp_path / "a.obj", text, materials))


def test_a_killed_writer_leaves_no_old_surface_under_new_pictures(tmp_path: Path, monkeypatch) -> None:
    mesh = Mesh(np.eye(3, dtype=np.float32), np.int32([[0, 1, 2]]), uv=np.eye(3, 2, dtype=np.float32))
    write(replace(mesh, texture=noise(8, 8, 3)), tmp_path / "a.obj")

    def killed(path: Path, data: bytes) -> None:
        if path.suffix == ".mtl":
            raise KeyboardInterrupt
        path.write_bytes(data)

    monkeypatch.setattr("dreamkit.assets.obj.write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        write(replace(mesh, texture=noise(4, 4, 3)), tmp_path / "a.obj")
    assert not (tmp_path / "a.obj").exists()


def test_a_picture_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="the picture big is broken or of no known format: Image size"):
        picture_from(png_bytes(np.zeros((9500, 9500), bool)), "big")  # 90 million; Pillow takes 89


def test_backward_numbers_after_all_vertices_are_fine(tmp_path: Path) -> None:
    mesh = read(save(tmp_path / "a.obj", POINTS + "f -4 -3 -2\n"))
    assert mesh.vertices[mesh.faces][0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]


# ---- PLY

HEAD = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
RED = "property uchar red\nproperty uchar green\nproperty uchar blue\n"
FACE = "property list uchar int vertex_indices\n"


def test_text_plys_with_polygons_and_colours(tmp_path: Path) -> None:
    rows = "0 0 0 255 0 0\n1 0 0 0 255 0\n1 1 0 0 0 255\n0 1 0 0 0 51\n4 0 1 2 3\n"
    (tmp_path / "a.ply").write_text(HEAD + RED + "element face 1\n" + FACE + "end_header\n" + rows)
    mesh = read(tmp_path / "a.ply")
    assert len(mesh.faces) == 2
    assert mesh.face_normals.tolist() == [[0, 0, 1]] * 2  # +z up, as it is in the file
    np.testing.assert_allclose(mesh.colours, np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0.2]]), atol=1e-6)
    turned = read(tmp_path / "a.ply", up="y")
    assert turned.face_normals.tolist() == [[1, 0, 0]] * 2


def test_colours_of_faces_stay_sharp(tmp_path: Path) -> None:
    rows = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2 255 0 0\n3 0 2 3 0 0 255\n"
    (tmp_path / "a.ply").write_text(HEAD + "element face 2\n" + FACE + RED + "end_header\n" + rows)
    mesh = read(tmp_path / "a.ply")
    assert mesh.colours is not None
    assert mesh.colours[mesh.faces].tolist() == [[[1, 0, 0]] * 3, [[0, 0, 1]] * 3]


def test_coordinates_without_a_picture_do_not_cost_the_colours(tmp_path: Path) -> None:
    """As Blender writes it."""
    rows = "0 0 0 0 0 255 0 0\n1 0 0 1 0 0 255 0\n1 1 0 1 1 0 0 255\n0 1 0 0 1 0 0 51\n3 0 1 2\n3 0 2 3\n"
    both = "property float s\nproperty float t\n" + RED + "element face 2\n"
    (tmp_path / "a.ply").write_text(HEAD + both + FACE + "end_header\n" + rows)
    mesh = read(tmp_path / "a.ply")
    np.testing.assert_allclose(mesh.colours, np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0.2]]), atol=1e-6)


def test_a_ply_with_a_texture(tmp_path: Path) -> None:
    head = HEAD.replace("ascii 1.0\n", "ascii 1.0\ncomment TextureFile t.png\n")
    rows = "0 0 0 0 0\n1 0 0 1 0\n1 1 0 1 1\n0 1 0 0 1\n3 0 1 2\n3 0 2 3\n"
    both = "property float s\nproperty float t\nelement face 2\n"
    (tmp_path / "a.ply").write_text(head + both + FACE + "end_header\n" + rows)
    with pytest.raises(InputError, match=r"names the picture t\.png"):
        read(tmp_path / "a.ply")
    (tmp_path / "t.png").write_bytes(png_bytes(noise(4, 4, 3)))
    mesh = read(tmp_path / "a.ply")
    np.testing.assert_array_equal(mesh.texture, noise(4, 4, 3))
    assert mesh.uv is not None
    np.testing.assert_array_equal(mesh.uv[mesh.faces], mesh.vertices[mesh.faces][..., :2])


def test_plys_cut_off_are_refused(tmp_path: Path) -> None:
    text = HEAD + "element face 1\n" + FACE + "end_header\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n3 0 1 2\n"
    whole = trimesh.creation.box().export(file_type="ply")
    for data in (text[:-8].encode(), text[:40].encode(), whole[:-5], whole[:100], b"", b"stl"):
        (tmp_path / "a.ply").write_bytes(data)
        with pytest.raises(InputError, match="cannot be read as PLY"):
            read(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_text(HEAD + "end_header\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n")
    with pytest.raises(InputError, match="points alone are no surface"):
        read(tmp_path / "a.ply")


# ---- STL


@pytest.mark.parametrize("kind", ["stl", "stl_ascii"])
def test_other_programs_stls_are_welded(kind: str, tmp_path: Path) -> None:
    box = trimesh.creation.box([1, 2, 3])
    data = box.export(file_type=kind)
    (tmp_path / "a.stl").write_bytes(data if isinstance(data, bytes) else data.encode())
    mesh = read(tmp_path / "a.stl")
    assert (len(mesh.vertices), len(mesh.faces)) == (8, 12)
    assert np.ptp(mesh.vertices, axis=0).tolist() == [1, 2, 3]
    assert np.ptp(read(tmp_path / "a.stl", up="y").vertices, axis=0).tolist() == [3, 1, 2]


def test_stls_cut_off_are_refused(tmp_path: Path) -> None:
    data = trimesh.creation.box().export(file_type="stl")
    for part in (data[:-5], data[:60], b"", data[:80] + b"\0\0\0\0"):
        (tmp_path / "a.stl").write_bytes(part)
        with pytest.raises(InputError, match="cannot be read as STL"):
            read(tmp_path / "a.stl")
