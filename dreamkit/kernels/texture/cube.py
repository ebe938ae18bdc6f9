"""Where a cube map's texels are: faces, directions, and what lies across an edge."""

import functools

import torch
from torch import Tensor


def cube_directions(
    size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", *, unit: bool = True
) -> Tensor:
    """The direction of every texel's centre, [6, S, S, 3]: unit vectors, or (unit=False) points on the cube [-1, 1]^3.

    For filling an environment: `faces = light(cube_directions(64))`. The faces are as `sample_cube` says.
    """
    along = (torch.arange(size, dtype=dtype, device=device) + 0.5) * (2 / size) - 1
    down, right = torch.meshgrid(along, along, indexing="ij")
    face = torch.arange(6, device=device)
    centre, columns, rows = (axis[:, None, None].to(dtype) for axis in frame(face))
    directions = centre + right[..., None] * columns + down[..., None] * rows
    return torch.nn.functional.normalize(directions, dim=-1) if unit else directions


def frame(face: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of faces [N]: where its centre lies, where its columns count to, and where its rows count to, [N, 3] int64 each.

    Seen from inside, columns x rows = centre on every face: no face is a mirror image.
    """
    axes = [  # centre, columns, rows: of +x, -x, +y, -y, +z, -z
        [(1, 0, 0), (0, -1, 0), (0, 0, -1)],
        [(-1, 0, 0), (0, 1, 0), (0, 0, -1)],
        [(0, 1, 0), (1, 0, 0), (0, 0, -1)],
        [(0, -1, 0), (-1, 0, 0), (0, 0, -1)],
        [(0, 0, 1), (0, -1, 0), (1, 0, 0)],
        [(0, 0, -1), (0, -1, 0), (-1, 0, 0)],
    ]
    centre, columns, rows = torch.tensor(axes, device=face.device)[face].unbind(-2)
    return centre, columns, rows


def project(directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The face [N] that directions [N, 3] meet, and where on it: x [N] to the right and y [N] down, in [0, 1].

    Of axes that are equally long, the first has the face.
    """
    axis = directions.detach().abs().argmax(-1)
    face = 2 * axis + (directions.detach().gather(-1, axis[:, None])[:, 0] < 0)
    centre, right, down = ((directions * axis.to(directions.dtype)).sum(-1) for axis in frame(face))
    return face, 0.5 * (right / centre + 1), 0.5 * (down / centre + 1)


def padded(faces: Tensor) -> Tensor:
    """Faces [6, S, S, C] with the texels of their neighbours around them, [6, S+2, S+2, C]; differentiable by autograd.

    At a corner, where no fourth texel is, stands the mean of the three.
    """
    size, channels = faces.shape[1], faces.shape[3]
    above, below, left, right = faces.reshape(-1, channels)[_across(size, faces.device)].unbind(1)

    def row(inner: Tensor, outer: Tensor, end: int) -> Tensor:
        ends = [(outer[:, i] + inner[:, i] + side[:, end]) / 3 for i, side in ((0, left), (-1, right))]
        return torch.cat([ends[0][:, None], outer, ends[1][:, None]], dim=1)[:, None]

    middle = torch.cat([left[:, :, None], faces, right[:, :, None]], dim=2)
    return torch.cat([row(faces[:, 0], above, 0), middle, row(faces[:, -1], below, -1)], dim=1)


@functools.lru_cache(maxsize=64)
def _across(size: int, device: torch.device) -> Tensor:
    """[6, 4, S] which texel, of the 6 S^2, lies across the edge above, below, left and right of every face."""
    points = cube_directions(size, torch.float64, unit=False)
    centre, right, down = (axis[:, None].double() for axis in frame(torch.arange(6)))
    # From the centre of a texel at an edge it is 1 / S to the edge, and as far again, around it, to the next centre.
    beyond = [
        points[:, 0] - (down + centre) / size,
        points[:, -1] + (down - centre) / size,
        points[:, :, 0] - (right + centre) / size,
        points[:, :, -1] + (right - centre) / size,
    ]
    face, x, y = project(torch.stack(beyond, dim=1).reshape(-1, 3))
    column, row = ((p * size).long() for p in (x, y))
    return (face * size**2 + row * size + column).reshape(6, 4, size).to(device)
