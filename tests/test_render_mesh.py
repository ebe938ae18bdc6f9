"""Mesh pictures against what geometry says they are."""

import math

import numpy as np
import torch

from dreamkit.cameras import orbit
from dreamkit.kernels.texture import sample
from dreamkit.meshes import Mesh, coloured
from dreamkit.render.mesh import render_mesh


def square(size: float = 0.5, **rest: object) -> Mesh:
    """A square in the plane x = 0, facing the camera at azimuth 0; its left edge, seen from there, is at y = -size."""
    corners = np.float32([[0, -size, -size], [0, size, -size], [0, size, size], [0, -size, size]])
    return Mesh(corners, np.int32([[0, 1, 2], [0, 2, 3]]), **rest)


def test_a_square_covers_the_pixels_that_it_should(device):
    """Half height 0.5 at distance 3, tan(half the field of view) = 1/3: half the picture each way, a quarter in all."""
    cameras = orbit([0.0], 0.0, 3.0, 2 * math.degrees(math.atan(1 / 3)), 64)
    images = render_mesh(square(), cameras, device=device)
    assert images.alpha.mean().item() == 0.25
    assert images.alpha[0, 0, 16:48, 16:48].min() == 1
    # The centre is 3 away; the pixel nearest to it is off by half a pixel, a relative 1e-5 in length.
    assert abs(images.depth[0, 0, 32, 32].item() - 3) < 1e-3
    torch.testing.assert_close(images.normal[0, :, 32, 32].cpu(), torch.tensor([1.0, 0.0, 0.0]))


def test_an_empty_mesh_is_background(device):
    empty = Mesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32))
    images = render_mesh(empty, orbit([0.0], 0.0, size=8), background=(0.2, 0.4, 0.6), device=device)
    assert images.alpha.sum() == 0
    torch.testing.assert_close(images.rgb[0, :, 0, 0].cpu(), torch.tensor([0.2, 0.4, 0.6]))


def test_colour_is_exact_unlit_and_darker_away_from_the_light(device):
    red = coloured(square(), (0.8, 0.1, 0.1))
    cameras = orbit([0.0, 60.0], 0.0, size=32)
    flat = render_mesh(red, cameras, device=device).rgb[:, :, 16, 16].cpu()
    lit = render_mesh(red, cameras, lit=True, device=device).rgb[:, :, 16, 16].cpu()
    torch.testing.assert_close(flat, torch.tensor([[0.8, 0.1, 0.1]] * 2))
    # Ambient 0.6 and diffuse 0.4 cos(60 degrees) = 0.2; the pixel is half a pixel off the axis.
    torch.testing.assert_close(lit[1], 0.8 * flat[1], rtol=0.02, atol=0)
    torch.testing.assert_close(lit[0], flat[0], rtol=2e-3, atol=0)  # 0.6 + 0.4, half a pixel off the axis


def test_a_texture_is_upright_and_not_mirrored(device):
    """Four colours in the corners: top left, as the picture file has it, comes out top left from the front."""
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0, 0], texture[0, 1], texture[1, 0], texture[1, 1] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    uv = np.float32([[0, 0], [1, 0], [1, 1], [0, 1]])
    picture = render_mesh(square(uv=uv, texture=texture), orbit([0.0], 0.0, size=64), device=device).rgb[0].cpu()
    torch.testing.assert_close(picture[:, 20, 20], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(picture[:, 20, 43], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(picture[:, 43, 20], torch.tensor([0.0, 0.0, 1.0]))


def test_texture_lookup_is_bilinear():
    texture = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]]])  # texel centres at u, v = 1/4, 3/4; row 0 is the top
    uv = torch.tensor([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]])
    torch.testing.assert_close(sample(texture, uv)[:, 0], torch.tensor([0.0, 3.0, 1.5, 0.0]))
