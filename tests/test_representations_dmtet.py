"""The tetrahedral surface: what it shows, what it is fitted to, how it is cut finer, what it begins from."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamkit import frozen, losses
from dreamkit.assets.extract import signed_volume
from dreamkit.assets.files import write
from dreamkit.cameras import orbit
from dreamkit.errors import InputError, RunError
from dreamkit.export import export_scene
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.meshes import Mesh
from dreamkit.recipe import Export
from dreamkit.representations import REPRESENTATIONS
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.dmtet import DMTet, Ellipsoid, Explicit, MeshFile, signed_distance
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.mesh import MeshSurface
from dreamkit.representations.network import Network
from dreamkit.representations.representation import LearnedColour, PlainColour, Shading, Solid, Volume, continued
from dreamkit.schedule import Linear, Switch, resolve
from dreamkit.streams import Streams
from dreamkit.triangles import unique_edges
from tests.training import descend, redness

TINY = Network(
    HashGridShape(levels=3, log2_entries=9, coarsest=4, finest=16), hidden=8, table_rate=5e-2, network_rate=1e-2
)
EXPLICIT = DMTet(resolution=8, geometry=Explicit(2e-2, 2e-2), colour=TINY)
IMPLICIT = replace(EXPLICIT, geometry=TINY)
VIEWS = orbit([10.0, 130.0], 20.0, size=24)


@pytest.fixture(params=[EXPLICIT, IMPLICIT], ids=["explicit", "network"])
def spec(request):
    return request.param


def scene(spec, device="cpu", rough=0.0):
    """A scene; `rough` moves all its parameters, so that it is no plain ball."""
    built = spec.build(device, Streams(7, 0))
    with torch.no_grad():
        for group in built.parameters():
            for number, p in enumerate(group["params"]):
                p += rough * Streams(8, 0).normal(f"{group['name']}{number}", tuple(p.shape), like=p)
    return built


def volume(built):
    mesh = built.mesh()
    return signed_volume(mesh.vertices, mesh.faces)


def doubled(built):
    """The scene in float64."""
    for holder in (built, built.albedo, built.network):
        for name in ("start", "anchor", "sdf", "deform", "table", "hidden", "output"):
            if hasattr(holder, name):
                tensor = getattr(holder, name)
                setattr(holder, name, tensor.detach().double().requires_grad_(tensor.requires_grad))
    built.grid = built.grid._replace(vertices=built.grid.vertices.double())
    return built


def train(built, optimiser, steps):
    """Steps towards a red picture, as the loop takes them; returns the optimiser, which may be a new one."""

    def loss(images):
        return redness(images).mean() + 0.1 * images.alpha.mean() + losses.sdf_sign(images, built)

    return descend(built, steps, VIEWS, loss, optimiser, built.spec, 8)


def adam(built):
    return torch.optim.Adam([dict(group) for group in built.parameters()], betas=(0.9, 0.99), eps=1e-15)


# ---- What it begins as ----------------------------------------------------------------------------------------------


def test_an_ellipsoid_s_distance():
    points = 2 * torch.rand(500, 3, generator=torch.Generator().manual_seed(0)).double() - 1
    ball = Ellipsoid((0.4, 0.4, 0.4))
    torch.testing.assert_close(ball.distance(points), points.norm(dim=-1) - 0.4)
    assert ball.distance(torch.zeros(1, 3)).item() == pytest.approx(-0.4)
    egg = Ellipsoid((0.3, 0.5, 0.8))
    radii = torch.tensor(egg.radii).double()
    surface = torch.nn.functional.normalize(points, dim=-1) * radii
    assert egg.distance(surface).abs().max() < 1e-7  # the radii are float32
    outward = torch.nn.functional.normalize(surface / radii**2, dim=-1)
    slope = (egg.distance(surface + 1e-4 * outward) - egg.distance(surface - 1e-4 * outward)) / 2e-4
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0, atol=1e-3)  # to first order


def test_it_begins_in_the_shape_it_is_told(device, spec):
    egg = replace(spec, resolution=14, start=Ellipsoid((0.4, 0.5, 0.7)))
    built = scene(egg, device)
    mesh = built.mesh()
    # A polyhedron inscribed with edges of h = 0.13: a share of about (h / r)^2 / 4 of its volume is cut off.
    assert volume(built) == pytest.approx(4 / 3 * math.pi * 0.4 * 0.5 * 0.7, rel=0.03)
    assert np.abs(np.linalg.norm(mesh.vertices / (0.4, 0.5, 0.7), axis=1) - 1).max() < 0.05
    edges = unique_edges(torch.from_numpy(mesh.faces))
    assert len(mesh.vertices) - len(edges) + len(mesh.faces) == 2  # closed, a sphere
    torch.testing.assert_close(
        built.colour(torch.zeros(5, 3, device=device)), torch.full((5, 3), 0.5, device=device), rtol=0, atol=1e-3
    )  # the table begins within 1e-4


def test_it_begins_from_a_mesh_in_a_file(device, tmp_path):
    corners = np.array([[x, y, z] for x in (4, 5) for y in (4, 6) for z in (4, 6)], np.float32)
    quads = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = np.array([f for q in quads for f in (q[:3], (q[0], q[2], q[3]))], np.int32)
    (file, *_) = write(Mesh(corners, faces), tmp_path / "box.ply", {})
    built = DMTet(resolution=20, geometry=Explicit(), start=MeshFile(str(file), size=0.75)).build(device, Streams(0, 0))
    mesh = built.mesh()
    # 1 x 2 x 2 has half a diagonal of 1.5: scaled by a half, and moved to the middle. Corners are cut off by the grid.
    np.testing.assert_allclose(mesh.vertices.max(0), [0.25, 0.5, 0.5], atol=0.01)
    np.testing.assert_allclose(mesh.vertices.min(0), [-0.25, -0.5, -0.5], atol=0.01)
    assert volume(built) == pytest.approx(0.5, rel=0.05)


def test_the_ball_keeps_the_surface_closed(device, spec):
    built = scene(replace(spec, radius=0.6, start=Ellipsoid((0.3, 5.0, 0.5))), device)
    mesh = built.mesh()
    # Between vertices of the grid the distance from the ball is read off a straight line; they move a fifth of a cell.
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.6 + 0.2 * built.cell * 3**0.5
    edges = unique_edges(torch.from_numpy(mesh.faces))
    assert 3 * len(mesh.faces) == 2 * len(edges)


def test_a_deformation_turns_no_tetrahedron_over(device):
    built = scene(replace(EXPLICIT, geometry=Explicit(), deformation=0.2), device)
    with torch.no_grad():
        built.deform.copy_(100 * Streams(0, 0).normal("far", tuple(built.deform.shape), like=built.deform))
    a, b, c, d = built.values()[1][built.grid.tets].unbind(1)
    inside = (torch.stack([a, b, c, d]).norm(dim=-1).amax(0)) < 0.8  # those at the border are flatter
    assert ((torch.linalg.cross(b - a, c - a) * (d - a)).sum(-1)[inside] > 0).all()


# ---- What it shows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["albedo", "lambertian"])
@pytest.mark.parametrize("name", ["sdf", "deform", "geometry/table", "colour/table"])
def test_gradients_match_finite_differences(name, kind):
    """Of pictures, depth and normals; inside and at the silhouettes, where alpha changes."""
    built = doubled(scene(IMPLICIT if "geometry" in name else EXPLICIT, rough=0.05))
    views = orbit([10.0, 130.0], 20.0, size=16)
    views = replace(views, camera_to_world=views.camera_to_world.double(), fov_degrees=views.fov_degrees.double())
    mix = Streams(3, 0)

    def value():
        images = built.render(views, Streams(0, 0), shading=kind, normals=True)
        solid = (images.alpha.detach() > 0.2).double()  # depth and normal are divided by alpha
        parts = {"rgb": images.rgb, "depth": images.depth * solid, "normal": images.normal * solid}
        parts["alpha"] = images.alpha
        return sum((mix.normal(part, tuple(x.shape), like=x) * x).sum() for part, x in parts.items())

    value().backward()
    (parameter,) = (g["params"][0] for g in built.parameters() if g["name"] == name)
    assert parameter.grad.abs().max() > 0
    small = 1e-8
    for number in range(3):
        move = mix.normal(f"move{number}", tuple(parameter.shape), like=parameter)
        with torch.no_grad():
            parameter += small * move
            above = value()
            parameter -= 2 * small * move
            below = value()
            parameter += small * move
        slope = (parameter.grad * move).sum().item()
        # Rounding: sums of 3000 to 1e-13, over 2e-8. The curvature, up to 1e5, times 1e-16.
        assert ((above - below) / (2 * small)).item() == pytest.approx(slope, rel=1e-4, abs=1e-3)


def test_it_is_fitted_to_the_silhouettes_of_another_shape(device, spec):
    cameras = orbit([0.0, 60.0, 120.0], [10.0, -20.0, 50.0], size=40)
    egg = scene(replace(spec, resolution=14, start=Ellipsoid((0.3, 0.45, 0.65))), device)
    with torch.no_grad():
        wanted = egg.render(cameras).alpha
    built = scene(replace(spec, resolution=10, start=Ellipsoid((0.5, 0.5, 0.5))), device)
    optimiser, before = adam(built), (built.render(cameras).alpha - wanted).abs().mean().item()
    for step in range(50):
        images = built.render(cameras, Streams(0, step))
        optimiser.zero_grad()
        ((images.alpha - wanted) ** 2).mean().backward()
        optimiser.step()
        built.after_step(step, Streams(0, step))
    error = (built.render(cameras).alpha - wanted).abs().mean().item()
    # From a tenth of all pixels to less than half a percent: the outlines agree to about a tenth of a pixel.
    assert before > 0.06
    assert error < 0.006
    assert volume(built) == pytest.approx(4 / 3 * math.pi * 0.3 * 0.45 * 0.65, rel=0.1)


def test_lit_views_follow_the_normals(device):
    built = scene(replace(EXPLICIT, resolution=16, start=Ellipsoid((0.7, 0.7, 0.7))), device)
    black = {"background": (0.0, 0.0, 0.0)}
    albedo, lit = (built.render(VIEWS, shading=s, normals=True, **black) for s in ("albedo", "lambertian"))
    # The light stands at the camera: 0.1 + 0.9 cos of the colour, and the normal says the cosine.
    towards = -VIEWS.rays()[1].permute(0, 3, 1, 2).to(device)  # the light goes where the ray comes from
    cosine = (lit.normal * towards).sum(1, keepdim=True)
    inside = (albedo.alpha == 1) & (cosine > 0.3)
    want = albedo.rgb * (0.1 + 0.9 * cosine)
    assert (lit.rgb - want)[inside.expand_as(want)].abs().max() < 1e-5


def test_a_scene_without_colour_is_clay(device):
    built = scene(replace(EXPLICIT, colour=None), device)
    assert [g["name"] for g in built.parameters()] == ["sdf", "deform"]
    grey = built.render(VIEWS, shading="albedo")
    solid = (grey.alpha == 1).expand_as(grey.rgb)
    assert (grey.rgb[solid] - 0.5).abs().max() < 1e-6
    shown = built.render(VIEWS).rgb[solid]
    assert shown.max() - shown.min() > 0.3  # the preview is lit
    assert torch.equal(built.colour(torch.zeros(2, 3)), torch.full((2, 3), 0.5))


def test_training_views_are_drawn_and_previews_are_not(device, spec):
    built = scene(replace(spec, shading=Shading(albedo=0.0)), device)
    one, again, other = (built.render(VIEWS, Streams(0, s)).rgb for s in (5, 5, 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(built.render(VIEWS).rgb, built.render(VIEWS).rgb)


@pytest.mark.parametrize("background", [PlainColour((0.0, 0.0, 1.0)), LearnedColour((0.2, 0.2, 0.7), random=0.0)])
def test_backgrounds_stand_behind(device, background):
    built = scene(replace(EXPLICIT, background=background), device)
    corner = built.render(VIEWS, Streams(0, 0)).rgb[:, :, 0, 0]
    want = background.colour if isinstance(background, PlainColour) else background.start
    torch.testing.assert_close(corner, torch.tensor(want, device=device).expand(2, 3))
    assert ("background" in [g["name"] for g in built.parameters()]) == isinstance(background, LearnedColour)


# ---- A surface that is gone -----------------------------------------------------------------------------------------


def test_without_a_surface_there_is_background_and_a_loss_that_brings_it_back(device, spec):
    built = scene(spec, device)
    with torch.no_grad():
        built.start += 2.0
    images = built.render(VIEWS, Streams(0, 0), normals=True, background=(0.1, 0.2, 0.3))
    assert images.alpha.abs().max() == 0
    assert images.rgb[:, 1].unique().tolist() == [pytest.approx(0.2)]
    (images.rgb.sum() + images.depth.sum() + losses.laplacian(images, built)).backward()  # as a step does
    for group in built.parameters():
        for parameter in group["params"]:
            assert parameter.grad is None or parameter.grad.abs().max() == 0
    with pytest.raises(RunError, match="sdf_sign"):
        built.mesh()
    with torch.no_grad():
        built.start -= 1.45
    optimiser = adam(built)
    for step in range(30):
        images = built.render(VIEWS, Streams(0, step))
        if len(built.triangles()[1]):
            break
        optimiser.zero_grad()
        losses.sdf_sign(images, built).backward()
        optimiser.step()
        built.after_step(step, Streams(0, step))
    assert 0 < step < 29


# ---- Cut finer ------------------------------------------------------------------------------------------------------


def test_cutting_finer_leaves_the_surface_where_it_was(device, spec):
    finer = replace(spec, subdivisions=Switch(0.0, 1.0, 0.5))
    built = scene(finer, device, rough=0.02)
    built.render(VIEWS, Streams(0, 0), now=resolve(finer, 0.25))
    assert built.after_step(0, Streams(0, 0)) is None
    before, count, cell = built.render(VIEWS, normals=True), len(built.start), built.cell
    built.render(VIEWS, Streams(0, 1), now=resolve(finer, 0.5))
    old = {g["name"]: g["params"][0].detach().clone() for g in built.parameters()}
    rows = built.after_step(1, Streams(0, 1))
    after = built.render(VIEWS, normals=True)
    assert (built.cuts, built.cell) == (1, cell / 2)
    # Equal but for rounding, which where a pixel sees an edge may choose the other face, with another normal.
    for name, close in (("alpha", 1e-3), ("rgb", 1e-3), ("depth", 1e-3)):
        assert (getattr(after, name) - getattr(before, name)).abs().max() < close, name
    assert (after.normal - before.normal).abs().mean() < 0.05  # flatter or rounder: those of the vertices
    assert volume(built) > 0
    rows = rows or {}
    assert set(rows) == ({"sdf", "deform"} if isinstance(spec.geometry, Explicit) else set())
    for name, source in rows.items():
        new = next(g["params"][0] for g in built.parameters() if g["name"] == name)
        assert source.dtype == torch.int64
        assert len(source) == len(new) == len(built.grid.vertices)
        assert source[:count].tolist() == [*range(count)]
        assert (source[count:] == -1).all()
        assert torch.equal(new[:count], old[name])
        assert new.requires_grad
        assert new.is_leaf
    assert built.after_step(2, Streams(0, 2)) is None  # once


def test_a_run_resumed_over_a_cut_ends_in_the_same_bits(spec):
    finer = replace(spec, resolution=4, subdivisions=Linear(0.0, 3.0), background=LearnedColour())

    def begin():
        built = scene(finer)
        return built, adam(built)

    whole, optimiser = begin()
    optimiser = train(whole, optimiser, range(8))
    assert whole.cuts == 2
    for stop in (3, 6):
        part, halfway = begin()
        halfway = train(part, halfway, range(stop))
        state, statistics = part.state(), halfway.state_dict()
        resumed = finer.build("cpu", Streams(99, 0))
        again = adam(resumed)
        kept = [id(p) for group in resumed.parameters() for p in group["params"]]
        resumed.load({name: tensor.clone() for name, tensor in state.items()})
        assert kept == [id(p) for group in resumed.parameters() for p in group["params"]]  # the optimiser holds them
        again.load_state_dict(statistics)
        train(resumed, again, range(stop, 8))
        assert resumed.state().keys() == whole.state().keys()
        for name, tensor in whole.state().items():
            assert torch.equal(tensor, resumed.state()[name]), (stop, name)


def test_states_of_other_specifications_are_refused(spec):
    built = scene(spec)
    for other in (replace(spec, resolution=7), replace(spec, colour=None), replace(spec, background=LearnedColour())):
        with pytest.raises(ValueError, match="not a state"):
            built.load(scene(other).state())
    for other in (replace(spec, radius=0.9 * spec.radius), replace(spec, deformation=0.5 * spec.deformation)):
        with pytest.raises(ValueError, match="its radius and deformation are"):
            built.load(scene(other).state())
    wrong = built.state() | {"anchor": built.state()["anchor"][:-1]}
    with pytest.raises(ValueError, match="not a state"):
        built.load(wrong)
    copy = built.state()["start"]
    with torch.no_grad():
        built.start += 1
    assert not torch.equal(copy, built.state()["start"])


# ---- From another scene ---------------------------------------------------------------------------------------------


def test_it_takes_over_its_own_kind_whatever_holds_the_numbers(device):
    first = scene(replace(IMPLICIT, colour=None), device, rough=0.05)
    first.wanted = 1
    first.after_step(0, Streams(0, 0))
    second = EXPLICIT.from_scene(first, device, Streams(1, -1))
    for mine, its in zip(second.values(), first.values(), strict=True):
        torch.testing.assert_close(mine, its)  # but for the rounding of x - y + y
    assert second.cuts == 1


def test_it_takes_over_a_volume_at_the_level_of_its_silhouettes(device):
    grid = HashGrid(encoding=TINY.encoding, hidden=TINY.hidden, blob_strength=60.0, blob_radius=0.6, cells=16)
    fog = grid.build(device, Streams(0, 0))
    with torch.no_grad():
        fog.network.table += 0.5 * Streams(8, 0).normal("rough", tuple(fog.network.table.shape), like=fog.network.table)
    built = replace(EXPLICIT, resolution=16).from_scene(fog, device, Streams(1, -1))
    cameras = orbit([0.0, 90.0, 200.0], 20.0, size=64)
    with torch.no_grad():
        shown, wanted = built.render(cameras).alpha > 0.5, fog.render(cameras).alpha > 0.5
    assert float((shown & wanted).sum() / (shown | wanted).sum()) > 0.95
    points = 0.5 * torch.rand(20, 3, generator=torch.Generator().manual_seed(0)).to(device)
    torch.testing.assert_close(built.colour(points), fog.colour(points))
    other = replace(EXPLICIT, colour=replace(TINY, hidden=9)).from_scene(fog, device, Streams(1, -1))
    assert not torch.equal(other.colour(points), fog.colour(points))


def test_it_takes_over_a_mesh(device):
    ball = MeshSurface(ball=0.55).build(device, Streams(0, -1))
    built = replace(EXPLICIT, resolution=16).from_scene(ball, device, Streams(1, -1))
    radii = np.linalg.norm(built.mesh().vertices, axis=1)
    assert np.abs(radii - 0.55).max() < 0.02  # a hundredth of the grid's sag and of the ball's own


def test_a_picture_has_no_surface():
    with pytest.raises(InputError, match="neither a surface nor a density"):
        EXPLICIT.from_scene(Canvas().build("cpu", Streams(0, 0)), "cpu", Streams(0, 0))


def test_signed_distance_to_a_mesh(device):
    mesh = scene(replace(EXPLICIT, resolution=20)).mesh()
    points = 1.6 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0)).to(device) - 0.8
    want = points.norm(dim=-1) - 0.5
    assert (signed_distance(mesh, points) - want).abs().max() < 0.01  # edges of 0.09 sag by 0.002, and the grid's error


# ---- In the house ---------------------------------------------------------------------------------------------------


def test_losses_on_its_surface_reach_the_parameters(device, spec):
    built = scene(spec, device, rough=0.02)
    for loss in (losses.laplacian, losses.normal_consistency, losses.sdf_sign):
        images = built.render(VIEWS, Streams(0, 0))
        value = loss(images, built)
        (group, *_) = built.parameters()
        (gradient,) = torch.autograd.grad(value, group["params"][0])
        assert gradient.abs().max() > 0, loss.__name__


def test_it_is_exported_as_it_is(tmp_path, device):
    built = scene(replace(EXPLICIT, resolution=16, colour=TINY), device)
    with torch.no_grad():
        built.albedo.table += Streams(0, 0).normal("paint", tuple(built.albedo.table.shape), like=built.albedo.table)
    spec = Export(face_budget=5000, texture_size=256, unwrap_seconds=0.0)
    exported = export_scene(built, spec, tmp_path, {}, device)
    assert exported.level is None
    assert exported.facts()["level"] is None
    assert exported.agreement.iou > 0.97
    assert exported.agreement.psnr > 25
    with torch.no_grad():
        built.start += 2
    with pytest.raises(RunError, match="no surface"):
        export_scene(built, spec, tmp_path / "none", {}, device)
    assert not (tmp_path / "none").exists()


def test_it_is_a_surface_by_name_and_goes_through_json():
    spec = REPRESENTATIONS["dmtet"]
    assert isinstance(spec, DMTet)
    built = scene(EXPLICIT)
    assert isinstance(built, Solid)
    assert not isinstance(built, Volume)
    full = replace(spec, start=MeshFile("a.obj"), geometry=Explicit(), subdivisions=Switch(0.0, 1.0, 0.5), colour=None)
    for one in (spec, full):
        assert frozen.read(frozen.write(one, "x"), "x") == one


def test_bad_numbers_are_refused():
    for bad, said in (
        ({"resolution": 1}, "resolution"),
        ({"radius": 1.5}, "radius"),
        ({"deformation": 0.5}, "deformation"),
    ):
        with pytest.raises(InputError, match=said):
            DMTet(**bad)
    with pytest.raises(InputError, match="radii"):
        Ellipsoid((0.5, 0.0, 0.5))
    with pytest.raises(InputError, match="hidden"):
        Network(hidden=0)
    with pytest.raises(InputError, match=r"nothing\.obj"):
        DMTet(start=MeshFile("nothing.obj")).build("cpu", Streams(0, 0))


def test_a_stage_of_another_radius_goes_on_with_the_same_surface(spec):
    """What the old numbers mean hangs on the radius: the scene is made anew, and looks as before."""
    first, wider = scene(spec, rough=0.02), replace(spec, radius=1.05 * spec.radius, resolution=2 * spec.resolution)
    second = continued(wider, first, "cpu", Streams(1, -1))
    alphas = [built.render(orbit([30.0, 200.0], 20.0, size=48)).alpha for built in (first, second)]
    assert ((alphas[0] > 0.5) != (alphas[1] > 0.5)).float().mean() < 0.02
