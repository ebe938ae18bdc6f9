"""USDZ: what Apple's viewers and USD pipelines open. Needs the package usd-core, which brings `pxr`.

A package of one binary layer and its pictures: a mesh with coordinates `st` and a UsdPreviewSurface, whose inputs are
those of glTF's material. Pictures of colour are declared sRGB, all others raw.
"""

import json
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dreamkit.assets.bake import to_bytes, vertex_normals
from dreamkit.assets.conventions import (
    from_gltf_frame,
    picture_from,
    png_bytes,
    to_display,
    to_gltf_frame,
    to_linear,
    version,
)
from dreamkit.assets.gltf_mesh import placed
from dreamkit.assets.parts import Note, Part, merge
from dreamkit.errors import InputError, RunError
from dreamkit.meshes import ROUGHNESS, Mesh

SURFACE = "/dreamkit/surface"
EXTRAS = "dreamkit-extras"
FALLBACKS: dict[str, Any] = {"texture": (0.18, 0.18, 0.18), "roughness": 0.5, "metallic": 0.0}
"""What UsdPreviewSurface means by an input that is not given."""
INPUTS = {"texture": "diffuseColor", "roughness": "roughness", "metallic": "metallic", "normal_map": "normal"}


def need_usd() -> None:
    """Raise InputError if usd-core is not installed."""
    try:
        import pxr  # noqa: F401
    except ImportError as error:
        raise InputError("USDZ needs the package usd-core: pip install usd-core, or choose glb") from error


def usdz_bytes(mesh: Mesh, extras: dict[str, Any]) -> bytes:
    """A USDZ package of one mesh with one material, +y up, in metres. Raises InputError without usd-core."""
    need_usd()
    from pxr import Sdf, Usd, UsdGeom, UsdShade, UsdUtils

    with tempfile.TemporaryDirectory(prefix="dreamkit-usd-") as place:
        folder = Path(place)
        stage = Usd.Stage.CreateNew(str(folder / "mesh.usdc"))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        stage.SetMetadata("customLayerData", {"dreamkit": version(), EXTRAS: json.dumps(extras)})
        stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/dreamkit").GetPrim())
        shape = _shape(stage, mesh)
        UsdShade.MaterialBindingAPI.Apply(shape.GetPrim()).Bind(_material(stage, mesh, folder))
        stage.GetRootLayer().Save()
        if not UsdUtils.CreateNewUsdzPackage(Sdf.AssetPath(str(folder / "mesh.usdc")), str(folder / "mesh.usdz")):
            raise RunError("usd-core could not pack the USDZ: choose glb")
        return (folder / "mesh.usdz").read_bytes()


def _shape(stage: Any, mesh: Mesh) -> Any:
    """The mesh as a prim: positions, faces, normals, coordinates, colours in light."""
    from pxr import Sdf, UsdGeom, Vt

    shape = UsdGeom.Mesh.Define(stage, "/dreamkit/mesh")
    points = to_gltf_frame(mesh.vertices).astype(np.float32)
    shape.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points))
    shape.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(np.stack([points.min(0), points.max(0)])))
    shape.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(mesh.faces), 3, np.int32)))
    shape.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(mesh.faces.reshape(-1).astype(np.int32)))
    shape.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(to_gltf_frame(vertex_normals(mesh)).astype(np.float32)))
    shape.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    shape.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    shape.CreateDoubleSidedAttr(True)
    variables, types = UsdGeom.PrimvarsAPI(shape), Sdf.ValueTypeNames
    if mesh.uv is not None:
        laid = variables.CreatePrimvar("st", types.TexCoord2fArray, UsdGeom.Tokens.vertex)
        laid.Set(Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(mesh.uv, np.float32)))
    if mesh.texture is None and mesh.colours is not None:
        colours = variables.CreatePrimvar("displayColor", types.Color3fArray, UsdGeom.Tokens.vertex)
        colours.Set(Vt.Vec3fArray.FromNumpy(to_linear(mesh.colours).astype(np.float32)))
    return shape


def _material(stage: Any, mesh: Mesh, folder: Path) -> Any:
    """A UsdPreviewSurface: rough and not metallic, but for what the maps say."""
    from pxr import Sdf, UsdShade

    material = UsdShade.Material.Define(stage, SURFACE)
    surface = _shader(stage, "shader", "UsdPreviewSurface", roughness=("Float", ROUGHNESS), metallic=("Float", 0.0))
    material.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")

    def connect(name: str, type_: str, source: Any, channel: str, channel_type: str) -> None:
        source.CreateOutput(channel, getattr(Sdf.ValueTypeNames, channel_type))
        taken = surface.CreateInput(name, getattr(Sdf.ValueTypeNames, type_))
        taken.ConnectToSource(source.ConnectableAPI(), channel)

    if mesh.texture is None and mesh.colours is not None:
        colours = _shader(stage, "colours", "UsdPrimvarReader_float3", varname=("String", "displayColor"))
        connect("diffuseColor", "Color3f", colours, "result", "Float3")
    for kind, texels in mesh.maps.items():
        (folder / f"{kind}.png").write_bytes(png_bytes(texels))
        picture = _picture(stage, kind)
        wanted = {"texture": "Color3f", "normal_map": "Normal3f"}.get(kind, "Float")
        connect(INPUTS[kind], wanted, picture, *(("rgb", "Float3") if texels.ndim == 3 else ("r", "Float")))
    return material


