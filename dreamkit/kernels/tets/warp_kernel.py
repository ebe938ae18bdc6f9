"""Sorting tetrahedra into cases, and marching cubes, in Warp, for CPU threads and CUDA. The contract is in the package.

One item per tetrahedron, which writes its own byte.
"""

from contextlib import nullcontext
from typing import Any, no_type_check

import torch
import warp as wp
from torch import Tensor

from dreamkit.kernels.launch import OPTIONS, array, launch
from dreamkit.kernels.tets.cases import BROKEN

tetrahedron = wp.types.vector(4, wp.int64)


def codes(inside: Tensor, tets: Tensor) -> Tensor:
    """inside [V] bool, tets [T, 4] -> [T] uint8, as `cases.topology` wants them."""
    result = torch.empty(len(tets), dtype=torch.uint8, device=tets.device)
    inside, tets = inside.view(torch.uint8).contiguous(), tets.contiguous()
    inputs = [array(inside, wp.uint8), array(tets, tetrahedron), array(result, wp.uint8)]
    launch(_codes, len(tets), [len(inside), *inputs], tets.device)
    return result


@wp.kernel(**OPTIONS)
@no_type_check  # inside, annotations are values that Warp reads
def _codes(
    start: wp.int32,
    count: wp.int32,
    inside: wp.array(dtype=wp.uint8),
    tets: wp.array(dtype=tetrahedron),
    result: wp.array(dtype=wp.uint8),
):
    item = start + wp.tid()
    tet = tets[item]
    if wp.min(tet) < wp.int64(0) or wp.max(tet) >= wp.int64(count):
        result[item] = wp.uint8(BROKEN)
    else:
        bits = inside[wp.int32(tet[0])] + inside[wp.int32(tet[1])] * wp.uint8(2)
        bits += inside[wp.int32(tet[2])] * wp.uint8(4) + inside[wp.int32(tet[3])] * wp.uint8(8)
        if bits == wp.uint8(15):
            bits = wp.uint8(0)
        result[item] = bits


def cut_cubes(inside: Tensor) -> tuple[Tensor, Tensor]:
    """Between nodes inside and outside, [X, Y, Z] bool: the middles [M, 3] of the grid edges that join them, in node
    numbers, and the faces [F, 3] int64 over these, of either winding."""
    try:  # Warp 1.18 gave it a new home and will take away the old one.
        from warp.geometry import IsoSurfaceMarchingCubes

        cut: Any = IsoSurfaceMarchingCubes.extract
    except ImportError:
        cut = wp.MarchingCubes.extract_surface_marching_cubes
    field = inside.float() - 0.5  # of -1/2 and 1/2, it crosses 0 exactly in the middle
    stream = wp.ScopedStream(wp.stream_from_torch(field.device)) if field.is_cuda else nullcontext()
    with stream:
        vertices, indices = cut(wp.from_torch(field), 0.0)
    return wp.to_torch(vertices).view(-1, 3), wp.to_torch(indices).view(-1, 3).long()
