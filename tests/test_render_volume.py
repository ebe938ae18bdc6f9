"""Volume rendering against closed forms, finite differences and itself."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dreamkit.cameras import orbit
from dreamkit.render.volume import Light, render_volume

RADIUS = 0.6
FULL = torch.ones(4, 4, 4, dtype=torch.bool)


def cameras(device="cpu", size=16, azimuth=(20.0, 200.0), dtype=torch.float32):
    views = orbit(list(azimuth), 15.0, size=size).to(device)
    return replace(views, camera_to_world=views.camera_to_world.to(dtype), fov_degrees=views.fov_degrees.to(dtype))


def ball(sigma):
    """A ball of constant density, coloured by position."""

    def field(points):
        density = torch.where(points.norm(dim=-1) < RADIUS, sigma, 0.0).to(points)
        return density, 0.5 + 0.5 * points.clamp(-1, 1)

    return field


def chord(views):
    """[B, 1, H, W] the middle of each ray's way through the ball, and its length (0 where it misses)."""
    origins, directions = views.rays()
    middle = -(origins * directions).sum(-1)
    miss = (origins * origins).sum(-1) - middle**2
    return middle[:, None], 2 * (RADIUS**2 - miss).clamp(min=0).sqrt()[:, None]


def outward(points):
    return F.normalize(points, dim=-1)


def white(views):
    return torch.ones(len(views), 3).to(views.camera_to_world)


def test_a_ball_of_constant_density_is_as_opaque_as_its_chord(device):
    sigma, step = 2.0, 0.01
    views = cameras(device)
    images = render_volume(views, ball(sigma), FULL.to(device), step=step, background=white(views))
    middle, length = chord(views)
    # Samples at equal steps count a chord to within one step; alpha then errs by at most sigma * step.
    want = 1 - torch.exp(-sigma * length)
    torch.testing.assert_close(images.alpha, want, rtol=0, atol=sigma * step)
    # Mean depth of an exponential cut off at the chord's end, where the chord is several steps long.
    inside = length > 20 * step
    late = torch.exp(-sigma * length)
    depth = middle - length / 2 + 1 / sigma - length * late / (1 - late)
    torch.testing.assert_close(images.depth[inside], depth[inside], rtol=0, atol=step)
    assert images.depth[length == 0].abs().max() == 0


def test_colour_is_composited_on_the_background(device):
    views = cameras(device)
    field = ball(1e4)
    inside = (chord(views)[1] > 0.4).expand(-1, 3, -1, -1)
    backdrop = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    images = render_volume(views, field, FULL.to(device), step=0.02, background=backdrop)
    origins, directions = views.rays()
    middle, length = chord(views)
    front = origins + directions * (middle - length / 2).squeeze(1)[..., None]
    surface = (0.5 + 0.5 * front).permute(0, 3, 1, 2)
    # Seen up to one step behind the surface.
    torch.testing.assert_close(images.rgb[inside], surface[inside], rtol=0, atol=0.5 * 0.02 + 1e-5)
    outside = (images.alpha == 0).expand(-1, 3, -1, -1)
    assert outside.any()
    assert torch.equal(images.rgb[outside], backdrop[outside])


def test_nothing_gives_the_background_and_finite_gradients(device):
    views = cameras(device)
    strength = torch.tensor(1.0, device=device, requires_grad=True)
    background = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).to(device)

    def field(points):
        density, colour = ball(1.0)(points)
        return strength * density, strength * colour

    empty = torch.zeros_like(FULL, device=device)
    images = render_volume(views, field, empty, step=0.05, background=background, normal=outward)
    assert torch.equal(images.rgb, background[:, :, None, None].expand_as(images.rgb))
    assert images.alpha.abs().max() == images.depth.abs().max() == images.normal.abs().max() == 0
    assert len(images.samples.weight) == 0
    (images.rgb.sum() + images.alpha.sum() + images.depth.sum() + images.normal.sum()).backward()
    assert strength.grad is None or torch.isfinite(strength.grad)


