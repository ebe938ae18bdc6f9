"""The surface of a scene, whatever it is made of: its triangles, what is seen on them, how far a point is from them.

Export, and every representation that begins with the shape of another scene, ask here.
"""

import torch
from torch import Tensor

from dreamkit.assets.bake import bake, seen_depths
from dreamkit.assets.clean import clean
from dreamkit.assets.extract import density_grid, density_surface, match_level
from dreamkit.cameras import Cameras, orbit
from dreamkit.errors import InputError
from dreamkit.images import Images
from dreamkit.kernels.query import surface as mesh_queries
from dreamkit.meshes import Mesh
from dreamkit.representations.representation import Scene, Solid, Volume

PARTS = 0.02
"""Components below this share of the largest one's area are floaters, and left out."""


def check_cameras() -> Cameras:
    """Twelve views that see an object from all round: eight at eye level, four from above."""
    azimuth = [45.0 * i for i in range(8)] + [45.0 + 90.0 * i for i in range(4)]
    return orbit(azimuth, [15.0] * 8 + [50.0] * 4, size=128)


@torch.no_grad()
def surface_of(
    scene: Scene, faces: int, resolution: int, seen: Images | None = None, opaque: float = 0.5
) -> tuple[Mesh, float | None]:
    """The surface of a scene, and the density at which it was cut; None for a scene that is a surface itself.

    Of a volume it is cut where its silhouettes agree best with its pictures (`match_level`). A surface with texture
    coordinates stays as it is; any other one is cleaned, and cut down to a number of faces.

    Args:
        faces: at most so many.
        resolution: nodes along each side of the grid on which the surface of a volume is found.
        seen: the scene's pictures from `check_cameras`, if they are there already.
        opaque: the opacity above which a pixel of a volume's pictures shows the object.

    Raises RunError if there is no surface, InputError for a scene that can have none.
    """
    if isinstance(scene, Solid):
        mesh = scene.mesh()
        return (mesh if mesh.uv is not None else clean(mesh, faces, keep=PARTS)), None
    if not isinstance(scene, Volume):
        raise InputError(f"a {type(scene).__name__} has neither a surface nor a density: it cannot become another kind")
    cameras = check_cameras()
    alpha = scene.render(cameras).alpha if seen is None else seen.alpha
    grid = density_grid(scene.density, resolution, alpha.device)
    level = match_level(grid, alpha, cameras, opaque=opaque).density
    return clean(density_surface(grid, level), faces, keep=PARTS), level


def seen_colour(scene: Solid | Volume, points: Tensor, normals: Tensor, device: torch.device | str) -> Tensor:
    """[N, 3] the colours that cameras see at points of the scene's surface with these normals, each [N, 3].

    The colour of a volume lies under its level surface (`seen_depths`).
    """
    layers = points[None]
    if isinstance(scene, Volume):
        depths = seen_depths(points.numpy(), normals.numpy(), scene.density, device)
        layers = points - normals * torch.as_tensor(depths).T[..., None]
    return torch.stack([scene.colour(layer.to(device)).detach().cpu() for layer in layers]).mean(0)


def baked(scene: Solid | Volume, mesh: Mesh, size: int, device: torch.device | str) -> Mesh:
    """The scene's surface, with texture coordinates, and the colours that cameras see there in a texture of `size`."""
    density = scene.density if isinstance(scene, Volume) else None
    return bake(mesh, scene.colour, size, density=density, device=device)


def signed_distance(mesh: Mesh, points: Tensor) -> Tensor:
    """The distance [N] of points [N, 3] from a closed mesh, negative inside. Not differentiable."""
    device = points.device
    tree = mesh_queries(torch.as_tensor(mesh.vertices, device=device), torch.as_tensor(mesh.faces, device=device))
    distance = tree.closest(points.float()).distance
    return torch.where(tree.inside(points.float()), -distance, distance).to(points)
