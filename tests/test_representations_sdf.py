"""The signed distance seen as a volume: its density, its gradient, what it shows and what is cut out of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dreamkit import frozen, losses
from dreamkit.cameras import orbit
from dreamkit.errors import InputError
from dreamkit.export import export_scene
from dreamkit.kernels.hashgrid import HashGridShape
from dreamkit.recipe import Export
from dreamkit.representations import REPRESENTATIONS
from dreamkit.representations.hashgrid import HashGrid
from dreamkit.representations.representation import LearnedColour, Volume
from dreamkit.representations.sdf import SignedDistance
from dreamkit.schedule import Linear, resolve
from dreamkit.streams import Streams
from tests.training import descend

GRID = HashGrid(
    encoding=HashGridShape(levels=3, log2_entries=9, coarsest=4, finest=16), hidden=8, step=0.06, cells=16, refresh=2
)
SMALL = SignedDistance(GRID)
VIEWS = orbit([10.0, 130.0], 20.0, size=12)


def scene(spec=SMALL, device="cpu", rough=0.0):
    """A scene; `rough` adds noise to its table, so that it is no plain ball."""
    built = spec.build(device, Streams(7, 0))
    table = built.network.table
    with torch.no_grad():
        table += rough * Streams(8, 0).normal("rough", tuple(table.shape), like=table)
    return built


def holders(built):
    """What holds each of the parameters, by their names."""
    return {"table": built.network, "hidden": built.network, "output": built.network, "log_width": built}


def doubled(built):
    for name, part in holders(built).items():
        setattr(part, name, getattr(part, name).detach().double().requires_grad_())
    built.thinnest = built.thinnest.double()
    return built


def train(built, steps):
    descend(built, steps, VIEWS, lambda seen: seen.rgb[:, 1:].mean() + 0.1 * losses.eikonal(seen, built))


def points(count=200, size=1.0, device="cpu"):
    return size * (2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(0)).to(device) - 1)


def test_it_begins_as_a_sphere(device):
    built = scene(device=device)
    at = points(device=device)
    distance = at.norm(dim=-1) - 0.5
    torch.testing.assert_close(built.distance(at), distance, rtol=0, atol=1e-4)  # the table begins within 1e-4
    # VolSDF, equations 2 and 3, term by term.
    want = [
        (0.5 * math.exp(-d / 0.05) if d > 0 else 1 - 0.5 * math.exp(d / 0.05)) / 0.05 for d in distance.cpu().tolist()
    ]
    torch.testing.assert_close(built.density(at).cpu(), torch.tensor(want), rtol=2e-3, atol=1e-4)
    inside = built.render(VIEWS).alpha[:, :, 5:7, 5:7]
    assert inside.min() > 0.99


def test_the_narrower_the_harder(device):
    rims = []
    for width in (0.05, 0.02):
        alpha = scene(replace(SMALL, width=width), device).render(orbit([0.0], 0.0, size=48)).alpha
        rims.append(float(((alpha > 0.05) & (alpha < 0.95)).float().mean()))
    assert rims[1] < 0.6 * rims[0]
    thin = scene(replace(SMALL, width=0.02, least=0.02), device)
    with torch.no_grad():
        thin.log_width -= 3
    thin.after_step(1, Streams(0, 1))
    assert thin.width.item() == pytest.approx(0.02)
    (slope,) = torch.autograd.grad(thin.width, thin.log_width)
    assert slope.item() == pytest.approx(0.02)  # it can still grow again


@pytest.mark.parametrize("analytic", [True, False])
def test_the_gradient_is_that_of_the_distance(device, analytic):
    built = doubled(scene(replace(SMALL, analytic=analytic), device, rough=0.5))
    at = points(50, 0.9, device).double()
    got = built.gradient(at)
    small = 1e-6 if analytic else GRID.normal_step
    with torch.no_grad():
        columns = [
            (built.distance(at + small * e) - built.distance(at - small * e)) / (2 * small)
            for e in torch.eye(3, device=device).double()
        ]
    error = (got - torch.stack(columns, -1)).norm(dim=-1)
    # Differences along a tetrahedron's corners and along the axes are one thing where s is smooth; here, nearly.
    assert error.median() < (1e-7 if analytic else 0.06)
    sphere = scene(replace(SMALL, analytic=analytic), device)
    near = F.normalize(at.float(), dim=-1) * 0.5
    torch.testing.assert_close(sphere._normal(near), 2 * near, rtol=0, atol=0.025)  # taps err by step / radius / 2
    torch.testing.assert_close(sphere.gradient(near).norm(dim=-1), torch.ones(50, device=device), rtol=0, atol=0.025)
    with torch.no_grad():
        assert not built.gradient(at).requires_grad


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("kind", ["albedo", "lambertian"])
def test_gradients_match_finite_differences(kind, analytic):
    """Of pictures, and of the eikonal loss, which differentiates the hash grid twice."""
    built = doubled(scene(replace(SMALL, analytic=analytic), rough=0.5))
    views = orbit([10.0, 130.0], 20.0, size=5)
    views = replace(views, camera_to_world=views.camera_to_world.double(), fov_degrees=views.fov_degrees.double())
    mix, small = Streams(3, 0), 1e-6

    def value():
        images = built.render(views, Streams(0, 0), shading=kind, normals=True)
        seen = {"rgb": images.rgb, "alpha": images.alpha, "depth": images.depth, "normal": images.normal}
        mixed = [(mix.normal(part, tuple(x.shape), like=x) * x).sum() for part, x in seen.items()]
        return sum(mixed) + 10 * losses.eikonal(images, built)

    def at(name, parameter, move, distance):
        setattr(holders(built)[name], name, (parameter.detach() + distance * move).requires_grad_())
        return value().item()

    value().backward()
    for name, part in holders(built).items():
        parameter = getattr(part, name)
        move = mix.normal(name, tuple(parameter.shape), like=parameter)
        slope = (at(name, parameter, move, small) - at(name, parameter, move, -small)) / (2 * small)
        setattr(part, name, parameter)
        # The central difference errs by small^2 and rounding / small, both near 1e-9; ReLU corners may be crossed.
        assert (parameter.grad * move).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_eikonal_brings_slopes_to_one(device):
    built = scene(replace(SMALL, grid=replace(GRID, table_rate=5e-2, network_rate=1e-2)), device, rough=2.0)
    optimiser = torch.optim.Adam([dict(g) for g in built.parameters()])
    values = []
    for step in range(15):
        images = built.render(VIEWS, Streams(0, step))
        loss = losses.eikonal(images, built)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.5 * values[0]
    assert built.probes.norm(dim=-1).max() < GRID.radius


def test_chunks_of_rays_are_the_same_pictures_and_gradients():
    whole, parts = scene(rough=0.5), scene(replace(SMALL, grid=replace(GRID, rays_at_once=50)), rough=0.5)
    gradients = []
    for built in (whole, parts):
        images = built.render(VIEWS, Streams(0, 0), normals=True)
        (images.rgb.sum() + images.normal.sum()).backward()
        gradients.append(built.network.table.grad)
    # Sums in another order, of some 1000 samples.
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_it_is_exported_where_its_pictures_show_it(tmp_path, device):
    built = scene(replace(SMALL, width=0.03), device)
    spec = Export(grid_resolution=48, face_budget=3000, texture_size=64, unwrap_seconds=0.0)
    exported = export_scene(built, spec, tmp_path, {}, device)
    assert exported.agreement.iou > 0.98
    # A ray at a distance s from the sphere meets exp(-s / beta) sqrt(2 pi r / beta) / 2 of density; ln 2 stops half.
    s = 0.03 * math.log(math.sqrt(2 * math.pi * 0.5 / 0.03) / 2 / math.log(2))
    radii = np.linalg.norm(exported.mesh.vertices, axis=1)
    assert radii.mean() == pytest.approx(0.5 + s, abs=0.01)
    assert radii.std() < 0.01


@pytest.mark.parametrize("background", [GRID.background, LearnedColour()])
def test_a_loaded_scene_goes_on_bit_for_bit(background):
    spec = replace(SMALL, grid=replace(GRID, background=background))
    whole = scene(spec, rough=0.3)
    train(whole, range(3))
    resumed = spec.build("cpu", Streams(99, 0))
    resumed.load(whole.state())
    for built in (whole, resumed):
        train(built, range(3, 6))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name
    with pytest.raises(ValueError, match="not a state"):
        resumed.load(GRID.build("cpu", Streams(0, 0)).state())


def test_the_width_is_learned_at_its_own_rate():
    spec = replace(SMALL, width_rate=Linear(1.0, 3.0), grid=replace(GRID, table_rate=Linear(0.0, 4.0)))
    built = scene(spec)
    rates = {g["name"]: g["lr"] for g in built.parameters(resolve(spec, 0.5))}
    assert rates == {"table": 2.0, "network": GRID.network_rate, "width": 2.0}
    built.render(VIEWS, Streams(0, 0)).alpha.sum().backward()
    assert built.log_width.grad.abs() > 0


def test_it_is_a_volume_and_goes_through_json():
    assert isinstance(scene(), Volume)
    spec = REPRESENTATIONS["sdf"]
    assert isinstance(spec, SignedDistance)
    assert frozen.read(frozen.write(spec, "x"), "x") == spec


def test_bad_numbers_are_refused():
    with pytest.raises(InputError, match="least <= width"):
        SignedDistance(width=0.01, least=0.02)
    with pytest.raises(InputError, match="blob_strength"):
        SignedDistance(replace(GRID, blob_strength=0.0))
