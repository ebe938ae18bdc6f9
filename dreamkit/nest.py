"""Nests of dicts and lists with tensors in them, such as an optimiser's state: taken apart for a file, and back.

What a checkpoint holds is tensors by name, which safetensors keeps, and one JSON value for everything else.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """(tensors by name, everything else as JSON values) of a nest of dicts, lists and tuples; exact.

    Made for `Optimizer.state_dict()`: keys may be ints, values tensors, numbers, text, None. `unflatten` undoes it.
    Raises ValueError for a value of another kind.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            while name in tensors:  # the keys 0 and "0", or "a/b" beside a nest
                name += "'"
            tensors[name] = value
            return {"tensor": name}
        if type(value) is dict and all(isinstance(key, int | str) for key in value):
            return {"dict": [[key, walk(item, f"{name}/{key}" if name else str(key))] for key, item in value.items()]}
        if type(value) in (list, tuple):
            items = [walk(item, f"{name}/{i}" if name else str(i)) for i, item in enumerate(value)]
            return items if type(value) is list else {"tuple": items}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(float(value))}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise ValueError(f"{name or 'the state'} is a {type(value).__name__}, which a checkpoint cannot hold")

    rest = walk(state, "")
    return tensors, rest


def unflatten(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """The nest that `flatten` took apart."""
    if isinstance(rest, list):
        return [unflatten(tensors, item) for item in rest]
    if not isinstance(rest, dict):
        return rest
    ((kind, value),) = rest.items()
    if kind == "dict":
        return {key: unflatten(tensors, item) for key, item in value}
    if kind == "tuple":
        return tuple(unflatten(tensors, item) for item in value)
    return tensors[value] if kind == "tensor" else float(value)
