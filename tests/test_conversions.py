"""From one kind of scene to another, and to files: what every conversion must keep, and what cannot be converted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamkit import api
from dreamkit.assets.files import read, write
from dreamkit.assets.splats import Splats, read_splats, write_splats
from dreamkit.cameras import orbit
from dreamkit.cli import main
from dreamkit.errors import InputError, RunError
from dreamkit.export import export_scene
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.meshes import Mesh, join
from dreamkit.metrics.compare import compare, silhouette_iou
from dreamkit.recipe import Export
from dreamkit.representations import Canvas, DMTet, Gaussians, HashGrid, MeshSurface, SignedDistance
from dreamkit.representations import distil as teaching
from dreamkit.representations.gaussians import as_they_are
from dreamkit.representations.mesh import from_file
from dreamkit.representations.network import Network
from dreamkit.representations.particles import Particles
from dreamkit.representations.surface import signed_distance, surface_of
from dreamkit.state import handed_over
from dreamkit.streams import Streams
from dreamkit.toybox.kinds import ball, box
from dreamkit.triangles import face_normals, on_surface

STREAMS, CPU = Streams(0, -1), torch.device("cpu")
VIEWS = orbit([20.0, 140.0, 260.0], 25.0, size=64)
ENCODING = HashGridShape(levels=6, features=2, log2_entries=13, coarsest=8, finest=64)
NERF = HashGrid(encoding=ENCODING, hidden=16, cells=24)
NET = Network(encoding=ENCODING, hidden=16)
FEW = {"formats": "('splat-ply',)", "texture_size": "64", "grid_resolution": "24", "unwrap_seconds": "0.0"}
SMALL = Export(formats=("glb", "splat-ply"), grid_resolution=48, face_budget=3000, texture_size=256, unwrap_seconds=0.0)


def two_colours() -> Mesh:
    """A red ball beside a blue box: another look from every side."""
    red, blue = ball((0.0, -0.35, 0.0), 0.4), box((0.0, 0.4, 0.0), (0.5, 0.5, 0.7))
    colours = (
        np.tile(np.float32([c]), (len(m.vertices), 1)) for m, c in ((red, (0.9, 0.1, 0.1)), (blue, (0.1, 0.2, 0.9)))
    )
    return join(*(Mesh(m.vertices, m.faces, c) for m, c in zip((red, blue), colours, strict=True)))


@pytest.fixture(scope="module", autouse=True)
def brief() -> Iterator[None]:
    """Shorter lessons, for scenes as small as these."""
    short = {"STEPS": 150, "PICTURES": 40, "NEAR": 1 << 13, "FAR": 1 << 11, "BATCH": 1 << 12, "GRID": 48}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in short.items():
            patch.setattr(teaching, name, value)
        patch.setattr(teaching, "CAMERAS", replace(teaching.CAMERAS, size=48))
        yield


@pytest.fixture(scope="module")
def thing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = write(two_colours(), tmp_path_factory.mktemp("thing") / "thing.glb")
    return path


@pytest.fixture(scope="module")
def scenes(thing):
    """The thing as every kind of scene, each made of the mesh."""
    mesh = from_file(thing).build("cpu", STREAMS)
    specs = {
        "nerf": NERF,
        "sdf": SignedDistance(grid=replace(NERF, step=0.04)),
        "dmtet": DMTet(resolution=32, colour=NET),
        "gaussians": Gaussians(count=4000, antialiased=True),
    }
    return {"mesh": mesh} | {name: spec.from_scene(mesh, "cpu", STREAMS) for name, spec in specs.items()}


def seen(scene):
    with torch.no_grad():
        return scene.render(VIEWS, shading="albedo", background=(1.0, 1.0, 1.0))


# ---- What is kept ---------------------------------------------------------------------------------------------------


# A rim of one pixel in 64 is a tenth of the silhouette of a ball 20 pixels wide; half a pixel all round is an IoU of
# about 0.92, and where it shows a colour against white, 20 dB. A lost half, or colours swapped, are 8 dB and an IoU of
# one half.
KEPT = {
    ("mesh", "nerf"): (0.92, 21.0),
    ("mesh", "sdf"): (0.92, 21.0),
    ("mesh", "dmtet"): (0.94, 24.0),
    ("mesh", "gaussians"): (0.9, 20.0),
}


@pytest.mark.parametrize("path", KEPT)
def test_a_scene_made_of_a_mesh_looks_like_it(scenes, path):
    source, target = path
    kept, (iou, psnr) = compare(seen(scenes[source]), seen(scenes[target])), KEPT[path]
    assert kept.iou > iou, kept
    assert kept.psnr > psnr, kept


@pytest.mark.parametrize("source", ["nerf", "sdf", "dmtet", "gaussians"])
def test_a_mesh_made_of_a_scene_looks_like_it(scenes, source):
    spec = MeshSurface(face_budget=6000, grid_resolution=64)
    kept = compare(seen(scenes[source]), seen(spec.from_scene(scenes[source], "cpu", STREAMS)))
    assert kept.iou > 0.9
    assert kept.psnr > 22


def test_a_signed_distance_stays_one(scenes):
    made = scenes["sdf"]
    mesh, _ = surface_of(scenes["mesh"], 5000, 48)
    vertices, faces = torch.as_tensor(mesh.vertices), torch.as_tensor(mesh.faces)
    points = on_surface(vertices, faces, 2000, Streams(1, 0))
    normals = face_normals(vertices, faces)[points.face]
    near = points.position + 0.04 * normals * Streams(1, 0).normal("near", (2000, 1))
    with torch.no_grad():
        # Its pictures show the surface 2 widths outside of where it is 0.
        error = made.distance(near) - signed_distance(mesh, near) - 2 * made.width
    assert error.abs().median() < 0.01  # the finest cells are 0.03 wide
    assert 0.7 < made.gradient(near).detach().norm(dim=1).median() < 1.4


def test_equal_streams_teach_equal_bits(monkeypatch):
    monkeypatch.setattr(teaching, "STEPS", 3)
    monkeypatch.setattr(teaching, "PICTURES", 2)
    sphere = MeshSurface().build("cpu", STREAMS)
    one, other, third = (NERF.from_scene(sphere, "cpu", Streams(seed, -1)) for seed in (4, 4, 5))
    assert all(torch.equal(a, b) for a, b in zip(one.state().values(), other.state().values(), strict=True))
    assert not torch.equal(one.network.table, third.network.table)


def test_a_network_paint_learns_the_colours(thing):
    mesh = from_file(thing).build("cpu", STREAMS)
    painted = MeshSurface(paint=NET, texture_size=64).from_scene(mesh, "cpu", STREAMS)
    assert compare(seen(mesh), seen(painted)).psnr > 25


# ---- Handing over ---------------------------------------------------------------------------------------------------


def test_a_scene_of_its_own_kind_that_does_not_fit_is_converted(scenes):
    clay = replace(DMTet(resolution=16), colour=None)
    grey = clay.from_scene(scenes["mesh"], "cpu", STREAMS)
    coloured = handed_over(grey, clay, replace(clay, colour=NET), 0, CPU)
    assert coloured.albedo is not None
    assert silhouette_iou(seen(grey).alpha, seen(coloured).alpha) > 0.99
    assert (seen(coloured).rgb - seen(grey).rgb).abs().mean() < 0.02  # clay is 0.5, also in colours

    coarse = replace(NERF, encoding=replace(ENCODING, levels=4))
    made = handed_over(scenes["nerf"], NERF, coarse, 0, CPU)
    assert made.network.table.shape != scenes["nerf"].network.table.shape
    assert silhouette_iou(seen(scenes["nerf"]).alpha, seen(made).alpha) > 0.85  # cells of a quarter of the first's

    same = handed_over(scenes["nerf"], NERF, NERF, 0, CPU)
    assert torch.equal(same.network.table, scenes["nerf"].network.table)
    with pytest.raises(ValueError, match="a canvas of 8 pixels"):
        handed_over(Canvas(size=9).build("cpu", STREAMS), Canvas(size=9), Canvas(size=8), 0, CPU)


def test_particles_are_converted_one_by_one(scenes):
    spec = Particles(DMTet(resolution=8, colour=None), 2)
    made = handed_over(scenes["mesh"], MeshSurface(), spec, 0, CPU)
    assert len(made.scenes) == 2
    assert silhouette_iou(seen(scenes["mesh"]).alpha, seen(made.scenes[1]).alpha) > 0.75  # cubes of 0.2


# ---- Files ----------------------------------------------------------------------------------------------------------


def test_gaussians_are_exported_as_they_are_and_as_a_mesh(scenes, tmp_path):
    scene = scenes["gaussians"]
    exported = export_scene(scene, replace(SMALL, formats=("splat-glb", "glb", "splat-ply")), tmp_path, {})
    assert [file.name for file in exported.files] == ["mesh.glb", "points.glb", "points.ply"]
    assert exported.agreement.iou > 0.9
    assert exported.agreement.psnr > 22
    assert exported.splats is not None
    assert exported.splats.psnr > 60  # the GLB holds opacities and scales, not their logits and logarithms
    assert exported.facts()["splats"]["silhouette_iou"] == 1.0
    back, held = read_splats(tmp_path / "points.ply"), scene.splats()
    assert all(np.array_equal(getattr(back, name), getattr(held, name)) for name in ("means", "log_scales", "sh"))


def test_a_scene_of_another_kind_is_exported_as_splats_too(scenes, tmp_path):
    exported = export_scene(scenes["dmtet"], replace(SMALL, formats=("splat-ply",), splats=3000), tmp_path, {})
    assert [file.name for file in exported.files] == ["points.ply"]
    assert len(read_splats(tmp_path / "points.ply")) == 3000
    assert exported.splats is not None
    assert exported.splats.iou > 0.9
    assert exported.agreement.iou > 0.97  # of the mesh that would have been written


def test_splats_become_a_mesh_and_a_mesh_splats_by_one_command(thing, scenes, tmp_path, capfd):
    # A file that stands elsewhere, and is ten times as large: what is made of it stands there too.
    given = read(thing)
    (big,) = write(replace(given, vertices=10 * given.vertices + np.float32([5, 0, 2])), tmp_path / "big.glb")
    assert (
        main(["export", str(big), "--formats", "splat-ply", "--out", str(tmp_path / "a"), "--set", "splats=3000"]) == 0
    )
    means = read_splats(tmp_path / "a" / "points.ply").means
    assert np.abs(means.mean(0) - [5, 0, 2]).max() < 1.5
    assert 6 < np.ptp(means, axis=0).max() < 16

    write_splats(scenes["gaussians"].splats(), tmp_path / "points.ply")
    said = ["--set", "texture_size=256", "--set", "unwrap_seconds=0.0", "--set", "grid_resolution=48"]
    assert (
        main(["export", str(tmp_path / "points.ply"), "--formats", "glb,ply", "--out", str(tmp_path / "b"), *said]) == 0
    )
    assert "PSNR" in capfd.readouterr().out
    made = MeshSurface(source=str(tmp_path / "b" / "mesh.glb"), radius=1.0).build("cpu", STREAMS)
    made = replace(made.mesh(), vertices=read(tmp_path / "b" / "mesh.glb").vertices)
    truth = read(thing)
    assert np.abs(made.vertices.max(0) - scenes["mesh"].mesh().vertices.max(0)).max() < 0.05
    assert len(truth.faces) != len(made.faces)


# ---- What cannot be -------------------------------------------------------------------------------------------------


def empty_nerf():
    scene = replace(NERF, blob_strength=0.0, radius=1e-3).build("cpu", STREAMS)
    scene.occupied.zero_()
    return scene


@pytest.mark.parametrize("spec", [NERF, SignedDistance(grid=NERF), DMTet(resolution=8), MeshSurface(), Gaussians()])
def test_a_picture_is_refused(spec):
    with pytest.raises(InputError, match="CanvasScene has neither a surface nor a density"):
        spec.from_scene(Canvas().build("cpu", STREAMS), "cpu", STREAMS)


def test_an_empty_scene_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(RunError, match="no object"):
        NERF.from_scene(empty_nerf(), "cpu", STREAMS)
    with pytest.raises(RunError, match="no object"):
        export_scene(empty_nerf(), replace(SMALL, grid_resolution=16), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", "there are no splats in it"),
        ("far", "move the object"),
        ("missing", "there is no file"),
        ("text", "PLY"),
    ],
)
def test_a_file_that_cannot_be_converted_gets_one_message_and_leaves_nothing(name, said, tmp_path, scenes, capfd):
    held = scenes["gaussians"].splats()
    path = tmp_path / f"{name}.ply"
    if name == "none":
        write_splats(held, path)
        header = path.read_bytes().split(b"end_header")[0].replace(b"vertex 4000", b"vertex 0")
        path.write_bytes(header + b"end_header\n")
    elif name == "far":
        write_splats(replace(held, means=50 * held.means), path)
    elif name == "text":
        path.write_text("hello")
    assert main(["export", str(path), "--formats", "glb", "--out", str(tmp_path / "out")]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert sum(line.startswith("dreamkit: ") and said in line for line in lines) == 1
    assert not (tmp_path / "out").exists()


def test_out_is_for_files_and_a_file_is_not_written_over(scenes, tmp_path, capfd):
    (path,) = write_splats(scenes["gaussians"].splats(), tmp_path / "points.ply")
    before = path.read_bytes()
    assert main(["export", str(path), "--formats", "glb"]) == 2
    assert "--out FOLDER" in capfd.readouterr().err
    with pytest.raises(InputError, match="written over"):
        api.convert(path, tmp_path, settings={"formats": "('splat-ply',)"})
    assert path.read_bytes() == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(InputError, match="is the folder of a run, whose files would be written over"):
        api.convert(path, tmp_path / "run", settings={"formats": "('glb',)"})
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["run.json"]
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "b")]) == 2
    assert "--out is for files" in capfd.readouterr().err


def test_colours_of_a_mesh_are_laid_on_as_many_texels_as_asked(tmp_path):
    (path,) = write(two_colours(), tmp_path / "a.ply")
    few = FEW | {"formats": ("glb",), "texture_size": 512}
    assert api.convert(path, tmp_path / "out", settings=few).mesh.texture.shape == (512, 512, 3)


def test_what_is_odd_about_a_file_is_said(tmp_path):
    whole, told = two_colours(), []
    (path,) = write(replace(whole, faces=whole.faces[1:]), tmp_path / "a.ply")  # a triangle is missing
    api.convert(path, tmp_path / "out", settings=FEW | {"formats": ("stl",)}, note=told.append)
    assert f"{path}: not closed: 3 edges have one face" in told


def test_the_picture_of_a_ply_is_not_written_over(tmp_path):
    (path,) = write(two_colours(), tmp_path / "a.ply")
    with pytest.raises(InputError, match="or its pictures would be written over"):
        api.convert(path, tmp_path, settings=FEW | {"formats": "('obj',)"})


def test_a_budget_that_a_textured_mesh_does_not_follow_is_said(thing, tmp_path):
    told = []
    found = api.convert(thing, tmp_path, settings=FEW | {"formats": "('glb',)", "face_budget": "50"}, note=told.append)
    said = f"face_budget=50: the scene is a textured mesh, which keeps its {found.faces} faces"
    assert found.faces > 50
    assert said in told


def test_a_run_from_a_mesh_has_the_size_and_texels_it_asks_for(thing, tmp_path):
    asked = {"representation.radius": "0.4", "representation.paint.size": "64", "export.turntable_seconds": "0"}
    made = {"start": thing, "keep": "geometry", "steps": 1, "out": tmp_path / "run", "device": "cpu"}
    tiny = str(Path(__file__).parent / "data" / "tiny_system.py")
    result = api.generate("a red ball", system=tiny, representation="mesh", settings=asked, **made)
    mesh = result.scene.mesh()
    assert np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(0.4, rel=1e-5)  # float32
    assert mesh.texture.shape == (64, 64, 3)


def test_splats_of_a_file_are_read_with_all_their_harmonics(tmp_path):
    rng = np.random.default_rng(0)
    count = 50
    held = Splats(
        (0.5 * rng.random((count, 3))).astype(np.float32),
        np.full((count, 3), -3, np.float32) + rng.random((count, 3), np.float32),
        rng.normal(size=(count, 4)).astype(np.float32),
        rng.normal(size=count).astype(np.float32),
        (0.1 * rng.normal(size=(count, 9, 3))).astype(np.float32),
    )
    write_splats(held, tmp_path / "a.ply")
    api.convert(tmp_path / "a.ply", tmp_path / "out", settings=FEW)
    back = read_splats(tmp_path / "out" / "points.ply")
    for name in ("means", "log_scales", "quaternions", "opacity_logits", "sh"):
        # What is not seen of it is not touched; a logarithm is clamped, and so may be rounded.
        np.testing.assert_allclose(getattr(back, name), getattr(held, name), atol=1e-6, err_msg=name)


def test_colours_of_splats_that_need_their_harmonics_stay(tmp_path):
    """A base colour outside of what can be shown is usual where higher degrees bring it back."""
    sh = np.zeros((4, 9, 3), np.float32)
    sh[:, 0] = 5.0
    held = Splats(
        *(np.full((4, n), v, np.float32) for n, v in ((3, 0.1), (3, -3.0), (4, 0.5))), np.zeros(4, np.float32), sh
    )
    scene = as_they_are(held, "cpu")
    assert float(scene.cloud.dc.detach().min()) == 5.0
