"""Trees of frozen dataclasses, tuples, numbers, text and functions, and their JSON.

The import path is the name: an object is written as {"type": "dreamkit.guidance.rule.Rule", fields ...}, a function as
{"function": "dreamkit.losses.opacity"}, a tuple as a list. Reading builds frozen dataclasses and finds functions that
are defined, by a public name, in a file of the dreamkit package, and refuses everything else, so a file that is read
can run no code of its own.
"""

import dataclasses
import importlib
import math
import re
import sys
import types
from collections.abc import Callable
from typing import Any

from dreamkit.errors import InputError, nearest


def write(value: Any, where: str) -> Any:
    """`value` as JSON values; floats keep every bit. `where` names the value in messages.

    Raises InputError for anything that `read` would refuse.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}  # JSON has no nan and no inf
    if type(value) is tuple:
        return [write(item, f"{where}.{i}") for i, item in enumerate(value)]
    if isinstance(value, types.FunctionType):
        return {"function": _checked_path(value, where)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {name: write(getattr(value, name), f"{where}.{name}") for name in fields_of(value)}
        return {"type": _checked_path(type(value), where), **items}
    raise InputError(
        f"{where} is a {type(value).__name__}; a recipe holds frozen dataclasses, tuples, numbers, text and functions."
    )


def read(data: Any, where: str) -> Any:
    """The value that `write` wrote. Raises InputError for what it cannot have written, or not in this version."""
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return tuple(read(item, f"{where}.{i}") for i, item in enumerate(data))
    if isinstance(data, dict) and data.keys() == {"float"} and data["float"] in ("nan", "inf", "-inf"):
        return float(data["float"])
    if isinstance(data, dict) and data.keys() == {"function"}:
        return _found(data["function"], where, types.FunctionType)
    if not isinstance(data, dict) or "type" not in data:
        raise InputError(f'{where}: an object has a "type" or is a "function"; got {str(data)[:80]}.')
    cls = _found(data["type"], where, type)
    items = {name: read(item, f"{where}.{name}") for name, item in data.items() if name != "type"}
    for name in items:
        if name not in fields_of(cls):
            raise InputError(f"{where}: {cls.__name__} has no field {name!r}. {nearest(name, fields_of(cls))}")
    return build(cls, items, where)


def with_files(value: Any, change: Callable[[str], str]) -> Any:
    """The tree with every name of a file in it changed: of the fields that a class lists in `names_files`."""
    if isinstance(value, tuple):
        return tuple(with_files(item, change) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    held = {name: getattr(value, name) for name in fields_of(value)}
    new = {name: with_files(item, change) for name, item in held.items()}
    new |= {name: change(new[name]) for name in getattr(value, "names_files", ()) if new[name]}
    return value if all(new[name] is held[name] for name in held) else dataclasses.replace(value, **new)


def files(value: Any) -> list[str]:
    """The names of all files in the tree, as `with_files` finds them."""
    found: list[str] = []

    def look(name: str) -> str:
        found.append(name)
        return name

    with_files(value, look)
    return found


def build(cls: type, items: dict[str, Any], where: str) -> Any:
    """`cls(**items)`; what the class says against it becomes an InputError."""
    try:
        return cls(**items)
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
        raise InputError(f"{where}: {error}") from error


def fields_of(thing: Any) -> list[str]:
    """The names of the fields that make up a dataclass or an instance of one."""
    return [field.name for field in dataclasses.fields(thing) if field.init]


def path_of(thing: Any) -> str | None:
    """The import path of a frozen dataclass or function; None if it has none that `read` would take."""
    path = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}"
    frozen = isinstance(thing, type) and dataclasses.is_dataclass(thing) and thing.__dataclass_params__.frozen  # type: ignore[attr-defined]
    named = _is_public(path) and getattr(sys.modules.get(thing.__module__), thing.__qualname__, None) is thing
    return path if named and (frozen or isinstance(thing, types.FunctionType)) else None


def _is_public(path: Any) -> bool:
    """Whether a path reads dreamkit.file.Name, without private parts. It may come from a file: trust nothing."""
    return isinstance(path, str) and re.fullmatch(r"dreamkit(\.[A-Za-z][A-Za-z0-9_]*){2,}", path) is not None


def _checked_path(thing: Any, where: str) -> str:
    if (path := path_of(thing)) is None or (isinstance(thing, type) and "type" in fields_of(thing)):
        raise InputError(
            f"{where} uses {thing.__module__}.{thing.__qualname__}, which a run folder cannot name: it takes frozen "
            "dataclasses and functions that stand, by a public name, in a file of the dreamkit package."
        )
    return path


def _found(path: Any, where: str, kind: type) -> Any:
    if not _is_public(path):
        raise InputError(f"{where}: {path!r} is refused: a recipe names only what is defined under dreamkit.")
    module, _, name = path.rpartition(".")
    try:
        thing = vars(importlib.import_module(module)).get(name)
    except ImportError as error:
        raise InputError(f"{where}: this dreamkit has no {path!r} ({error}). Was it another version?") from error
    if not isinstance(thing, kind) or path_of(thing) != path:
        raise InputError(
            f"{where}: {path!r} is refused: no frozen dataclass or function of that name is defined there."
        )
    return thing
