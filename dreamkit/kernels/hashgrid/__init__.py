"""Multiresolution hash encoding (Instant-NGP, arXiv:2201.05989): points -> features read from a table."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dreamkit.kernels import choose

PRIMES = (1, 2654435761, 805459861)  # one per axis, arXiv:2201.05989 section 3


@dataclass(frozen=True)
class HashGridShape:
    """How the table of a hash grid is laid out: `levels` grids over [0,1]^3, from coarsest to finest.

    A level of resolution r has r cells and r + 1 vertices along each axis. Where its (r+1)^3 vertices fit into
    2^log2_entries they are stored directly; otherwise they share 2^log2_entries entries by a hash. The levels stand
    one after the other in the table.

    >>> shape = HashGridShape(levels=3, features=2, log2_entries=12, coarsest=8, finest=32)
    >>> shape.resolutions, shape.entries, shape.offsets, shape.total
    ((8, 16, 32), (729, 4096, 4096), (0, 729, 4825), 8921)
    """

    levels: int = 12
    features: int = 2
    log2_entries: int = 15
    coarsest: int = 16
    finest: int = 256

    def __post_init__(self) -> None:
        if self.levels < 1 or self.features < 1 or not 1 <= self.log2_entries <= 30:
            raise ValueError(f"a hash grid needs levels >= 1, features >= 1, log2_entries in 1..30; got {self}")
        if not 1 <= self.coarsest <= self.finest <= 2**20:
            raise ValueError(f"a hash grid needs 1 <= coarsest <= finest <= 2^20; got {self}")

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Cells per axis of each level: floor(coarsest * b^level), b the constant growth (eq. 2 and 3)."""
        growth = math.log(self.finest / self.coarsest) / max(self.levels - 1, 1)
        # The small number keeps floor() from turning a finest resolution of 255.9999999 into 255.
        return tuple(math.floor(self.coarsest * math.exp(growth * level) + 1e-6) for level in range(self.levels))

    @cached_property
    def entries(self) -> tuple[int, ...]:
        """Entries of each level: its vertices, or 2^log2_entries where it has more."""
        return tuple(min((r + 1) ** 3, 2**self.log2_entries) for r in self.resolutions)

    @cached_property
    def hashed(self) -> tuple[bool, ...]:
        """Whether a level has more vertices than entries."""
        return tuple((r + 1) ** 3 > 2**self.log2_entries for r in self.resolutions)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The row of the table at which each level begins."""
        return tuple(sum(self.entries[:level]) for level in range(self.levels))

    @property
    def total(self) -> int:
        """Rows of the table."""
        return sum(self.entries)

    @property
    def width(self) -> int:
        """Features of a point: levels * features."""
        return self.levels * self.features


def hashgrid(points: Tensor, table: Tensor, shape: HashGridShape, *, backend: str = "auto") -> Tensor:
    """Features of points: on every level, the trilinear mean of the table rows of the 8 vertices around the point.

        feature_level(x) = sum over the 8 vertices v of the cell of x:  prod_axis (1 - |x r - v|) table[row(v)]

    where r is the resolution of the level. The row of vertex (i, j, k) is i + j (r+1) + k (r+1)^2 on a level stored
    directly, else (i xor j 2654435761 xor k 805459861) mod 2^log2_entries (Instant-NGP, arXiv:2201.05989, eq. 4),
    in 32-bit arithmetic.

    Args:
        points: [N, 3] in [0, 1]; points outside are moved to the nearest face. N may be 0.
        table:  [shape.total, shape.features], float32 or float64, like `points`.
        shape:  the layout of the table.
        backend: "auto", "warp", "reference", or "tinycudann" (CUDA and float32 only).

    Returns:
        [N, levels * features]; the features of level l are columns l * features and following.

    Differentiable twice in table and in points, exactly: a loss on normals, which are gradients with respect to
    points, reaches the table. The derivatives are those of the trilinear patch. The first jumps at cell faces; the
    second has only its mixed terms (d/dx d/dy), and what the jumps would add is not in it. Both are 0 along an axis
    where the point lies outside. A NaN point gives NaN features.

    On a CPU the result does not depend on the number of threads. On CUDA the gradient of the table is summed by
    atomic adds, whose order, and so the last bits, may change between runs; with
    torch.use_deterministic_algorithms(True) one thread sums each level, in order and many times slower. Memory
    beyond results and gradients: none.

    Raises ValueError for wrong shapes, dtypes or devices; InputError for a backend that is not there.
    """
    if points.ndim != 2 or points.shape[1] != 3 or table.shape != (shape.total, shape.features):
        raise ValueError(
            f"hashgrid expects points [N, 3] and, for this shape, table [{shape.total}, {shape.features}]; "
            f"got {tuple(points.shape)} and {tuple(table.shape)}"
        )
    if points.dtype != table.dtype or points.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"hashgrid expects float32 or float64, the same for both; got {points.dtype}, {table.dtype}")
    if points.device != table.device:
        raise ValueError(f"hashgrid expects both tensors on one device; got {points.device} and {table.device}")
    found: Tensor = choose.implementation(__name__, "hashgrid", backend, table)(points, table, shape)
    return found
