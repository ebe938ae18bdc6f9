"""USDZ: what comes back, what USD itself says of the file, and what happens without usd-core."""

import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreamkit.assets.conventions import png_bytes, sampled, to_display
from dreamkit.assets.files import read, read_extras, write
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh
from dreamkit.recipe import Export

EXTRAS = {"prompt": "a rëd mug", "seed": 3}
POINTS = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
FACES = np.int32([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])


def surfaced() -> Mesh:
    numbers = np.random.default_rng(0)
    shapes = {"texture": (16, 16, 3), "roughness": (8, 8), "metallic": (16, 16), "normal_map": (16, 16, 3)}
    maps = {name: numbers.integers(0, 256, shape).astype(np.uint8) for name, shape in shapes.items()}
    return Mesh(POINTS, FACES, uv=numbers.random((4, 2)).astype(np.float32), **maps)


def test_without_usd_core_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pxr", None)
    with pytest.raises(InputError, match="USDZ needs the package usd-core: pip install usd-core"):
        write(surfaced(), tmp_path / "deep" / "a.usdz")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="pip install usd-core"):
        Export(formats=("glb", "usdz"))  # said before a run begins, not at its end
    Export(formats=("glb", "stl"))


def test_a_usdz_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("pxr")
    mesh = surfaced()
    assert write(mesh, tmp_path / "a.usdz", EXTRAS) == [tmp_path / "a.usdz"]
    assert [f.name for f in tmp_path.iterdir()] == ["a.usdz"]
    back = read(tmp_path / "a.usdz")
    np.testing.assert_array_equal(back.vertices, mesh.vertices)
    np.testing.assert_array_equal(back.faces, mesh.faces)
    assert back.uv is not None
    assert mesh.uv is not None
    np.testing.assert_array_equal(back.uv, mesh.uv)
    for name, texels in mesh.maps.items():
        np.testing.assert_array_equal(back.maps[name], texels)
    assert read_extras(tmp_path / "a.usdz") == EXTRAS


