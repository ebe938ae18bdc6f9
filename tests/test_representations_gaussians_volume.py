"""Gaussians as a volume that has a density, and scenes of Gaussians made from other things."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.meshes import Mesh, coloured
from dreamkit.metrics.compare import silhouette_iou
from dreamkit.render.mesh import render_mesh
from dreamkit.render.splats import facing_normals
from dreamkit.representations.canvas import Canvas
from dreamkit.representations.gaussians import File, Gaussians, Points, field
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.representation import Volume
from dreamkit.streams import Streams
from tests.gaussian_scenes import SMALL, VIEWS, scales_of, scene

# ---- The volume ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 8, 64])
def test_density_and_colour_are_sums_over_all_gaussians(device, cells, monkeypatch):
    monkeypatch.setattr(field, "CELLS", cells)
    monkeypatch.setattr(field, "PAIRS", 500)
    built = scene(device)
    assert isinstance(built, Volume)
    points = (2 * Streams(4, 0).uniform("points", (300, 3)) - 1) * 0.8
    cloud = built.cloud.each(lambda tensor: tensor.detach().double().cpu())
    want = torch.zeros(300, 4, dtype=torch.float64)
    for i in range(40):
        w, x, y, z = cloud.quaternions[i].tolist()
        scale = cloud.scales[i].clamp(min=0.01)
        turn = torch.as_tensor(Rotation.from_quat([x, y, z, w]).as_matrix())
        square = (((points.double() - cloud.means[i]) @ turn) / scale).square().sum(1)
        peak = -math.log(1 - min(cloud.opacities[i].item(), 0.999)) / (math.sqrt(2 * math.pi) * scale.min())
        share = torch.where(square < 3.4**2, peak * torch.exp(-square / 2), 0.0)
        colour = (0.5 + cloud.dc[i] / math.sqrt(4 * math.pi)).clamp(0, 1)
        want += share[:, None] * torch.cat([torch.ones(1, dtype=torch.float64), colour])
    density, colour = built.density(points).cpu().double(), built.colour(points).cpu().double()
    assert (want[:, 0] > 0).sum() > 100
    torch.testing.assert_close(density, want[:, 0], rtol=1e-4, atol=1e-5)  # float32 sums
    there = want[:, 0] > 1e-6
    torch.testing.assert_close(colour[there], want[there, 1:] / want[there, :1], rtol=1e-3, atol=1e-3)
    assert not built.density(points).requires_grad


def test_outside_there_is_nothing_and_colour_is_the_nearest_one_s(device):
    built = scene(device)
    away = torch.tensor([[5.0, 0.0, 0.0], [0.9, 0.9, 0.9]])
    assert built.density(away).abs().max() == 0
    nearest = (built.cloud.means.detach().cpu()[None] - away[:, None]).norm(dim=2).argmin(1)
    want = (0.5 + built.cloud.dc.detach().cpu()[nearest] / math.sqrt(4 * math.pi)).clamp(0, 1)
    torch.testing.assert_close(built.colour(away).cpu(), want)
    assert built.density(away[:0]).shape == (0,)
    assert built.colour(away[:0]).shape == (0, 3)


def test_a_ray_along_the_shortest_axis_loses_as_much_as_in_splatting():
    flat = replace(SMALL, start=Points(((0.0, 0.0, 0.0),)), opacity=0.7, anisotropy=20.0)
    built = flat.build("cpu", Streams(0, 0))
    with torch.no_grad():
        built.cloud.log_scales[:] = torch.tensor([0.2, 0.2, 0.03]).log()
    z = torch.linspace(-0.5, 0.5, 4001)
    line = built.density(torch.stack([0 * z, 0 * z, z], 1)).double()
    # What lies beyond 3.4 deviations is 0.07 % of the optical depth.
    assert 1 - math.exp(-float(torch.trapezoid(line, z.double()))) == pytest.approx(0.7, abs=1e-3)
    above = built.render(orbit([0.0], 90.0, size=101))
    assert above.alpha[0, 0, 50, 50].item() == pytest.approx(0.7, abs=1e-3)


def test_the_volume_follows_the_optimiser():
    built = scene()
    points = built.cloud.means.detach().clone()
    before = built.density(points)
    assert torch.equal(built.density(points), before)
    optimiser = torch.optim.Adam([dict(group) for group in built.parameters()], fused=True)
    built.render(VIEWS, Streams(0, 0)).rgb.sum().backward()
    optimiser.step()
    assert not torch.equal(built.density(points), before)


# ---- From other things -----------------------------------------------------------------------------------------------


def test_it_starts_from_points():
    held = Points(((0.0, 0, 0), (0.1, 0, 0), (0.0, 0.2, 0)), ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))
    built = Gaussians(start=held, opacity=0.3).build("cpu", Streams(0, 0))
    assert torch.equal(built.cloud.means.detach(), torch.tensor(held.points))
    torch.testing.assert_close(
        built.colour(torch.tensor(held.points)).argmax(1), torch.tensor([0, 1, 2])
    )  # neighbours mix in
    torch.testing.assert_close(scales_of(built)[1], torch.full((3,), math.sqrt((0.1**2 + 0.1**2 + 0.2**2) / 2)))
    with pytest.raises(InputError, match="as many"):
        Points(((0.0, 0, 0),), ((1.0, 0, 0), (1.0, 0, 0)))
    with pytest.raises(InputError, match="0 points"):
        Points(())


def test_it_starts_from_files(tmp_path):
    import trimesh

    places = np.array([[0.1, 0.2, 0.3], [-0.3, 0.1, 0.0], [0.2, -0.2, 0.1]])
    shades = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]], np.uint8)
    trimesh.PointCloud(places, shades).export(tmp_path / "points.ply")
    built = Gaussians(start=File(str(tmp_path / "points.ply"))).build("cpu", Streams(0, 0))
    torch.testing.assert_close(built.cloud.means.detach(), torch.as_tensor(places).float())
    torch.testing.assert_close(
        0.5 + built.cloud.dc[1].detach() / math.sqrt(4 * math.pi), torch.tensor([1 / 512, 1.0, 1 / 512])
    )

    trimesh.creation.box((1.0, 0.6, 0.4)).export(tmp_path / "box.ply")
    built = Gaussians(start=File(str(tmp_path / "box.ply")), count=200).build("cpu", Streams(0, 0))
    outside = (built.cloud.means.detach().abs() / torch.tensor([0.5, 0.3, 0.2])).amax(1)
    # Two deviations under a face; near an edge another face may be nearer.
    assert 0.6 < outside.min() < outside.max() < 1
    with pytest.raises(InputError, match="there is no file"):
        Gaussians(start=File(str(tmp_path / "none.ply"))).build("cpu", Streams(0, 0))
    (tmp_path / "broken.ply").write_bytes(b"ply\nformat ascii 1.0\nend_header\n")
    with pytest.raises(InputError, match="points"):
        Gaussians(start=File(str(tmp_path / "broken.ply"))).build("cpu", Streams(0, 0))


@pytest.mark.parametrize("suffix", ["ply", "glb"])
def test_it_starts_from_its_own_splats(tmp_path, suffix):
    from dreamkit.assets.splats import write_splats

    built = scene(spec=replace(SMALL, sh_degree=1))
    write_splats(built.splats(), tmp_path / f"scene.{suffix}")
    spec = replace(SMALL, start=File(str(tmp_path / f"scene.{suffix}")))
    again = replace(spec, sh_degree=1).build("cpu", Streams(0, 0))
    for name, tensor in built.cloud.tensors().items():
        wanted = torch.nn.functional.normalize(tensor) if (name, suffix) == ("quaternions", "glb") else tensor
        torch.testing.assert_close(again.cloud.tensors()[name], wanted, rtol=1e-5, atol=1e-5)  # GLB rounds
    assert spec.build("cpu", Streams(0, 0)).cloud.rest.shape == (40, 0, 3)  # higher degrees are left out


class Ball:
    """A scene that is a surface, red above and blue below."""

    def __init__(self):
        import trimesh

        ball = trimesh.creation.icosphere(subdivisions=3, radius=0.6)
        self.ball = Mesh(np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int32))

    def mesh(self):
        return self.ball

    def colour(self, points):
        above = (points[:, 2:] > 0).float()
        return torch.cat([above, 0 * above, 1 - above], 1)

    def unused(self, *given, **settings):
        raise AssertionError("a surface says all that is needed")

    render = parameters = after_step = state = load = unused


def test_it_starts_from_a_surface(device):
    built = replace(SMALL, count=3000).from_scene(Ball(), device, Streams(0, 0))
    views = orbit([0.0, 120.0], 0.0, size=80)
    seen = built.render(views)
    true = render_mesh(coloured(Ball().ball, (1.0, 0.0, 0.0)), views)
    radius = (true.alpha[0].sum().item() / math.pi) ** 0.5  # 25 pixels; the blur is less than one of them all round
    assert silhouette_iou(seen.alpha, true.alpha.to(device)) > (radius / (radius + 1)) ** 2
    top, bottom = seen.rgb[:, :, 20, 40], seen.rgb[:, :, 59, 40]
    assert (top[:, 0] > 0.9).all()
    assert (bottom[:, 2] > 0.9).all()
    outward = torch.nn.functional.normalize(built.cloud.means.detach(), dim=1)
    shape = (built.cloud.means, built.cloud.quaternions, built.cloud.scales)
    axis = facing_normals(*shape, views.positions[:1].to(device))[0].detach()
    assert (axis * outward).sum(1).abs().min() > 0.99


def test_it_starts_from_a_volume_and_from_its_kind(device):
    fog = HashGrid(blob_strength=60.0, blob_radius=0.6).build(device, Streams(0, 0))
    built = replace(SMALL, count=2000, antialiased=True).from_scene(fog, device, Streams(0, 0))
    views = orbit([0.0, 120.0], 10.0, size=96)
    assert silhouette_iou(built.render(views).alpha, fog.render(views).alpha) > 0.9
    assert (built.colour(built.cloud.means.detach()) - 0.5).abs().max() < 0.02
    again = built.spec.from_scene(built, device, Streams(0, 0))
    assert torch.equal(again.render(views).rgb, built.render(views).rgb)
    assert again.cloud.means is not built.cloud.means
    with pytest.raises(InputError, match="neither"):
        SMALL.from_scene(Canvas().build("cpu", Streams(0, 0)), "cpu", Streams(0, 0))
