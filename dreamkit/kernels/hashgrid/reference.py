"""The hash encoding in plain torch, level by level and vertex by vertex. The contract is in the package's docstring."""

import itertools

import torch
from torch import Tensor

from dreamkit.kernels.hashgrid import PRIMES, HashGridShape


def hashgrid(points: Tensor, table: Tensor, shape: HashGridShape) -> Tensor:
    """[N, 3] points -> [N, levels * features]."""
    points = points.clamp(0.0, 1.0)
    return torch.cat([_level(points, table, shape, level) for level in range(shape.levels)], dim=1)


def _level(points: Tensor, table: Tensor, shape: HashGridShape, level: int) -> Tensor:
    """[N, features]: the trilinear mean over the 8 vertices of each point's cell on one level."""
    resolution = shape.resolutions[level]
    scaled = points * resolution
    # A point at 1 belongs to the last cell. nan_to_num: a NaN point reads row 0, and its NaN weight does the rest.
    cell = scaled.detach().nan_to_num().floor().clamp(0, resolution - 1)
    fraction = scaled - cell
    cell = cell.long()
    result = points.new_zeros(len(points), shape.features)
    for corner in itertools.product((0, 1), repeat=3):
        far = torch.tensor(corner, device=points.device)
        weight = torch.where(far.bool(), fraction, 1 - fraction).prod(dim=1)
        result = result + weight[:, None] * table[shape.offsets[level] + _row(cell + far, shape, level)]
    return result


def _row(vertex: Tensor, shape: HashGridShape, level: int) -> Tensor:
    """[N, 3] whole vertices -> [N] rows within the level."""
    i, j, k = vertex.unbind(1)
    if not shape.hashed[level]:
        side = shape.resolutions[level] + 1
        return i + j * side + k * side**2
    # int64 is wide enough: a vertex is below 2^21 and a prime below 2^32. The low bits are those of 32-bit arithmetic.
    return (i * PRIMES[0] ^ j * PRIMES[1] ^ k * PRIMES[2]) % shape.entries[level]
