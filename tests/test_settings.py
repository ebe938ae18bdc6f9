"""Settings: text by the declared type of its field; other values as they are."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from dreamkit.errors import InputError
from dreamkit.guidance.estimate import Guided, Plain
from dreamkit.guidance.rule import Rule
from dreamkit.guidance.rules import CSD, SDS
from dreamkit.guidance.weight import One
from dreamkit.losses import Weighted, entropy, opacity
from dreamkit.priors.analytic import Bell, Gaussian
from dreamkit.priors.prior import PriorSpec
from dreamkit.schedule import Linear, Number, Switch
from dreamkit.settings import replaced

PRIOR = Gaussian((Bell("", 0.0, 1.0),))
LINE = Linear(0.0, 1.0)


@dataclass(frozen=True)
class Tree:
    whole: int = 1
    real: float = 1.0
    number: Number = 1.0
    text: str = "a"
    flag: bool = False
    maybe: int | None = None
    words: str | None = None
    choice: Literal["low", "high"] = "low"
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[str, ...] = ()
    rule: Rule = SDS
    prior: PriorSpec = PRIOR
    losses: tuple[Weighted, ...] = (Weighted(opacity),)
    any_number: Any = 1.0
    any_whole: Any = 1
    any_text: Any = "a"
    any_spec: Any = LINE
    any_none: Any = None
    unknown: "NotThere" = 3  # type: ignore[name-defined]  # noqa: F821
    inner: "Tree | None" = None
    computed: int = field(default=0, init=False)


@dataclass(frozen=True)
class Odd:
    """Its first field's type cannot be resolved, which must not spoil the second."""

    lost: "NotThere" = 1.0  # type: ignore[name-defined]  # noqa: F821
    rule: Rule = SDS


