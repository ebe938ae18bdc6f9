"""Gaussian splats to and from files: the PLY of 3D Gaussian Splatting, and glTF with KHR_gaussian_splatting.

PLY (arXiv:2308.04079, and the files its authors published): float32 properties x y z, nx ny nz (0), f_dc_0..2,
f_rest_0..(3 K - 4), opacity, scale_0..2, rot_0..3; scales are logarithms, opacities logits, quaternions (w, x, y, z),
and f_rest holds all coefficients above degree 0 of red, then of green, then of blue. What is written comes back to the
last bit.

glTF: KHR_gaussian_splatting as ratified (the text of Khronos' repository of 15 April 2026), kernel "ellipse", colours
"srgb_rec709_display". It stores scales and opacities themselves, as float32, so those come back to rounding: opacities
to 2^-24, which for a logit of 8 is 2e-4 and above 16.6 is the end.

Frames: a PLY has none; its splats are read and written as they are, and so are in the world frame of `cameras.py` if
this program wrote them. In a GLB the same numbers stand under a node that turns them into glTF's frame, so nothing is
turned in writing, nor in reading what we wrote. Another program's nodes are followed: `turned` moves means, quaternions
and spherical harmonics of every degree.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dreamkit.assets.conventions import from_gltf_frame, to_linear, version
from dreamkit.assets.gltf import UNDERSTOOD, GlbWriter, Gltf, open_gltf
from dreamkit.assets.harmonics import BASE, harmonics_turn
from dreamkit.assets.ply import elements, header_lines, opening
from dreamkit.disk import make_folder, write_whole
from dreamkit.errors import InputError

KHR = "KHR_gaussian_splatting"
DEGREES = {1: 0, 4: 1, 9: 2, 16: 3}
"""Of spherical harmonics, by the number K of their coefficients."""
NEAREST_TO_ONE = 1 - 2.0**-24
"""The largest opacity below 1 that float32 holds; 2^-24 is taken for the least, so that logits stay finite."""
ARRAYS = ("means", "log_scales", "quaternions", "opacity_logits", "sh")
PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4"}
PLY_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
PLY_TYPES |= {"float32": "f4", "float64": "f8", "double": "f8"}


@dataclass(frozen=True)
class Splats:
    """N Gaussians, as they are trained: float32 arrays."""

    means: np.ndarray
    """[N, 3]."""
    log_scales: np.ndarray
    """[N, 3] natural logarithms of the standard deviations along their own axes."""
    quaternions: np.ndarray
    """[N, 4] (w, x, y, z) from their own axes to the frame of the means; of any length but 0."""
    opacity_logits: np.ndarray
    """[N]; the opacity is 1 / (1 + exp(-logit))."""
    sh: np.ndarray
    """[N, K, 3] coefficients of real spherical harmonics, K = (degree + 1)^2 of degree 0 to 3, of red, green and blue.
    Colour = 0.5 + sum over k of sh[k] * Y_k(direction from the camera), display-referred."""

    def __post_init__(self) -> None:
        count = len(self.means)
        coefficients = self.sh.shape[1] if self.sh.ndim == 3 else 0
        wanted = {"means": (count, 3), "log_scales": (count, 3), "quaternions": (count, 4), "opacity_logits": (count,)}
        wanted["sh"] = (count, coefficients, 3)
        for name, shape in wanted.items():
            values = getattr(self, name)
            if values.shape != shape or values.dtype != np.float32:
                raise ValueError(f"Splats needs {name} {list(shape)} float32; got {values.dtype} {list(values.shape)}")
        if coefficients not in DEGREES:
            raise ValueError(f"Splats needs 1, 4, 9 or 16 coefficients a colour; got sh {list(self.sh.shape)}")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Of the spherical harmonics, 0 to 3."""
        return DEGREES[self.sh.shape[1]]


def write_splats(splats: Splats, path: Path | str, extras: dict[str, Any] | None = None) -> list[Path]:
    """Write the splats as .ply or .glb, and return the files written.

    Args:
        extras: anything JSON can say, kept where `files.read_extras` finds it.

    Raises InputError for another suffix, no splats, a number that is not finite, or a quaternion of length 0; then
    nothing is written.
    """
    path = Path(path)
    suffix = _suffix(path, (".ply", ".glb"))
    said = _fault(splats)
    if said:
        raise InputError(f"{path} was not written: {said}")
    data = (_ply if suffix == ".ply" else _glb)(splats, extras or {})
    make_folder(path.parent)
    write_whole(path, data)
    return [path]


