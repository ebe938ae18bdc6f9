"""What is checked before a rule runs."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from dreamkit.errors import InputError
from dreamkit.guidance import SDS, check
from dreamkit.guidance.estimate import Guided, Plain, ViewGuided
from dreamkit.guidance.rule import gradient
from dreamkit.guidance.weight import One
from dreamkit.priors import Bell, Gaussian, view_conditions
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


def test_view_words_of_the_same_scale_are_plain_guidance_and_of_another_add_their_direction():
    prior = Gaussian((Bell("", 0.0, 0.5), Bell("a mug", 0.3, 0.4), Bell("a mug, back view", 0.6, 0.3)), size=2).load(
        "cpu"
    )
    conditions = view_conditions(prior, "a mug", ["back"])
    x = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    streams = Streams(0, 0)

    def g(trust):
        return gradient(replace(SDS, trust=trust, weight=One()), prior, x, conditions, streams).gradient

    # Sums of the same float64 numbers in another order.
    torch.testing.assert_close(g(ViewGuided(7.0, 7.0)), g(Guided(7.0)), rtol=0, atol=1e-12)
    louder = g(ViewGuided(7.0, 9.0)) - g(ViewGuided(7.0, 7.0))
    direction = g(Plain("prompt")) - g(Plain("bare"))
    torch.testing.assert_close(louder, 2 * direction, rtol=0, atol=1e-12)