def _picture(stage: Any, kind: str) -> Any:
    """The shader that looks a picture up at `st`; normals are turned from [0, 1] into [-1, 1]."""
    from pxr import Gf, Sdf

    inputs: dict[str, tuple[str, Any]] = {
        "file": ("Asset", f"{kind}.png"),
        "sourceColorSpace": ("Token", "sRGB" if kind == "texture" else "raw"),
        "wrapS": ("Token", "clamp"),
        "wrapT": ("Token", "clamp"),
    }
    if kind == "normal_map":
        inputs |= {"scale": ("Float4", Gf.Vec4f(2, 2, 2, 1)), "bias": ("Float4", Gf.Vec4f(-1, -1, -1, 0))}
    picture = _shader(stage, kind, "UsdUVTexture", **inputs)
    coordinates = _shader(stage, "coordinates", "UsdPrimvarReader_float2", varname=("String", "st"))
    coordinates.CreateOutput("result", Sdf.ValueTypeNames.Float2)
    laid = picture.CreateInput("st", Sdf.ValueTypeNames.Float2)
    laid.ConnectToSource(coordinates.ConnectableAPI(), "result")
    return picture


def _shader(stage: Any, name: str, kind: str, **inputs: tuple[str, Any]) -> Any:
    from pxr import Sdf, UsdShade

    made = UsdShade.Shader.Define(stage, f"{SURFACE}/{name}")
    made.CreateIdAttr(kind)
    for key, (type_, value) in inputs.items():
        made.CreateInput(key, getattr(Sdf.ValueTypeNames, type_)).Set(value)
    return made


def read_usdz(path: Path, note: Note) -> Mesh:
    """The mesh of a USDZ file in the world frame: all its polygons, cut into triangles, where their prims stand.

    Of a material the inputs of UsdPreviewSurface that a mesh can say, each a constant or one picture. Raises
    InputError without usd-core.
    """
    need_usd()
    from pxr import Usd, UsdGeom

    stage = _opened(path)
    unit = UsdGeom.GetStageMetersPerUnit(stage)
    cache, parts = UsdGeom.XformCache(), []
    for prim in Usd.PrimRange(stage.GetPseudoRoot(), Usd.TraverseInstanceProxies(Usd.PrimDefaultPredicate)):
        if not prim.IsA(UsdGeom.Mesh):
            continue
        matrix = np.array(cache.GetLocalToWorldTransform(prim)).T
        matrix[:3] *= unit
        found = _polygons(UsdGeom.Mesh(prim), _laid_by(prim))
        if UsdGeom.Subset.GetAllGeomSubsets(UsdGeom.Imageable(prim)):
            note(f"{prim.GetPath()} has several materials: only the one of the whole is read")
        parts.append(Part(placed(_dressed(prim, found, path, note), matrix)))
    if not parts:
        raise InputError("it holds no polygons")
    mesh = merge(parts, note)
    z_up = UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z
    return mesh if z_up else replace(mesh, vertices=from_gltf_frame(mesh.vertices))


def _opened(path: Path) -> Any:
    from pxr import Tf, Usd

    try:
        return Usd.Stage.Open(str(path))
    except Tf.ErrorException as error:
        raise InputError("it is damaged, or no USDZ") from error


def _polygons(shape: Any, laid_by: str) -> Mesh:
    """Positions, faces, `displayColor` and the coordinates of that name. Where those are told by corner or by face,
    every corner becomes a vertex of its own."""
    from pxr import UsdGeom

    points = np.array(shape.GetPointsAttr().Get(), np.float32).reshape(-1, 3)
    counts = np.array(shape.GetFaceVertexCountsAttr().Get(), int)
    corner = np.array(shape.GetFaceVertexIndicesAttr().Get(), int)
    faces = _fans(counts)
    if shape.GetOrientationAttr().Get() == UsdGeom.Tokens.leftHanded:
        faces = faces[:, ::-1]
    primvars = UsdGeom.PrimvarsAPI(shape)
    told = {name: v for name in ("displayColor", laid_by) if (v := primvars.GetPrimvar(name)) and v.HasValue()}
    if {str(variable.GetInterpolation()) for variable in told.values()} <= {"vertex", "varying", "constant"}:
        vertex, faces = np.arange(len(points)), corner[faces]
    else:
        vertex = corner
    place = {"vertex": vertex, "varying": vertex, "constant": np.zeros(len(vertex), int)}
    place |= {"faceVarying": np.arange(len(corner)), "uniform": np.repeat(np.arange(len(counts)), counts)}
    rows = {
        name: np.array(variable.ComputeFlattened(), np.float32).reshape(-1, 3 if name == "displayColor" else 2)[
            place[str(variable.GetInterpolation())]
        ]
        for name, variable in told.items()
    }
    colours = to_display(rows["displayColor"].clip(0, 1)).astype(np.float32) if "displayColor" in rows else None
    return Mesh(points[vertex], np.ascontiguousarray(faces, np.int32), colours, rows.get(laid_by))