def read_splats(path: Path | str) -> Splats:
    """The splats in a .ply, .glb or .gltf file; of a glTF in the world frame, all of its scene.

    Raises InputError if the file is missing, cut off or damaged; if an attribute is missing, or some coefficients of a
    degree; if a number is not finite; if a quaternion has length 0; or for a node that stretches or mirrors.
    """
    path = Path(path)
    suffix = _suffix(path, (".ply", ".glb", ".gltf"))
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    try:
        splats = _from_ply(path.read_bytes()) if suffix == ".ply" else _from_gltf(path)
        said = _fault(splats)
    except InputError as error:
        raise InputError(f"{path} cannot be read as splats: {error}") from error
    except Exception as error:  # a damaged file fails wherever it is looked at
        raise InputError(f"{path} cannot be read as splats: it is damaged ({type(error).__name__}: {error})") from error
    if said:
        raise InputError(f"{path} cannot be read as splats: {said}")
    return splats


def _fault(splats: Splats) -> str:
    """What is wrong with the numbers; empty if nothing is."""
    if not len(splats):
        return "there are no splats in it"
    for name in ARRAYS:
        bad = ~np.isfinite(getattr(splats, name).reshape(len(splats), -1)).all(1)
        if bad.any():
            return f"the {name} of {int(bad.sum())} splats are not finite, the first of number {int(bad.argmax())}"
    flat = np.linalg.norm(splats.quaternions.astype(np.float64), axis=1) == 0
    if flat.any():
        return f"{int(flat.sum())} quaternions have length 0, the first of number {int(flat.argmax())}"
    return ""


def _suffix(path: Path, known: tuple[str, ...]) -> str:
    if path.suffix.lower() not in known:
        raise InputError(f"{path}: splats are kept in {', '.join(known)}; got {path.suffix or 'no suffix'!r}")
    return path.suffix.lower()


# ---- PLY


def _columns(coefficients: int) -> list[str]:
    """The names of a splat's properties, in the order of the files of 3D Gaussian Splatting."""
    rest = [f"f_rest_{i}" for i in range(3 * (coefficients - 1))]
    shape = ["opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    return ["x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)), *rest, *shape]


def _ply(splats: Splats, extras: dict[str, Any]) -> bytes:
    names = _columns(splats.sh.shape[1])
    rest = splats.sh[:, 1:].transpose(0, 2, 1).reshape(len(splats), -1)  # colour by colour
    normals = np.zeros_like(splats.means)
    shape = [splats.opacity_logits[:, None], splats.log_scales, splats.quaternions]
    rows = np.concatenate([splats.means, normals, splats.sh[:, 0], rest, *shape], axis=1)
    header = [*opening(extras), f"element vertex {len(rows)}", *(f"property float {n}" for n in names), "end_header"]
    return "\n".join(header).encode("ascii") + b"\n" + rows.astype("<f4").tobytes()


