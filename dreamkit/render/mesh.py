"""Meshes to pictures, by casting rays: for previews, comparisons and ground truth. Not differentiable."""

from dataclasses import replace

import torch
from torch import Tensor

from dreamkit.cameras import Cameras
from dreamkit.images import Images, on_background
from dreamkit.kernels.query import Hits, surface
from dreamkit.kernels.texture import sample
from dreamkit.meshes import Mesh

AMBIENT = 0.6


def render_mesh(
    mesh: Mesh,
    cameras: Cameras,
    *,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    supersample: int = 2,
    lit: bool = False,
    device: torch.device | str = "cpu",
) -> Images:
    """Pictures of a mesh, with `supersample`^2 rays a pixel.

    Colour is the texture (bilinear) if there is one, else the vertex colours, else white; `lit` multiplies it by
    ambient + diffuse light that comes from the camera. Depth and normal are averaged over the covered rays of a pixel,
    as `images.py` says.

    Args:
        mesh: world units; may be empty, then the pictures are background.
        cameras: [B].
    """
    fine = replace(cameras.to(device), height=cameras.height * supersample, width=cameras.width * supersample)
    origins, directions = (r.reshape(-1, 3).contiguous() for r in fine.rays())
    hits = surface(_tensor(mesh.vertices, device), _tensor(mesh.faces, device)).cast(origins, directions)
    covered = (hits.face >= 0).float()[:, None]
    normal = (
        _tensor(mesh.face_normals, device)[hits.face.clamp(min=0)] if len(mesh.faces) else torch.zeros_like(origins)
    )
    colour = colour_at(mesh, hits) if len(mesh.faces) else torch.zeros_like(origins)
    if lit:
        facing = (normal * directions).sum(-1, keepdim=True).abs()
        colour = colour * (AMBIENT + (1 - AMBIENT) * facing)

    def pixels(values: Tensor) -> Tensor:
        image = values.reshape(len(cameras), fine.height, fine.width, -1).permute(0, 3, 1, 2)
        return torch.nn.functional.avg_pool2d(image, supersample)

    far = torch.where(hits.face >= 0, hits.distance, 0.0)[:, None]
    colour, alpha, depth, normal = (pixels(values) for values in (colour * covered, covered, far, normal * covered))
    return on_background(colour, alpha, depth, normal, torch.tensor(background, device=device).expand(len(cameras), 3))


def colour_at(mesh: Mesh, hits: Hits) -> Tensor:
    """The mesh's colour [R, 3] where rays hit it (anything where they miss)."""
    device = hits.distance.device
    corners = _tensor(mesh.faces, device).long()[hits.face.clamp(min=0)]
    if mesh.texture is not None and mesh.uv is not None:
        uv = (hits.barycentric[..., None] * _tensor(mesh.uv, device)[corners]).sum(1)
        return sample(_tensor(mesh.texture, device).float() / 255, uv)
    if mesh.colours is not None:
        return (hits.barycentric[..., None] * _tensor(mesh.colours, device)[corners]).sum(1)
    return torch.ones_like(hits.barycentric)


def _tensor(array: object, device: torch.device | str) -> Tensor:
    return torch.as_tensor(array, device=device)
