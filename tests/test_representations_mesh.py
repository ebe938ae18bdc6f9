"""The painted mesh: pictures and gradients, what is kept and what changes, states, and sources good and bad."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamkit import api
from dreamkit.assets.bake import texels, weld
from dreamkit.assets.files import read, write
from dreamkit.assets.prepare import Placement, cube_sphere, painted, place, with_texture_coordinates
from dreamkit.assets.unwrap import uv_areas
from dreamkit.cameras import Orbit, orbit
from dreamkit.errors import InputError
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.meshes import Mesh
from dreamkit.recipe import load as load_recipe
from dreamkit.rehearsal import load_priors, rehearse
from dreamkit.render.lighting import Studio
from dreamkit.render.mesh import render_mesh
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.mesh import MeshSurface, from_file
from dreamkit.representations.network import Network
from dreamkit.representations.paint import LatentTexture, Texture
from dreamkit.representations.representation import LearnedColour, PlainColour, Solid
from dreamkit.schedule import Linear, resolve
from dreamkit.state import fresh
from dreamkit.step import take_step
from dreamkit.streams import Streams

TINY = str(Path(__file__).parent / "data" / "tiny_system.py")
QUICK = {"settings": {"export.turntable_seconds": "0"}}
VIEWS = orbit([20.0, 140.0, 260.0], [15.0, -20.0, 40.0], size=(36, 40))
SMALL = MeshSurface(cells=4, paint=Texture(size=32), background=PlainColour((0.2, 0.4, 0.6)), light_size=16)
NET = Network(HashGridShape(levels=3, log2_entries=9, coarsest=4, finest=16), hidden=8)
KINDS = {
    "unlit": SMALL,
    "lit": replace(SMALL, environment=Studio()),
    "network": replace(SMALL, paint=NET, texture_size=32),
    "latents": replace(SMALL, paint=LatentTexture(size=8)),
    "lit network": replace(SMALL, paint=NET, texture_size=32, environment=Studio()),
}


def noise(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scene(device="cpu", spec=SMALL, rough=True):
    """A scene; `rough` gives its parameters other values than the first ones, away from the ends of their ranges."""
    built = spec.build(device, Streams(3, 0))
    if rough:
        shake(built)
    return built


@torch.no_grad()
def shake(built):
    for group in built.parameters():
        for i, parameter in enumerate(group["params"]):
            draw = noise(parameter.shape, i).to(parameter)
            if group["name"] == "offsets":
                parameter += 0.2 * (draw - 0.5)
            elif group["name"].startswith("texture"):
                parameter.copy_(0.6 * (draw - 0.5) if "bump" in group["name"] else 0.2 + 0.6 * draw)
            else:
                parameter += 0.5 * (draw - 0.5)


def train(built, steps):
    """A few steps towards a red picture, as the loop would take them."""
    optimiser = torch.optim.Adam([dict(group) for group in built.parameters()])
    for step in steps:
        streams = Streams(1, step)
        images = built.render(VIEWS, streams, training=True)
        red = torch.tensor([1.0, 0, 0], device=images.rgb.device)[:, None, None]
        loss = ((images.rgb - red) ** 2).mean() + 0.1 * images.alpha.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        built.after_step(step, streams)
    return optimiser


def a_mesh(**given):
    """A sphere of half a unit with its own texture and maps, somewhere, in centimetres."""
    ball = cube_sphere(4, 0.5)
    pictures = {
        "texture": (64, 64, 3),
        "roughness": (64, 64),
        "metallic": (32, 32),
    }
    maps = {n: (255 * noise(shape, i)).numpy().astype(np.uint8) for i, (n, shape) in enumerate(pictures.items())}
    tilt = 0.5 * noise((64, 64, 2), 9).numpy() - 0.25
    normal = np.concatenate([tilt, np.sqrt(1 - (tilt**2).sum(-1, keepdims=True))], axis=-1)
    maps["normal_map"] = np.rint(127.5 * (normal + 1)).astype(np.uint8)
    return replace(ball, vertices=(100 * ball.vertices + [30, -20, 70]).astype(np.float32), **maps | given)


# ---- Pictures ------------------------------------------------------------------------------------------------------


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
    one, again, other = (scene(device, spec).render(VIEWS, Streams(0, s), training=True).rgb for s in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    built = scene(device, spec)
    assert torch.equal(built.render(VIEWS).rgb, built.render(VIEWS, Streams(3, 4)).rgb)


# ---- What changes --------------------------------------------------------------------------------------------------


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


# ---- States --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [PlainColour(), LearnedColour()])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_scene_goes_on_bit_for_bit(kind, background, tmp_path):
    """Also when its source is gone, and when the new one was made of something else."""
    path = tmp_path / "ball.glb"
    write(a_mesh(), path)
    spec = replace(KINDS[kind], source=str(path), background=background)
    whole = scene(spec=spec)
    optimiser = train(whole, range(2))
    state = {name: tensor.clone() for name, tensor in whole.state().items()}
    statistics = optimiser.state_dict()
    path.unlink()
    resumed = spec.build("cpu", Streams(99, 0))
    resumed.load(state)

    def go_on(built, first):
        optimiser = torch.optim.Adam([dict(group) for group in built.parameters()])
        optimiser.load_state_dict(first)
        for step in (2, 3):
            optimiser.zero_grad()
            built.render(VIEWS, Streams(1, step), training=True).rgb.square().mean().backward()
            optimiser.step()
            built.after_step(step, Streams(1, step))

    for built in (whole, resumed):
        go_on(built, copy.deepcopy(statistics))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    assert torch.equal(whole.render(VIEWS).rgb, resumed.render(VIEWS).rgb)


def test_a_state_of_another_mesh_is_taken_over():
    other = scene(spec=replace(SMALL, cells=6, paint=Texture(size=16)))
    built = scene()
    built.load(other.state())
    assert torch.equal(built.render(VIEWS).rgb, other.render(VIEWS).rgb)


def test_a_shape_that_has_moved_stays_when_it_is_locked_or_smoothed_otherwise():
    moved = scene()
    want = moved.render(VIEWS)
    locked = replace(SMALL, keep_geometry=True).build("cpu", Streams(0, 0))
    locked.load(moved.state())
    assert torch.equal(locked.vertices(), moved.vertices())
    assert not locked.vertices().requires_grad
    other = replace(SMALL, smoothing=2).build("cpu", Streams(0, 0))
    other.load(moved.state())
    np.testing.assert_allclose(other.mesh().vertices, moved.mesh().vertices, rtol=0, atol=1e-6)
    for built in (locked, other):
        torch.testing.assert_close(built.render(VIEWS).rgb, want.rgb, rtol=0, atol=1e-3)


def test_a_state_is_a_copy():
    built = scene()
    state = built.state()
    train(built, range(1))
    assert not torch.equal(state["texture/colour"], built.state()["texture/colour"])


def test_another_kind_s_state_is_refused():
    with pytest.raises(ValueError, match="painted with a Network cannot go on with texture/"):
        scene(spec=KINDS["network"]).load(scene().state())
    with pytest.raises(ValueError, match="has no background"):
        scene(spec=replace(SMALL, background=LearnedColour())).load(scene().state())
    with pytest.raises(ValueError, match="offsets do not fit"):
        scene().load(scene().state() | {"offsets": torch.zeros(3, 3)})


# ---- Latents -------------------------------------------------------------------------------------------------------

PLAIN = LatentTexture(size=8, to_rgb=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
"""Latents that are colours in [-1, 1], as a pixel prior has them."""


def test_latents_are_what_the_colours_say_on_any_background(device):
    built = scene(device, replace(SMALL, paint=PLAIN))
    images = built.render(VIEWS, Streams(0, 0), training=True)
    torch.testing.assert_close(images.latent, 2 * images.rgb - 1, rtol=0, atol=1e-6)
    assert images.detach().latent is not None
    four = scene(device, KINDS["latents"], rough=False).render(VIEWS, background=(0.9, 0.1, 0.3))
    assert four.latent.shape == (3, 4, 36, 40)
    to_rgb = torch.tensor(KINDS["latents"].paint.to_rgb, device=device)
    # Antialiasing mixes latents and colours alike.
    found = 0.5 * torch.einsum("bchw,ci->bihw", four.latent, to_rgb) + 0.5
    torch.testing.assert_close(found, four.rgb, rtol=0, atol=1e-5)


def test_colours_become_latents_and_latents_colours():
    coloured = scene(spec=replace(SMALL, paint=Texture(size=8)))
    latent = KINDS["latents"].build("cpu", Streams(0, 0))
    latent.load(coloured.state())
    torch.testing.assert_close(latent.render(VIEWS).rgb, coloured.render(VIEWS).rgb, rtol=0, atol=1e-5)
    again = replace(SMALL, paint=Texture(size=64), environment=Studio()).build("cpu", Streams(0, 0))
    again.load(latent.state())
    shown = again.render(VIEWS, shading="albedo").rgb
    torch.testing.assert_close(shown, coloured.render(VIEWS).rgb, rtol=0, atol=1e-5)
    assert again.state()["texture/material"].shape == (8, 8, 2)  # lit: a texel each, to learn
    assert latent.mesh().texture.shape == (8, 8, 3)


def test_a_guide_that_sees_latents_moves_them_and_asks_for_some():
    tiny = load_recipe(TINY)
    guide = replace(tiny.stages[0].guides[0], sees="latent")
    stage = replace(tiny.stages[0], guides=(guide,), cameras=Orbit(size=8), losses=())
    recipe = replace(tiny, stages=(stage,))
    priors = load_priors(recipe, "a red ball", torch.device("cpu"))
    with pytest.raises(InputError, match="LatentTexture"):
        rehearse(recipe, priors, "a red ball", torch.device("cpu"))
    stage = replace(stage, representation=replace(SMALL, paint=PLAIN))
    state = fresh(stage, 0, torch.device("cpu"), priors)
    for _ in range(15):
        take_step(stage, state, 0, priors, "a red ball", 0)
    red, green, blue = state.scene.state()["latent/texture"].mean((0, 1))
    assert red > 0.3 > -0.3 > max(green, blue)  # the prior's mean is (0.8, -0.8, -0.8)


def test_latents_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="cannot be lit"):
        replace(KINDS["latents"], environment=Studio())
    for bad in ({"size": 4}, {"to_rgb": ()}, {"to_rgb": ((1.0, 2.0),)}):
        with pytest.raises(InputError):
            LatentTexture(**bad)


# ---- From and to files, and other scenes ---------------------------------------------------------------------------


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
    with torch.no_grad():
        volume.table += 0.5 * torch.randn(volume.table.shape, generator=torch.Generator().manual_seed(0))
    spec = replace(SMALL, paint=Texture(size=128), grid_resolution=48, face_budget=3000)
    built = spec.from_scene(volume, "cpu", Streams(0, 0))
    views = orbit([30.0, 200.0], 20.0, size=48)
    with torch.no_grad():
        want, got = volume.render(views), built.render(views)
    inside = (want.alpha > 0.9) & (got.alpha > 0.9)
    assert ((want.alpha > 0.5) != (got.alpha > 0.5)).float().mean() < 0.02
    assert (want.rgb - got.rgb).abs().mean(1, keepdim=True)[inside].mean() < 0.05


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


# ---- The whole way -------------------------------------------------------------------------------------------------


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
