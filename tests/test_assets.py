"""From a field to a file and back to pictures: the whole way, against the field itself."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreamkit.assets.bake import bake
from dreamkit.assets.clean import clean
from dreamkit.assets.extract import density_grid, density_surface, match_level
from dreamkit.assets.files import read, write
from dreamkit.assets.unwrap import unwrap
from dreamkit.cameras import Cameras, ring
from dreamkit.images import Images
from dreamkit.metrics.compare import compare
from dreamkit.render.mesh import render_mesh


def density(p: Tensor) -> Tensor:
    """A ball and a smaller one beside it that overlap, both soft at the rim, and a crumb apart."""
    body = (p - torch.tensor([0.0, 0.0, -0.1])).norm(dim=-1) - 0.5
    head = (p - torch.tensor([0.2, 0.1, 0.5])).norm(dim=-1) - 0.25
    crumb = (p - torch.tensor([0.8, -0.8, 0.8])).norm(dim=-1) - 0.04
    return 60 * torch.sigmoid(-torch.minimum(torch.minimum(body, head), crumb) / 0.01)


def colour(p: Tensor) -> Tensor:
    return 0.5 + 0.4 * torch.sin(4 * p + torch.tensor([0.0, 1.0, 2.0]))


def volume_render(cameras: Cameras, samples: int = 160) -> Images:
    """Emission and absorption along every ray, on white (NeRF, arXiv:2003.08934, eq. 3)."""
    origins, directions = cameras.rays()
    distance = torch.linspace(1.8, 4.2, samples)
    points = origins[..., None, :] + directions[..., None, :] * distance[:, None]
    optical = density(points) * (distance[1] - distance[0])
    before = optical.cumsum(-1) - optical
    weight = torch.exp(-before) * -torch.expm1(-optical)
    alpha = weight.sum(-1, keepdim=True)
    rgb = (weight[..., None] * colour(points)).sum(-2) + 1 - alpha
    return Images(rgb.permute(0, 3, 1, 2), alpha.permute(0, 3, 1, 2), alpha.permute(0, 3, 1, 2))


def test_the_file_looks_like_the_scene(tmp_path: Path) -> None:
    cameras = ring(4, size=48)
    scene = volume_render(cameras)
    grid = density_grid(density, 48)
    level = match_level(grid, scene.alpha, cameras)
    mesh = clean(density_surface(grid, level.density), 2500)
    mesh = bake(unwrap(mesh, 256).mesh, colour, 256, density=density)
    write(mesh, tmp_path / "a.glb")
    found = compare(scene, render_mesh(read(tmp_path / "a.glb"), cameras))
    # 48 pixels: the silhouette is some 100 of 900 pixels of soft rim, which a mesh shows hard.
    assert found.iou > 0.96
    assert found.psnr > 25
    assert level.iou > 0.96
    assert len(mesh.faces) <= 2500
    assert np.abs(mesh.vertices).max() < 0.8  # the crumb is gone
