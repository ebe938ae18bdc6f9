"""Which backend runs an operator.

Every operator is a folder with one file per backend, and every backend file defines the same functions. "auto" is
Warp where it can be imported, else the reference. A backend asked for by name is used or is an error, never
silently replaced.
"""

import functools
import importlib
from types import ModuleType

from dreamkit.errors import InputError, nearest

FILES = {"warp": "warp_kernel", "reference": "reference"}  # in the order that "auto" tries them


def backend(operator: str, request: str = "auto") -> ModuleType:
    """The module that implements the operator folder `operator` (a package name) on the backend `request`.

    Raises InputError for an unknown backend, and for one that was asked for by name but cannot be imported.
    """
    if request != "auto" and request not in FILES:
        raise InputError(f"backend {request!r} is not known. {nearest(request, ['auto', *FILES])}")
    tried = [_load(operator, name) for name in (FILES if request == "auto" else [request])]
    for module in tried:
        if isinstance(module, ModuleType):
            return module
    others = " or ".join(repr(name) for name in ("auto", *FILES) if name != request)
    raise InputError(
        f"backend {request!r} was asked for, but it cannot be imported ({tried[0]}). Install it, or use {others}."
    )


@functools.cache
def _load(operator: str, name: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f"{operator}.{FILES[name]}")
    except ImportError as error:
        return error