def set_in(key: str, given: Any, tree: Any = None) -> Any:
    """The value at `key` after setting it."""
    value = replaced(tree or Tree(inner=Tree()), key.split("."), given)
    for word in key.split("."):
        value = value[int(word)] if isinstance(value, tuple) else getattr(value, word)
    return value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("whole", "300", 300),
        ("whole", "10_000", 10_000),
        ("whole", " -3 ", -3),
        ("real", "3", 3.0),
        ("real", "1e-15", 1e-15),
        ("real", "-0.5", -0.5),
        ("number", "0.25", 0.25),
        ("number", "Linear(0.98, 0.5)", Linear(0.98, 0.5)),
        ("number", "linear(0.98, 0.5, until=0.25)", Linear(0.98, 0.5, until=0.25)),
        ("number", "schedule.Switch(1, 2, 0.5)", Switch(1.0, 2.0, 0.5)),
        ("text", "ugly, blurry (bad)", "ugly, blurry (bad)"),
        ("text", "300", "300"),
        ("text", "none", "none"),
        ("text", "SDS", "SDS"),
        ("text", "'quoted'", "quoted"),
        ("text", "", ""),
        ("text", "a\x00b", "a\x00b"),
        ("text", "((((", "(((("),
        ("flag", "true", True),
        ("flag", "False", False),
        ("maybe", "none", None),
        ("maybe", "4", 4),
        ("words", "None", None),
        ("words", "nothing much", "nothing much"),
        ("choice", "high", "high"),
        ("pair", "(2, 3.5)", (2.0, 3.5)),
        ("pair", "2, 3.5", (2.0, 3.5)),
        ("pair", "[2, 3.5]", (2.0, 3.5)),
        ("pair.1", "7", 7.0),
        ("many", "('glb', 'obj')", ("glb", "obj")),
        ("many", "()", ()),
        ("rule", "CSD", CSD),
        ("rule", "csd", CSD),
        ("rule", "dreamkit.guidance.rules.CSD", CSD),
        ("rule.trust.scale", "7.5", 7.5),
        ("rule.trust", "Plain('null')", Plain("null")),
        ("rule.weight", "One", One()),
        ("prior", "Gaussian((Bell('', 0, 1),))", Gaussian((Bell("", 0.0, 1.0),))),
        ("losses.0.weight", "Linear(0, 1)", Linear(0.0, 1.0)),
        ("losses.0.function", "entropy", entropy),
        ("losses", "(Weighted(entropy, 0.1), Weighted(opacity))", (Weighted(entropy, 0.1), Weighted(opacity))),
        ("any_number", "2", 2.0),
        ("any_number", "Linear(0, 1)", Linear(0.0, 1.0)),
        ("any_whole", "2", 2),
        ("any_text", "2", "2"),
        ("any_spec", "Guided(3)", Guided(3.0)),
        ("any_spec.end", "4", 4.0),
        ("any_none", "5", 5),
        ("unknown", "4", 4),
        ("inner.whole", "2", 2),
        ("inner.rule.trust.scale", "2", 2.0),
    ],
)
def test_text_is_read_by_the_type_of_its_field(key, text, value):
    found = set_in(key, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("whole", "1.5", "whole=1.5: a whole number is expected; got '1.5'"),
        ("whole", "true", "a whole number is expected"),
        ("whole", "", "a whole number is expected; got ''"),
        ("whole", "1 + 1", "is not a constant, a known name or a constructor"),
        ("whole", "9" * 5000, "a whole number is expected"),  # more digits than Python reads
        ("real", "true", "a number is expected"),
        ("real", "nan", "a number is expected"),
        ("real", "1e999", "a number is expected"),
        ("real", "Linear(0, 1)", "a number is expected"),  # this field cannot change while a stage runs
        (
            "number",
            "high",
            r"a number or Linear\(...\) or .* is expected; got 'high'. 'high' is not known. Known: DreamTime, Geo",
        ),
        ("number", "Linaer(1, 2)", "Did you mean 'Linear'"),
        ("number", "Linear(1)", r"Linear\(start, end, begin, until\): missing a required argument: 'end'"),
        ("number", "Linear(1, 'x')", "Linear.end: a number is expected; got 'x'"),
        ("number", "Linear(*(1, 2))", "is not a constant"),
        ("number", "Linear(**{})", "is not a constant"),
        ("number", "Guided(3)", "is expected; got 'Guided"),
        ("flag", "1", "true or false is expected; got '1'"),
        ("flag", "yes", "true or false is expected; got 'yes'"),
        ("maybe", "x", "a whole number or none is expected"),
        ("choice", "middle", "'low' or 'high' is expected"),
        ("pair", "3", r"a tuple of 2 \(a number, a number\) is expected"),
        ("pair", "(1, 2, 3)", "a tuple of 2"),
        ("pair.2", "3", "'2' is not a place in a tuple of 2"),
        ("pair.-1", "3", "'-1' is not a place"),
        ("many", "('glb', 3)", "a tuple of items that are each text"),
        ("rule", "SDSS", r"Rule\(...\) is expected; got 'SDSS'.* Did you mean 'SDS'"),
        ("rule", "3", r"Rule\(...\) is expected; got '3'"),
        ("rule", "Linear(0, 1)", r"Rule\(...\) is expected"),
        ("rule", "opacity", r"Rule\(...\) is expected"),
        ("rule.trust", "Guided", r"missing a required argument: 'scale'"),
        ("rule.trust", "One()", "of type Estimate is expected"),
        ("rule.trust.scle", "3", "Guided has no field 'scle'. Did you mean 'scale'"),
        ("prior", "SDS", "of type PriorSpec is expected"),
        ("losses.0", "opacity", r"Weighted\(...\) is expected"),
        ("any_spec", "3", "a name or a constructor of the toolkit is expected"),
        ("whole.x", "3", "there is nothing to set inside 1"),
        ("computed", "3", "Tree has no field 'computed'"),
        ("whole", "__import__('os').system('true')", "a whole number is expected"),
        ("any_none", "__import__('os').getcwd()", None),
        ("any_none", "open('/etc/passwd')", None),
        ("any_none", "(lambda: 1)()", None),
    ],
)
def test_what_does_not_fit_is_told(key, text, says):
    if says is None:  # anything is welcome here, but it stays text
        assert set_in(key, text) == text
        return
    with pytest.raises(InputError, match=says) as found:
        set_in(key, text)
    assert str(found.value).startswith(f"{key}={text}"[:40])


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("whole", 300, 300),
        ("real", 3, 3.0),
        ("maybe", None, None),
        ("flag", True, True),
        ("number", Linear(0.98, 0.5), Linear(0.98, 0.5)),
        ("pair", [2, 3.5], (2.0, 3.5)),
        ("pair.1", 7, 7.0),
        ("many", ["obj", "ply"], ("obj", "ply")),
        ("rule", CSD, CSD),
        ("any_spec", LINE, LINE),
    ],
)
def test_a_value_that_is_no_text_is_taken_as_it_is(key, given, value):
    found = set_in(key, given)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "given"), [("whole", 1.5), ("flag", 1), ("real", None), ("pair", (1,)), ("rule", SDS.trust), ("text", 3)]
)
def test_a_value_of_another_type_is_refused(key, given):
    with pytest.raises(InputError, match=rf"^{key}=.* is expected; got "):
        set_in(key, given)


def test_a_type_that_cannot_be_resolved_leaves_the_other_fields_their_own():
    assert set_in("rule", "CSD", Odd()) == CSD
    with pytest.raises(InputError, match=r"Rule\(...\) is expected"):
        set_in("rule", "One", Odd())


def test_the_tree_that_was_given_is_untouched():
    tree = Tree()
    replaced(tree, ["pair", "0"], "5")
    assert tree == Tree()
