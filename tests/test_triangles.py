"""Points drawn over a surface: as many on each face as it has area, and evenly on it."""

import pytest
import torch
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.streams import Streams
from dreamkit.triangles import on_surface

COUNT = 40_000
# Areas 1/2, 2 and 0, in three planes; the one without area between the others.
VERTICES = torch.tensor(
    [[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5], [6, 5, 5], [7, 5, 5], [0, 0, 3], [2, 0, 3], [0, 2, 3]]
)
FACES = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]])


def error(share: float) -> float:
    """Four standard errors of a share of COUNT draws."""
    return 4 * (share * (1 - share) / COUNT) ** 0.5


def test_faces_get_points_by_their_area(device):
    found = on_surface(VERTICES.to(device), FACES.to(device), COUNT, Streams(0, 0))
    shares = torch.bincount(found.face, minlength=3).double() / COUNT
    assert shares[1] == 0
    assert shares[2].item() == pytest.approx(0.8, abs=error(0.8))
    assert found.position.device.type == torch.device(device).type


def test_points_lie_evenly_in_a_face_and_where_their_weights_say(device):
    found = on_surface(VERTICES.to(device), FACES[:1].to(device), COUNT, Streams(0, 1))
    again = (found.barycentric[..., None] * VERTICES[:3].to(device)).sum(1)
    torch.testing.assert_close(found.position, again)
    x, y = found.position[:, 0], found.position[:, 1]
    assert bool(((x >= 0) & (y >= 0) & (x + y <= 1 + 1e-6)).all())
    # The small triangles at the three corners, cut off half-way, have a quarter of the area each.
    for corner in found.barycentric.unbind(1):
        assert (corner > 0.5).double().mean().item() == pytest.approx(0.25, abs=error(0.25))


def test_points_move_with_the_vertices():
    def mean(vertices: Tensor) -> Tensor:
        return on_surface(vertices, FACES[:1], 50, Streams(0, 2)).position.square().mean()

    assert torch.autograd.gradcheck(mean, VERTICES[:3].double().requires_grad_())


def test_equal_streams_give_equal_points():
    one, same, other = (on_surface(VERTICES, FACES, 5, Streams(seed, 0)).position for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("faces", [FACES[:0], FACES[1:2]])
def test_a_surface_without_area_has_no_points(faces):
    with pytest.raises(InputError, match="without area"):
        on_surface(VERTICES, faces, 10, Streams(0, 0))
