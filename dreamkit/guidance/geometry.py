"""Where what the pictures show stands in the world, for rules that look at more than the picture."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from dreamkit.cameras import Cameras

OPACITY = 0.1
"""Up to this opacity a cell of the picture shows nothing (ConsistentFlowDistillation's threshold)."""


@dataclass(frozen=True)
class Geometry:
    """What a scene's renderer knows about the pictures that a prior is shown. No graph; all of B views.

    depth and alpha [B, 1, H, W] are those of `Images`: distance along the unit ray in world units, and opacity.
    """

    cameras: Cameras
    depth: Tensor
    alpha: Tensor

    def __len__(self) -> int:
        return len(self.cameras)

    def cells(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The surface seen in height x width equal cells of each picture.

        Returns the world positions of the cells' corners [B, height + 1, width + 1, 3], and which cells show anything
        [B, height, width]. A corner lies on its ray at the mean depth, weighted by opacity, of the cells that meet
        there and show anything; where none does, at the camera.
        """
        weight = adaptive_avg_pool2d(self.alpha, (height, width))
        weight = weight * (weight > OPACITY)
        depth = adaptive_avg_pool2d(self.alpha * self.depth, (height, width)) * (weight > 0)
        total, along = (avg_pool2d(value, 2, stride=1, padding=1) for value in (weight, depth))
        along = torch.where(total > 0, along / total.clamp(min=1e-12), 0.0)[:, 0]
        cameras = self.cameras.to(along.device)
        rows, columns = (torch.arange(n + 1).to(cameras.camera_to_world) / n for n in (height, width))
        origins, directions = cameras.rays_through(rows, columns)
        return origins + directions * along[..., None], weight[:, 0] > 0
