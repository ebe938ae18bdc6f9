"""Image-based lighting: closed forms of diffuse light, the white furnace, mirrors, the reflectance table."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dreamkit.errors import InputError
from dreamkit.kernels.texture import cube_directions, sample_cube
from dreamkit.render.lighting import (
    DIELECTRIC,
    LEVELS,
    Panorama,
    SoftBox,
    Studio,
    display,
    prefilter,
    reflectance_table,
    shade,
    solid_angles,
    to_display,
    to_linear,
)


def white(directions):
    return torch.ones_like(directions)


def sky(directions):
    """Light as bright as the cosine to +z, none from below."""
    return directions[..., 2:].clamp(min=0).expand(directions.shape)


def slope(directions):
    """Light that changes linearly with direction, another way in every colour."""
    return 1 + 0.5 * directions


def draws(count, *shape, seed=0, low=0.0):
    return low + (1 - low) * torch.rand(
        count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def surfaces(count=200, seed=0):
    """Normals, and views no more than 80 degrees from them, float64."""
    generator = torch.Generator().manual_seed(seed)
    normal, other = F.normalize(torch.randn(2, count, 3, generator=generator, dtype=torch.float64), dim=-1)
    side = F.normalize(torch.linalg.cross(normal, other), dim=-1)
    angle = math.radians(80) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return normal, normal * torch.cos(angle) + side * torch.sin(angle)


@pytest.mark.parametrize("size", [8, 33])
def test_solid_angles_are_exact(size):
    angles = solid_angles(size, torch.float64)
    assert angles.sum().item() == pytest.approx(4 * math.pi, abs=1e-12)
    # Light proportional to direction adds up to nothing, squared to a third of it all.
    directions = cube_directions(size, torch.float64)
    assert (angles[..., None] * directions).sum((0, 1, 2)).abs().max() < 1e-12
    assert (angles * directions[..., 0] ** 2).sum().item() == pytest.approx(
        4 * math.pi / 3, rel=2e-4 * (33 / size) ** 2
    )


def test_diffuse_light_of_a_uniform_and_a_linear_world(device):
    """Over a constant L the reflected light is L; over a + b . l it is a + 2/3 b . n."""
    normal = F.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), dim=-1).to(device)
    flat = sample_cube(prefilter(white, 16, device).diffuse, normal)
    torch.testing.assert_close(flat, torch.ones_like(flat), rtol=0, atol=1e-6)
    found = sample_cube(prefilter(slope, 32, device).diffuse, normal)
    # 16 texels a side, up to 1/8 apart, between which the lookup is linear: off by (1/8)^2 / 8 of the curvature along
    # both axes, together 0.004 of 1/3; and more at the cube's 8 corners, where there is no fourth texel.
    error = (found - 1 - normal / 3).abs()
    assert error.median() < 5e-4
    assert error.max() < 4e-3


def test_diffuse_light_of_a_cosine_sky(device):
    """Two clamped cosines at an angle t: 2 / (3 pi) (sin t + (pi - t) cos t)."""
    normal = F.normalize(torch.randn(300, 3, generator=torch.Generator().manual_seed(1)), dim=-1).to(device)
    found = sample_cube(prefilter(sky, 32, device).diffuse, normal)[:, 0]
    angle = torch.acos(normal[:, 2])
    want = 2 / (3 * math.pi) * (torch.sin(angle) + (math.pi - angle) * torch.cos(angle))
    torch.testing.assert_close(found, want, rtol=0, atol=4e-3)  # as above, of 2 / 3, and the kink


def test_white_things_vanish_in_a_white_world(device):
    """The furnace: of whatever roughness and metallic, they send back all the light there is."""
    normal, view = (x.to(device) for x in surfaces())
    maps = prefilter(white, 8, device, torch.float64)
    rough, metal = draws(200, seed=1).to(device), draws(200, seed=2).to(device)
    light = shade(maps, torch.ones_like(normal), rough, metal, normal, view)
    torch.testing.assert_close(light, torch.ones_like(light), rtol=0, atol=1e-12)


def test_coloured_things_take_light_away(device):
    normal, view = (x.to(device) for x in surfaces())
    maps = prefilter(white, 8, device, torch.float64)
    base = draws(200, 3, seed=3).to(device)
    light = shade(maps, base, draws(200, seed=1).to(device), torch.ones_like(base[:, 0]), normal, view)
    assert light.max() < 1
    assert ((light - to_linear(base)) > -1e-12)[..., 0].float().mean() > 0.3  # Fresnel brightens at grazing angles


def test_a_smooth_metal_shows_what_is_behind_the_camera(device):
    maps = prefilter(slope, 32, device, torch.float64)
    normal, view = (x.to(device) for x in surfaces())
    nothing = torch.zeros_like(normal[:, 0])
    light = shade(maps, torch.ones_like(normal), nothing, nothing + 1, normal, view)
    mirror = 2 * (normal * view).sum(-1, keepdim=True) * normal - view
    # The table at roughness 0 keeps all but what its midpoints miss; 2.8 degrees a texel, linear between.
    torch.testing.assert_close(light, slope(mirror), rtol=0, atol=2e-3)
    assert torch.equal(maps.specular[0], prefilter(slope, 32, device, torch.float64).specular[0])
    exact = slope(cube_directions(32, torch.float64, device))
    assert (maps.specular[0] - exact).abs().max() < 1e-3  # mean over a texel of a nearly linear function


@functools.cache
def filtered_sky():
    return prefilter(sky, 32, dtype=torch.float64)


@pytest.mark.parametrize("level", range(1, LEVELS))
def test_rough_light_is_the_integral_over_the_lobe(level):
    """Against a fine quadrature in spherical coordinates round one direction, with D and n . l written out."""
    maps = filtered_sky()
    spread = (level / (LEVELS - 1)) ** 4
    # At the horizon the narrowest lobe, 5 degrees wide, sees a corner that texels 6 degrees wide cut off.
    horizon = [[0.0, 1.0, 0.0]] if level > 1 else []
    for direction in ([0.0, 0.0, 1.0], [0.6, 0.0, 0.8], [0.0, -0.8, -0.6], *horizon):
        ahead = torch.tensor(direction, dtype=torch.float64)
        side = F.normalize(torch.linalg.cross(ahead, torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)), dim=0)
        # Angles dense at the peak of the lobe: theta = pi/2 s^2.
        s, phi = (torch.arange(500) + 0.5).double() / 500, (torch.arange(64) + 0.5).double() * (2 * math.pi / 64)
        theta = (math.pi / 2 * s**2)[:, None]
        light = (
            torch.cos(theta)[..., None] * ahead
            + (torch.sin(theta) * torch.cos(phi))[..., None] * side
            + (torch.sin(theta) * torch.sin(phi))[..., None] * torch.linalg.cross(ahead, side)
        )
        half = torch.cos(theta / 2)
        d = spread / (math.pi * (half**2 * (spread - 1) + 1) ** 2)
        weight = d * torch.cos(theta) * torch.sin(theta) * s[:, None]
        want = (weight * sky(light)[..., 0]).sum() / (weight.sum() * 64)
        found = sample_cube(maps.specular[0], ahead, torch.tensor(float(level)).double(), maps.specular)[0]
        # As for diffuse light above, at 16 texels and of a curvature of 1, and 32 texels for the lobe.
        assert found.item() == pytest.approx(want.item(), abs=5e-3), direction


def integrated(facing, roughness, samples=500):
    """A and B by the defining integral over light directions, float64: D and the height-correlated Smith G2 written
    out, no sampling of a lobe."""
    a2 = roughness**4
    # The polar angle of the half vector is dense where D is; phi is its azimuth, over half a turn by symmetry.
    s = (torch.arange(samples).double() + 0.5) / samples
    theta, measure = math.pi / 2 * s**3, math.pi / 2 * 3 * s**2 / samples
    phi = (torch.arange(400).double() + 0.5) * (math.pi / 400)
    nh = torch.cos(theta)[:, None]
    vh = math.sqrt(1 - facing**2) * torch.sin(theta)[:, None] * torch.cos(phi) + facing * nh
    nl = 2 * vh * nh - facing
    seen = (vh > 0) & (nl > 0)
    d = a2 / (math.pi * (nh**2 * (a2 - 1) + 1) ** 2)

    def smith(cosine):
        return (-1 + (1 + a2 * (1 - cosine**2) / cosine**2).sqrt()) / 2

    g = 1 / (1 + smith(torch.tensor(facing).double()) + smith(nl.clamp(min=1e-9)))
    # f cos dl = D G / (4 nl nv) nl dl, and dl = 4 vh dh.
    share = d * g * vh / facing * torch.sin(theta)[:, None] * measure[:, None] * (2 * math.pi / 400)
    share, fresnel = torch.where(seen, share, 0.0), (1 - vh.clamp(0, 1)) ** 5
    return torch.stack([(share * (1 - fresnel)).sum(), (share * fresnel).sum()])


@pytest.mark.parametrize("roughness", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("angle", [1 / 3, 2 / 3, 1.0])
def test_the_reflectance_table_is_the_integral(roughness, angle):
    table = reflectance_table(13)
    entry = table[round(12 * (1 - roughness)), round(12 * angle)]
    # 48 x 24 midpoints, and the kink where light goes under the horizon.
    torch.testing.assert_close(entry, integrated(angle**2, roughness), rtol=0, atol=2e-3)


def test_the_reflectance_table_at_its_edges():
    table = reflectance_table()
    facing = torch.linspace(0, 1, len(table), dtype=torch.float64).square().clamp(min=1e-3)
    # Roughness 1: D is constant and G2 rational, so the sum is 1 - v log(1 + 1 / v).
    torch.testing.assert_close(table[0].sum(-1), 1 - facing * torch.log1p(1 / facing), rtol=0, atol=2e-4)
    # Roughness 0: a mirror; (1 - v)^5 of the light belongs to B. Not at grazing angles, where no surface is smooth.
    mirror = (1 - facing) ** 5
    torch.testing.assert_close(table[-1, 12:], torch.stack([1 - mirror, mirror], -1)[12:], rtol=0, atol=1e-3)
    assert table.min() >= 0
    assert table.sum(-1).max() <= 1 + 1e-9


def test_dielectrics_reflect_their_share_at_normal_incidence(device):
    maps = prefilter(white, 8, device, torch.float64)
    normal = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64, device=device)
    zero = torch.zeros(1, dtype=torch.float64, device=device)
    light = shade(maps, torch.zeros_like(normal), zero, zero, normal, normal)
    torch.testing.assert_close(light, torch.full_like(light, DIELECTRIC), rtol=0, atol=1e-6)


def test_shading_is_differentiable_in_everything(device):
    """Finite differences in float64, of what a user of it optimises."""
    maps = prefilter(lambda d: slope(d) * (1.2 + torch.sin(3 * d)), 16, device, torch.float64)
    normal, view = (x.to(device) for x in surfaces(40, seed=5))
    given = [draws(40, 3, seed=1, low=0.1), draws(40, seed=2, low=0.1), draws(40, seed=3, low=0.1)]
    given = [x.to(device).requires_grad_() for x in (*given, normal, view)]
    mix = draws(40, 3, seed=4).to(device)

    def value(*x):
        return (
            mix * display(shade(maps, x[0], x[1], x[2], F.normalize(x[3], dim=-1), F.normalize(x[4], dim=-1)))
        ).sum()

    gradients = torch.autograd.grad(value(*given), given)
    small = 1e-6
    for i, gradient in enumerate(gradients):
        move = torch.randn(given[i].shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64).to(device)
        above, below = ([*given[:i], given[i] + s * move, *given[i + 1 :]] for s in (small, -small))
        slope_found = (value(*above) - value(*below)) / (2 * small)
        # Lookups are linear in pieces: none of the 40 points steps over an edge within 1e-6.
        torch.testing.assert_close(slope_found, (gradient * move).sum(), rtol=1e-6, atol=1e-8)


def test_display_keeps_what_is_not_bright_and_bounds_what_is(device):
    base = draws(1000, 3).to(device)
    torch.testing.assert_close(to_display(to_linear(base)), base, rtol=0, atol=1e-12)
    dark = 0.8 * draws(100, 3, seed=1).to(device)
    torch.testing.assert_close(display(dark), to_display(dark), rtol=0, atol=1e-12)
    bright = torch.logspace(-1, 4, 200, dtype=torch.float64, device=device)[:, None] * dark[:1]
    shown = display(bright)
    assert shown.max() < 1
    assert (shown.diff(dim=0) > 0).all()
    linear = to_linear(shown)
    torch.testing.assert_close(
        linear / linear.amax(-1, keepdim=True), (dark / dark.amax(-1, keepdim=True))[:1].expand(200, 3)
    )
    # One curve, without a corner: the slope in linear light is 1 on both sides of the shoulder.
    at = torch.tensor([[0.8, 0.8, 0.8]], dtype=torch.float64, device=device)
    slopes = [(to_linear(display(at + s)) - to_linear(display(at)))[0, 0].item() / s for s in (-1e-4, 1e-4)]
    assert slopes == pytest.approx([1, 1], abs=1e-3)


def test_srgb_is_the_standard_s():
    """IEC 61966-2-1 by two of its published pairs, 8-bit 188 and 55 (rounded to 4 digits)."""
    codes = torch.tensor([0.0, 10, 55, 188, 255], dtype=torch.float64) / 255
    want = torch.tensor([0.0, 0.0030353, 0.0382044, 0.5028865, 1.0], dtype=torch.float64)
    torch.testing.assert_close(to_linear(codes), want, rtol=0, atol=1e-6)


def test_the_studio_is_about_as_bright_as_a_white_world():
    maps = prefilter(Studio().radiance, 32)
    mean = (maps.specular[0][..., 0] * solid_angles(32)).sum() / (4 * math.pi)
    assert mean == pytest.approx(1, abs=0.05)
    up, down = sample_cube(maps.diffuse, torch.tensor([[0.0, 0, 1], [0, 0, -1]]))[:, 0]
    assert up > 2 * down
    assert maps.specular[0].max() > 3  # lamps, not a glow


def test_a_panorama_from_a_file_is_seen_in_its_directions(tmp_path, device):
    """Each quarter of the middle row in a colour of its own, and red above."""
    picture = np.zeros((64, 128, 3), np.float32)
    picture[:8, :, 0] = 5
    picture[16:48, :] = np.repeat(np.array([[0, 1, 1], [0, 0, 2], [0, 3, 0], [4, 4, 0]], np.float32), 32, axis=0)
    np.save(tmp_path / "room.npy", picture)
    towards = torch.tensor([[0, 0, 1.0], [-1, 1, 0], [1, 1, 0], [1, -1, 0], [-1, -1, 0], [0, 0, -1]], device=device)
    found = Panorama(str(tmp_path / "room.npy"), strength=2.0).radiance(F.normalize(towards, dim=-1))
    want = [[10, 0, 0], [0, 2, 2], [0, 0, 4], [0, 6, 0], [8, 8, 0], [0, 0, 0]]
    torch.testing.assert_close(found.cpu(), torch.tensor(want).float(), rtol=0, atol=1e-5)


def test_a_panorama_may_be_a_radiance_picture(tmp_path):
    pixels = bytes([128, 0, 0, 129] * 4 + [0, 128, 0, 129] * 4)  # above red, below green, each 1.0 and a bit
    (tmp_path / "room.hdr").write_bytes(b"#?RADIANCE\n\n-Y 2 +X 4\n" + pixels)
    up, down = Panorama(str(tmp_path / "room.hdr")).radiance(torch.tensor([[0.0, 0, 1], [0, 0, -1]]))
    half = 0.5 / 128
    torch.testing.assert_close(up, torch.tensor([1 + half, half, half]))
    torch.testing.assert_close(down, torch.tensor([half, 1 + half, half]))


def test_a_panorama_has_no_seam(tmp_path):
    longitude = (np.arange(64) + 0.5) / 64 * 2 * np.pi
    np.save(tmp_path / "room.npy", np.tile(1 + np.cos(longitude)[None, :, None], (32, 1, 3)).astype(np.float32))
    across = torch.tensor([[-1, 1e-4, 0.0], [-1, -1e-4, 0.0]])
    left, right = Panorama(str(tmp_path / "room.npy")).radiance(F.normalize(across, dim=-1))[:, 0]
    assert abs(left - right) < 1e-4
    assert left.item() == pytest.approx(2, abs=3e-3)  # between the last and the first column: cos(pi / 64)


def test_bad_environments_are_named(tmp_path):
    def says(match, array=None, name="bad.npy"):
        if array is not None:
            np.save(tmp_path / name, array)
        with pytest.raises(InputError, match=match):
            Panorama(str(tmp_path / name)).radiance(torch.tensor([[1.0, 0, 0]]))

    says("no environment file", name="none.npy")
    says(r"\[H, W, 3\] floats", np.zeros((4, 8, 3), np.uint8), "bytes.npy")
    says(r"\[H, W, 3\] floats", np.zeros((4, 8), np.float32), "flat.npy")
    says("finite", np.full((4, 8, 3), np.nan, np.float32), "nan.npy")
    says("at least 0", np.full((4, 8, 3), -1, np.float32), "negative.npy")
    (tmp_path / "text.hdr").write_text("no picture")
    says("cannot be read as an environment", name="text.hdr")
    with pytest.raises(InputError, match="direction"):
        SoftBox((0.0, 0.0, 0.0), 1.0, 1.0)
    with pytest.raises(InputError, match="power of 2"):
        prefilter(white, 20)
