"""Gaussians as a volume: a density and a colour at any point, for surfaces and textures.

A Gaussian of opacity o, drawn by splatting, hides the share o of what is behind its middle. The density that does so
too, to a ray along the shortest of its axes (the way a flat one is mostly seen), is

    sigma(x) = -ln(1 - o) / (sqrt(2 pi) s_min) exp(-m^2 / 2),     m^2 = (x - mean)^T Sigma^-1 (x - mean)

because the integral of that over the ray is -ln(1 - o). Densities add, so that the opacities of what lies behind one
another multiply as in splatting. A deviation below FINEST is taken as FINEST: a thinner sheet would slip through
between the nodes of a grid, and the optical depth stays the same.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.render.splats import rotations
from dreamkit.representations.gaussians.cloud import Cloud, colour_of
from dreamkit.triangles import summed

FINEST = 0.01
"""World units; about a pixel of 128 at the usual distance."""
REACH = 3.4
"""Standard deviations beyond which a Gaussian is not there: exp(-REACH^2 / 2) is below 1/255, where splatting ends."""
MOST_OPAQUE = 0.999
CELLS = 64
"""Along each side of the grid in which neighbours are found, at most."""
ENTRIES = 1 << 20
"""Most (cell, Gaussian) pairs that are looked at; about 200 bytes each, while the field is made."""
EMPTY = 1e-20
"""Densities up to this count as none."""
PAIRS = 1 << 17
"""(point, Gaussian) pairs at a time; about 100 bytes each."""


@dataclass(frozen=True)
class Field:
    """A cloud made ready for queries in the cube [-1, 1]^3. Made by `prepare`.

    In each of cells^3 cells the Gaussians that reach into it: those of cell c are entries[first[c] : first[c + 1]].
    """

    means: Tensor
    whiten: Tensor
    """[N, 3, 3]: |whiten (x - mean)| is m."""
    density: Tensor
    """[N] at the mean, per world unit."""
    colour: Tensor
    cells: int
    entries: Tensor
    first: Tensor

    def density_at(self, points: Tensor) -> Tensor:
        """[P, 3] -> [P] per world unit; 0 outside of the cube."""
        return self._both(points)[:, 0]

    def colour_at(self, points: Tensor) -> Tensor:
        """[P, 3] -> [P, 3] the mean of the Gaussians' base colours, weighted by their densities there; that of the
        nearest one where there is none."""
        both = self._both(points)
        colour = both[:, 1:] / both[:, :1].clamp(min=EMPTY)
        lost = (both[:, 0] <= EMPTY).nonzero().squeeze(1)
        if len(lost):
            colour[lost] = self.colour[self._nearest(points[lost])]
        return colour

    def _both(self, points: Tensor) -> Tensor:
        """[P, 4]: the densities, and the densities times colours."""
        values = points.new_zeros(len(points), 4)
        inside = (points.abs() <= 1).all(1).nonzero().squeeze(1)
        cell = _numbers(_cell_of(points[inside], self.cells), self.cells)
        count = self.first[cell + 1] - self.first[cell]
        for part in _parts(count):
            values[inside[part]] = self._sums(points[inside[part]], cell[part], count[part])
        return values

    def _sums(self, points: Tensor, cell: Tensor, count: Tensor) -> Tensor:
        """`_both` of points whose cells and numbers of candidates are known."""
        point = torch.repeat_interleave(torch.arange(len(points), device=points.device), count)
        which = self.entries[self.first[cell][point] + _counted(count)].long()
        square = _times(self.whiten[which], points[point] - self.means[which]).square().sum(1)
        here = torch.where(square < REACH**2, self.density[which] * torch.exp(-square / 2), 0.0)
        rows = here[:, None] * torch.cat([torch.ones_like(here)[:, None], self.colour[which]], 1)
        return summed(rows, point, len(points))

    def _nearest(self, points: Tensor) -> Tensor:
        from scipy.spatial import cKDTree

        return torch.as_tensor(cKDTree(self.means.cpu().numpy()).query(points.cpu().numpy())[1]).to(points.device)


@torch.no_grad()
def prepare(cloud: Cloud) -> Field:
    """The field of a cloud, which must not be empty."""
    scales = cloud.scales.clamp(min=FINEST)
    turn = rotations(cloud.quaternions)
    opacity = cloud.opacities.clamp(max=MOST_OPAQUE)
    density = -torch.log1p(-opacity) / (math.sqrt(2 * math.pi) * scales.amin(1))
    extent = REACH * (turn * scales[:, None]).norm(dim=2)
    cells = CELLS
    while True:
        low, high = (_cell_of(cloud.means + side * extent, cells) for side in (-1, 1))
        wide = high - low + 1
        if int(wide.prod(1).sum()) <= ENTRIES or cells == 1:
            break
        cells //= 2
    whiten = turn.mT / scales[..., None]
    which, cell = _met(low, wide, cells, cloud.means, whiten)
    number, order = _numbers(cell, cells).sort(stable=True)
    first = torch.searchsorted(number, torch.arange(cells**3 + 1, device=number.device))
    colour = colour_of(cloud.dc).clamp(0, 1)
    return Field(cloud.means.detach(), whiten, density, colour, cells, which[order].int(), first)


def _met(low: Tensor, wide: Tensor, cells: int, means: Tensor, whiten: Tensor) -> tuple[Tensor, Tensor]:
    """The Gaussians [E] and cells [E, 3] that meet, from the boxes low [N, 3] .. low + wide of cells to look at.

    A box round a slanting disc is mostly empty. In whitened coordinates a cell c +- h is a parallelepiped whose least
    distance from the mean is at least u . W (c - mean) - h sum |W^T u|, for any unit u: here towards its middle.
    """
    count = wide.prod(1)
    which = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    local, side = _counted(count), wide[which]
    step = torch.stack([local // (side[:, 1] * side[:, 2]), local // side[:, 2] % side[:, 1], local % side[:, 2]], 1)
    cell = low[which] + step
    middle = (cell + 0.5) * (2 / cells) - 1
    matrix = whiten[which]
    apart = _times(matrix, middle - means[which])
    far = apart.norm(dim=1)
    shadow = _times(matrix.mT, apart / far[:, None].clamp(min=1e-9)).abs().sum(1) / cells
    meets = far - shadow < REACH
    return which[meets], cell[meets]


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[P, 3, 3] times [P, 3]; a batched product of so small ones is slower on a CPU."""
    return (matrices * vectors[:, None]).sum(2)


def _cell_of(points: Tensor, cells: int) -> Tensor:
    """[P, 3] cell coordinates; what is outside of the cube is in the nearest cell."""
    return ((points + 1) * (cells / 2)).floor().long().clamp(0, cells - 1)


def _numbers(cell: Tensor, cells: int) -> Tensor:
    return (cell[:, 0] * cells + cell[:, 1]) * cells + cell[:, 2]


def _counted(count: Tensor) -> Tensor:
    """0 .. count[0] - 1, 0 .. count[1] - 1, and so on, in one row."""
    before = count.cumsum(0) - count
    return torch.arange(int(count.sum()), device=count.device) - torch.repeat_interleave(before, count)


def _parts(count: Tensor) -> tuple[Tensor, ...]:
    """The numbers of all points in runs of about PAIRS pairs."""
    run = count.cumsum(0) // PAIRS
    return torch.arange(len(count), device=count.device).split(torch.bincount(run).tolist()) if len(count) else ()