def _fans(counts: np.ndarray) -> np.ndarray:
    """[T, 3] corners of the triangles of polygons with so many corners each, all numbered through."""
    start, triangles = np.cumsum(counts) - counts, np.maximum(counts - 2, 0)
    face = np.repeat(np.arange(len(counts)), triangles)
    step = np.arange(triangles.sum()) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    return np.stack([start[face], start[face] + step + 1, start[face] + step + 2], axis=-1)


def _surface(prim: Any) -> Any:
    """The shader of its material, if that is one that can be read."""
    from pxr import UsdShade

    material = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0]
    surface = material.ComputeSurfaceSource()[0] if material else None
    return surface if surface and surface.GetShaderId() == "UsdPreviewSurface" else None


def _source(given: Any) -> tuple[Any, str]:
    """The shader that an input comes from and the name of its output there; none where it comes from none."""
    from pxr import UsdShade

    source = given.GetConnectedSources()[0] if given and given.HasConnectedSource() else []
    return (UsdShade.Shader(source[0].source), str(source[0].sourceName)) if source else (None, "")


def _laid_by(prim: Any) -> str:
    """The name of the coordinates that the pictures of its material are laid by; "st" is the usual one."""
    surface = _surface(prim)
    for name in INPUTS.values() if surface else ():
        picture, _ = _source(surface.GetInput(name))
        reader, _ = _source(picture.GetInput("st")) if picture else (None, "")
        if reader and reader.GetInput("varname"):
            return str(reader.GetInput("varname").Get() or "st")
    return "st"


def _dressed(prim: Any, mesh: Mesh, path: Path, note: Note) -> Mesh:
    """The mesh with the constants and pictures of its material."""
    surface, maps, bare = _surface(prim), {}, False
    for kind, name in INPUTS.items() if surface else ():
        given = surface.GetInput(name)
        shader, output = _source(given)
        if shader and shader.GetShaderId() == "UsdUVTexture" and mesh.uv is None:
            bare = True
        elif shader and shader.GetShaderId() == "UsdUVTexture":
            picture = _packed_picture(path, shader.GetInput("file").Get())
            channel = "rgb".find(output)
            colour = kind in ("texture", "normal_map")
            maps[kind] = picture if colour else np.ascontiguousarray(picture[..., max(channel, 0)])
        elif shader is None and kind in ("roughness", "metallic"):
            plain = ROUGHNESS if kind == "roughness" else 0.0
            value = _said(given, FALLBACKS[kind])
            if abs(value - plain) > 1e-6:
                maps[kind] = to_bytes(np.full((1, 1), value))
        elif kind == "texture" and shader is None and (mesh.colours is None or (given and given.Get() is not None)):
            colour_ = to_display(np.array(_said(given, FALLBACKS[kind]), np.float32).clip(0, 1)).astype(np.float32)
            mesh = replace(mesh, colours=np.tile(colour_, (len(mesh.vertices), 1)))
    if bare:
        note(f"{prim.GetPath()} has pictures, but no coordinates to lay them by: left out")
    if maps and mesh.uv is None:
        mesh = replace(mesh, uv=np.full((len(mesh.vertices), 2), 0.5, np.float32))
    return replace(mesh, colours=None if "texture" in maps else mesh.colours, **maps)


def _said(given: Any, fallback: Any) -> Any:
    """The value of an input, or what the specification of UsdPreviewSurface says of one that is not there."""
    value = given.Get() if given else None
    return fallback if value is None else value


def _packed_picture(path: Path, asset: Any) -> np.ndarray:
    """A picture inside the package."""
    with zipfile.ZipFile(path) as package:
        wanted = asset.path.removeprefix("./")
        names = [name for name in package.namelist() if name == wanted or name.endswith(f"/{wanted}")]
        names.sort(key=len)
        if not names:
            raise InputError(f"it names the picture {asset.path}, but does not hold it")
        return picture_from(package.read(names[0]), asset.path)


def usdz_extras(path: Path) -> dict[str, Any]:
    """The `extras` of a USDZ that we wrote; empty for another program's. Raises InputError without usd-core."""
    need_usd()
    said = _opened(path).GetMetadata("customLayerData") or {}
    return dict(json.loads(said.get(EXTRAS, "{}")))
