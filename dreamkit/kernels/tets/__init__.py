"""Surfaces from signed values: marching tetrahedra on a tetrahedral grid (DMTet), marching cubes on a cubic one."""

from typing import NamedTuple

import torch
from torch import Tensor

from dreamkit.kernels import choose
from dreamkit.kernels.tets.cases import topology
from dreamkit.kernels.tets.grid import TetGrid, subdivide, tet_grid

__all__ = ["TetGrid", "tet_grid", "subdivide", "Surface", "marching_tetrahedra", "marching_cubes"]

Box = tuple[tuple[float, float, float], tuple[float, float, float]]


class Surface(NamedTuple):
    """A triangle surface whose vertices lie on edges of a grid.

    vertices [M, 3] world units
    faces    [F, 3] int64 into vertices, counter-clockwise seen from outside
    edges    [M, 2] int64 the two vertices of the grid between which each vertex lies, the lower first; in increasing
             order
    weight   [M] of the second of them, in [0, 1]; the first has the rest
    """

    vertices: Tensor
    faces: Tensor
    edges: Tensor
    weight: Tensor

    def interpolate(self, values: Tensor) -> Tensor:
        """Values at the grid's vertices [V, ...] as seen at the surface's [M, ...]. Differentiable by autograd, in the
        weights too."""
        return _between(values, self.edges, self.weight)


def marching_tetrahedra(vertices: Tensor, sdf: Tensor, tets: Tensor, *, backend: str = "auto") -> Surface:
    """The surface where a function, linear in every tetrahedron, is zero: inside is where sdf < 0.

    An edge from a to b whose ends differ in sign (zero counts as outside) carries one vertex, at

        v_a + w (v_b - v_a),   w = sdf_a / (sdf_a - sdf_b)

    A tetrahedron with one or three corners inside gets one triangle, with two, two (Doi and Koide 1991; DMTet,
    arXiv:2111.04276, eq. 3). The surface is a manifold wherever the tetrahedra conform, closed but where it leaves the
    grid, and faces outward, to where sdf >= 0. Where sdf is exactly 0 at a vertex of the grid several vertices of the
    surface fall together, and triangles between them have no area; the connections are as everywhere.

    Args:
        vertices: [V, 3] of the grid, deformed at will; float32 or float64.
        sdf:      [V], like vertices.
        tets:     [T, 4] int64 into vertices. All of one orientation, positive as those of `tet_grid`; the surface
                  follows the order of their corners, also where a deformation has turned one inside out.
        backend:  "auto", "warp" or "reference". They differ in how tetrahedra are sorted into the 16 cases; the same
                  results otherwise.

    Returns:
        A `Surface`; of no vertices and no faces if all of sdf has one sign. V and T may be 0.

    Differentiable in vertices and sdf by autograd; the connections are piecewise constant. The derivative in sdf grows
    like the edge's length over |sdf_a - sdf_b|. Takes one byte a tetrahedron and about 500 bytes a face.

    Raises ValueError for wrong shapes, dtypes or devices, for numbers in vertices or sdf that are not finite, and for
    tets that name vertices that are not there; InputError for a backend that is not there.

    >>> grid = tet_grid(4)
    >>> ball = marching_tetrahedra(grid.vertices, grid.vertices.norm(dim=1) - 0.7, grid.tets)
    >>> len(ball.vertices) - 3 * len(ball.faces) // 2 + len(ball.faces)  # Euler's number of a sphere
    2
    """
    count = len(vertices)
    if vertices.shape != (count, 3) or sdf.shape != (count,) or tets.ndim != 2 or tets.shape[1] != 4:
        raise ValueError(
            f"marching_tetrahedra expects vertices [V, 3], sdf [V], tets [T, 4]; "
            f"got {tuple(vertices.shape)}, {tuple(sdf.shape)}, {tuple(tets.shape)}"
        )
    if vertices.dtype != sdf.dtype or sdf.dtype not in (torch.float32, torch.float64) or tets.dtype != torch.int64:
        raise ValueError(
            "marching_tetrahedra expects vertices and sdf in float32 or float64, the same for both, and tets in int64; "
            f"got {vertices.dtype}, {sdf.dtype}, {tets.dtype}"
        )
    if not vertices.device == sdf.device == tets.device:
        raise ValueError("marching_tetrahedra expects all its tensors on one device")
    _finite("marching_tetrahedra", "vertices", vertices)
    _finite("marching_tetrahedra", "sdf", sdf)
    codes = choose.backend(__name__, backend).codes(sdf.detach() < 0, tets)
    edges, faces = topology(codes, tets, count)
    a, b = _ends(sdf, edges)
    weight = a / (a - b)
    return Surface(_between(vertices, edges, weight), faces, edges, weight)


