"""Settings: one value deep inside a tree of frozen dataclasses, given as text (`--set key=value`) or itself, in Python.

A text is read by the declared type of its field; where that says nothing, by the type of the value it replaces.
It may be a number, true, false, none, text, a tuple `(2.8, 3.2)`, the name of one of the toolkit's constants (`SDS`) or
losses, or a constructor `Linear(0.98, 0.5)`. A short name will do while it is the only one; `rules.SDS` or the whole
import path always does. Nothing is evaluated but these.
"""

import ast
import collections.abc
import dataclasses
import functools
import importlib
import inspect
import math
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

from dreamkit import frozen
from dreamkit.errors import InputError, nearest
from dreamkit.schedule import Number


class _Nothing:
    """What a text that cannot be read yields."""


class _AnyValue:
    """The type of a field of which nothing is known."""


class _AnyDataclass:
    """The type of a field of which is known only that it holds a specification."""


def applied(tree: Any, changes: Iterable[tuple[list[str], Any]]) -> Any:
    """`tree` with changes made in turn, each a path and a value for `replaced`. What does not fit yet is tried again
    after the others. Raises InputError."""
    waiting = list(changes)
    while waiting:
        refused: list[tuple[list[str], Any]] = []
        why: list[InputError] = []
        for path, value in waiting:
            try:
                tree = replaced(tree, path, value)
            except InputError as error:
                refused.append((path, value))
                why.append(error)
        if len(refused) == len(waiting):
            raise why[0]
        waiting = refused
    return tree


def replaced(tree: Any, path: list[str], value: Any) -> Any:
    """`tree` with what lies at `path` (field names and tuple positions) replaced: by what a text says, or by a value of
    another type as it is. Raises InputError."""
    return _replaced(tree, path, value, f"{'.'.join(path)}={value}", _AnyValue)


def _replaced(value: Any, path: list[str], new: Any, said: str, kind: Any) -> Any:
    """`kind` is the declared type of the value; `said` the setting as a user writes it, for messages."""
    if not path:
        return _parsed(new, kind, said) if isinstance(new, str) else _taken(new, kind, said)
    word, *rest = path
    if isinstance(value, tuple):
        if not word.isdecimal() or int(word) >= len(value):
            raise InputError(f"{said}: {word!r} is not a place in a tuple of {len(value)}, counted from 0.")
        i = int(word)
        item = _replaced(value[i], rest, new, said, _kind_of_item(kind, i, value[i]))
        return (*value[:i], item, *value[i + 1 :])
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise InputError(f"{said}: there is nothing to set inside {value!r}; leave '.{'.'.join(path)}' off the key.")
    known = frozen.fields_of(value)
    if word not in known:
        raise InputError(f"{said}: {type(value).__name__} has no field {word!r}. {nearest(word, known)}")
    old = getattr(value, word)
    changed = _replaced(old, rest, new, said, _kind_of_field(type(value), word, old))
    return frozen.build(type(value), {name: getattr(value, name) for name in known} | {word: changed}, said)


# ---- Values --------------------------------------------------------------------------------------------------------


def _taken(value: Any, kind: Any, said: str) -> Any:
    """A value that is no text, as `kind`; a list becomes a tuple."""
    fitted = _fitted(tuple(value) if isinstance(value, list) else value, kind)
    if fitted is _Nothing:
        raise InputError(f"{said}: {_described(kind)} is expected; got {value!r}.")
    return fitted


def _parsed(text: str, kind: Any, said: str) -> Any:
    """The value of `text` as `kind`: as an expression if that fits, else the text itself if text fits."""
    value, why = _Nothing, ""
    try:
        value = _fitted(_evaluated(ast.parse(text.strip(), mode="eval").body), kind)
    except InputError as error:
        why = f" {error}"
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):  # of text that is no expression, and
        # of whole numbers that are too large for a float
        pass
    value = _fitted(text, kind) if value is _Nothing else value
    if value is _Nothing:
        known, head = _names_that_fit(kind), text.strip().partition("(")[0]
        hint = f" {nearest(head, known)}" if known and head not in known else ""
        raise InputError(f"{said}: {_described(kind)} is expected; got {text!r}.{why}{hint}")
    return value


