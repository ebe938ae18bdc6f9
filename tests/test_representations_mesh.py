"""The painted mesh: pictures and gradients, what is kept and what changes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamkit.assets.bake import weld
from dreamkit.assets.files import read, write
from dreamkit.assets.prepare import Placement, cube_sphere, painted
from dreamkit.cameras import orbit
from dreamkit.meshes import Mesh
from dreamkit.render.mesh import render_mesh
from dreamkit.representations.paint import Texture
from dreamkit.representations.representation import LearnedColour
from dreamkit.schedule import Linear, resolve
from dreamkit.streams import Streams
from tests.mesh_scenes import KINDS, SMALL, VIEWS, a_mesh, noise, scene, shake, train

# ---- Pictures --------------------------------------------------------------------------------------------------------


def test_it_begins_as_a_grey_ball_of_its_radius(device):
    built = scene(device, rough=False)
    images = built.render(VIEWS)
    assert (images.rgb[:, :, 18, 20] - 0.5).abs().max() < 1e-6
    assert (images.rgb[:, :, 0, 0] == 1).all()
    # A ball of radius r at distance d fills pi r^2 / (d^2 - r^2) of tan^2; 192 faces cut corners.
    share = math.pi * 0.25 / (9 - 0.25) / (4 * math.tan(math.radians(18)) ** 2 * 40 / 36)
    assert images.alpha.mean().item() == pytest.approx(share, rel=0.05)
    assert images.normal is None


def test_pictures_are_those_of_rays_cast(device, tmp_path):
    """Textures, read by another renderer from the written file. Their grain is coarser than a pixel, so that mip
    levels play no part."""
    mesh = cube_sphere(8, 0.6)
    waves = 0.5 + 0.4 * np.sin(9 * mesh.vertices)
    source = replace(mesh, texture=np.rint(255 * painted(mesh, 256, waves)).astype(np.uint8))
    write(source, tmp_path / "ball.glb")
    built = replace(SMALL, source=str(tmp_path / "ball.glb"), radius=0.6).build(device, Streams(0, 0))
    cameras = orbit([20.0, 140.0], [15.0, -20.0], size=64)
    got = built.render(cameras, normals=True)
    want = render_mesh(source, cameras, supersample=6, device=device)
    difference = (got.rgb - want.rgb).abs()
    # The texture's own grain: 0.4 * 9 of colour a world unit, 0.03 units a pixel, blurred by at most one mip level.
    assert difference.median() < 1e-3
    assert difference.mean() < 4e-3
    assert (got.alpha - want.alpha).abs().mean() < 2e-3


def a_sheet():
    """A wavy square that faces +x, 6 x 6 vertices, the texture spread over it."""
    j, i = (x.reshape(-1) for x in np.meshgrid(np.arange(6), np.arange(6)))
    vertices = np.stack([0.1 * noise(36, 4).numpy(), j / 5 - 0.5, i / 5 - 0.5], axis=-1)
    corner = np.array([c for c in range(30) if c % 6 < 5])
    faces = np.concatenate([np.stack([corner, corner + a, corner + b], -1) for a, b in ((1, 7), (7, 6))])
    return Mesh(vertices.astype(np.float32), faces.astype(np.int32), uv=np.stack([j, i], -1).astype(np.float32) / 5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences(kind):
    """Of colour, opacity and depth, in every parameter, in float64.

    The mip level of a pixel and the frame of the normal map are taken as fixed when vertices move: here, no texel is
    smaller than a pixel, and normals are not bent.
    """
    spec = replace(KINDS[kind], paint=Texture(size=8)) if kind in ("unlit", "lit") else KINDS[kind]
    built = spec.build("cpu", Streams(3, 0))
    built._begin = lambda: (a_sheet(), Placement())
    shake(built)
    state = {name: x.double() if x.is_floating_point() else x for name, x in built.state().items()}
    state["vertices"] = built.state()["vertices"]  # the base stays as in the file
    if "texture/bump" in state:
        state["texture/bump"] *= 0
    built.load(state)
    views = orbit([20.0, -15.0], [15.0, -20.0], size=(36, 40))
    views = replace(views, camera_to_world=views.camera_to_world.double(), fov_degrees=views.fov_degrees.double())
    mix = Streams(5, 0)

    def value():
        images = built.render(views, background=torch.tensor([0.2, 0.4, 0.6]).double())
        parts = {"rgb": images.rgb, "alpha": images.alpha, "depth": images.depth}
        parts |= {} if images.latent is None else {"latent": images.latent}
        return sum((mix.normal(name, tuple(x.shape), like=x) * x).sum() for name, x in parts.items())

    value().backward()
    small = 1e-6
    for group in built.parameters():
        for number, parameter in enumerate(group["params"]):
            move = mix.normal(f"{group['name']}{number}", tuple(parameter.shape), like=parameter)
            if group["name"] == "offsets":
                move *= 1e-2  # a pixel that changes its face between the two pictures would count whole
            with torch.no_grad():
                parameter += small * move
                above = value()
                parameter -= 2 * small * move
                below = value()
                parameter += small * move
            slope = (parameter.grad * move).sum()
            # Off by small^2 and rounding / small, near 1e-9 of sums near 100.
            torch.testing.assert_close((above - below) / (2 * small), slope, rtol=1e-5, atol=1e-6)


def test_mirrored_texture_coordinates_bump_the_same_way():
    """A dent is a dent, whichever way round the texture lies on the face."""
    corners = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]], np.float32) * 0.5
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    tilt = np.zeros((16, 16, 3))
    tilt[...] = [0.5, 0.2, math.sqrt(1 - 0.29)]
    pictures = []
    for flip in (False, True):
        uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
        bump = tilt.copy()
        if flip:  # u runs to the left, and so does the x of the normal map: the surface's own normal is the same
            uv, bump = uv * [-1, 1] + [1, 0], bump * [-1, 1, 1]
        normal_map = np.rint(127.5 * (bump + 1)).astype(np.uint8)
        square = Mesh(corners, faces, uv=uv.astype(np.float32), normal_map=normal_map)
        built = KINDS["lit"].build("cpu", Streams(0, 0))
        built._begin = lambda mesh=square: (mesh, Placement())
        pictures.append(built.render(orbit([10.0], 20.0, size=16)).rgb)
    # The normal map has 8 bits a number, and -127.5 rounds another way than 127.5.
    torch.testing.assert_close(pictures[0], pictures[1], rtol=0, atol=5e-3)
    flat = replace(square, normal_map=None)
    built = KINDS["lit"].build("cpu", Streams(0, 0))
    built._begin = lambda: (flat, Placement())
    assert (built.render(orbit([10.0], 20.0, size=16)).rgb - pictures[0]).abs().max() > 0.05


def test_lights_are_those_that_are_asked_for(device):
    built = scene(device, spec=KINDS["lit"])
    plain, lit, clay = (built.render(VIEWS, shading=s).rgb for s in ("albedo", None, "textureless"))
    unlit = scene(device)
    unlit.load(built.state())
    assert torch.equal(unlit.render(VIEWS).rgb, plain)
    assert (lit - plain).abs().mean() > 0.005
    inside = built.render(VIEWS).alpha == 1
    assert ((clay.amax(1) - clay.amin(1))[inside[:, 0]]).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_that_misses_it_shows_the_background(kind, device):
    built = scene(device, spec=KINDS[kind])
    pose = VIEWS.camera_to_world.clone()
    pose[:, :, 3] += 10 * pose[:, :, 2]  # backwards, and then sideways
    pose[:, :, 3] += 20 * pose[:, :, 0]
    images = built.render(replace(VIEWS, camera_to_world=pose), background=(0.2, 0.4, 0.6), normals=True)
    assert images.alpha.max() == 0
    assert torch.equal(images.rgb[:, 1], torch.full_like(images.rgb[:, 1], 0.4))
    (images.rgb.sum() + images.depth.sum() + images.normal.sum()).backward()
    for group in built.parameters():
        for parameter in group["params"]:
            assert parameter.grad is None or parameter.grad.isfinite().all()


def test_equal_streams_give_equal_bits_and_previews_draw_nothing(device):
    spec = replace(SMALL, background=LearnedColour())
    one, again, other = (scene(device, spec).render(VIEWS, Streams(0, s)).rgb for s in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    built = scene(device, spec)
    assert torch.equal(built.render(VIEWS).rgb, built.render(VIEWS).rgb)


# ---- What changes ----------------------------------------------------------------------------------------------------


def test_offsets_move_patches_and_keep_seams_closed(device):
    built = scene(device, rough=False)
    with torch.no_grad():
        built.offsets[7, 0] = 1.0
    moved = (built.vertices() - scene(device, rough=False).vertices()).detach()[:, 0]
    assert (moved > 0).sum() > 20  # eight rings of neighbours
    assert 0.02 < moved.max() < 0.5
    assert moved[7] == moved.max()
    # The mean over neighbours is a mean: what moves all alike is not changed.
    with torch.no_grad():
        built.offsets[:] = 0.1
    torch.testing.assert_close(built.vertices() - 0.1, scene(device, rough=False).vertices(), rtol=0, atol=1e-6)
    mesh = built.mesh()
    assert len(weld(mesh)[0]) == len(built.offsets) < len(mesh.vertices)


def test_smoothing_is_the_mean_of_oneself_and_one_s_neighbours():
    """Against a loop, on the tetrahedron with a tail that a fan of triangles makes."""
    built = scene(spec=replace(SMALL, smoothing=1))
    shape, offsets, _ = built._parts
    near = {i: set() for i in range(len(offsets))}
    for face in shape.welded.tolist():
        for i in range(3):
            near[face[i]] |= {face[i - 1], face[i - 2]}
    values = offsets.detach().double()
    want = torch.stack([(values[i] + values[list(near[i])].mean(0)) / 2 for i in near])
    torch.testing.assert_close(built.vertices().double(), shape.base.double() + want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_shape_is_kept_to_the_bit(kind, tmp_path):
    write(a_mesh(), tmp_path / "ball.glb")
    spec = replace(KINDS[kind], source=str(tmp_path / "ball.glb"), keep_geometry=True)
    built = spec.build("cpu", Streams(0, 0))
    before = built.render(VIEWS)
    assert "offsets" not in [group["name"] for group in built.parameters()]
    train(built, range(3))
    after = built.render(VIEWS)
    assert not torch.equal(before.rgb, after.rgb)
    assert torch.equal(before.alpha, after.alpha)
    assert torch.equal(before.depth, after.depth)
    source = read(tmp_path / "ball.glb")
    assert np.array_equal(built.to_source(built.mesh()).vertices, source.vertices)
    assert np.array_equal(built.mesh().faces, source.faces)
    assert np.array_equal(built.mesh().uv, source.uv)


@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_everything_and_stays_in_range(kind):
    built = scene(spec=KINDS[kind])
    before = built.state()
    train(built, range(3))
    for group in built.parameters():
        for parameter in group["params"]:
            assert parameter.grad is not None, group["name"]
            assert parameter.grad.abs().sum() > 0, group["name"]
    after = built.state()
    for name in ("vertices", "faces", "uv", "placement"):
        assert torch.equal(before[name], after[name])
    with torch.no_grad():
        for name, tensor in built._parts[2].tensors().items():
            if name.startswith("texture"):
                tensor += 10 * noise(tensor.shape, 3).to(tensor) - 5
    built.after_step(0, Streams(0, 0))
    for name, tensor in built._parts[2].tensors().items():
        if name == "texture/bump":
            assert tensor.norm(dim=-1).max() <= 0.8 + 1e-6
        elif name.startswith("texture"):
            assert 0 <= tensor.min() <= tensor.max() <= 1


def test_learning_rates_follow_their_schedules():
    spec = replace(KINDS["lit"], vertex_rate=Linear(1.0, 3.0), paint=Texture(rate=Linear(0.0, 1.0), bump_rate=0.25))
    built = spec.build("cpu", Streams(0, 0))
    rates = {group["name"]: group["lr"] for group in built.parameters(resolve(spec, 0.5))}
    assert rates == {"offsets": 2.0, "texture/colour": 0.5, "texture/material": 0.01, "texture/bump": 0.25}


def test_a_card_of_two_sides_is_lit_on_both(tmp_path):
    """Faces of both windings share their corners, whose normals cancel: each is lit by the normal of its own."""
    corners = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]], np.float32)
    both = np.array([[0, 1, 2], [0, 2, 3], [0, 2, 1], [0, 3, 2]], np.int32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    seen = []
    for name, faces in (("one", both[:2]), ("two", both)):
        mesh = Mesh(corners, faces, uv=uv)
        write(mesh, tmp_path / f"{name}.glb")
        built = replace(KINDS["lit"], source=str(tmp_path / f"{name}.glb")).build("cpu", Streams(0, 0))
        seen.append(built.render(orbit([0.0, 180.0], 10.0, size=32)).rgb)
    assert seen[1].isfinite().all()
    # The front, as of a card of one side; but for antialiasing, which blends another face in at the rim.
    assert ((seen[1][0] - seen[0][0]).abs() > 2e-3).float().mean() < 0.01