def marching_cubes(
    values: Tensor, level: float = 0.0, bounds: Box = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
) -> tuple[Tensor, Tensor]:
    """The surface where a grid of values crosses a level, closed and facing outward: inside is where values > level.

    For a density, the level is where it counts as solid; a signed distance, negative inside, is given as -sdf. Where
    the inside reaches the border of the grid, the surface is closed flat on the border.

    Args:
        values: [X, Y, Z] at nodes spread evenly over the bounds, the first and last on their faces, each at least 2;
                float32 or float64.
        level:  in the units of the values.
        bounds: the lowest and highest corner of the grid.

    Returns:
        vertices [M, 3], of the dtype of the values, and faces [F, 3] int64, counter-clockwise seen from outside. Both
        are empty if nothing lies above the level.

    Differentiable in the values by autograd; where the surface is closed on the border, it stays. Connections are
    piecewise constant.

    Raises ValueError for other shapes, dtypes or bounds and for values that are not finite; InputError without Warp.
    """
    if values.ndim != 3 or min(values.shape) < 2 or values.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"marching_cubes expects values [X, Y, Z] of at least 2^3 nodes in float32 or float64; "
            f"got {tuple(values.shape)} {values.dtype}"
        )
    _finite("marching_cubes", "values", values)
    if not all(low < high for low, high in zip(*bounds, strict=True)):
        raise ValueError(f"marching_cubes expects bounds (lowest corner, highest corner); got {bounds}")
    above = values - level
    highest = float(above.detach().max())
    if highest <= 0:
        return values.new_zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64, device=values.device)
    # A layer of "far below" all round. It is so low that the crossing falls on the border node to a thousandth of a
    # cell: the cap is flat and stays in the bounds.
    above = torch.nn.functional.pad(above, (1,) * 6, value=-1e3 * max(highest, 1e-6))
    middles, faces = choose.backend(__name__, "warp").cut_cubes(above > 0)
    first = middles.floor().long()
    step = middles.ceil().long() - first  # 1 along the axis of the edge
    a, b = (above[i, j, k] for i, j, k in (first.unbind(-1), (first + step).unbind(-1)))
    nodes = first + step * (a / (a - b))[:, None]
    low, high = (torch.tensor(corner, dtype=values.dtype, device=values.device) for corner in bounds)
    cells = torch.tensor(values.shape, device=values.device) - 1
    vertices = torch.minimum(torch.maximum((nodes - 1) * ((high - low) / cells) + low, low), high)
    corners = vertices.detach().double()[faces]
    volume = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum()
    return vertices, faces if volume >= 0 else faces.flip(1)


def _ends(values: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Of values [V, ...], those at the first and at the second end of edges [M, 2]."""
    return values[edges[:, 0]], values[edges[:, 1]]


def _between(values: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
    a, b = _ends(values, edges)
    return a + weight.view(-1, *[1] * (values.ndim - 1)) * (b - a)


def _finite(asker: str, name: str, values: Tensor) -> None:
    if bool(values.detach().sum().isfinite()):  # one pass, and nearly always enough
        return
    bad = int((~values.detach().isfinite()).sum())
    if bad:
        raise ValueError(f"{asker} needs finite numbers; {name} has {bad} of {values.numel()} that are NaN or infinite")
