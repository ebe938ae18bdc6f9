"""The hash encoding by tiny-cuda-nn (github.com/NVlabs/tiny-cuda-nn). The contract is in the package's docstring.

For CUDA and float32 only, so it is exercised only where CUDA is; elsewhere the tests see no more of it than that the
arrays are handed over as tiny-cuda-nn documents them. tiny-cuda-nn lays out a pyramid of levels in another way: a
level of base resolution b has b - 1 cells, half a cell further on, and rows in multiples of 8. One level by itself,
with b = r + 1, points half a cell back and its rows filled up, is exactly a level of the contract, so every level is
an encoding of its own: as many launches as levels, which the fused kernel of a pyramid would not need.

Three limits. Of second derivatives it has those of the gradient of the points, and not those of the gradient of the
table. At a coordinate of exactly 1, and on some levels of exactly 0, the gradient of the point is that of the cell
beyond. The gradient of the table is a sum by atomic adds, of which there is no deterministic version: it is refused
where torch.use_deterministic_algorithms is on.
"""

import functools
from typing import Any

import tinycudann
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamkit.errors import InputError
from dreamkit.kernels.choose import need_cuda_float32
from dreamkit.kernels.hashgrid import HashGridShape, reference


def hashgrid(points: Tensor, table: Tensor, shape: HashGridShape) -> Tensor:
    """[N, 3] points -> [N, levels * features]."""
    need_cuda_float32("tinycudann", points, table)
    if shape.features not in (1, 2, 4, 8):
        raise InputError(f"backend 'tinycudann' has levels of 1, 2, 4 or 8 features; got {shape.features}. Use 'warp'.")
    if torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled():
        raise InputError("backend 'tinycudann' has no deterministic gradients, and torch wants them. Use 'warp'.")
    if not len(points):
        return reference.hashgrid(points, table, shape)
    points = points.clamp(0.0, 1.0)
    return torch.cat([_level(points, table, shape, level) for level in range(shape.levels)], dim=1)


def _level(points: Tensor, table: Tensor, shape: HashGridShape, level: int) -> Tensor:
    begin, entries = shape.offsets[level], shape.entries[level]
    encoding = _encoding(shape, level)
    rows = F.pad(table[begin : begin + entries], (0, 0, 0, encoding.params.numel() // shape.features - entries))
    if torch.is_grad_enabled() and points.requires_grad and not rows.requires_grad:
        rows = rows.detach().requires_grad_()  # without, tiny-cuda-nn makes the points' second derivative 0
    back = 0.5 / shape.resolutions[level]
    found: Tensor = torch.func.functional_call(encoding, {"params": rows.reshape(-1)}, (points - back,))
    if found.requires_grad:
        found.register_hook(torch.Tensor.contiguous)  # it takes no other gradient
    return found


@functools.lru_cache(maxsize=64)
def _encoding(shape: HashGridShape, level: int) -> Any:
    return tinycudann.Encoding(
        3,
        {
            "otype": "Grid",
            "type": "Hash",
            "n_levels": 1,
            "n_features_per_level": shape.features,
            "log2_hashmap_size": shape.log2_entries,
            "base_resolution": shape.resolutions[level] + 1,
            "interpolation": "Linear",
        },
        dtype=torch.float32,
    )
