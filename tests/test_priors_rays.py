"""Where every pixel looks: Plücker coordinates of its ray."""

import torch

from dreamkit.cameras import orbit
from dreamkit.priors.rays import RAY_NUMBERS, ray_map


def test_any_point_of_a_ray_crossed_with_its_direction_is_its_moment(device):
    """p x d = m for all p = o + s d: what makes the six numbers those of a line, not of a point on it."""
    cameras = orbit([30.0, -120.0], [20.0, -10.0], distance=3.0, size=4).to(device)
    rays = ray_map(cameras.camera_to_world.flatten(1), 4)
    assert rays.shape == (2, RAY_NUMBERS, 4, 4)
    direction, moment = rays.permute(0, 2, 3, 1).split(3, dim=-1)
    origins, directions = cameras.rays()
    torch.testing.assert_close(direction, directions, atol=1e-6, rtol=0)  # float32
    for along in (0.0, 2.5):
        torch.testing.assert_close(
            torch.linalg.cross(origins + along * directions, direction), moment, atol=1e-5, rtol=0
        )


def test_no_camera_gives_zeros(device):
    assert torch.equal(ray_map(torch.zeros(3, 12, device=device), 2).cpu(), torch.zeros(3, RAY_NUMBERS, 2, 2))
