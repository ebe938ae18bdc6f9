"""Cameras, and how they are drawn.

Conventions, said once: the world is right-handed with +z up, and +x is the object's front. A camera looks along its own
-z axis with +y up in the picture (OpenGL). Azimuth is counted counter-clockwise seen from above and is 0 when the
camera stands on the +x axis, in front of the object; 90 is the object's left side (+y). Elevation is 0 at the horizon
and 90 above. Scenes live in the cube [-1, 1]^3; distances are in its units.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.streams import Streams


@dataclass(frozen=True)
class Cameras:
    """A batch of B pinhole cameras with one picture size."""

    camera_to_world: Tensor
    """[B, 3, 4] rotation, then position; world units."""
    fov_degrees: Tensor
    """[B] vertical field of view."""
    azimuth_degrees: Tensor
    elevation_degrees: Tensor
    """[B] each, of the position: for view words, not for rays."""
    height: int
    width: int
    """Pixels."""

    def __len__(self) -> int:
        return self.camera_to_world.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Cameras":
        return self._each(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> "Cameras":
        return self._each(lambda tensor: tensor.to(device, non_blocking=torch.device(device).type == "cuda"))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Cameras":
        names = ("camera_to_world", "fov_degrees", "azimuth_degrees", "elevation_degrees")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)

    @property
    def positions(self) -> Tensor:
        """[B, 3] world positions."""
        return self.camera_to_world[:, :, 3]

    def about(self, point: tuple[float, float, float]) -> "Cameras":
        """The same cameras, azimuth and elevation counted round another point than the origin."""
        x, y, z = (self.positions - torch.tensor(point).to(self.positions)).unbind(-1)
        azimuth, elevation = torch.atan2(y, x), torch.atan2(z, torch.hypot(x, y))
        return replace(self, azimuth_degrees=azimuth.rad2deg(), elevation_degrees=elevation.rad2deg())

    def rays(self) -> tuple[Tensor, Tensor]:
        """Origins and unit directions of the rays through the pixel centres, each [B, H, W, 3], world units.

        Differentiable in camera_to_world and fov_degrees.
        """
        like = self.camera_to_world
        rows = (torch.arange(self.height, dtype=like.dtype, device=like.device) + 0.5) / self.height
        columns = (torch.arange(self.width, dtype=like.dtype, device=like.device) + 0.5) / self.width
        return self.rays_through(rows, columns)

    def rays_through(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The rays through every pair of `rows` [R] and `columns` [C], each [B, R, C, 3].

        They are fractions of the picture's height and width, counted from its upper left corner.
        """
        half = torch.tan(torch.deg2rad(self.fov_degrees) / 2)[:, None, None]
        up = half * (1 - 2 * rows)[None, :, None]
        right = half * (2 * columns - 1)[None, None, :] * (self.width / self.height)
        shape = (len(self), len(rows), len(columns))
        ahead = torch.full(shape, -1.0, dtype=up.dtype, device=up.device)
        local = torch.stack([right.expand(shape), up.expand(shape), ahead], dim=-1)
        world = torch.einsum("bij,bhwj->bhwi", self.camera_to_world[:, :, :3], local)
        origins = self.positions[:, None, None, :].expand_as(world)
        return origins, torch.nn.functional.normalize(world, dim=-1)


def orbit(
    azimuth_degrees: Tensor | list[float],
    elevation_degrees: Tensor | list[float] | float,
    distance: Tensor | float = 3.0,
    fov_degrees: Tensor | float = 36.0,
    size: int | tuple[int, int] = 64,
) -> Cameras:
    """Cameras on a sphere around the origin, looking at it, upright. Arguments broadcast to [B]; size is (H, W)."""
    values = [
        torch.as_tensor(v, dtype=torch.float32) for v in (azimuth_degrees, elevation_degrees, distance, fov_degrees)
    ]
    azimuth, elevation, radius, fov = (v.reshape(-1) for v in torch.broadcast_tensors(*values))
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    backward = torch.stack([torch.cos(e) * torch.cos(a), torch.cos(e) * torch.sin(a), torch.sin(e)], dim=-1)
    # The right-hand axis depends on azimuth only, so it stays defined when the camera looks straight down.
    right = torch.stack([-torch.sin(a), torch.cos(a), torch.zeros_like(a)], dim=-1)
    up = torch.linalg.cross(backward, right)
    position = backward * radius[:, None]
    height, width = (size, size) if isinstance(size, int) else size
    return Cameras(torch.stack([right, up, backward, position], dim=-1), fov, azimuth, elevation, height, width)


def ring(
    count: int, elevation_degrees: float = 15.0, distance: float = 3.0, fov_degrees: float = 36.0, size: int = 256
) -> Cameras:
    """`count` cameras evenly round the object, the first in front: for previews and turntables."""
    azimuth = torch.arange(count) * (360.0 / count)
    return orbit(azimuth, elevation_degrees, distance, fov_degrees, size)


@dataclass(frozen=True)
class Orbit:
    """Random cameras around the object, each range uniform (elevation uniform in angle).

    Azimuths are stratified: a batch of B holds one camera in each of B equal sectors, turned by one common random
    angle, so that every step sees the object from all round.

    In groups of more than one, every drawn camera is followed by group - 1 others evenly round the object, of the same
    elevation, distance and field of view: four orthogonal views for a prior that sees them together.
    """

    distance: tuple[float, float] = (2.8, 3.2)
    fov_degrees: tuple[float, float] = (33.0, 39.0)
    elevation_degrees: tuple[float, float] = (-10.0, 60.0)
    azimuth_degrees: tuple[float, float] = (-180.0, 180.0)
    size: int = 64
    group: int = 1

    def __post_init__(self) -> None:
        if self.group < 1:
            raise InputError(f"Orbit.group is the number of views of one object, at least 1; got {self.group}.")
        if self.size < 1:
            raise InputError(f"Orbit.size is the number of pixels along a side, at least 1; got {self.size}.")
        bounds = {"distance": (1e-3, math.inf), "fov_degrees": (1e-3, 179.0), "elevation_degrees": (-90.0, 90.0)}
        for name, (least, most) in {**bounds, "azimuth_degrees": (-math.inf, math.inf)}.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise InputError(f"Orbit.{name} is a range (low, high) within {least:g} to {most:g}; got {low, high}.")

    def sample(self, count: int, streams: Streams, name: str = "camera") -> Cameras:
        """`count` cameras, a multiple of the group, from the stream `name`."""
        if count % self.group:
            raise InputError(f"{count} cameras cannot stand in groups of {self.group}: choose a multiple of it.")
        objects = count // self.group
        draw = streams.uniform(name, (4, objects)).repeat_interleave(self.group, 1)
        sector = (torch.arange(objects).repeat_interleave(self.group) + draw[0]) / objects
        sector = (sector + streams.uniform(f"{name}/turn", (1,))) % 1.0

        def between(bounds: tuple[float, float], u: Tensor) -> Tensor:
            return bounds[0] + (bounds[1] - bounds[0]) * u

        round_it = torch.arange(self.group).repeat(objects) * (360.0 / self.group)
        return orbit(
            between(self.azimuth_degrees, sector) + round_it,
            between(self.elevation_degrees, draw[1]),
            between(self.distance, draw[2]),
            between(self.fov_degrees, draw[3]),
            self.size,
        )
