"""The export in order: field -> surface -> clean -> unwrap -> bake. Each step is a function of its own room."""

from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from dreamkit.assets.bake import Field, bake
from dreamkit.assets.clean import clean
from dreamkit.assets.extract import Level, density_grid, density_surface, match_level
from dreamkit.assets.unwrap import unwrap
from dreamkit.cameras import Cameras
from dreamkit.meshes import Mesh


@dataclass(frozen=True)
class ExportSettings:
    resolution: int = 128
    """Grid nodes along each edge of the cube."""
    faces: int = 12_000
    texture: int = 1024
    """Texels along each edge."""
    keep: float = 0.02
    """The smallest component kept, as a share of the largest one's area."""
    smoothing: int = 8
    unwrap_limit_s: float = 15.0
    shell: float = 0.03
    """Half the thickness of the layer in which the colour is looked for, world units."""


@dataclass(frozen=True)
class Made:
    """A textured mesh, and how it came about: one number or sentence each, for the run's log and the page."""

    mesh: Mesh
    facts: dict[str, str | int | float]


def field_surface(
    density: Field,
    alpha: Tensor,
    cameras: Cameras,
    settings: ExportSettings,
    device: torch.device | str = "cpu",
) -> tuple[Mesh, Level]:
    """The raw surface of a density field, at the level that matches the rendered alpha [B, 1, H, W] best."""
    grid = density_grid(density, settings.resolution, device)
    level = match_level(grid, alpha, cameras.to(device))
    return density_surface(grid, level.density), level


def textured(
    mesh: Mesh,
    colour: Field,
    settings: ExportSettings,
    *,
    density: Field | None = None,
    device: torch.device | str = "cpu",
) -> Made:
    """A raw surface cleaned, unwrapped and baked. Raises RunError if nothing of it is left."""
    begun = perf_counter()
    cleaned = clean(mesh, settings.faces, keep=settings.keep, smoothing=settings.smoothing)
    unwrapped = unwrap(cleaned, settings.texture, settings.unwrap_limit_s)
    baked = bake(
        unwrapped.mesh, colour, settings.texture, density=density, shell=settings.shell, device=device
    )
    facts: dict[str, str | int | float] = {
        "faces": len(baked.faces),
        "raw faces": len(mesh.faces),
        "texture": settings.texture,
        "unwrap": unwrapped.note,
        "seconds": round(perf_counter() - begun, 1),
    }
    return Made(baked, facts)