def test_gradients_stay_finite_where_almost_nothing_is(device):
    views = cameras(device, size=4)
    raw = torch.tensor(-60.0, device=device, requires_grad=True)
    images = render_volume(
        views,
        lambda p: (raw.exp().expand(len(p)), p.abs().clamp(max=1)),
        FULL.to(device),
        step=0.1,
        background=white(views),
        normal=outward,
    )
    (images.depth.sum() + images.normal.sum() + images.rgb.sum()).backward()
    assert torch.isfinite(raw.grad)


@pytest.mark.parametrize("lit", [False, True])
def test_gradients_match_finite_differences(device, lit):
    views = cameras(device, size=3, dtype=torch.float64)
    centre = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64, device=device, requires_grad=True)
    sigma = torch.tensor(6.0, dtype=torch.float64, device=device, requires_grad=True)
    tint = torch.tensor([0.2, 0.7, 0.4], dtype=torch.float64, device=device, requires_grad=True)

    def pictures(centre, sigma, tint):
        def field(points):
            squared = ((points - centre) ** 2).sum(-1)
            return sigma * torch.exp(-3 * squared), torch.sigmoid(tint * points)

        images = render_volume(
            views,
            field,
            FULL.to(device),
            step=0.25,
            background=white(views),
            normal=lambda points: F.normalize(points - centre, dim=-1),
            light=Light(views.positions + 1.0) if lit else None,
        )
        return images.rgb, images.alpha, images.depth, images.normal

    # Smooth in all three, so gradcheck's tolerance fits; no sample is within 1e-6 of weighing FAINT_WEIGHT.
    assert torch.autograd.gradcheck(pictures, [centre, sigma, tint])


def test_chunks_change_nothing(device):
    views = cameras(device, size=9)
    jitter = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0)).to(device)
    light = Light(views.positions)

    def render(chunk):
        with torch.no_grad():
            return render_volume(
                views,
                ball(3.0),
                FULL.to(device),
                step=0.05,
                background=white(views),
                jitter=jitter,
                normal=outward,
                light=light,
                chunk=chunk,
            )

    whole, parts = render(None), render(7)
    for name in ("rgb", "alpha", "depth", "normal"):
        # The same sums in the same order; vectorised ends of arrays may round differently.
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-6, atol=1e-6)
    assert whole.samples is not None
    assert parts.samples is None