def test_vertex_colours_of_a_usdz_are_light(tmp_path: Path) -> None:
    pytest.importorskip("pxr")
    from pxr import Usd, UsdGeom

    mesh = Mesh(POINTS, FACES, colours=np.full((4, 3), 0.5, np.float32))
    write(mesh, tmp_path / "a.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    shape = UsdGeom.Mesh(stage.GetPrimAtPath("/dreamkit/mesh"))
    np.testing.assert_allclose(shape.GetDisplayColorAttr().Get(), 0.21404, atol=1e-5)  # sRGB 0.5
    back = read(tmp_path / "a.usdz")
    np.testing.assert_allclose(back.colours, 0.5, atol=1e-6)


def test_what_usd_says_of_the_file(tmp_path: Path) -> None:
    pytest.importorskip("pxr")
    from pxr import Usd, UsdGeom, UsdShade

    write(surfaced(), tmp_path / "a.usdz")
    with zipfile.ZipFile(tmp_path / "a.usdz") as package:
        assert package.namelist()[0].endswith(".usdc")  # the first file is the one that is opened
        assert {info.compress_type for info in package.infolist()} == {zipfile.ZIP_STORED}
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert stage.GetDefaultPrim().GetPath() == "/dreamkit"
    prim = stage.GetPrimAtPath("/dreamkit/mesh")
    # The tetrahedron's +z is up: glTF's y.
    np.testing.assert_allclose(UsdGeom.Mesh(prim).GetPointsAttr().Get(), POINTS[:, [1, 2, 0]])
    surface = UsdShade.MaterialBindingAPI(prim).ComputeBoundMaterial()[0].ComputeSurfaceSource()[0]
    spaces = {}
    for name in ("diffuseColor", "roughness", "metallic", "normal"):
        picture = UsdShade.Shader(surface.GetInput(name).GetConnectedSources()[0][0].source)
        spaces[name] = picture.GetInput("sourceColorSpace").Get()
        assert picture.GetInput("file").Get().resolvedPath
    assert spaces == {"diffuseColor": "sRGB", "roughness": "raw", "metallic": "raw", "normal": "raw"}


def test_other_stages_are_followed(tmp_path: Path) -> None:
    """Z up, centimetres, a moved and left-handed quad with a colour, and coordinates by corner."""
    pytest.importorskip("pxr")
    from pxr import Gf, Sdf, Usd, UsdGeom, UsdUtils

    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
    UsdGeom.SetStageMetersPerUnit(stage, 0.01)
    UsdGeom.Xform.Define(stage, "/top").AddTranslateOp().Set(Gf.Vec3d(100, 0, 0))
    quad = UsdGeom.Mesh.Define(stage, "/top/quad")
    quad.CreatePointsAttr([(0, 0, 0), (0, 100, 0), (100, 100, 0), (100, 0, 0)])
    quad.CreateFaceVertexCountsAttr([4])
    quad.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
    quad.CreateOrientationAttr(UsdGeom.Tokens.leftHanded)
    quad.CreateDisplayColorPrimvar(UsdGeom.Tokens.constant).Set([(1, 0, 0)])
    laid = UsdGeom.PrimvarsAPI(quad).CreatePrimvar("st", Sdf.ValueTypeNames.TexCoord2fArray, "faceVarying")
    laid.Set([(0, 0), (0, 1), (1, 1), (1, 0)])
    stage.GetRootLayer().Save()
    assert UsdUtils.CreateNewUsdzPackage(str(tmp_path / "a.usda"), str(tmp_path / "a.usdz"))
    mesh = read(tmp_path / "a.usdz")
    assert len(mesh.faces) == 2
    np.testing.assert_allclose(mesh.face_normals, [[0, 0, 1]] * 2, atol=1e-6)
    corners = mesh.vertices[mesh.faces].reshape(-1, 3)
    np.testing.assert_allclose([corners.min(0), corners.max(0)], [[1, 0, 0], [2, 1, 0]], atol=1e-6)
    assert mesh.uv is not None
    np.testing.assert_allclose(mesh.uv[mesh.faces], (mesh.vertices[mesh.faces] - [1, 0, 0])[..., :2], atol=1e-6)
    np.testing.assert_allclose(mesh.colours, np.tile([1, 0, 0], (len(mesh.vertices), 1)), atol=1e-6)


def test_a_damaged_usdz_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pxr")
    write(replace(surfaced(), roughness=None), tmp_path / "a.usdz")
    data = (tmp_path / "a.usdz").read_bytes()
    for part in (b"", data[: len(data) // 2]):
        (tmp_path / "a.usdz").write_bytes(part)
        with pytest.raises(InputError, match="cannot be read as USDZ"):
            read(tmp_path / "a.usdz")


def test_a_material_counts_more_than_the_colour_for_display_and_names_its_coordinates(tmp_path: Path) -> None:
    """Grey for display, of a red material; and pictures of like names, laid by coordinates of a name of their own."""
    pytest.importorskip("pxr")
    from pxr import Sdf, Usd, UsdGeom, UsdShade, UsdUtils

    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    blue, green = np.uint8([[[0, 0, 255]]]), np.uint8([[[0, 255, 0]]])
    (tmp_path / "colour.png").write_bytes(png_bytes(blue))
    (tmp_path / "basecolour.png").write_bytes(png_bytes(green))
    for name, file in (("plain", None), ("other", "basecolour.png"), ("laid", "colour.png")):
        quad = UsdGeom.Mesh.Define(stage, f"/{name}")
        quad.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (0, 1, 0)])
        quad.CreateFaceVertexCountsAttr([3])
        quad.CreateFaceVertexIndicesAttr([0, 1, 2])
        quad.CreateDisplayColorPrimvar(UsdGeom.Tokens.constant).Set([(0.5, 0.5, 0.5)])
        laid = UsdGeom.PrimvarsAPI(quad).CreatePrimvar("UVMap", Sdf.ValueTypeNames.TexCoord2fArray, "vertex")
        laid.Set([(0.1, 0.1), (0.9, 0.1), (0.1, 0.9)])
        material = UsdShade.Material.Define(stage, f"/{name}/look")
        shader = UsdShade.Shader.Define(stage, f"/{name}/look/surface")
        shader.CreateIdAttr("UsdPreviewSurface")
        colour = shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f)
        colour.Set((0.8, 0.0, 0.0))
        if file:
            picture = UsdShade.Shader.Define(stage, f"/{name}/look/picture")
            picture.CreateIdAttr("UsdUVTexture")
            picture.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(f"./{file}")
            reader = UsdShade.Shader.Define(stage, f"/{name}/look/reader")
            reader.CreateIdAttr("UsdPrimvarReader_float2")
            reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("UVMap")
            picture.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
            colour.ConnectToSource(picture.ConnectableAPI(), "rgb")
        material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
        UsdShade.MaterialBindingAPI.Apply(quad.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()
    assert UsdUtils.CreateNewUsdzPackage(str(tmp_path / "a.usda"), str(tmp_path / "a.usdz"))
    red = to_display(np.float32([0.8, 0, 0]))
    found = colours_of_faces(read(tmp_path / "a.usdz"))
    np.testing.assert_allclose(found, [255 * red, [0, 255, 0], [0, 0, 255]], atol=1)


def colours_of_faces(mesh: Mesh) -> np.ndarray:
    """What is in the middle of each face, in bytes."""
    if mesh.texture is None or mesh.uv is None:
        assert mesh.colours is not None
        return 255 * mesh.colours[mesh.faces].mean(1)
    return sampled(mesh.texture, mesh.uv[mesh.faces].mean(1))


def test_what_a_material_leaves_out_is_what_usd_says(tmp_path: Path) -> None:
    """UsdPreviewSurface without inputs: roughness 0.5, no metal, a diffuse colour of 0.18."""
    pytest.importorskip("pxr")
    from pxr import Usd, UsdGeom, UsdShade, UsdUtils

    stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
    quad = UsdGeom.Mesh.Define(stage, "/quad")
    quad.CreatePointsAttr([(0, 0, 0), (1, 0, 0), (0, 1, 0)])
    quad.CreateFaceVertexCountsAttr([3])
    quad.CreateFaceVertexIndicesAttr([0, 1, 2])
    material = UsdShade.Material.Define(stage, "/look")
    shader = UsdShade.Shader.Define(stage, "/look/surface")
    shader.CreateIdAttr("UsdPreviewSurface")
    material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
    UsdShade.MaterialBindingAPI.Apply(quad.GetPrim()).Bind(material)
    stage.GetRootLayer().Save()
    assert UsdUtils.CreateNewUsdzPackage(str(tmp_path / "a.usda"), str(tmp_path / "a.usdz"))
    mesh = read(tmp_path / "a.usdz")
    assert mesh.roughness is not None
    assert abs(int(mesh.roughness.reshape(-1)[0]) - 127.5) < 1
    # 0.18 of light is 0.461 as it is shown (IEC 61966-2-1).
    np.testing.assert_allclose(mesh.colours, 0.461, atol=1e-3)
