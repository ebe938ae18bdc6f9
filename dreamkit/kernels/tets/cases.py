"""The 16 ways in which a surface can pass through a tetrahedron, and the connections that follow."""

import functools
import itertools

import torch
from torch import Tensor

EDGES = tuple(itertools.combinations(range(4), 2))
"""The two corners of each edge of a tetrahedron."""
BROKEN = 255
"""The code of a tetrahedron that names vertices that are not there."""


def triangles(code: int) -> list[tuple[int, int, int]]:
    """The triangles, as edges of a positively oriented tetrahedron, for the case in which the bits of `code` say which
    corners are inside. They face away from these.

    With the corners in an even permutation (i, j, k, l), the tetrahedron keeps its orientation: i, seen from the
    outside of the face opposite, lies behind j, k, l in counter-clockwise order. So the triangle on the edges ij, ik,
    il faces away from i. If i and j are inside, the four edges between these and k, l make a ring, of which ik, il,
    jl, jk is the order that faces away from them.
    """
    inside = [i for i in range(4) if code >> i & 1]
    alone = inside if len(inside) < 3 else [i for i in range(4) if i not in inside]
    even = (p for p in itertools.permutations(range(4)) if sum(a > b for a, b in itertools.combinations(p, 2)) % 2 == 0)
    i, j, k, m = next(p for p in even if list(p[: len(alone)]) == alone)

    def edge(a: int, b: int) -> int:
        return EDGES.index((min(a, b), max(a, b)))

    if len(inside) == 1:
        return [(edge(i, j), edge(i, k), edge(i, m))]
    if len(inside) == 2:
        return [(edge(i, k), edge(i, m), edge(j, m)), (edge(i, k), edge(j, m), edge(j, k))]
    if len(inside) == 3:
        return [(edge(i, j), edge(i, m), edge(i, k))]
    return []


def topology(codes: Tensor, tets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What the surface connects: edges [M, 2] of the grid that it crosses, and faces [F, 3] into these.

    codes [T] uint8: bit i says that corner i of the tetrahedron is inside; 0 also if all are, BROKEN if a corner is
    none of the `count` vertices of the grid.
    """
    crossed = codes.nonzero()[:, 0]
    codes, tets = codes[crossed], tets[crossed]
    if bool((codes == BROKEN).any()):
        first = int((codes == BROKEN).nonzero()[0, 0])
        raise ValueError(f"tets name vertices that are not there: {tets[first].tolist()} of {count} vertices")
    cases, ends = _tables(codes.device)
    cut = cases[codes.long()]  # [K, 2, 3]
    tet, which = (cut[:, :, 0] >= 0).nonzero().unbind(1)
    low, high = tets[tet[:, None, None], ends[cut[tet, which]]].sort(-1).values.unbind(-1)  # [F, 3] each
    keys, faces = (low * count + high).unique(return_inverse=True)
    return torch.stack([keys // max(count, 1), keys % max(count, 1)], -1), faces.view(-1, 3)


@functools.lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """[16, 2, 3] edges of the triangles of each case, -1 where there is none; [6, 2] the corners of each edge."""
    cases = torch.full((16, 2, 3), -1)
    for code, triangle in ((c, t) for c in range(16) for t in enumerate(triangles(c))):
        cases[code, triangle[0]] = torch.tensor(triangle[1])
    return cases.to(device), torch.tensor(EDGES, device=device)
