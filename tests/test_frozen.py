"""Frozen trees as JSON: what survives the way there and back, and what is refused."""

import json
import math
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamkit import frozen
from dreamkit.cameras import Orbit
from dreamkit.errors import InputError
from dreamkit.losses import Weighted, opacity
from dreamkit.representations.sketch import Sketch
from dreamkit.schedule import Geometric, Linear, Sqrt, Switch

floats = st.floats(allow_nan=False, allow_infinity=True)
leaves = st.none() | st.booleans() | st.integers() | floats | st.text()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.builds(Linear, inner, inner)
        | st.builds(Geometric, st.just(0.5), st.floats(min_value=1e-300))
        | st.builds(Switch, floats, inner, floats)
        | st.builds(Weighted, st.just(opacity), inner)
    ),
    max_leaves=12,
)


def test_names_of_files_are_changed_wherever_they_are_and_nothing_else_is():
    tree = (Weighted(Sketch("a.obj"), 1.0), (Weighted(opacity, 1.0), Sketch()), "a.obj")
    changed = frozen.with_files(tree, lambda name: f"/there/{name}")
    assert changed == (Weighted(Sketch("/there/a.obj"), 1.0), (Weighted(opacity, 1.0), Sketch()), "a.obj")
    assert changed[1][0] is tree[1][0]


def there_and_back(value):
    return frozen.read(json.loads(json.dumps(frozen.write(value, "value"), allow_nan=False)), "value")


def exactly(value):
    """The value with types spelt out and floats by their bits: 1, 1.0 and True, 0.0 and -0.0 are all different."""
    if isinstance(value, tuple):
        return tuple(exactly(item) for item in value)
    if isinstance(value, float):
        return "float", struct.pack("d", value)
    if isinstance(value, Linear | Geometric | Switch | Weighted):
        return type(value), tuple(exactly(getattr(value, name)) for name in value.__dataclass_fields__)
    return type(value), value


@given(trees)
def test_json_gives_back_the_same_value_to_the_bit(tree):
    assert exactly(there_and_back(tree)) == exactly(tree)


@dataclass(frozen=True)
class Fussy:
    parts: tuple[float, ...]

    def __post_init__(self) -> None:
        assert 1 / self.parts[0]


@pytest.mark.parametrize("parts", [(0.0,), ()])
def test_what_a_class_trips_over_is_bad_input_with_its_place(parts):
    with pytest.raises(InputError, match=r"a\.b: "):
        frozen.build(Fussy, {"parts": parts}, "a.b")


def test_nan_survives_in_strict_json():
    assert math.isnan(there_and_back(Sqrt(math.nan, 1.0)).start)


@dataclass(frozen=True)
class Mine:
    size: int = 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([1, 2], "value is a list"),
        ({"a": 1}, "value is a dict"),
        (Mine(), r"value uses test_frozen\.Mine"),
        (Weighted(lambda images, scene: 0), "value.function uses"),
        (Weighted(there_and_back), r"value.function uses test_frozen\.there_and_back"),
        (Weighted(frozen._found), "value.function uses"),  # private
        ((1, Linear(0.0, object())), "value.1.end is a object"),
        (print, "value is a builtin"),
        (Linear, "value is a type"),
        (struct.Struct("d"), "value is a Struct"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(value, says):
    with pytest.raises(InputError, match=says):
        frozen.write(value, "value")


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "os:system",
        "builtins.eval",
        "dreamkit.frozen.os.system",
        "dreamkit.frozen.importlib",
        "dreamkit.frozen.importlib.import_module",
        "dreamkit.frozen._found",
        "dreamkit.recipe.Orbit",  # imported there, defined elsewhere
        "dreamkit.errors.InputError",  # a class, but no dataclass
        "dreamkit.images.Images",  # a dataclass, but not frozen
        "dreamkit.__init__.x",
        "dreamkit.cameras.Orbit.sample",
        "dreamkit.cameras.Orbit\n",
        "dreamkit..cameras.Orbit",
        "dreamkit.Orbit",
        "dreamkitten.cameras.Orbit",
        "",
        None,
        3,
        ["dreamkit.cameras.Orbit"],
    ],
)
@pytest.mark.parametrize("kind", ["type", "function"])
def test_only_public_frozen_dataclasses_and_functions_of_the_package_are_named(path, kind):
    with pytest.raises(InputError, match=r"refused|this dreamkit has no"):
        frozen.read({kind: path}, "value")


def test_a_class_is_no_function_and_a_function_no_class():
    for data in ({"function": "dreamkit.cameras.Orbit"}, {"type": "dreamkit.losses.opacity"}):
        with pytest.raises(InputError, match="refused"):
            frozen.read(data, "value")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"type": "dreamkit.schedule.Linear", "start": 1, "endd": 2}, "Linear has no field 'endd'. Did you mean 'end'"),
        ({"type": "dreamkit.schedule.Linear", "start": 1}, "missing 1 required positional argument: 'end'"),
        ({"type": "dreamkit.schedule.Nothing"}, "no frozen dataclass or function of that name"),
        ({"type": "dreamkit.nowhere.Nothing"}, "this dreamkit has no 'dreamkit.nowhere.Nothing'"),
        ({"start": 1}, 'an object has a "type"'),
        ({"float": "1e400"}, 'an object has a "type"'),
        ([1, {"type": "dreamkit.recipe.Cadence", "log": 0}], r"\.1: Cadence.log is a whole number"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(data, says):
    with pytest.raises(InputError, match=f"value.*{says}"):
        frozen.read(data, "value")


def test_the_path_of_a_thing_is_where_it_is_defined():
    assert frozen.path_of(Orbit) == "dreamkit.cameras.Orbit"
    assert frozen.path_of(opacity) == "dreamkit.losses.opacity"
    assert [frozen.path_of(thing) for thing in (Mine, print, 3, Orbit(), Orbit.sample, InputError)] == [None] * 6