def test_chunks_have_the_same_gradients_and_keep_less(device):
    """The second pass over a chunk gives the gradient; what lies between is not kept."""
    views = cameras(device, size=9)

    def gradients(chunk):
        sigma = torch.tensor(3.0, device=device, requires_grad=True)
        backdrop = torch.full((2, 3), 0.4, device=device, requires_grad=True)
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            images = render_volume(
                views,
                ball(sigma),
                FULL.to(device),
                step=0.05,
                background=backdrop,
                chunk=chunk,
            )
        (images.rgb.square().sum() + images.depth.sum()).backward()
        return images.rgb.detach(), sigma.grad, backdrop.grad, kept

    whole, parts = gradients(None), gradients(7)
    for one, other in zip(whole[:3], parts[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # float32 sums in another order
    assert parts[3] < whole[3] / 5


def test_hidden_samples_are_left_out_and_not_missed(device):
    views = cameras(device)
    asked = []

    def field(points):
        asked.append(len(points))
        return ball(100.0)(points)

    cells = 32
    axis = (torch.arange(cells, device=device) + 0.5) / (cells / 2) - 1
    distance = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    surely = torch.where(distance < RADIUS - 2 * 3**0.5 / cells, 100.0, 0.0)
    arguments = {"step": 0.02, "background": white(views)}
    whole = render_volume(views, field, FULL.to(device), **arguments)
    culled = render_volume(views, field, FULL.to(device), thinnest=surely, **arguments)
    # What is left out has a transmittance below 1e-3, and colours are at most 1.
    for name in ("rgb", "alpha"):
        assert (getattr(whole, name) - getattr(culled, name)).abs().max() < 1e-3
    assert asked[1] < 0.9 * asked[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_density_stays_on_its_own_rays(device, bad):
    views = cameras(device)

    def spoilt(points):
        density, colour = ball(3.0)(points)
        return torch.where(points[:, 2] > 0.5, bad, density), colour

    def render(field, thinnest):
        where = {"step": 0.05, "background": white(views), "normal": outward, "thinnest": thinnest}
        return render_volume(views, field, FULL.to(device), **where)

    thinnest = torch.zeros(4, 4, 4, device=device)
    thinnest[:, :, 3] = bad
    got, want = render(spoilt, thinnest), render(ball(3.0), None)
    origins, directions = views.rays()
    path = origins[..., None, :] + directions[..., None, :] * torch.linspace(1, 5, 800, device=device)[:, None]
    clean = ~((path[..., 2] > 0.45) & (path.abs().amax(-1) < 1.01)).any(-1)[:, None]
    assert clean.any()
    for name in ("rgb", "alpha", "depth"):
        ours, theirs = getattr(got, name), getattr(want, name)
        torch.testing.assert_close(ours[clean.expand_as(ours)], theirs[clean.expand_as(theirs)])
    if math.isnan(bad):
        assert got.alpha.isnan().any()
        assert got.rgb.isnan().any()


def test_normals_are_unit_times_alpha_and_face_the_camera(device):
    views = cameras(device)
    images = render_volume(views, ball(50.0), FULL.to(device), step=0.02, background=white(views), normal=outward)
    torch.testing.assert_close(images.normal.norm(dim=1, keepdim=True), images.alpha, rtol=1e-5, atol=1e-5)
    middle = images.normal[:, :, 7:9, 7:9].mean((2, 3))
    torch.testing.assert_close(F.normalize(middle, dim=-1), F.normalize(views.positions, dim=-1), rtol=0, atol=0.05)


def test_faint_samples_are_not_asked_for_normals(device):
    views = cameras(device)
    asked = []

    def normal(points):
        asked.append(len(points))
        return F.normalize(points, dim=-1)

    images = render_volume(views, ball(50.0), FULL.to(device), step=0.02, background=white(views), normal=normal)
    assert asked[0] == (images.samples.weight >= 1e-3).sum()
    assert 0 < asked[0] < len(images.samples.weight) / 2


@pytest.mark.parametrize("textureless", [False, True])
def test_a_light_at_the_camera_lights_by_the_cosine(device, textureless):
    views = cameras(device, size=21)  # odd: the middle pixel looks at the ball's nearest point
    colour = torch.tensor([0.8, 0.4, 0.2], device=device)

    def field(points):
        return ball(1e4)(points)[0], colour.expand(len(points), 3)

    images = render_volume(
        views,
        field,
        FULL.to(device),
        step=0.01,
        background=white(views),
        normal=outward,
        light=Light(views.positions, ambient=0.1, diffuse=0.8, textureless=textureless),
    )
    origins, directions = views.rays()
    middle, length = chord(views)
    front = origins + directions * (middle - length / 2).squeeze(1)[..., None]
    cosine = (F.normalize(front, dim=-1) * F.normalize(origins - front, dim=-1)).sum(-1)[:, None]
    albedo = torch.ones_like(colour) if textureless else colour
    want = albedo[:, None, None] * (0.1 + 0.8 * cosine.clamp(min=0))
    inside = (length > 0.5).expand(-1, 3, -1, -1)
    # One step of 0.01 behind the surface turns the normal by less than 0.01 / (length / 2) = 0.04, a sample sees half.
    torch.testing.assert_close(images.rgb[inside], want[inside], rtol=0, atol=0.02)
    assert images.rgb[0, 0, 10, 10].item() == pytest.approx(0.9 * albedo[0].item(), abs=1e-3)


def test_what_does_not_fit_together_is_refused():
    views = cameras()
    with pytest.raises(ValueError, match="normal="):
        render_volume(views, ball(1.0), FULL, step=0.1, background=white(views), light=Light(views.positions))
    with pytest.raises(ValueError, match="background"):
        render_volume(views, ball(1.0), FULL, step=0.1, background=torch.ones(2, 3, 5, 5))