def _evaluated(node: ast.expr) -> Any:
    """The value of one expression: a constant, a signed number, a tuple, a known name, a constructor."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            return -value if isinstance(sign, ast.USub) else value
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_evaluated(item) for item in items)
        case ast.Name() | ast.Attribute():
            thing = _named(ast.unparse(node))
            return _constructed(thing, [], {}) if isinstance(thing, type) else thing
        case ast.Call(func=ast.Name() | ast.Attribute() as function, args=args, keywords=keywords):
            cls = _named(ast.unparse(function))
            if isinstance(cls, type) and all(word.arg for word in keywords):
                named = {str(word.arg): _evaluated(word.value) for word in keywords}
                return _constructed(cls, [_evaluated(item) for item in args], named)
    raise InputError(f"{ast.unparse(node)!r} is not a constant, a known name or a constructor.")


def _constructed(cls: type, values: list[Any], named: dict[str, Any]) -> Any:
    """`cls(*values, **named)`, every argument checked against the declared type of its field."""
    try:
        bound = inspect.signature(cls).bind(*values, **named)
    except TypeError as error:
        raise InputError(f"{cls.__name__}({', '.join(frozen.fields_of(cls))}): {error}.") from error
    items = {}
    for name, value in bound.arguments.items():
        kind = _kind_of_field(cls, name, None)
        items[name] = _fitted(value, kind)
        if items[name] is _Nothing:
            raise InputError(f"{cls.__name__}.{name}: {_described(kind)} is expected; got {value!r}.")
    return frozen.build(cls, items, cls.__name__)


def _named(name: str) -> Any:
    """The constant, class or function that a short or dotted name means."""
    words = {"true": True, "false": False, "none": None}
    if name.lower() in words:
        return words[name.lower()]
    known = _vocabulary()
    found = {id(thing): path for path, thing in known.items() if f".{path}".endswith(f".{name}")}
    if not found:  # sds means SDS
        found = {id(v): path for path, v in known.items() if f".{path}".lower().endswith(f".{name.lower()}")}
    if len(found) > 1:
        raise InputError(f"{name!r} may mean {' or '.join(sorted(found.values()))}: write more of it.")
    if not found:
        raise InputError(f"{name!r} is not known.")
    return known[next(iter(found.values()))]


@functools.cache
def _vocabulary() -> dict[str, Any]:
    """What a value may name, by import path: the specifications, constants and losses of the toolkit."""
    rooms = [f"dreamkit.{name}" for name in ("schedule", "cameras", "losses", "recipe")]
    for folder in ("priors", "representations", "guidance"):
        package = importlib.import_module(f"dreamkit.{folder}")
        rooms += [f"dreamkit.{folder}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    words: dict[str, Any] = {}
    for room in rooms:
        for name, thing in vars(importlib.import_module(room)).items():
            home = frozen.path_of(thing)
            if isinstance(thing, type) and home:  # also one that the room imports, such as the shape of a hash grid
                words[home] = thing
            elif home == f"dreamkit.losses.{name}" or (name[0].isalpha() and frozen.path_of(type(thing))):
                words[f"{room}.{name}"] = thing
    return words


def _names_that_fit(kind: Any) -> list[str]:
    """The known names that a value of this kind may start with."""
    fit = []
    for path, thing in _vocabulary().items():
        is_class = isinstance(thing, type)
        if (
            any(_class_fits(thing, option) for option in _options(kind))
            if is_class
            else _fitted(thing, kind) is not _Nothing
        ):
            fit.append(path.rpartition(".")[2])
    return fit


def _class_fits(cls: type, kind: Any) -> bool:
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(cls, name) for name in vars(kind) if not name.startswith("_"))
    return kind is _AnyDataclass or (isinstance(kind, type) and issubclass(cls, kind))


# ---- Declared types ------------------------------------------------------------------------------------------------


def _kind_of_field(cls: type, name: str, current: Any) -> Any:
    """The declared type of a field; where it is Any or cannot be resolved, the type of the current value."""
    owner = next(base for base in cls.__mro__ if name in vars(base).get("__annotations__", {}))
    alone = types.SimpleNamespace(__annotations__={name: owner.__annotations__[name]})
    try:
        kind = typing.get_type_hints(alone, vars(sys.modules[owner.__module__]))[name]
    except NameError:
        kind = Any
    return _kind_of_value(current) if kind is Any else kind


def _kind_of_item(kind: Any, place: int, current: Any) -> Any:
    """The declared type of one item of a tuple."""
    for option in _options(kind):
        items = typing.get_args(option)
        if typing.get_origin(option) is tuple and items:
            item = items[0] if items[-1] is Ellipsis else items[min(place, len(items) - 1)]
            return _kind_of_value(current) if item is Any else item
    return _kind_of_value(current)


def _kind_of_value(value: Any) -> Any:
    if value is None:
        return _AnyValue
    if dataclasses.is_dataclass(value):
        return _AnyDataclass
    if isinstance(value, float):
        return Number
    return collections.abc.Callable if callable(value) else type(value)


def _options(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _fitted(value: Any, kind: Any) -> Any:
    """`value` as a value of type `kind` (an int becomes a float where one is asked for), or _Nothing."""
    if value is _Nothing or isinstance(value, type):
        return _Nothing
    for option in _options(kind):
        if (fitted := _fitted_one(value, option)) is not _Nothing:
            return fitted
    return _Nothing


def _fitted_one(value: Any, kind: Any) -> Any:
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if number else _Nothing
    if kind is int:
        return value if isinstance(value, int) and not isinstance(value, bool) else _Nothing
    if kind is _AnyDataclass:
        return value if dataclasses.is_dataclass(value) else _Nothing
    if kind is tuple or typing.get_origin(kind) is tuple:
        return _fitted_tuple(value, typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value if value in typing.get_args(kind) else _Nothing
    if collections.abc.Callable in (kind, typing.get_origin(kind)):
        return value if callable(value) else _Nothing
    if kind in (_AnyValue, Any) or not isinstance(kind, type):
        return value
    if getattr(kind, "_is_protocol", False):  # isinstance does not work on most of them
        methods = [name for name in vars(kind) if not name.startswith("_")]
        return value if dataclasses.is_dataclass(value) and all(hasattr(value, m) for m in methods) else _Nothing
    return value if isinstance(value, kind) else _Nothing


def _fitted_tuple(value: Any, kinds: tuple[Any, ...]) -> Any:
    if not isinstance(value, tuple):
        return _Nothing
    if not kinds:
        return value
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        return _Nothing
    items = tuple(_fitted(item, kind) for item, kind in zip(value, kinds, strict=True))
    return _Nothing if _Nothing in items else items


def _described(kind: Any) -> str:
    """A declared type in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}
    said = []
    for option in _options(kind):
        if option in words:
            said.append(words[option])
        elif option is tuple or typing.get_origin(option) is tuple:
            said.append(_described_tuple(typing.get_args(option)))
        elif typing.get_origin(option) is typing.Literal:
            said += [repr(choice) for choice in typing.get_args(option)]
        elif option in (_AnyValue, _AnyDataclass) or not isinstance(option, type):
            said.append("a name or a constructor of the toolkit")
        else:
            said.append(f"{option.__name__}(...)" if frozen.path_of(option) else f"a piece of type {option.__name__}")
    return " or ".join(dict.fromkeys(said))


def _described_tuple(kinds: tuple[Any, ...]) -> str:
    if not kinds:
        return "a tuple (a, b)"
    if kinds[-1] is Ellipsis:
        such = ", such as ('a', 'b')" if kinds[0] is str else ""
        return f"a tuple of items that are each {_described(kinds[0])}{such}"
    return f"a tuple of {len(kinds)} ({', '.join(_described(kind) for kind in kinds)})"