def _from_ply(data: bytes) -> Splats:
    lines = header_lines(data)
    found = _vertices(data, lines)
    rest = [name for name in found if re.fullmatch(r"f_rest_\d+", name)]
    coefficients = len(rest) // 3 + 1
    if len(rest) % 3 or coefficients not in DEGREES:
        raise InputError(
            f"it has {len(rest)} properties f_rest_*; degree 0, 1, 2 and 3 have 0, 9, 24 and 45 (3 colours each)"
        )
    wanted = [name for name in _columns(coefficients) if name not in ("nx", "ny", "nz")]
    missing = [name for name in wanted if name not in found]
    if missing:
        raise InputError(f"it lacks the properties {', '.join(missing)}, so it is no file of Gaussian splats")

    def gather(*names: str) -> np.ndarray:
        return np.stack([found[name] for name in names], axis=-1).astype(np.float32)

    base = gather("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if rest:
        above = gather(*(f"f_rest_{i}" for i in range(len(rest)))).reshape(len(base), 3, -1).transpose(0, 2, 1)
        base = np.concatenate([base, above], axis=1)
    scales, turns = (gather(*(f"{name}_{i}" for i in range(n))) for name, n in (("scale", 3), ("rot", 4)))
    return Splats(gather("x", "y", "z"), scales, turns, gather("opacity")[:, 0], np.ascontiguousarray(base))


def _vertices(data: bytes, lines: list[str]) -> dict[str, np.ndarray]:
    """The columns of a PLY's first element, which must be `vertex` and have plain numbers only."""
    counts = dict(elements(data))
    if not counts or next(iter(counts)) != "vertex":
        raise InputError(f"its first element is {next(iter(counts), 'none')}, not vertex")
    start = next(i for i, line in enumerate(lines) if line.startswith("element vertex"))
    columns = []
    for line in lines[start + 1 :]:
        if line.startswith("element"):
            break
        if line.startswith("property"):
            if line.split()[1] not in PLY_TYPES:
                raise InputError(f"its splats have a property that is no number: {line}")
            columns.append((line.split()[2], PLY_TYPES[line.split()[1]]))
    order = ">" if any(line.startswith("format binary_big_endian") for line in lines) else "<"
    row = np.dtype([(name, order + kind) for name, kind in columns])
    body = data[data.index(b"\n", data.index(b"end_header")) + 1 :]
    count = counts["vertex"]
    if any(line.startswith("format ascii") for line in lines):
        texts = body.split(b"\n")[:count]
        table = np.array([text.split() for text in texts], np.float64).reshape(len(texts), len(columns))
        return {name: table[:, i] for i, (name, _) in enumerate(columns)}
    if len(body) < count * row.itemsize:
        raise InputError(f"it is cut off: {len(body)} bytes of splats, {count * row.itemsize} wanted")
    rows = np.frombuffer(body, row, count)
    return {name: rows[name] for name in row.names or ()}


# ---- glTF


def _attributes(degree: int) -> list[str]:
    """The names of the attributes of spherical harmonics, in the order of `Splats.sh`."""
    return [f"{KHR}:SH_DEGREE_{n}_COEF_{i}" for n in range(degree + 1) for i in range(2 * n + 1)]


def _glb(splats: Splats, extras: dict[str, Any]) -> bytes:
    """One primitive of points, under a node that turns the world into glTF's frame; COLOR_0 for viewers without the
    extension."""
    writer = GlbWriter()
    opacity = 1 / (1 + np.exp(-splats.opacity_logits.astype(np.float64)))
    turns = splats.quaternions / np.linalg.norm(splats.quaternions.astype(np.float64), axis=1, keepdims=True)
    plain = to_linear((0.5 + BASE * splats.sh[:, 0]).clip(0, 1))
    values = {
        f"{KHR}:ROTATION": turns[:, [1, 2, 3, 0]],
        f"{KHR}:SCALE": np.exp(splats.log_scales.astype(np.float64)).clip(max=np.finfo(np.float32).max),
        f"{KHR}:OPACITY": opacity[:, None],
        "COLOR_0": np.concatenate([plain, opacity[:, None]], axis=1),
    }
    attributes = {"POSITION": writer.attribute(splats.means, bounds=True)}
    attributes |= {name: writer.attribute(rows) for name, rows in values.items()}
    attributes |= {name: writer.attribute(splats.sh[:, i]) for i, name in enumerate(_attributes(splats.degree))}
    said = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    primitive = {"mode": 0, "attributes": attributes, "extensions": {KHR: said}}
    return writer.pack(
        {
            "asset": {"version": "2.0", "generator": f"dreamkit {version()}", "extras": extras},
            "extensionsUsed": [KHR],
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0, "name": "dreamkit", "rotation": [-0.5, -0.5, -0.5, 0.5]}],
            "meshes": [{"primitives": [primitive]}],
        }
    )


def _from_gltf(path: Path) -> Splats:
    gltf = open_gltf(path, (*UNDERSTOOD, KHR))
    found = []
    for node, matrix in gltf.placed():
        for primitive in gltf.tree["meshes"][node["mesh"]]["primitives"] if "mesh" in node else []:
            if KHR in primitive.get("extensions", {}):
                found.append(_moved(_primitive(gltf, primitive), matrix))
    if not found:
        raise InputError(f"no primitive in it has the extension {KHR}")
    if len({len(splats.sh[0]) for splats in found if len(splats)}) > 1:
        raise InputError("its primitives have spherical harmonics of different degrees")
    return Splats(**{name: np.concatenate([getattr(splats, name) for splats in found]) for name in ARRAYS})


