"""Painted meshes from files and other scenes and back to files, and whole runs with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamkit import api
from dreamkit.assets.bake import texels, weld
from dreamkit.assets.files import read, write
from dreamkit.assets.prepare import cube_sphere, painted, place, with_texture_coordinates
from dreamkit.assets.unwrap import uv_areas
from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh
from dreamkit.render.mesh import render_mesh
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.mesh import MeshSurface, from_file
from dreamkit.representations.paint import Texture
from dreamkit.representations.representation import Solid
from dreamkit.streams import Streams
from tests.mesh_scenes import KINDS, NET, QUICK, SMALL, TINY, VIEWS, a_mesh, scene

# ---- From and to files, and other scenes -----------------------------------------------------------------------------


def test_a_mesh_goes_through_unchanged(tmp_path):
    """Every texel, every map, every vertex, in the units of the file."""
    source = a_mesh()
    write(source, tmp_path / "ball.glb")
    source = read(tmp_path / "ball.glb")
    built = replace(SMALL, source=str(tmp_path / "ball.glb")).build("cpu", Streams(0, 0))
    write(built.to_source(built.mesh()), tmp_path / "again.glb")
    again = read(tmp_path / "again.glb")
    for name in ("vertices", "faces", "uv"):
        assert np.array_equal(getattr(again, name), getattr(source, name)), name
    used = np.unique(np.concatenate([texel for texel, _, _ in texels(source, 64)]))
    for name in ("texture", "roughness"):
        mine, theirs = (getattr(m, name).reshape(64 * 64, -1)[used] for m in (again, source))
        assert np.array_equal(mine, theirs), name
    # Only x and y of the normals are kept, z follows: to a step of 8 bits.
    difference = again.normal_map.astype(int) - source.normal_map.astype(int)
    assert np.abs(difference.reshape(64 * 64, 3)[used]).max() <= 1
    assert again.metallic.shape == (64, 64)  # was 32 x 32: as fine as the roughness now


def test_where_a_source_is_placed():
    mesh = a_mesh()
    placement = place(mesh, 0.8)
    assert placement.centre == pytest.approx((30, -20, 70), abs=1e-4)
    placed = placement.to_scene(mesh.vertices)
    assert np.linalg.norm(placed, axis=1).max() == pytest.approx(0.8, abs=1e-6)
    back = placed.astype(np.float64) * placement.scale + placement.centre
    assert np.abs(back - mesh.vertices).max() < 1e-4


def test_what_has_moved_goes_back_in_the_units_of_the_source(tmp_path):
    write(a_mesh(), tmp_path / "ball.glb")
    built = scene(spec=replace(SMALL, source=str(tmp_path / "ball.glb")))
    mesh = built.mesh()
    back = built.to_source(mesh)
    np.testing.assert_allclose(built.to_scene(back).vertices, mesh.vertices, rtol=0, atol=1e-6)
    far = np.abs(back.vertices - read(tmp_path / "ball.glb").vertices).max()
    near = np.abs(mesh.vertices - built._parts[0].base[built._parts[0].number].numpy()).max()
    assert far == pytest.approx(near * 50 / 0.8, rel=1e-3)  # a ball of 50 fits one of 0.8
    assert near > 0.01


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e4, 1e15])
def test_units_may_be_huge_or_tiny(scale, tmp_path):
    ball = cube_sphere(4, 0.5)
    write(replace(ball, vertices=(ball.vertices * scale).astype(np.float32)), tmp_path / "ball.obj")
    spec = replace(SMALL, source=str(tmp_path / "ball.obj"), radius=0.5)
    built, plain = spec.build("cpu", Streams(0, 0)), scene(rough=False)
    # OBJ files hold 7 digits.
    torch.testing.assert_close(built.render(VIEWS).alpha, plain.render(VIEWS).alpha, rtol=0, atol=2e-3)
    back = built.to_source(built.mesh()).vertices
    assert np.abs(back).max() == pytest.approx(0.5 * scale, rel=1e-6)


def test_a_source_without_texture_coordinates_is_unwrapped_and_keeps_its_colours(tmp_path, device):
    ball = cube_sphere(4, 0.5)
    colours = (0.5 + ball.vertices).clip(0, 1).astype(np.float32)
    bare = Mesh(ball.vertices, ball.faces, colours)
    write(bare, tmp_path / "ball.ply")
    built = replace(SMALL, source=str(tmp_path / "ball.ply"), radius=0.5, paint=Texture(size=256)).build(
        device, Streams(0, 0)
    )
    want = render_mesh(bare, VIEWS, supersample=6, device=device)
    difference = (built.render(VIEWS).rgb - want.rgb).abs()
    assert difference.median() < 4e-3  # a step of 8 bits
    assert difference.mean() < 5e-3
    points = torch.tensor(ball.vertices, device=device)
    # Colours of 8 bits, in texels of 1/80 unit.
    assert (built.colour(points).cpu() - torch.tensor(colours)).abs().max() < 0.03


def test_texture_coordinates_that_repeat_are_made_anew():
    """The texture is read where it lay, and is the same on the surface."""
    mesh = cube_sphere(6, 0.5)
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, :16, 0], stripes[:, 16:, 1] = 255, 255
    tiled = replace(mesh, uv=(3 * mesh.uv - 1).astype(np.float32), texture=stripes)
    new, origin = with_texture_coordinates(tiled, 512)
    assert new.uv.min() >= 0
    assert new.uv.max() <= 1
    assert np.array_equal(new.vertices, tiled.vertices[origin])
    assert np.abs(uv_areas(new.uv, new.faces)).sum() < 1
    fine = replace(tiled, uv=tiled.uv - np.floor(tiled.uv.min()))
    got, want = (render_mesh(m, VIEWS, supersample=4).rgb for m in (new, _wrapped(fine)))
    assert (got - want).abs().mean() < 0.02  # the edges of the stripes, in other texels


def _wrapped(mesh):
    """The same with a texture that holds as many repetitions as are used, so that any renderer shows them."""
    times = int(np.ceil(mesh.uv.max()))
    return replace(mesh, uv=(mesh.uv / times).astype(np.float32), texture=np.tile(mesh.texture, (times, times, 1)))


def test_good_texture_coordinates_are_left_alone():
    mesh = cube_sphere(4, 0.5)
    same, origin = with_texture_coordinates(mesh, 64)
    assert same is mesh
    assert np.array_equal(origin, np.arange(len(mesh.vertices)))
    for bad in (np.zeros_like(mesh.uv), mesh.uv + 0.5, np.full_like(mesh.uv, np.nan)):
        other, _ = with_texture_coordinates(replace(mesh, uv=bad), 64, time_limit_s=0)
        assert np.isfinite(other.uv).all()
        assert (uv_areas(other.uv, other.faces) != 0).all()


def test_the_ball_is_a_sphere_with_texture_coordinates_of_its_own():
    ball = cube_sphere(5, 0.7)
    assert len(ball.faces) == 12 * 25
    np.testing.assert_allclose(np.linalg.norm(ball.vertices, axis=1), 0.7, atol=1e-6)
    positions, _ = weld(ball)
    assert len(positions) == 6 * 25 + 2  # Euler: V - E + F = 2, E = 3 F / 2
    outward = (ball.face_normals * ball.vertices[ball.faces].mean(1)).sum(1)
    assert outward.min() > 0.6
    areas = uv_areas(ball.uv, ball.faces)
    assert areas.min() > 0
    assert painted(ball, 64, np.ones((len(ball.vertices), 1))).min() == 1


def test_a_scene_from_a_volume_looks_like_it():
    volume = HashGrid(NET.encoding, hidden=8, blob_strength=200.0).build("cpu", Streams(0, 0))
    table = volume.network.table
    with torch.no_grad():
        table += 0.5 * torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    spec = replace(SMALL, paint=Texture(size=128), grid_resolution=48, face_budget=3000)
    built = spec.from_scene(volume, "cpu", Streams(0, 0))
    views = orbit([30.0, 200.0], 20.0, size=48)
    with torch.no_grad():
        want, got = volume.render(views), built.render(views)
    inside = (want.alpha > 0.9) & (got.alpha > 0.9)
    assert ((want.alpha > 0.5) != (got.alpha > 0.5)).float().mean() < 0.02
    assert (want.rgb - got.rgb).abs().mean(1, keepdim=True)[inside].mean() < 0.05


def test_a_scene_from_a_volume_begins_with_what_is_as_opaque_as_it_says():
    volume = HashGrid(NET.encoding, hidden=8, blob_strength=200.0).build("cpu", Streams(0, 0))
    spec, views = replace(SMALL, grid_resolution=48, face_budget=3000), orbit([30.0, 200.0], 20.0, size=48)
    with torch.no_grad():
        seen = volume.render(views).alpha > 0.1
        off = [
            (seen != (replace(spec, opaque=opaque).from_scene(volume, "cpu", Streams(0, 0)).render(views).alpha > 0.5))
            for opaque in (0.1, 0.5)
        ]
    # Both silhouettes are of 480 pixels, with 78 along the border: 6 of those are off where the mesh is to be as large
    # as what is a tenth opaque, and a rim of 32 where it begins with what is half so.
    assert off[0].sum() < 12
    assert off[1].sum() > 24


@pytest.mark.parametrize("opaque", [0.0, 1.0])
def test_an_opacity_that_shows_all_or_nothing_is_refused(opaque):
    with pytest.raises(InputError, match="opaque between 0 and 1"):
        MeshSurface(opaque=opaque)


def test_a_scene_from_a_mesh_scene_is_the_same(device):
    other = scene(device)
    built = replace(SMALL, paint=Texture(size=64)).from_scene(other, device, Streams(0, 0))
    assert isinstance(built, Solid)
    # The texture has 8 bits now; the charts' surroundings are filled.
    assert (built.render(VIEWS).rgb - other.render(VIEWS).rgb).abs().median() < 3e-3
    with pytest.raises(InputError, match="CanvasScene"):
        SMALL.from_scene(Canvas().build("cpu", Streams(0, 0)), "cpu", Streams(0, 0))


def test_the_network_is_baked_as_it_shows(device):
    built = scene(device, spec=replace(KINDS["lit network"], texture_size=256))
    mesh = built.mesh()
    assert {name: x.shape[:2] for name, x in mesh.maps.items()} == dict.fromkeys(
        ("texture", "roughness", "metallic"), (256, 256)
    )
    with torch.no_grad():
        shown = built.render(VIEWS, shading="albedo", background=(1.0, 1.0, 1.0)).rgb
    want = render_mesh(mesh, VIEWS, supersample=6, device=device).rgb
    assert (shown - want).abs().median() < 5e-3
    points = torch.tensor(mesh.vertices, device=device)
    assert built.colour(points).shape == points.shape


def test_bad_sources_are_named(tmp_path):
    def says(match, name, spec=SMALL):
        with pytest.raises(InputError, match=match):
            replace(spec, source=str(tmp_path / name)).build("cpu", Streams(0, 0)).parameters()
        with pytest.raises(InputError, match=match):
            from_file(tmp_path / name)

    says("there is no file", "none.glb")
    (tmp_path / "empty.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    says("triangle", "empty.obj")
    (tmp_path / "nan.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n")
    says("finite", "nan.obj")
    (tmp_path / "point.obj").write_text("v 5 5 5\nv 5 5 5\nv 5 5 5\nf 1 2 3\n")
    says("no extent", "point.obj")
    (tmp_path / "far.obj").write_text("v 1e9 0 0\nv 1e9 1 0\nv 1e9 0 1\nf 1 2 3\n")
    says("no extent", "far.obj")
    says("glb", "mesh.fbx")
    for bad in ({"radius": 0.0}, {"ball": 2.0}, {"cells": 0}, {"smoothing": -1}):
        with pytest.raises(InputError):
            MeshSurface(**bad)
    for bad in ({"size": 4}, {"rate": -1.0}):
        with pytest.raises(InputError):
            Texture(**bad)


def test_a_face_without_area_and_a_stray_vertex_do_no_harm(tmp_path):
    ball = cube_sphere(4, 0.5)
    stray = np.concatenate([ball.vertices, [[50, 50, 50]]]).astype(np.float32)
    faces = np.concatenate([ball.faces, [[0, 0, 1]]]).astype(np.int32)
    placement = place(Mesh(stray, faces), 0.5)
    assert placement.scale == pytest.approx(1, abs=1e-5)
    built = SMALL.build("cpu", Streams(0, 0))
    built._begin = lambda: (Mesh(stray, faces), placement)
    images = built.render(VIEWS, normals=True)
    (images.rgb.sum() + images.normal.sum() + images.depth.sum()).backward()
    assert images.rgb.isfinite().all()
    assert built.offsets.grad.isfinite().all()


# ---- The whole way ---------------------------------------------------------------------------------------------------


def stopped(done, total, figures):
    if done == 8:
        raise KeyboardInterrupt


def test_a_grey_mesh_comes_out_red_in_its_old_shape_also_when_it_was_stopped(tmp_path):
    """From the command to the file; the second time stopped, and gone on with after the source was deleted."""
    source = tmp_path / "ball.glb"
    write(replace(a_mesh(), texture=np.full((32, 32, 3), 128, np.uint8)), source)
    before = read(source)
    given = {"system": TINY, "start": source, "keep": "geometry", "device": "cpu"} | QUICK
    whole = api.generate("a red ball", out=tmp_path / "whole", **given)
    after = read(whole.exported.files[0])
    for name in ("vertices", "faces", "uv"):
        assert np.array_equal(getattr(after, name), getattr(before, name)), name
    used = np.unique(np.concatenate([texel for texel, _, _ in texels(before, 64)]))
    assert np.array_equal(after.roughness.reshape(-1)[used], before.roughness.reshape(-1)[used])
    red, green, blue = after.texture.reshape(-1, 3).mean(0)
    assert red > 128 + 20 > 128 - 20 > max(green, blue)
    assert whole.exported.agreement.iou > 0.97
    assert np.abs(whole.mesh.vertices).max() < 1  # in the scene's units
    with pytest.raises(KeyboardInterrupt):
        api.generate("a red ball", out=tmp_path / "stopped", watch=stopped, **given)
    source.unlink()
    resumed = api.resume(tmp_path / "stopped")
    assert resumed.exported.files[0].read_bytes() == whole.exported.files[0].read_bytes()


def test_a_mesh_starts_from_nothing_too(tmp_path):
    result = api.generate(
        "a red ball", system=TINY, representation="mesh", steps=4, out=tmp_path / "run", device="cpu", **QUICK
    )
    assert len(result.mesh.faces) == 12 * 16**2
    assert result.exported.agreement.iou > 0.97


def test_what_cannot_be_kept_or_found_is_said(tmp_path):
    with pytest.raises(InputError, match="HashGrid cannot be locked"):
        api.generate("a red ball", system=TINY, keep="geometry")
    with pytest.raises(InputError, match="what can be kept is geometry"):
        api.generate("a red ball", system=TINY, representation="mesh", keep="colour")
    with pytest.raises(InputError, match="there is no file"):
        api.generate("a red ball", system=TINY, start=tmp_path / "none.glb")


def test_another_paint_keeps_the_place_of_the_source(tmp_path):
    """A scene of a mesh in a file, far off and large, made into one of another paint: exported where it was."""
    far = replace(cube_sphere(4, 0.5), vertices=(100 * cube_sphere(4, 0.5).vertices + 7).astype(np.float32))
    write(far, tmp_path / "far.glb")
    first = replace(SMALL, source=str(tmp_path / "far.glb"), paint=NET, texture_size=32).build("cpu", Streams(0, 0))
    second = SMALL.from_scene(first, "cpu", Streams(0, 0))
    assert second.placement == first.placement
    mesh = second.to_source(second.mesh())
    np.testing.assert_allclose(mesh.vertices.max(0), far.vertices.max(0), rtol=1e-5)


def test_a_normal_map_is_left_behind_where_the_charts_are_made_anew():
    mesh = cube_sphere(6, 0.5)
    bumps = np.full((32, 32, 3), 128, np.uint8)
    tiled = replace(mesh, uv=(3 * mesh.uv - 1).astype(np.float32), texture=bumps, normal_map=bumps)
    new, _ = with_texture_coordinates(tiled, 64)
    assert new.texture is not None
    assert new.normal_map is None
