"""Where every pixel looks, as six more input channels of a network: how a prior is told where a camera stands.

Plücker coordinates (Sitzmann et al., Light Field Networks, arXiv:2106.02634, section 3.1), beside the noised picture as
in CAT3D (arXiv:2405.10314, section 3.1): what a pixel shows is then nearly a function of what stands at its place.
"""

import torch
from torch import Tensor

from dreamkit.cameras import Cameras

RAY_NUMBERS = 6
FOV = 36.0
"""The vertical field of view that is taken for all cameras, degrees: their twelve numbers do not say it."""


def ray_map(cameras: Tensor, side: int) -> Tensor:
    """[B, 6, side, side]: unit direction d and moment o x d of the ray through the middle of each pixel.

    cameras [B, 12] are the rows of camera_to_world; zeros, for no camera, give zeros.
    """
    poses, none = cameras.reshape(-1, 3, 4).float(), torch.zeros(len(cameras), device=cameras.device)
    with torch.autocast(cameras.device.type, enabled=False):  # bfloat16 would not tell neighbours apart
        origins, directions = Cameras(poses, none + FOV, none, none, side, side).rays()
        return torch.cat([directions, torch.linalg.cross(origins, directions)], dim=-1).permute(0, 3, 1, 2)
