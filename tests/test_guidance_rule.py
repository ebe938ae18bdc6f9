"""What is checked before a rule runs."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from dreamkit.errors import InputError
from dreamkit.guidance import check
from dreamkit.guidance.estimate import Guided, Plain
from dreamkit.guidance.rule import Probe
from dreamkit.guidance.rules import SDS, VDM, VSD
from dreamkit.guidance.student import StudentPart
from dreamkit.priors import Bell, Gaussian
from dreamkit.streams import Streams

PRIOR = Gaussian((Bell("", 0.0, 1.0),)).load("cpu")


@dataclass(frozen=True)
class Joint(Guided):
    needs: ClassVar[frozenset[str]] = frozenset({"joint_views"})


def test_a_rule_that_the_prior_can_serve_passes():
    check(SDS, PRIOR)


def test_a_missing_capability_is_named_with_the_priors_that_have_it():
    with pytest.raises(InputError, match=r"'joint_views' \(priors that see all views.*MVDream\).*'gaussian'.*--prior"):
        check(replace(SDS, trust=Joint(7.5)), PRIOR)


def test_a_condition_nobody_makes_is_named():
    with pytest.raises(InputError, match=r"\['source'\].*negative"):
        check(replace(SDS, subtract=Plain("source")), PRIOR)
    check(replace(SDS, subtract=Plain("source")), PRIOR, conditions=("prompt", "null", "source"))


def test_a_part_of_another_kind_is_named():
    streams = Streams(0, -1)
    parts = {**VSD.parts(PRIOR, streams), "mapper": VSD.parts(PRIOR, streams)["student"]}
    probe = Probe(PRIOR, {}, {}, {}, streams, parts)
    assert probe.part("student", StudentPart) is parts["student"]
    with pytest.raises(ValueError, match="the part named 'mapper' is a StudentPart"):
        VDM.subtract(probe)
