"""Checkpoints of the toybox's two trainings: networks, optimiser and step in one file, whole at any time."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dreamkit.disk import write_whole
from dreamkit.errors import InputError


def save(file: Path, step: int, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> None:
    """Write named modules, the optimiser's state and the number of steps done."""
    from safetensors.torch import save as encode

    tensors = {f"{part}/{name}": v for part, module in modules.items() for name, v in module.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in state.items()}
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_whole(file, encode(whole, {"step": str(step)}))


def load(file: Path, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> int:
    """Take over a checkpoint, if there is one; the number of steps done.

    Raises InputError for one of another architecture.
    """
    from safetensors import safe_open

    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        return 0
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in (*modules, "optimiser")}
    with safe_open(file, "pt") as stored:
        step = int(stored.metadata()["step"])
        for key in stored.keys():  # noqa: SIM118 - not a dict
            part, name = key.split("/", 1)
            parts.setdefault(part, {})[name] = stored.get_tensor(key)
    for name, module in modules.items():
        fill(module, parts[name], file)
    state: dict[int, dict[str, Tensor]] = {}
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    for key, value in parts["optimiser"].items():
        number, name = key.split("/")
        # With the strides of its weight (channels last), or the optimiser goes the long way on CUDA.
        like = torch.empty_like(weights[int(number)], device="cpu", dtype=value.dtype) if value.ndim else value
        state.setdefault(int(number), {})[name] = like.copy_(value)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load weights into a module. Raises InputError, which names `source`, if they do not fit."""
    own = module.state_dict()
    strange = own.keys() ^ weights.keys()
    strange |= {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    if strange:
        raise InputError(f"the weights in {source} are of another architecture: {sorted(strange)[:3]} do not fit.")
    module.load_state_dict(weights)
