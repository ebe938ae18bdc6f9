"""MVDream, on the toybox: the default system under multi-view SDS, four views of an object together (arXiv:2308.16512).

The prior that ships was also trained on four views of an object at once, evenly round it, each with the words of its
side. So its network says of every view what fits the other three. The form of the rule is the paper's; its levels,
scale and weight, the scene and the losses are those of the default system, which were chosen for this prior.
"""

from dataclasses import replace

from dreamkit.guidance.levels import Uniform
from dreamkit.guidance.rules import MV_SDS
from dreamkit.guidance.together import Jointly
from dreamkit.guidance.weight import SigmaSquared
from dreamkit.priors import Diffusers
from dreamkit.recipe import Guide, Stage, load

VIEWS = 4
rule = replace(MV_SDS, trust=Jointly(10.0), weight=SigmaSquared())


def together(stage: Stage) -> Stage:
    """The same stage, its views in groups of one object's, which have one level."""
    levels = stage.guides[0].rule.levels
    assert isinstance(levels, Uniform)
    guide = Guide(replace(rule, levels=replace(levels, per="object")), Diffusers("toybox", views=VIEWS))
    return replace(stage, guides=(guide,), cameras=replace(stage.cameras, group=VIEWS))


default = load("toybox")
recipe = replace(
    default,
    description="the default under multi-view SDS: the prior that ships sees four views of an object together",
    stages=tuple(together(stage) for stage in default.stages),
)
