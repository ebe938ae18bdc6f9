"""Which backend runs an operator.

Every operator is a folder with one file per backend: `warp_kernel.py`, `reference.py`, and for another library NAME
an adapter `NAME_adapter.py`, which imports that library and is never required. Every file defines the same functions;
an adapter may leave some out. "auto" is Warp where it can be imported, else an adapter, if the tensors are float32 on
CUDA, else the reference: what is installed besides does not change the numbers. A backend asked for by name is used
or is an error, never silently replaced.
"""

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import InputError, nearest

FILES = {"warp": "warp_kernel", "reference": "reference"}
ADAPTER = "_adapter"


@functools.cache
def backends(operator: str) -> dict[str, str]:
    """Name and file of every backend in the operator's folder, in the order that "auto" tries them."""
    spec = importlib.util.find_spec(operator)
    folders = (spec.submodule_search_locations if spec else None) or []
    found = sorted(path.stem for folder in folders for path in Path(folder).glob("*.py"))
    adapters = {file.removesuffix(ADAPTER): file for file in found if file.endswith(ADAPTER)}
    return {name: file for name, file in {"warp": FILES["warp"], **adapters, **FILES}.items() if file in found}


def backend(operator: str, request: str = "auto", like: Tensor | None = None) -> ModuleType:
    """The module that implements the operator folder `operator` (a package name) on the backend `request`, for tensors
    of the dtype and device of `like`.

    Raises InputError for an unknown backend, and for one that was asked for by name but cannot be imported.
    """
    return _first(operator, request, lambda name, module: _suits(operator, name, request, like))


def implementation(
    operator: str, function: str, request: str = "auto", like: Tensor | None = None
) -> Callable[..., Any]:
    """The function of that name on the backend `request`, for tensors of the dtype and device of `like`.

    Raises InputError as `backend` does, and for a backend that was asked for by name but lacks the function.
    """

    def fits(name: str, module: ModuleType) -> bool:
        return _suits(operator, name, request, like) and hasattr(module, function)

    found: Callable[..., Any] = getattr(_first(operator, request, fits), function)
    return found


def available(operator: str) -> dict[str, str]:
    """Name of every backend of the operator, as "auto" tries them: "ok", or why it cannot be used here."""
    state = {}
    for name in backends(operator):
        loaded = _load(operator, name)
        if isinstance(loaded, ImportError):
            state[name] = f"cannot be imported: {loaded}"
        elif _is_adapter(operator, name) and not torch.cuda.is_available():
            state[name] = "needs CUDA, and torch sees no CUDA device"
        else:
            state[name] = "ok"
    return state


def need_cuda_float32(library: str, *tensors: Tensor) -> None:
    """InputError unless these are float32 tensors on CUDA: what every adapter's library works on."""
    found = {f"{tensor.dtype} on {tensor.device.type}" for tensor in tensors}
    if found != {"torch.float32 on cuda"}:
        raise InputError(
            f"backend {library!r} works on float32 tensors on CUDA; got {', '.join(sorted(found))}. "
            "Use backend='auto', or move the tensors."
        )


def need_version(library: str, found: str, least: tuple[int, ...], below: tuple[int, ...] = (10**9,)) -> None:
    """ImportError unless the version that a library says it has is at least one, and below the other."""
    version = tuple(int(number) for number in re.findall(r"\d+", found)[:3])
    if not least <= version < below:
        most = "" if below == (10**9,) else f", before {'.'.join(map(str, below))}"
        raise ImportError(f"{library} is {found}; needed is {'.'.join(map(str, least))} or later{most}")


def need_compiled(library: str) -> None:
    """InputError where a library that compiles itself when it is first used has neither CUDA code nor the means to."""
    if importlib.import_module(f"{library}.cuda._backend")._C is None:
        raise InputError(
            f"backend {library!r} found no CUDA toolkit to compile itself with. Install one (nvcc), or a {library} "
            "that is built already; or use 'auto' or 'warp'."
        )


def _first(operator: str, request: str, fits: Callable[[str, ModuleType], bool]) -> ModuleType:
    known = backends(operator)
    if request != "auto" and request not in known:
        raise InputError(f"backend {request!r} is not known. {nearest(request, ['auto', *known])}")
    tried = {name: _load(operator, name) for name in (known if request == "auto" else [request])}
    for name, module in tried.items():
        if isinstance(module, ModuleType) and fits(name, module):
            return module
    others = " or ".join(repr(name) for name in ("auto", *known) if name != request)
    why = next(iter(tried.values()))
    if isinstance(why, ModuleType):
        raise InputError(f"backend {request!r} of {operator} lacks what was asked of it. Use {others}.")
    raise InputError(
        f"backend {request!r} was asked for, but it cannot be imported ({why}). Install it, or use {others}."
    )


def _suits(operator: str, name: str, request: str, like: Tensor | None) -> bool:
    """Whether a backend may be used for such tensors: an adapter, unless asked for, only for float32 on CUDA."""
    suits_adapters = like is not None and like.is_cuda and like.dtype == torch.float32
    return name == request or not _is_adapter(operator, name) or suits_adapters


def _is_adapter(operator: str, name: str) -> bool:
    return backends(operator)[name].endswith(ADAPTER)


@functools.cache
def _load(operator: str, name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f"{operator}.{backends(operator)[name]}")
    except ImportError as error:
        return error
    except OSError as error:  # what tiny-cuda-nn raises where there is no CUDA
        return ImportError(str(error))
