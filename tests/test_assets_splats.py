"""Splats: the layout other programs expect, to the last bit; frames that turn everything; faults that are named."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dreamkit.assets.files import read, read_extras
from dreamkit.assets.harmonics import harmonics, harmonics_turn
from dreamkit.assets.splats import Splats, read_splats, turned, write_splats
from dreamkit.errors import InputError
from dreamkit.kernels.splat.reference import colour

EXTRAS = {"prompt": "a rëd mug", "seed": 3}
ARRAYS = ("means", "log_scales", "quaternions", "opacity_logits", "sh")


def some(count: int = 50, degree: int = 3, seed: int = 0) -> Splats:
    numbers = np.random.default_rng(seed)
    shapes = ((count, 3), (count, 3), (count, 4), (count,), (count, (degree + 1) ** 2, 3))
    means, scales, turns, logits, sh = (numbers.normal(size=shape).astype(np.float32) for shape in shapes)
    return Splats(means, scales - 4, turns, 3 * logits, sh)


def covariances(splats: Splats) -> np.ndarray:
    """[N, 3, 3] by scipy's rotations: R S S R^T."""
    turn = Rotation.from_quat(splats.quaternions[:, [1, 2, 3, 0]].astype(np.float64)).as_matrix()
    root = turn * np.exp(splats.log_scales.astype(np.float64))[:, None]
    return root @ root.transpose(0, 2, 1)


def seen(splats: Splats, directions: np.ndarray) -> np.ndarray:
    """[N, 3] colours before clamping, one direction for each splat, by the kernel's harmonics."""
    sh = torch.as_tensor(splats.sh).double() + 0
    means = torch.as_tensor(directions)
    eye = torch.zeros(1, 3, dtype=torch.float64)
    lifted = sh.clone()
    lifted[:, 0] += 1000  # the kernel clamps below 0
    found = colour(means, lifted, eye, splats.degree, torch.ones(1, len(splats)))[0]
    return (found - 1000 * 0.5 / (torch.pi**0.5) - 0.5).numpy()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_ply_comes_back_to_the_last_bit(degree: int, tmp_path: Path) -> None:
    splats = some(degree=degree)
    assert write_splats(splats, tmp_path / "a.ply", EXTRAS) == [tmp_path / "a.ply"]
    back = read_splats(tmp_path / "a.ply")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(splats, name))
    assert back.degree == degree
    assert read_extras(tmp_path / "a.ply") == EXTRAS


def test_the_ply_is_laid_out_as_viewers_expect(tmp_path: Path) -> None:
    splats = some(count=2, degree=1)
    write_splats(splats, tmp_path / "a.ply")
    head, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[2] for line in head.decode().splitlines() if line.startswith("property float ")]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:18] == [f"f_rest_{i}" for i in range(9)]
    assert names[18:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    row = dict(zip(names, struct.unpack(f"<{len(names)}f", body[: 4 * len(names)]), strict=True))
    # All of red above degree 0 first: f_rest_0..2 are the three coefficients of red, f_rest_3..5 those of green.
    assert [row[f"f_rest_{i}"] for i in range(9)] == splats.sh[0, 1:].T.reshape(-1).tolist()
    assert [row[f"f_dc_{i}"] for i in range(3)] == splats.sh[0, 0].tolist()
    assert [row[f"rot_{i}"] for i in range(4)] == splats.quaternions[0].tolist()
    assert row["opacity"] == splats.opacity_logits[0]


@pytest.mark.parametrize("form", ["ascii", "binary_big_endian"])
def test_other_forms_and_orders_of_a_ply_are_read(form: str, tmp_path: Path) -> None:
    splats = some(count=5, degree=0)
    names = ["opacity", "rot_3", "rot_2", "rot_1", "rot_0", "scale_0", "scale_1", "scale_2", "f_dc_0", "f_dc_1"]
    names += ["f_dc_2", "z", "y", "x"]
    shape = [splats.opacity_logits[:, None], splats.quaternions[:, ::-1], splats.log_scales, splats.sh[:, 0]]
    table = np.concatenate([*shape, splats.means[:, ::-1]], axis=1)
    head = ["ply", f"format {form} 1.0", "element vertex 5", *(f"property float {n}" for n in names), "end_header\n"]
    body = "\n".join(" ".join(map(repr, row)) for row in table.tolist()).encode()
    (tmp_path / "a.ply").write_bytes(
        "\n".join(head).encode() + (body if form == "ascii" else table.astype(">f4").tobytes())
    )
    back = read_splats(tmp_path / "a.ply")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(splats, name))