def _primitive(gltf: Gltf, primitive: dict[str, Any]) -> Splats:
    """The splats of a primitive, in its own frame."""
    said, names = primitive["extensions"][KHR], primitive["attributes"]
    if said.get("kernel", "ellipse") != "ellipse" or said.get("extensions"):
        raise InputError(f"its splats are of kernel {said.get('kernel')!r} with {list(said.get('extensions', {}))}")
    if said.get("colorSpace") != "srgb_rec709_display":
        raise InputError(f"its colours are {said.get('colorSpace')!r}; srgb_rec709_display is read")
    count = sum(name.startswith(f"{KHR}:SH_DEGREE_") for name in names)
    wanted = _attributes(DEGREES.get(count, 0))
    needed = ["POSITION", *(f"{KHR}:{name}" for name in ("ROTATION", "SCALE", "OPACITY")), *wanted]
    missing = [name for name in needed if name not in names]
    if missing or count not in DEGREES:
        raise InputError(
            f"its splats lack {', '.join(missing)}"
            if missing
            else f"its splats have {count} coefficients a colour; degree 0, 1, 2 and 3 have 1, 4, 9 and 16"
        )
    position, turn, scale, opacity = (gltf.accessor(names[name]).astype(np.float64) for name in needed[:4])
    opacity = opacity[:, 0].clip(1 - NEAREST_TO_ONE, NEAREST_TO_ONE)
    sh = np.stack([gltf.accessor(names[name]) for name in wanted], axis=1).astype(np.float32)
    logs = np.log(np.maximum(scale, np.finfo(np.float32).tiny))
    arrays: list[np.ndarray] = [position, logs, turn[:, [3, 0, 1, 2]], np.log(opacity) - np.log1p(-opacity), sh]
    return Splats(**{name: rows.astype(np.float32) for name, rows in zip(ARRAYS, arrays, strict=True)})


def _moved(splats: Splats, matrix: np.ndarray) -> Splats:
    """Splats placed by a node's [4, 4] matrix, in the world frame. Raises InputError unless it turns, moves and scales
    evenly."""
    inner = from_gltf_frame(matrix[:3, :3].T).T
    scale = float(np.cbrt(np.linalg.det(inner)))
    if not scale > 0 or not np.allclose(inner @ inner.T, scale**2 * np.eye(3), atol=1e-5 * scale**2):
        raise InputError("a node stretches or mirrors its splats; only moving, turning and even scaling is read")
    return moved(turned(splats, inner / scale), scale, from_gltf_frame(matrix[None, :3, 3])[0])


# ---- Moving and turning


def moved(splats: Splats, scale: float, offset: np.ndarray) -> Splats:
    """The splats made `scale` times as large about the origin, and moved by `offset` [3]; untouched if that is 1 and
    0."""
    if abs(scale - 1) > 1e-6:
        logs = (splats.log_scales + np.log(scale)).astype(np.float32)
        splats = replace(splats, means=(splats.means * scale).astype(np.float32), log_scales=logs)
    return replace(splats, means=(splats.means + offset).astype(np.float32)) if np.any(offset) else splats


def turned(splats: Splats, rotation: np.ndarray) -> Splats:
    """The splats turned about the origin by a rotation matrix [3, 3]: means, quaternions, and harmonics of every
    degree, so that the same camera, turned with them, sees the same."""
    if np.allclose(rotation, np.eye(3), atol=1e-6):
        return splats
    w, x, y, z = quaternion_of(rotation)
    left = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    sh = np.einsum("ij,njc->nic", harmonics_turn(rotation, splats.degree), splats.sh)
    return replace(
        splats,
        means=(splats.means @ rotation.T).astype(np.float32),
        quaternions=(splats.quaternions @ left.T).astype(np.float32),
        sh=sh.astype(np.float32),
    )


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """The unit quaternion (w, x, y, z) of a rotation matrix [3, 3], w >= 0."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return np.array([w, x, y, z]) * (1 if w >= 0 else -1)
