"""Sorting tetrahedra into cases in plain torch. The contract is in the package's docstring."""

import torch
from torch import Tensor

from dreamkit.kernels.tets.cases import BROKEN


def codes(inside: Tensor, tets: Tensor) -> Tensor:
    """inside [V] bool, tets [T, 4] -> [T] uint8, as `cases.topology` wants them."""
    broken = ((tets < 0) | (tets >= len(inside))).any(1)
    corners = inside[torch.where(broken[:, None], 0, tets)] if len(inside) else torch.zeros_like(tets)
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=tets.device)
    return torch.where(broken, BROKEN, (corners * bits).sum(1) % 15).to(torch.uint8)