@pytest.mark.parametrize("degree", [0, 3])
def test_a_glb_comes_back_to_rounding(degree: int, tmp_path: Path) -> None:
    splats = some(degree=degree)
    write_splats(splats, tmp_path / "a.glb", EXTRAS)
    back = read_splats(tmp_path / "a.glb")
    np.testing.assert_array_equal(back.means, splats.means)  # no arithmetic at all: the node does the turning
    np.testing.assert_array_equal(back.sh, splats.sh)
    np.testing.assert_allclose(back.log_scales, splats.log_scales, atol=1e-6)
    # float32 of the opacity p moves the logit by 2^-25 / (p (1 - p)); logits here are below 12 in size.
    np.testing.assert_allclose(back.opacity_logits, splats.opacity_logits, atol=2.0**-24 * np.exp(12))
    unit = splats.quaternions / np.linalg.norm(splats.quaternions, axis=1, keepdims=True)
    np.testing.assert_allclose(back.quaternions, unit, atol=1e-6)
    assert read_extras(tmp_path / "a.glb") == EXTRAS


def tree_of(path: Path) -> dict:
    data = path.read_bytes()
    return json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])


def test_the_glb_says_what_the_extension_wants(tmp_path: Path) -> None:
    splats = some(degree=2)
    write_splats(splats, tmp_path / "a.glb")
    tree = tree_of(tmp_path / "a.glb")
    assert tree["extensionsUsed"] == ["KHR_gaussian_splatting"]
    primitive = tree["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    said = primitive["extensions"]["KHR_gaussian_splatting"]
    assert (said["kernel"], said["colorSpace"]) == ("ellipse", "srgb_rec709_display")
    types = {name: tree["accessors"][i]["type"] for name, i in primitive["attributes"].items()}
    khr = "KHR_gaussian_splatting:"
    wanted = {"POSITION": "VEC3", "COLOR_0": "VEC4", khr + "ROTATION": "VEC4", khr + "SCALE": "VEC3"}
    wanted |= {khr + "OPACITY": "SCALAR"}
    wanted |= {f"{khr}SH_DEGREE_{n}_COEF_{i}": "VEC3" for n in range(3) for i in range(2 * n + 1)}
    assert types == wanted
    # The node's rotation takes our up, +z, to glTF's, +y, and our front, +x, to glTF's, +z.
    turn = Rotation.from_quat(tree["nodes"][0]["rotation"])
    np.testing.assert_allclose(turn.apply([[0, 0, 1], [1, 0, 0]]), [[0, 1, 0], [0, 0, 1]], atol=1e-12)
    data = (tmp_path / "a.glb").read_bytes()
    start = 28 + struct.unpack_from("<I", data, 12)[0]

    def stored(name: str, width: int) -> np.ndarray:
        view = tree["bufferViews"][tree["accessors"][primitive["attributes"][name]]["bufferView"]]
        return np.frombuffer(data, "<f4", 50 * width, start + view["byteOffset"]).reshape(50, width)

    np.testing.assert_allclose(stored(khr + "SCALE", 3), np.exp(splats.log_scales), rtol=1e-6)  # linear, not logarithms
    np.testing.assert_allclose(stored(khr + "OPACITY", 1)[:, 0], 1 / (1 + np.exp(-splats.opacity_logits)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(stored(khr + "ROTATION", 4), axis=1), 1, atol=1e-6)
    shown = (0.5 + 0.28209479 * splats.sh[:, 0]).clip(0, 1)  # sRGB; COLOR_0 is light
    light = np.where(shown <= 0.04045, shown / 12.92, ((shown + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(stored("COLOR_0", 4)[:, :3], light, atol=1e-6)


def with_node(path: Path, node: dict) -> None:
    """The same file with other words about its first node."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    tree = json.loads(data[20 : 20 + length])
    tree["nodes"][0] = {"mesh": 0} | node
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    path.write_bytes(
        struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A) + text + rest
    )


def test_splats_of_another_programs_glb_are_turned_into_the_world(tmp_path: Path) -> None:
    # Without a node's rotation, the numbers are in glTF's frame: (x, y, z) there is (z, x, y) here.
    splats = some()
    write_splats(splats, tmp_path / "a.glb")
    with_node(tmp_path / "a.glb", {"scale": [2, 2, 2], "translation": [1, 2, 3]})
    back = read_splats(tmp_path / "a.glb")
    np.testing.assert_allclose(back.means, (2 * splats.means + [1, 2, 3])[:, [2, 0, 1]], atol=1e-5)
    order = np.ix_(range(len(splats)), [2, 0, 1], [2, 0, 1])
    np.testing.assert_allclose(covariances(back), 4 * covariances(splats)[order], rtol=1e-4, atol=1e-7)
    looks = np.random.default_rng(1).normal(size=(len(splats), 3))
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    np.testing.assert_allclose(seen(back, looks[:, [2, 0, 1]]), seen(splats, looks), atol=1e-5)


@pytest.mark.parametrize("node", [{"scale": [1, 2, 1]}, {"scale": [-1, 1, 1]}])
def test_a_node_that_stretches_or_mirrors_is_refused(node: dict, tmp_path: Path) -> None:
    write_splats(some(), tmp_path / "a.glb")
    with_node(tmp_path / "a.glb", node)
    with pytest.raises(InputError, match="stretches or mirrors"):
        read_splats(tmp_path / "a.glb")


angles = st.lists(st.floats(-3.1, 3.1), min_size=3, max_size=3)


@settings(max_examples=25, deadline=None)
@given(angles, st.integers(0, 3))
def test_a_turned_splat_looks_as_before_to_a_turned_camera(xyz: list[float], degree: int) -> None:
    turn = Rotation.from_euler("xyz", xyz).as_matrix()
    splats = some(count=8, degree=degree)
    back = turned(splats, turn)
    looks = np.random.default_rng(2).normal(size=(8, 3))
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    np.testing.assert_allclose(seen(back, looks @ turn.T), seen(splats, looks), atol=2e-5)  # float32 of values near 5
    np.testing.assert_allclose(covariances(back), turn @ covariances(splats) @ turn.T, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(back.means, splats.means @ turn.T, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(angles, angles)
def test_turns_of_harmonics_are_a_group_of_rotations(one: list[float], two: list[float]) -> None:
    first, second = (Rotation.from_euler("xyz", xyz).as_matrix() for xyz in (one, two))
    both = harmonics_turn(second, 3) @ harmonics_turn(first, 3)
    np.testing.assert_allclose(harmonics_turn(second @ first, 3), both, atol=1e-12)  # float64, a few dozen products
    np.testing.assert_allclose(both @ both.T, np.eye(16), atol=1e-12)  # orthogonal, for the harmonics are orthonormal


def test_the_harmonics_are_orthonormal() -> None:
    # 26 x 52 Gauss-Legendre and even angles: exact for products of degree 6.
    z, weight = np.polynomial.legendre.leggauss(26)
    angle = np.arange(52) * 2 * np.pi / 52
    wide = np.sqrt(1 - z**2)[:, None]
    points = np.stack([wide * np.cos(angle), wide * np.sin(angle), z[:, None] + 0 * angle], axis=-1).reshape(-1, 3)
    values = harmonics(points, 3)
    gram = (values * np.repeat(weight * 2 * np.pi / 52, 52)[:, None]).T @ values
    np.testing.assert_allclose(gram, np.eye(16), atol=1e-12)


FAULTS = [
    ("means", np.nan, "the means of 1 splats are not finite, the first of number 3"),
    ("opacity_logits", np.inf, "the opacity_logits of 1 splats are not finite"),
    ("quaternions", 0.0, "1 quaternions have length 0, the first of number 3"),
]


@pytest.mark.parametrize(("name", "value", "says"), FAULTS)
def test_numbers_that_cannot_be_are_refused(name: str, value: float, says: str, tmp_path: Path) -> None:
    bad = getattr(some(), name).copy()
    bad[3] = value
    with pytest.raises(InputError, match=says):
        write_splats(replace(some(), **{name: bad}), tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())
    # As another program would have written it.
    write_splats(some(degree=0), tmp_path / "a.ply")
    head, mark, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    rows = np.frombuffer(body, "<f4").reshape(50, -1).copy()
    rows[3, {"means": slice(0, 3), "opacity_logits": slice(9, 10), "quaternions": slice(13, 17)}[name]] = value
    (tmp_path / "a.ply").write_bytes(head + mark + rows.tobytes())
    with pytest.raises(InputError, match=says):
        read_splats(tmp_path / "a.ply")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_splats(some(degree=1), path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"property float f_rest_8\n", b""))
    with pytest.raises(InputError, match=r"8 properties f_rest_\*; degree 0, 1, 2 and 3 have 0, 9, 24 and 45"):
        read_splats(path)
    path.write_bytes(whole.replace(b"f_rest_8", b"f_rest_9"))
    with pytest.raises(InputError, match="lacks the properties f_rest_8"):
        read_splats(path)
    path.write_bytes(whole.replace(b"float scale_1", b"float scale_7"))
    with pytest.raises(InputError, match="lacks the properties scale_1"):
        read_splats(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(InputError, match="cut off"):
        read_splats(path)
    path.write_bytes(b"ply\nformat ascii 1.0\n")
    with pytest.raises(InputError, match="header does not end"):
        read_splats(path)
    with pytest.raises(InputError, match="there is no file"):
        read_splats(tmp_path / "b.ply")
    with pytest.raises(InputError, match=r"kept in \.ply, \.glb; got '\.splat'"):
        write_splats(some(), tmp_path / "a.splat")
    with pytest.raises(InputError, match="no splats"):
        write_splats(some(count=0), tmp_path / "c.ply")


@pytest.mark.parametrize("lost", ["ROTATION", "SH_DEGREE_1_COEF_2"])
def test_a_glb_that_lacks_an_attribute_is_refused(lost: str, tmp_path: Path) -> None:
    write_splats(some(degree=1), tmp_path / "a.glb")
    data = (tmp_path / "a.glb").read_bytes()
    (tmp_path / "a.glb").write_bytes(data.replace(f":{lost}".encode(), b":" + b"Q" * len(lost)))
    with pytest.raises(InputError, match="lack" if lost == "ROTATION" else "3 coefficients a colour"):
        read_splats(tmp_path / "a.glb")


def test_splats_read_as_a_mesh_say_what_they_are(tmp_path: Path) -> None:
    for suffix in ("ply", "glb"):
        write_splats(some(), tmp_path / f"a.{suffix}")
        with pytest.raises(InputError, match="Gaussian splats, not a mesh: read it with dreamkit"):
            read(tmp_path / f"a.{suffix}")


def test_arrays_of_other_shapes_are_refused() -> None:
    good = some(degree=1)
    with pytest.raises(ValueError, match=r"means \[50, 3\] float32; got float64"):
        replace(good, means=good.means.astype(np.float64))
    with pytest.raises(ValueError, match=r"quaternions \[50, 4\]"):
        replace(good, quaternions=good.quaternions[:, :3])
    with pytest.raises(ValueError, match="1, 4, 9 or 16 coefficients"):
        replace(good, sh=good.sh[:, :3])
